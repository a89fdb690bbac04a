"""What a training will do: counted, and measured over a few steps of it."""

from typing import Any

from pydantic import BaseModel

from segcore import models
from segcore.recipes import TrainRecipe
from tasks.training.resolved import ResolvedTraining


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


def make_plan(
    resolved: ResolvedTraining, news: list[dict[str, Any]], *, start: int, num_workers: int, use_gpu: bool
) -> TrainPlan:
    """The plan of a training that stands at a step.

    news: what the workers said of the steps that were measured. start: the next step.
    """
    job, recipe = resolved.job, resolved.recipe
    rows = [row for row in news if "loss" in row]
    timed = rows[1:] or rows  # The first step warms caches up
    seconds = sum(row["seconds"] for row in timed) / len(timed) * recipe.mean_cost
    split = resolved.manifest.split(job.split)
    groups, frozen = _counted(recipe, len(resolved.manifest.classes))
    steps = recipe.iterations - start
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
        seconds_left=steps * seconds,
        dataset_bytes=sum(file.bytes for file in split.files),
    )


def _counted(recipe: TrainRecipe, num_classes: int) -> tuple[list[GroupPlan], int]:
    """Groups of what trains, and how many parameters do not; the network is built without memory for it."""
    import torch

    from segcore.schedules import parameter_groups

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
