"""The nightly re-evaluation: every model of a registry on the validation images, compared with its baseline."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed

from tasks.errors import JobError
from tasks.evaluation.evaluate import ReevaluateJob
from tasks.nights.nightly import close_night, evaluate_models, judge_night, plan_night, publish_night, stale


@flow(name="reevaluate", flow_run_name="{job.dataset}")
def reevaluate(job: ReevaluateJob) -> State[Any]:
    """Say how good every model is, how certain that is, and whether one became worse; quiet where none did."""
    if late := stale(job):
        return Cancelled(message=late)
    try:
        plan = plan_night(job)
        if plan.nothing_new:
            return Completed(name="Skipped", message=plan.nothing_new)
        night = evaluate_models(job, plan)
        night = judge_night(job, night)
        night = publish_night(job, night)
        close_night(job, night)
    except JobError as error:
        return Failed(message=str(error))
    if night.alarms:
        return Failed(message=night.sentence)
    return Completed(message=night.sentence)
