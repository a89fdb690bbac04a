"""Learning from masks and from another network's probabilities at once, on a grid that is coarse where work is dear.

The plan of a training: which views at which time, how much the teacher counts, and how fast to learn. All of it is told
by the share of a time budget that is spent, so that a training ends annealed on a machine of any speed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from segcore.augment import AugmentParams
from segcore.schedules import parameter_groups, torch_groups
from segcore.voc import IGNORE_LABEL


@dataclass(frozen=True)
class Phase:
    """One part of a training."""

    until: float
    """Share of the budget at which it ends, 0 to 1."""

    step: int
    """Every which position of the dense grid is computed: 8, 4, 2 or 1."""

    batch: int
    """Views in one step."""

    views: AugmentParams
    """Views of the photograph at half its size, at the stride of the grid."""

    teacher: float = 0.5
    """Share of the target that is the teacher's; the mask has the rest, the teacher all where the mask is void."""

    mix: float = 0.0
    """Share of batches in which a rectangle of each view comes from another one (CutMix, Yun et al. 2019)."""

    paste: float = 0.0
    """Share of the other batches in which each view gets the objects of another (copy-paste, Ghiasi et al. 2021)."""


@dataclass(frozen=True)
class Plan:
    """How a network is trained within a budget of time."""

    phases: tuple[Phase, ...]
    """In order; the last ends at 1."""

    learning_rate: float = 2e-3
    """Of AdamW, at its peak."""

    weight_decay: float = 0.05
    """Of AdamW, for kernels; none for normalisation and biases."""

    warmup: float = 0.04
    """Share of the budget over which the learning rate rises; then it falls to 0 as half a cosine."""

    ema_decay: float = 0.998
    """Of the average of the weights over the steps, which is what the training gives."""

    class_power: float = 0.35
    """Classes weigh (1 / share of pixels) to this power, relative to the mean weight."""

    image_power: float = 0.35
    """Images are drawn with (1 / share of images of their rarest class) to this power."""

    seed: int = 0
    """Of initial weights, order and views."""

    def phase(self, share: float) -> Phase:
        """The phase at a share of the budget, 0 to 1."""
        return next((phase for phase in self.phases if share < phase.until), self.phases[-1])

    def rate(self, share: float) -> float:
        """The learning rate at a share of the budget."""
        rise = min(1.0, (share + 1e-3) / self.warmup) if self.warmup else 1.0
        fall = (1 + math.cos(math.pi * min(1.0, max(0.0, share - self.warmup) / (1 - self.warmup)))) / 2
        return self.learning_rate * rise * fall


def class_weights(pixels: Sequence[float] | np.ndarray, power: float) -> np.ndarray:
    """(C,) float32: (1 / share) ** power, 1 on average over the pixels. Classes below 1 % count as 1 %."""
    shares = np.maximum(np.asarray(pixels, np.float64) / np.sum(pixels), 1e-2)
    weights = shares**-power
    return np.asarray(weights / (weights * shares).sum() * shares.sum(), np.float32)


def mix_targets(labels: Tensor, soft: Tensor, inside: Tensor, teacher: float) -> Tensor:
    """What the network is to say: (N, C, g, g) float32, 0 outside the photograph.

    labels: (N, g, g) uint8, 255 void. soft: (N, C, g, g) float32, the teacher's. inside: (N, g, g) bool.
    teacher: its share where there is a label.
    """
    known = labels != IGNORE_LABEL
    hard = torch.zeros_like(soft).scatter_(1, torch.where(known, labels, 0).long().unsqueeze(1), 1.0)
    soft = soft / soft.sum(1, keepdim=True).clamp(min=1e-6)
    share = torch.where(known, teacher, 1.0).unsqueeze(1)
    return (soft * share + hard * (1 - share)) * inside.unsqueeze(1)


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean over positions of the cross-entropy, each position weighing what its target's classes weigh: ().

    logits: (N, C, g, g). targets: (N, C, g, g) float32, summing to 1 or, where nothing is known, to 0. weights: (C,).
    """
    losses = -(targets * logits.float().log_softmax(1)).sum(1)  # (N, g, g)
    counts = torch.einsum("nchw,c->nhw", targets, weights)
    return (losses * counts).sum() / counts.sum().clamp(min=1e-6)


def cut_mix(images: Tensor, targets: Tensor, stride_px: int, rng: np.random.Generator) -> None:
    """Put a rectangle of every view into its neighbour in the batch, in place, between positions of the grid.

    images: (N, 3, H, W). targets: (N, C, g, g), g = (H - 1) / stride + 1. The rectangle has up to half of the area.
    """
    side = targets.shape[2]
    height, width = (min(side, max(1, round(side * math.sqrt(rng.uniform(0.05, 0.5))))) for _ in range(2))
    top, left = int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1))
    # Each position owns the pixels around it
    rows = slice(max(0, top * stride_px - stride_px // 2), (top + height - 1) * stride_px + stride_px // 2 + 1)
    columns = slice(max(0, left * stride_px - stride_px // 2), (left + width - 1) * stride_px + stride_px // 2 + 1)
    images[:, :, rows, columns] = images[:, :, rows, columns].roll(1, 0)
    cells = (slice(None), slice(None), slice(top, top + height), slice(left, left + width))
    targets[cells] = targets[cells].roll(1, 0)


def paste_objects(images: Tensor, targets: Tensor, masks: Tensor, stride_px: int) -> None:
    """Put the objects of every view into its neighbour in the batch, at their places, in place.

    images: (N, 3, H, W). targets: (N, C, g, g), g = (H - 1) / stride + 1. masks: (N, H, W) uint8, of the images;
    what is neither background nor void there is an object.
    """
    objects = ((masks != 0) & (masks != IGNORE_LABEL)).roll(1, 0).unsqueeze(1)
    images.copy_(torch.where(objects, images.roll(1, 0), images))
    targets.copy_(torch.where(objects[:, :, ::stride_px, ::stride_px], targets.roll(1, 0), targets))


def initialise(module: nn.Module, seed: int) -> None:
    """Weights to train from: He initialisation; residual branches begin silent (Goyal et al. 2017, section 5.1)."""
    torch.manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.BatchNorm2d):
            part.reset_parameters()
        if isinstance(part, nn.BatchNorm2d) and getattr(part, "ends_branch", False):
            nn.init.zeros_(part.weight)


def optimiser(module: nn.Module, plan: Plan) -> torch.optim.AdamW:
    """AdamW with decay on kernels only."""
    groups = parameter_groups(module, (), plan.weight_decay, decay_biases=False)
    return torch.optim.AdamW(
        torch_groups(module, groups, plan.learning_rate), lr=plan.learning_rate, betas=(0.9, 0.99), fused=True
    )
