"""Training a model on a prepared dataset."""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from tasks.errors import JobError
from tasks.training.finish import TrainReport
from tasks.training.job import TrainJob
from tasks.training.plan import TrainPlan
from tasks.training.train import plan, train


@flow(name="train-model", flow_run_name="{job.output}")
def train_model(job: TrainJob) -> TrainReport | State[TrainReport]:
    """Train from where the output stands to the last step, and write the model."""
    try:
        report = train(job)
    except JobError as error:
        return Failed(message=str(error))
    if not report.steps_now:
        return Completed(message=f"nothing to do: all {report.steps} steps are done", data=report)
    found = "" if report.mean_iou is None else f", validation mean IoU {100 * report.mean_iou:.2f} %"
    return Completed(message=f"{report.steps_now} steps, loss {report.loss:.4f}{found}", data=report)


@flow(name="plan-training", flow_run_name="{job.output}")
def plan_training(job: TrainJob) -> TrainPlan | State[TrainPlan]:
    """Say what a training will do, measured over a few steps."""
    try:
        return plan(job)
    except JobError as error:
        return Failed(message=str(error))
