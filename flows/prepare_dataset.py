"""A dataset for training and evaluation: VOC 2012 with SBD, or anybody's own."""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from tasks.datasets.prepare import (
    DatasetJob,
    DatasetReport,
    check_pairs,
    fetch_archives,
    publish_dataset,
    say_splits,
    unpack_archives,
    write_shards,
)
from tasks.errors import JobError


@flow(name="prepare-dataset", flow_run_name="{job.output}")
def prepare_dataset(job: DatasetJob) -> DatasetReport | State[DatasetReport]:
    """Fetch what can be fetched, prove it, and store it as shards."""
    try:
        archives = fetch_archives(job)
        sources = unpack_archives(job, archives)
        check_pairs(job, sources)
        report = write_shards(job, sources)
        publish_dataset(report)
    except JobError as error:
        return Failed(message=str(error))
    return Completed(message=f"{report.name}: {say_splits(report.splits)}", data=report)
