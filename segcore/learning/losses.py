"""Losses of the three papers: which labels each score map is held against, and what is summed.

Every loss is a sum over positions, to be divided by a number that follows from the labels alone. So the mean over the
valid positions of the *global* batch, which Caffe computes, comes out the same however workers and accumulation split
the batch: the divisors of all parts are added up first (`training.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from segcore.models.layers import resize_scores
from segcore.voc import IGNORE_LABEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from segcore.learning.recipes import LossParams

STRIDE_PX = 8
"""Distance of two positions of a score map; all models have this."""


def align_labels(labels: Tensor, stride_px: int = STRIDE_PX) -> Tensor:
    """The labels that lie under the positions of a score map: pixels 0, 8, 16, ...; nothing is interpolated.

    labels: (N, H, W), sides 8k + 1. A crop of 321 has 41 positions. Networks with 2x2 pooling begin their grid at pixel
    1 (`pad_beg: -1` in the released configs) and are given one more pixel of mean at the top and left, which brings the
    position back to pixel 0: 305 + 1 = 306 px, 39 positions.
    """
    return labels[:, ::stride_px, ::stride_px]


def label_targets(labels: Tensor, params: LossParams) -> dict[str, Tensor]:
    """The labels of each loss by its name: "main", "auxiliary", "scale 0.5", "fused".

    labels: (N, H, W) integer, 255 ignored. A scale whose grid falls on pixels, such as 0.5 with every sixteenth, has
    labels of its own; the scores of others, such as 0.75, are interpolated to scale 1 (released configs of v2).
    """
    eighth = align_labels(labels)
    targets = {"main": labels if params.label_resolution == "full" else eighth}
    if params.auxiliary_weight:
        targets["auxiliary"] = targets["main"]
    for scale in params.scales:
        stride = STRIDE_PX / scale
        own = stride.is_integer() and all((side - 1) % stride == 0 for side in labels.shape[1:])
        targets[scale_name(scale)] = align_labels(labels, int(stride)) if own else eighth
    if params.scales:
        targets["fused"] = eighth
    return targets


def scale_name(scale: float) -> str:
    """Name of the loss of a scale: "scale 0.75"."""
    return f"scale {scale:g}"


def loss_weight(name: str, params: LossParams) -> float:
    """Weight of a loss in the total."""
    return params.auxiliary_weight if name == "auxiliary" else 1.0


def mix_targets(labels: Tensor, soft: Tensor, inside: Tensor, share: Tensor) -> Tensor:
    """What a network learns from masks and a teacher: (N, C, h, w) float32, 0 in all classes where nothing is known.

    labels: (N, h, w) uint8, 255 void. soft: (N, C, h, w) float, the teacher's probabilities; a position whose sum is
    below `MIN_SOFT_SUM` is unknown to it. inside: (N, h, w) bool, where `soft` means something.
    share: (N, h, w) float, the teacher's share where both are known; alone, either counts in full.
    """
    total = soft.sum(1, keepdim=True)
    taught = (inside.unsqueeze(1) & (total > MIN_SOFT_SUM)).float()
    labelled = (labels != IGNORE_LABEL).unsqueeze(1)
    hard = torch.zeros_like(soft).scatter_(1, torch.where(labelled, labels.unsqueeze(1), 0).long(), 1.0)
    weight = torch.where(labelled, share.unsqueeze(1), 1.0) * taught
    return soft / total.clamp(min=1e-6) * weight + hard * (labelled * (1 - weight))


MIN_SOFT_SUM = 0.3
"""Sum of a teacher's probabilities above which a position is known: classes that an image cannot hold are set to 0."""


def class_weights(pixels: Sequence[float] | np.ndarray, power: float) -> np.ndarray:
    """(C,) float32: (1 / share of pixels) ** power, 1 on average over the pixels. Classes below 1 % count as 1 %."""
    shares = np.asarray(pixels, np.float64) / max(1e-9, float(np.sum(pixels)))
    weights = np.maximum(shares, 1e-2) ** -power
    return np.asarray(weights / max(1e-9, float((weights * shares).sum())), np.float32)


def divisor(target: Tensor, weights: Tensor | None = None) -> Tensor:
    """What a sum of losses over these targets is to be divided by: () float32, the sum of the positions' weights.

    target: (N, h, w) labels, or (N, C, h, w) shares of the classes. weights: (C,) of each class; None: 1.
    """
    return _position_weights(target, weights).sum()


def cross_entropy_sum(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum of the cross-entropies over the positions that count: () float32.

    logits: (N, C, h, w), resized to the target where that is larger. target: (N, h, w) integer, 255 ignored, or
    (N, C, h, w) float, shares of the classes, all 0 where a position is ignored. weights: (C,) of each class; a
    position weighs what its classes weigh. ValueError: the maps do not lie on each other.
    """
    logits = _on_grid(logits, target).float()
    if target.ndim == 4:
        each = -(target * logits.log_softmax(1)).sum(1)  # (N, h, w)
    else:
        each = F.cross_entropy(logits, target.long(), reduction="none", ignore_index=IGNORE_LABEL)
    return (each * _position_weights(target, weights)).sum()


def _on_grid(logits: Tensor, target: Tensor) -> Tensor:
    size = (target.shape[-2], target.shape[-1])
    if logits.shape[2:] == torch.Size(size):
        return logits
    if size[0] < logits.shape[2] or size[1] < logits.shape[3]:
        raise ValueError(
            f"Scores of {tuple(logits.shape[2:])} and labels of {size} do not lie on each other; "
            "use crops of 8k + 1 pixels."
        )
    return resize_scores(logits.float(), size)


def _position_weights(target: Tensor, weights: Tensor | None) -> Tensor:
    """(N, h, w) float32: the weight of each position, 0 where it is ignored."""
    if target.ndim == 4:
        return target.sum(1) if weights is None else torch.einsum("nchw,c->nhw", target, weights)
    valid = target != IGNORE_LABEL
    if weights is None:
        return valid.float()
    return weights[torch.where(valid, target, 0).long()] * valid
