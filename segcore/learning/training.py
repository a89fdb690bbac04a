"""One step of a training: forward, losses, backward, optimiser, moving average. On one worker or among several.

`Trainer` holds everything that changes during a training, and its state is all that a resumed one needs. Which images
come next is in `sampling.py`, views of them in `augment.py`, the numbers in `recipes.py`; reading data, checkpoints
and validation belong to `tasks/training/loop.py`. With torch.distributed initialised, workers compute one global batch.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from segcore import models
from segcore.learning import losses
from segcore.learning.recipes import LossParams, TrainRecipe
from segcore.learning.schedules import freeze_others, parameter_groups, torch_groups
from segcore.models.multi_scale import MultiScaleLogits, multi_scale_logits
from segcore.models.preprocessing import Preprocessing
from segcore.models.pspnet import TrainingLogits
from segcore.models.resnet import FrozenBatchNorm
from segcore.models.untrained import initialise_untrained
from segcore.voc import IGNORE_LABEL


@dataclass(frozen=True)
class Batch:
    """Views of some images with what is to be learnt of them, on the device of the network."""

    images: Tensor
    """(N, 3, H, W) float32, normalised as `normalise` does; sides 8k + 1."""

    labels: Tensor
    """(N, H, W) uint8; 255 is ignored."""

    soft: Tensor | None = None
    """(N, C, h, w) float: a teacher's probabilities at pixels 0, 8, 16, ..."""

    inside: Tensor | None = None
    """(N, h, w) bool: where `soft` means something."""

    teacher_share: Tensor | None = None
    """(N, h, w) float: the teacher's share of the target where there is a label too."""


@dataclass
class StepReport:
    """What a step did."""

    loss: float
    """Weighted sum of all losses, of the global batch, before the step."""

    losses: dict[str, float]
    """Each loss by name, without its weight: "main", "auxiliary", "scale 0.5", "fused"."""

    learning_rates: dict[str, float]
    """By parameter group."""

    gradient_norm: float | None
    """Before clipping; None where nothing is clipped."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Of "forward", "backward" and "step" on this worker; on CUDA the work is only begun within them."""


class NonFiniteLossError(ValueError):
    """The loss of a step is not a number; the weights are as they were before the step."""


class TrainingNetwork(nn.Module):
    """A network that returns the logits of every loss by name, in one call, as DistributedDataParallel needs it."""

    def __init__(self, network: nn.Module, params: LossParams) -> None:
        super().__init__()
        self.network = network
        self.params = params
        self.margin_px = int(getattr(network, "margin_px", 0))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if self.margin_px:
            images = F.pad(images, (self.margin_px, 0, self.margin_px, 0))
        if self.params.scales:
            scaled: MultiScaleLogits = multi_scale_logits(self.network, images, self.params.scales)
            names = [losses.scale_name(scale) for scale in self.params.scales]
            return {"main": scaled.logits, **dict(zip(names, scaled.per_scale, strict=True)), "fused": scaled.fused}
        logits = self.network(images)
        if isinstance(logits, TrainingLogits):
            return {"main": logits.logits, "auxiliary": logits.auxiliary}
        return {"main": logits}


class MovingAverage:
    """Exponential average of the weights over the steps; it follows closely at first, to forget its beginning soon."""

    def __init__(self, values: Mapping[str, Tensor], decay: float, *, warmup: int) -> None:
        """values: weights and statistics by name, from which it begins; they are the average, and changed in place.

        decay: share of itself that the average keeps in a step, below 1. warmup: in step n, counted from 1, it keeps no
        more than n / (n + warmup).
        """
        self.values = dict(values)
        self.decay = decay
        self.warmup = warmup
        self.steps = 0

    @torch.no_grad()
    def update(self, state: Mapping[str, Tensor]) -> None:
        """Take the state after a step in, by name as `values`; what is no float, such as a count, is copied."""
        self.steps += 1
        keep = min(self.decay, self.steps / (self.steps + self.warmup))
        real = [name for name, value in self.values.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.values[name] for name in real], [state[name] for name in real], 1 - keep)
        for name in self.values.keys() - set(real):
            self.values[name].copy_(state[name])


