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

from segcore import losses, models
from segcore.models.multi_scale import MultiScaleLogits, multi_scale_logits
from segcore.models.pspnet import TrainingLogits
from segcore.models.resnet import FrozenBatchNorm
from segcore.models.untrained import initialise_untrained
from segcore.moving_average import MovingAverage
from segcore.preprocessing import Preprocessing
from segcore.recipes import LossParams, TrainRecipe
from segcore.schedules import freeze_others, parameter_groups, torch_groups


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


@dataclass
class StepReport:
    """What a step did."""

    loss: float
    """Weighted sum of all losses, of the global batch, before the step."""

    losses: dict[str, float]
    """Each loss by name, without its weight: "main", "auxiliary", "scale 0.5", "fused", "soft"."""

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


class Trainer:
    """A network in training with its optimiser, its moving average and the number of the next step."""

    def __init__(
        self, recipe: TrainRecipe, network: nn.Module, device: torch.device | str = "cpu", *, compiled: bool = False
    ) -> None:
        """network: as `new_network` makes it; it is trained in place. compiled: let torch.compile fuse its kernels.

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
        self.groups = parameter_groups(network, recipe.rules, recipe.weight_decay, decay_biases=recipe.decay_biases)
        freeze_others(network, self.groups)
        # For evaluation: normalisation layers as they were built, whatever takes their place in training
        self._plain = copy.deepcopy(network).eval()
        if recipe.sync_batch_norm and device.type == "cuda" and _num_workers() > 1:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        self.network = network.to(device)
        if device.type == "cuda":
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
        targets = [losses.label_targets(batch.labels, params) for batch in batches]
        names = [*targets[0], *(["soft"] if params.soft_weight else [])]
        divisors = self._summed([[_divisor(name, t, batch, params) for name in names]
                                 for t, batch in zip(targets, batches, strict=True)]).clamp(min=1e-6)  # fmt: skip
        self.optimiser.zero_grad(set_to_none=True)
        seconds = {"forward": 0.0, "backward": 0.0, "step": 0.0}
        sums: list[list[Tensor]] = []
        for number, (batch, target) in enumerate(zip(batches, targets, strict=True), start=1):
            began = time.perf_counter()
            # Gradients travel once, with the last part
            self._synchronise(number == len(batches))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                logits = self._parallel(batch.images.contiguous(memory_format=torch.channels_last))
            part = _loss_sums(logits, target, batch, params)
            weighted = [_weight(name, params) * part[name] / divisors[i] for i, name in enumerate(names)]
            # DistributedDataParallel takes the mean of the workers' gradients, and this is a part of one sum
            total = torch.stack(weighted).sum() * _num_workers()
            middle = time.perf_counter()
            total.backward()  # type: ignore[no-untyped-call]
            sums.append([part[name].detach() for name in names])
            seconds["forward"] += middle - began
            seconds["backward"] += time.perf_counter() - middle
        began = time.perf_counter()
        means = dict(zip(names, (self._summed(sums) / divisors).tolist(), strict=True))
        loss = sum(_weight(name, params) * value for name, value in means.items())
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
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(recipe.momentum, 0.999))


def _average(network: nn.Module, decay: float) -> MovingAverage:
    return MovingAverage({name: value.clone() for name, value in network.state_dict().items()}, decay, warmup=9)


def _num_workers() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _divisor(name: str, targets: Mapping[str, Tensor], batch: Batch, params: LossParams) -> Tensor:
    if name != "soft":
        return losses.divisor(targets[name], params)
    if batch.inside is None:
        raise ValueError("The recipe learns from a teacher (soft_weight), but the batch has no soft labels.")
    return batch.inside.sum().float()


def _loss_sums(
    logits: Mapping[str, Tensor], targets: Mapping[str, Tensor], batch: Batch, params: LossParams
) -> dict[str, Tensor]:
    sums = {name: losses.cross_entropy_sum(logits[name], target, params) for name, target in targets.items()}
    if params.soft_weight:
        assert batch.soft is not None and batch.inside is not None, "checked with the divisors"
        sums["soft"] = losses.soft_cross_entropy_sum(logits["main"], batch.soft, batch.inside)
    return sums


def _weight(name: str, params: LossParams) -> float:
    if name == "soft":
        return params.soft_weight
    return losses.loss_weight(name, params) * ((1 - params.soft_weight) if name == "main" else 1.0)
