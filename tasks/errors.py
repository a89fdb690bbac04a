"""What a person sees when a job cannot run: one sentence that names the culprit and the remedy."""

from typing import Any


class JobError(ValueError):
    """The job cannot run, or has ended short of its promise; the message is the whole story for the person."""


class InterruptedJobError(JobError):
    """The job has ended short of its promise for a reason that may pass: a node was lost, storage did not answer."""


def worth_another_try(_task: Any, _run: Any, state: Any) -> bool:
    """Condition of Prefect's retries: a job that cannot run will not run a minute later either."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, InterruptedJobError) or not isinstance(error, JobError)
