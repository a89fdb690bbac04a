"""Training a model, and the plan of it, step by step.

    OUTPUT/training.json       what is trained, how it stands: record.py
    OUTPUT/checkpoints/        see checkpoints.py
    OUTPUT/metrics/            rows of the steps between two checkpoints
    OUTPUT/metrics.parquet     all of them, at the end
    OUTPUT/curves.png          loss, learning rate, IoU
    OUTPUT/model/              the model directory, at the end

What a worker does is in `loop.py`, what a step does in `segcore/training.py`.
"""

import time

from tasks import cluster, progress, storage
from tasks.training import checkpoints
from tasks.training.driver import Driver
from tasks.training.finish import TrainReport, finish, make_report
from tasks.training.job import TrainJob
from tasks.training.plan import TrainPlan, make_plan
from tasks.training.record import begin_record, check_identity, read_record
from tasks.training.resolved import resolve

_MEASURED_STEPS = 6


def train(job: TrainJob) -> TrainReport:
    """Train from where OUTPUT stands to the last step, and write the model."""
    resolved = resolve(_with_steps(job))
    output = resolved.output
    storage.require_writable(output)
    with storage.explained(output):
        record = begin_record(resolved)
        if record.get("status") == "finished":
            return make_report(resolved, record, start=resolved.recipe.iterations, seconds=0.0, restarts=0)
        start = max(checkpoints.checkpoint_steps(output), default=0)
    began = time.monotonic()
    with cluster.connected():
        restarts = Driver(resolved, record).run()
    with storage.explained(output):
        record = finish(resolved)
        return make_report(resolved, record, start=start, seconds=time.monotonic() - began, restarts=restarts)


def _with_steps(job: TrainJob) -> TrainJob:
    """The job with a number of steps in the place of minutes: that of the record, or what is measured now."""
    if job.minutes is None:
        return job
    plain = job.model_copy(update={"minutes": None})
    output = storage.locate(job.output)
    with storage.explained(output):
        record = read_record(output)
    if record:
        return plain.model_copy(update={"iterations": int(record["identity"]["recipe"]["iterations"])})
    measured = plan(plain)
    steps = max(1, round(60 * job.minutes / measured.seconds_per_step))
    progress.say(f"{measured.seconds_per_step:.2f} s a step: {steps} steps in {job.minutes:g} minutes.")
    return plain.model_copy(update={"iterations": steps})


def plan(job: TrainJob) -> TrainPlan:
    """What `train` would do: counted, and measured over a few steps whose work is thrown away."""
    if job.minutes is not None:
        job = _with_steps(job)
    resolved = resolve(job)
    with storage.explained(resolved.output):
        record = read_record(resolved.output)
        check_identity(resolved, record)
        start = max(checkpoints.checkpoint_steps(resolved.output), default=0)
    progress.say(f"Measuring {_MEASURED_STEPS} steps of {resolved.recipe.batch_size} images; nothing is written.")
    with cluster.connected():
        driver = Driver(resolved, record, measure_steps=_MEASURED_STEPS)
        driver.run()
    return make_plan(resolved, driver.news, start=start, num_workers=driver.num_workers, use_gpu=driver.use_gpu)