class Trainer:
    """A network in training with its optimiser, its moving average and the number of the next step."""

    def __init__(
        self,
        recipe: TrainRecipe,
        network: nn.Module,
        device: torch.device | str = "cpu",
        *,
        class_weights: np.ndarray | None = None,
        compiled: bool = False,
    ) -> None:
        """network: as `new_network` makes it; it is trained in place. compiled: let torch.compile fuse its kernels.

        class_weights: (C,) float32 of `losses.class_weights`, for recipes with a `class_power`.

        ValueError: the recipe trains nothing, has no weight for the network's auxiliary head, or would synchronise
        batch normalisation that is frozen.
        """
        device = torch.device(device)
        if getattr(network, "auxiliary", None) is not None and not recipe.loss.auxiliary_weight:
            raise ValueError(
                f"{recipe.model} has an auxiliary head: give it a weight, or the option auxiliary_at None."
            )
        if recipe.sync_batch_norm and any(isinstance(part, FrozenBatchNorm) for part in network.modules()):
            raise ValueError(f"The batch normalisation of {recipe.model} is frozen: there is nothing to synchronise.")
        self.recipe = recipe
        self.device = device
        self.step = 0
        self.class_weights = None if class_weights is None else torch.from_numpy(class_weights).to(device)
        self.groups = parameter_groups(network, recipe.rules, recipe.weight_decay, decay_biases=recipe.decay_biases)
        freeze_others(network, self.groups)
        # For evaluation: normalisation layers as they were built, whatever takes their place in training
        self._plain = copy.deepcopy(network).eval()
        if recipe.sync_batch_norm and device.type == "cuda" and _num_workers() > 1:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        self.network = network.to(device)
        if device.type == "cuda" or recipe.precision == "bf16":
            self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = _optimiser(recipe, torch_groups(self.network, self.groups, recipe.learning_rate))
        self.average = _average(self.network, recipe.ema_decay) if recipe.ema_decay else None
        self._parallel: nn.Module = TrainingNetwork(self.network, recipe.loss)
        if compiled:
            self._parallel = torch.compile(self._parallel)  # type: ignore[assignment]
        if _num_workers() > 1:
            self._parallel = DistributedDataParallel(
                self._parallel, device_ids=[device] if device.type == "cuda" else None
            )

    def train_step(self, batches: Sequence[Batch]) -> StepReport:
        """Learn from this worker's share of a global batch, in parts whose gradients are added up.

        Every worker must bring as many parts. The losses are means over the valid positions of the global batch,
        whatever workers and parts. NonFiniteLossError on all workers alike: the loss is no number; nothing was changed.
        """
        self._seed_step()
        self._parallel.train()
        recipe, params = self.recipe, self.recipe.loss
        factor = recipe.schedule(self.step, recipe.iterations)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base_lr"] * factor
        # One divisor for each loss, of all parts of all workers, known before the first forward pass
        targets = [_targets(batch, params) for batch in batches]
        names = list(targets[0])
        divisors = self._summed(
            [[losses.divisor(target[name], self.class_weights) for name in names] for target in targets]
        ).clamp(min=1e-6)
        self.optimiser.zero_grad(set_to_none=True)
        seconds = {"forward": 0.0, "backward": 0.0, "step": 0.0}
        sums: list[list[Tensor]] = []
        for number, (batch, target) in enumerate(zip(batches, targets, strict=True), start=1):
            began = time.perf_counter()
            # Gradients travel once, with the last part
            self._synchronise(number == len(batches))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                logits = self._parallel(batch.images.contiguous(memory_format=torch.channels_last))
            part = {name: losses.cross_entropy_sum(logits[name], target[name], self.class_weights) for name in names}
            weighted = [losses.loss_weight(name, params) * part[name] / divisors[i] for i, name in enumerate(names)]
            # DistributedDataParallel takes the mean of the workers' gradients, and this is a part of one sum
            total = torch.stack(weighted).sum() * _num_workers()
            middle = time.perf_counter()
            total.backward()  # type: ignore[no-untyped-call]
            sums.append([part[name].detach() for name in names])
            seconds["forward"] += middle - began
            seconds["backward"] += time.perf_counter() - middle
        began = time.perf_counter()
        means = dict(zip(names, (self._summed(sums) / divisors).tolist(), strict=True))
        loss = sum(losses.loss_weight(name, params) * value for name, value in means.items())
        if not math.isfinite(loss):
            raise NonFiniteLossError(f"The loss of step {self.step} is {loss}.")
        norm = self._clip()
        self.optimiser.step()
        if self.average is not None:
            self.average.update(self.network.state_dict())
        self.step += 1
        seconds["step"] = time.perf_counter() - began
        return StepReport(loss, means, self.learning_rates(self.step - 1), norm, seconds)

    def learning_rates(self, step: int) -> dict[str, float]:
        """Learning rate of each parameter group at a step, by the group's label."""
        factor = self.recipe.schedule(step, self.recipe.iterations)
        return {group.label: self.recipe.learning_rate * group.multiplier * factor for group in self.groups}

    def evaluation_network(self) -> nn.Module:
        """A copy of the network on the CPU in eval mode, with the moving average as weights where there is one."""
        state = self.network.state_dict() if self.average is None else self.average.values
        network = copy.deepcopy(self._plain)
        network.load_state_dict({name: value.cpu() for name, value in state.items()})
        return network.eval().requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes: tensors, numbers and lists, which `torch.load(weights_only=True)` reads."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": None if self.average is None else self.average.values,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.step = int(state["step"])
        self.network.load_state_dict(state["network"])
        rates = [group["base_lr"] for group in self.optimiser.param_groups]
        self.optimiser.load_state_dict(state["optimiser"])
        for group, rate in zip(self.optimiser.param_groups, rates, strict=True):
            group["base_lr"] = rate
        if self.average is not None:
            self.average.steps = self.step
            for name, value in state["average"].items():
                self.average.values[name].copy_(value)

    def _seed_step(self) -> None:
        # Dropout's numbers follow from the step, so no state of a generator need be kept to resume
        rank = distributed.get_rank() if _num_workers() > 1 else 0
        key = hashlib.sha256(f"{self.recipe.seed}:{self.step}:{rank}".encode()).digest()
        torch.manual_seed(int.from_bytes(key[:7], "little"))

    def _summed(self, rows: list[list[Tensor]]) -> Tensor:
        """(n,) float32: sums of the columns over parts and workers."""
        total = torch.stack([torch.stack(row) for row in rows]).float().sum(0)
        if _num_workers() > 1:
            distributed.all_reduce(total)
        return total

    def _synchronise(self, now: bool) -> None:
        if isinstance(self._parallel, DistributedDataParallel):
            self._parallel.require_backward_grad_sync = now

    def _clip(self) -> float | None:
        if not self.recipe.clip_norm:
            return None
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        return float(nn.utils.clip_grad_norm_(parameters, self.recipe.clip_norm))


