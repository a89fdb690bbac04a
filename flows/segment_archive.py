"""The main job: a mask for every photograph of an archive."""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from tasks.errors import JobError
from tasks.segmentation.finish import publish_gallery, publish_report
from tasks.segmentation.job import ArchiveJob, list_archive
from tasks.segmentation.report import ArchiveReport
from tasks.segmentation.session import segment_remaining


@flow(name="segment-archive", flow_run_name="{job.source}")
def segment_archive(job: ArchiveJob) -> ArchiveReport | State[ArchiveReport]:
    """Give every image of an archive a mask, and say what is in it."""
    try:
        plan = list_archive(job)
        session = segment_remaining(job, plan)
        report = publish_report(job, plan, session)
        report = publish_gallery(job, report)
    except JobError as error:
        return Failed(message=str(error))
    counts = f"{report.images} images: {report.masks} masks, {report.num_errors} errors"
    return Completed(message=counts, data=report)
