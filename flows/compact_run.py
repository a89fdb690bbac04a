"""Few large files in the place of a run's many small ones."""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from tasks.errors import JobError
from tasks.results.compaction import CompactJob, CompactReport, compact_archive


@flow(name="compact-run", flow_run_name="{job.output}")
def compact_run(job: CompactJob) -> CompactReport | State[CompactReport]:
    """Compact a finished run, and say what was done."""
    try:
        report = compact_archive(job)
    except JobError as error:
        return Failed(message=str(error))
    return Completed(message=report.told(), data=report)
