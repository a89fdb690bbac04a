"""Training a model, and the plan of it, step by step.

    OUTPUT/training.json       what is trained, how it stands: resolved.py
    OUTPUT/checkpoints/        see checkpoints.py
    OUTPUT/metrics/            rows of the steps between two checkpoints
    OUTPUT/metrics.parquet     all of them, at the end
    OUTPUT/curves.png          loss, learning rate, IoU
    OUTPUT/model/              the model directory, at the end

What a worker does is in `loop.py`, what a step does in `segcore/learning/training.py`.
"""

import time
from typing import Any

from pydantic import BaseModel

from segcore import models
from segcore.learning.recipes import TrainRecipe
from tasks import cluster, progress, storage
from tasks.training import checkpoints
from tasks.training.driver import Driver
from tasks.training.finish import TrainReport, finish, make_report
from tasks.training.resolved import ResolvedTraining, begin_record, check_identity, read_record, resolve
from tasks.training.training_job import TrainJob


class GroupPlan(BaseModel, frozen=True):
    """Parameters that share a learning rate."""

    label: str
    tensors: int
    parameters: int
    learning_rate: float
    """At the first full step of the schedule."""


class TrainPlan(BaseModel, frozen=True):
    """What a training will do, measured over a few steps of it."""

    job: str
    """The recipe in a sentence."""

    groups: list[GroupPlan]
    """What trains."""

    frozen: int
    """Parameters that do not."""

    images: int
    """Of the split."""

    epochs: float
    """How often each is seen."""

    steps: int
    """Still to do."""

    num_workers: int
    device: str
    seconds_per_step: float
    """On average over the whole training, whose crops may grow."""

    images_per_s: float
    device_busy: float
    peak_bytes: int
    """Memory of the first worker: of the device, or of the process on a CPU."""

    seconds_left: float
    """Steps still to do at this speed; validations and checkpoints come on top."""

    dataset_bytes: int
    """Of the split, as stored."""


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
    return _make_plan(resolved, driver.news, start=start, num_workers=driver.num_workers, use_gpu=driver.use_gpu)


def _make_plan(
    resolved: ResolvedTraining, news: list[dict[str, Any]], *, start: int, num_workers: int, use_gpu: bool
) -> TrainPlan:
    """The plan of a training that stands at a step.

    news: what the workers said of the steps that were measured. start: the next step.
    """
    job, recipe = resolved.job, resolved.recipe
    rows = [row for row in news if "loss" in row]
    timed = rows[1:] or rows  # The first step warms caches up
    seconds = sum(row["seconds"] for row in timed) / len(timed)
    split = resolved.manifest.split(job.split)
    groups, frozen = _counted(recipe, len(resolved.manifest.classes))
    steps = recipe.iterations - start
    seconds_left = seconds * recipe.cost(start, recipe.iterations)
    seconds *= recipe.cost(0, recipe.iterations) / recipe.iterations
    return TrainPlan(
        job=f"{recipe.model}, {recipe.iterations} steps of {recipe.batch_size} crops of "
        f"{recipe.crop_px} px, {recipe.optimiser}, {recipe.schedule.kind}, {recipe.precision}",
        groups=groups,
        frozen=frozen,
        images=split.images,
        epochs=recipe.iterations * recipe.batch_size / split.images,
        steps=steps,
        num_workers=num_workers,
        device="GPU" if use_gpu else "CPU",
        seconds_per_step=seconds,
        images_per_s=recipe.batch_size / seconds,
        device_busy=1 - sum(row["seconds_data"] for row in timed) / sum(row["seconds"] for row in timed),
        peak_bytes=max(row["peak_bytes"] for row in rows),
        seconds_left=seconds_left,
        dataset_bytes=sum(file.bytes for file in split.files),
    )


def _counted(recipe: TrainRecipe, num_classes: int) -> tuple[list[GroupPlan], int]:
    """Groups of what trains, and how many parameters do not; the network is built without memory for it."""
    import torch

    from segcore.learning.schedules import parameter_groups

    with torch.device("meta"):
        network = models.build(recipe.model, num_classes, **dict(recipe.options))
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    groups = parameter_groups(network, recipe.rules, recipe.weight_decay, decay_biases=recipe.decay_biases)
    plans = [
        GroupPlan(
            label=group.label,
            tensors=len(group.names),
            parameters=sum(sizes[name] for name in group.names),
            learning_rate=recipe.learning_rate * group.multiplier,
        )
        for group in groups
    ]
    return plans, sum(sizes.values()) - sum(group.parameters for group in plans)