def new_network(
    recipe: TrainRecipe,
    num_classes: int = 21,
    preprocessing: Preprocessing | None = None,
    initial: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """The recipe's network with its first weights.

    Seeded by fan-in, so that an untrained network of any depth gives scores of unit scale (N(0, 0.01) and frozen batch
    normalisation would explode or vanish); `initial` tensors then replace those of the same name. Where a network holds
    another as its `base` (multi-scale features), names of that one fit too. Tensors of another shape, such as a
    classifier of other classes, stay seeded. ValueError: none of them fits.
    """
    network = models.build(recipe.model, num_classes, **dict(recipe.options))
    given = preprocessing or models.variant(recipe.model).preprocessing
    initialise_untrained(network, recipe.seed, given.input_std)
    if initial is not None:
        own = network.state_dict()
        named = {name if name in own else f"base.{name}": value for name, value in initial.items()}
        fitting = {name: value for name, value in named.items() if name in own and own[name].shape == value.shape}
        if not fitting:
            raise ValueError(f"None of the initial weights fits {recipe.model}: they are of another kind of network.")
        network.load_state_dict(fitting, strict=False)
    return network


def normalise(images: np.ndarray | Tensor, preprocessing: Preprocessing, device: torch.device | str = "cpu") -> Tensor:
    """Network input of views: (N, H, W, 3) uint8 RGB -> (N, 3, H, W) float32 on the device."""
    pixels = torch.as_tensor(images).to(device, non_blocking=True)
    channels = [2, 1, 0] if preprocessing.colour_order == "BGR" else [0, 1, 2]
    mean = torch.tensor(preprocessing.mean, dtype=torch.float32, device=pixels.device)
    std = torch.tensor(preprocessing.std, dtype=torch.float32, device=pixels.device)
    return ((pixels[..., channels].float() - mean) / std).permute(0, 3, 1, 2)


def _optimiser(recipe: TrainRecipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    return torch.optim.AdamW(
        groups, lr=recipe.learning_rate, betas=(recipe.momentum, recipe.second_momentum), fused=True
    )


def _average(network: nn.Module, decay: float) -> MovingAverage:
    return MovingAverage({name: value.clone() for name, value in network.state_dict().items()}, decay, warmup=9)


def _num_workers() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _targets(batch: Batch, params: LossParams) -> dict[str, Tensor]:
    """What each loss is held against, by its name."""
    targets = losses.label_targets(batch.labels, params)
    if not params.teacher_share:
        return targets
    if batch.soft is None or batch.inside is None or batch.teacher_share is None:
        raise ValueError("The recipe learns from a teacher (teacher_share), but the batch has no soft labels.")
    mixed = losses.mix_targets(targets["main"], batch.soft, batch.inside, batch.teacher_share)
    return dict.fromkeys(targets, mixed)


def cut_mix(batch: Batch, rng: np.random.Generator) -> None:
    """Put a rectangle of every view into its neighbour in the batch, in place; of up to half of the area.

    It ends between positions of the grid, so that each of them keeps the pixels around it.
    """
    stride = losses.STRIDE_PX
    side = (batch.labels.shape[2] - 1) // stride + 1
    height, width = (min(side, max(1, round(side * math.sqrt(rng.uniform(0.05, 0.5))))) for _ in range(2))
    top, left = int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1))
    rows = slice(max(0, top * stride - stride // 2), (top + height - 1) * stride + stride // 2 + 1)
    columns = slice(max(0, left * stride - stride // 2), (left + width - 1) * stride + stride // 2 + 1)
    for pixels in (batch.images, batch.labels):
        pixels[..., rows, columns] = pixels[..., rows, columns].roll(1, 0)
    if batch.soft is not None and batch.inside is not None:
        for grid in (batch.soft, batch.inside, batch.teacher_share):
            assert grid is not None, "all of a teacher, or nothing"
            cells = (..., slice(top, top + height), slice(left, left + width))
            grid[cells] = grid[cells].roll(1, 0)


def paste_objects(batch: Batch) -> None:
    """Put the objects of every view into its neighbour in the batch, at their places, in place.

    What is neither label 0 nor void is an object.
    """
    objects = ((batch.labels != 0) & (batch.labels != IGNORE_LABEL)).roll(1, 0)  # (N, H, W)
    batch.images.copy_(torch.where(objects.unsqueeze(1), batch.images.roll(1, 0), batch.images))
    batch.labels.copy_(torch.where(objects, batch.labels.roll(1, 0), batch.labels))
    if batch.soft is not None and batch.inside is not None:
        cells = losses.align_labels(objects)
        batch.soft.copy_(torch.where(cells.unsqueeze(1), batch.soft.roll(1, 0), batch.soft))
        for grid in (batch.inside, batch.teacher_share):
            assert grid is not None, "all of a teacher, or nothing"
            grid.copy_(torch.where(cells, grid.roll(1, 0), grid))
