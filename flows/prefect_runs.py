"""The jobs as Prefect flows: tasks, retries, states, artifacts, events. The one module that imports Prefect.

The order of the steps is that of `flows.jobs`; a deployment names a flow of this file.
"""

import datetime
import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast
from uuid import UUID

from prefect import flow, runtime, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.states import Cancelled, Completed, Failed

from flows import jobs
from tasks import progress, storage
from tasks.datasets.prepare import DatasetJob, DatasetReport, say_splits
from tasks.errors import InterruptedJobError, JobError
from tasks.evaluation.evaluate import ReevaluateJob
from tasks.evaluation.tuning import TuneJob, TuneReport
from tasks.nights.baselines import Night
from tasks.results import gallery
from tasks.results.sealing import CompactJob, CompactReport
from tasks.review.corrections import CorrectionsJob, CorrectionsReport
from tasks.segmentation.archive_job import ArchiveJob
from tasks.segmentation.outcome import ArchiveReport, summary
from tasks.training.finish import TrainReport
from tasks.training.train import TrainPlan
from tasks.training.training_job import TrainJob

REGRESSION = "segment-archive.regression"
"""Name of the event that automations listen to."""

_ARTIFACT_EVERY_S = 5.0

J = TypeVar("J")
R = TypeVar("R")


def record(steps: Callable[[J, jobs.Step], R], job: J) -> R:
    """Run a job of `flows.jobs` as a flow run of the server of PREFECT_API_URL.

    Raises JobError with the message of a run that did not end well; a night with alarms is returned.
    """
    try:
        state: State[Any] = globals()[steps.__name__](job, return_state=True)
    except Exception as error:  # Before Prefect has a run that could have a state
        address = os.environ.get("PREFECT_API_URL")
        raise JobError(
            f"Prefect could not start the run: {type(error).__name__}: {error}. Is the server of "
            f"PREFECT_API_URL={address} up? Unset it to run without."
        ) from error
    result: Any = state.result(raise_on_failure=False)
    if isinstance(result, BaseException) or (result is None and not state.is_completed()):
        raise JobError(state.message or "The run did not end well.")
    return cast(R, result)


@flow(name="segment-archive", flow_run_name="{job.source}")
def segment_archive(job: ArchiveJob) -> State[ArchiveReport]:
    """Give every image of an archive a mask, and say what is in it."""
    return _run(
        jobs.segment_archive,
        job,
        lambda report: Completed(message=report.sentence, data=report),
    )


@flow(name="compact-run", flow_run_name="{job.output}")
def compact_run(job: CompactJob) -> State[CompactReport]:
    """Compact a finished run, and say what was done."""
    return _run(jobs.compact_run, job, lambda report: Completed(message=report.told(), data=report))


@flow(name="prepare-dataset", flow_run_name="{job.output}")
def prepare_dataset(job: DatasetJob) -> State[DatasetReport]:
    """Fetch what can be fetched, check it, and store it as shards."""
    return _run(
        jobs.prepare_dataset,
        job,
        lambda report: Completed(message=f"{report.name}: {say_splits(report.splits)}", data=report),
    )


@flow(name="import-corrections", flow_run_name="{job.dataset}")
def import_corrections(job: CorrectionsJob) -> State[CorrectionsReport]:
    """Bring corrected masks back, and prepare them as a dataset."""
    return _run(jobs.import_corrections, job, lambda report: Completed(message=report.told(), data=report))


@flow(name="reevaluate", flow_run_name="{job.dataset}")
def reevaluate(job: ReevaluateJob) -> State[Any]:
    """Say how good every model is, how certain that is, and whether one became worse; quiet where none did."""
    if late := _late(job):
        return Cancelled(message=late)
    state = _run(jobs.reevaluate, job, _end_of_night)
    if state.is_failed() and state.data is None:  # Without a night the newest page would be that of an earlier one
        _show_in_place_of_night(str(state.message))
    return state


