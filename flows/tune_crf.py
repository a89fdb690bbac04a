"""The search for CRF parameters on images whose scores are stored."""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from tasks.errors import JobError
from tasks.evaluation.tuning import TuneJob, TuneReport, search_crf


@flow(name="tune-crf", flow_run_name="{job.scores}")
def tune_crf(job: TuneJob) -> TuneReport | State[TuneReport]:
    """Find the CRF parameters with the best mean IoU, and say how sure that is."""
    try:
        report = search_crf(job)
    except JobError as error:
        return Failed(message=str(error))
    found = f"mean IoU {100 * report.mean_iou:.2f} % after {report.num_points} points, {report.preset} has"
    return Completed(message=f"{found} {100 * report.preset_mean_iou:.2f} %", data=report)