@flow(name="train-model", flow_run_name="{job.output}")
def train_model(job: TrainJob) -> State[TrainReport]:
    """Train from where the output stands to the last step, and write the model."""
    return _run(jobs.train_model, job, _end_of_training)


@flow(name="plan-training", flow_run_name="{job.output}")
def plan_training(job: TrainJob) -> State[TrainPlan]:
    """Say what a training will do, measured over a few steps."""
    return _run(jobs.plan_training, job, lambda plan: Completed(message=plan.job, data=plan))


@flow(name="tune-crf", flow_run_name="{job.scores}")
def tune_crf(job: TuneJob) -> State[TuneReport]:
    """Find the CRF parameters with the best mean IoU, and say how sure that is."""
    return _run(jobs.tune_crf, job, lambda report: Completed(message=report.told(), data=report))


def _run(steps: Callable[[J, jobs.Step], R], job: J, end: Callable[[R], State[Any]]) -> State[Any]:
    try:
        with progress.told_to(ProgressArtifact()):
            return end(steps(job, _task))
    except JobError as error:
        return Failed(message=str(error))


def _task(function: Callable[..., R], /, *, again: bool = False) -> Callable[..., R]:
    """A step as a Prefect task that shows its result; what it does is not cached, since the output knows what is done.

    There is no limit of time for a whole archive; an engine ends a session in which nothing is finished any more.
    """

    @functools.wraps(function)
    def shown(*arguments: Any) -> R:
        result = function(*arguments)
        if function.__name__ in _SHOWN:
            _SHOWN[function.__name__](result, *arguments)
        return result

    retries: dict[str, Any] = {
        "retries": 2,
        "retry_delay_seconds": [10, 60],
        "retry_jitter_factor": 0.5,
        "retry_condition_fn": _worth_another_try,
    }
    name = function.__name__.replace("_", "-")
    return task(name=name, cache_policy=NO_CACHE, **(retries if again else {}))(shown)


def _worth_another_try(_task: Any, _run: Any, state: Any) -> bool:
    """A job that cannot run will not run a minute later either."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, InterruptedJobError) or not isinstance(error, JobError)


def _end_of_night(night: Any) -> State[Any]:
    if not isinstance(night, Night):
        return Completed(name="Skipped", message=night.nothing_new, data=night)
    return (Failed if night.alarms else Completed)(message=night.sentence, data=night)


def _end_of_training(report: TrainReport) -> State[TrainReport]:
    if not report.steps_now:
        return Completed(message=f"nothing to do: all {report.steps} steps are done", data=report)
    found = "" if report.mean_iou is None else f", validation mean IoU {100 * report.mean_iou:.2f} %"
    return Completed(message=f"{report.steps_now} steps, loss {report.loss:.4f}{found}", data=report)


def _late(job: ReevaluateJob) -> str | None:
    """Sentence that says so, where this run of a deployment starts too long after its time; None otherwise."""
    due = runtime.flow_run.scheduled_start_time
    if runtime.deployment.id is None or due is None:
        return None
    hours = (datetime.datetime.now(datetime.UTC) - due).total_seconds() / 3600
    if hours <= job.stale_after_hours:
        return None
    return f"Due {hours:.0f} hours ago, at {due:%Y-%m-%d %H:%M} UTC: too late to be of use; the next night is as good."


class ProgressArtifact:
    """Progress listener: a progress artifact of the running flow."""

    def __init__(self) -> None:
        self._artifact: UUID | None = None
        self._last = 0.0

    def begin(self, state: progress.State) -> None:
        if state.total is None:
            return
        created = create_progress_artifact(progress=_share(state), description=state.words())
        self._artifact = created if isinstance(created, UUID) else None

    def advance(self, state: progress.State) -> None:
        now = datetime.datetime.now().timestamp()
        if self._artifact is not None and now - self._last > _ARTIFACT_EVERY_S:
            self._last = now
            update_progress_artifact(self._artifact, progress=_share(state), description=state.words())

    def end(self, state: progress.State) -> None:
        if self._artifact is not None:
            update_progress_artifact(self._artifact, progress=_share(state), description=state.words())
            self._artifact = None

    def say(self, text: str) -> None:
        pass


def _share(state: progress.State) -> float:
    return 100.0 * min(1.0, state.done / max(1, state.total or 1))


def _show_archive(report: ArchiveReport, *_: Any) -> None:
    create_markdown_artifact(markdown=summary(report), key="segment-archive-summary", description="What came out")
    rows = [
        {"class": name, "images": count.images, "share of images": f"{count.images / max(1, report.masks):.1%}"}
        for name, count in report.classes.items()
    ]
    if rows:
        create_table_artifact(table=rows, key="segment-archive-classes", description="What is in the archive")


def _show_gallery(report: ArchiveReport, *_: Any) -> None:
    if report.gallery is not None:
        create_markdown_artifact(
            markdown=gallery.markdown(report.gallery, report.masks),
            key="segment-archive-gallery",
            description="What the masks look like",
        )


def _emit_alarms(night: Night, *_: Any) -> None:
    """An event for every alarm; before the pictures, so that no fault of theirs keeps it from anybody."""
    for alarm in night.alarms:
        emit_event(
            event=REGRESSION,
            resource={
                "prefect.resource.id": f"segment-archive.model.{alarm.model}",
                "prefect.resource.name": alarm.model,
                "segment-archive.kind": alarm.kind,
            },
            payload={
                "sentence": alarm.sentence,
                "model": alarm.model,
                "kind": alarm.kind,
                "run": night.run,
                "dataset": night.dataset,
                "differences": alarm.differences,
                "report": night.report,
            },
        )


def _show_night(night: Night, job: ReevaluateJob, *_: Any) -> None:
    from tasks.nights.page import markdown
    from tasks.nights.summary import sheet_columns, sheet_of

    output = storage.locate(job.output)
    told = markdown(output, night, job.dataset)
    create_markdown_artifact(markdown=told, key="segment-archive-night", description="What a night found")
    rows = [sheet_columns(row) for row in sheet_of(output, night.evaluations) if row.ours is not None]
    create_table_artifact(table=rows, key="segment-archive-sheet", description="Our numbers beside the papers'")


def _show_in_place_of_night(sentence: str) -> None:
    told = f"# Nothing was evaluated\n\n{sentence}"
    create_markdown_artifact(markdown=told, key="segment-archive-night", description="Why there was no night")


def _show_dataset(report: DatasetReport, *_: Any) -> None:
    lines = [
        f"# {report.name}: {say_splits(report.splits)}",
        f"In `{report.output}`, digest `{report.digest[:12]}`.",
        "",
    ]
    lines += ["| class | images | pixels |", "|---|---:|---:|"]
    lines += [f"| {name} | {images:,} | {pixels:,} |" for name, (images, pixels) in report.classes.items()]
    lines += ["", "| finding | times |", "|---|---:|", *(f"| {kind} | {n:,} |" for kind, n in report.findings.items())]
    create_markdown_artifact(key="prepare-dataset", markdown="\n".join(lines), description=report.name)


_SHOWN: dict[str, Callable[..., None]] = {
    "publish_report": _show_archive,
    "publish_gallery": _show_gallery,
    "judge_night": _emit_alarms,
    "publish_night": _show_night,
    "write_shards": _show_dataset,
}
"""What is shown of a step's result, by the step's function."""


def server_answers() -> str:
    """The doctor's check: what the server of PREFECT_API_URL says. Raises JobError with the remedy."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks import storage_faults

    address = os.environ["PREFECT_API_URL"]
    shown = storage_faults.scrub(address)
    with temporary_settings({PREFECT_API_URL: address}), get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
        if problem is None:
            pools = [pool.name for pool in client.read_work_pools()]
    if problem is not None:
        raise JobError(f"Nobody answers at PREFECT_API_URL={shown}: start the server, or unset it.")
    if not pools:
        raise JobError(f"The server at {shown} has no work pool: see infra/README.md.")
    return f"the server at {shown} answers; work pools: {', '.join(pools)}"
