"""Losses of the three papers: which labels each score map is held against, and what is summed.

Every loss is a sum over positions, to be divided by a number that follows from the labels alone. So the mean over the
valid positions of the *global* batch, which Caffe computes, comes out the same however workers and accumulation split
the batch: the divisors of all parts are added up first (`training.py`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from segcore.models.layers import resize_scores
from segcore.voc import IGNORE_LABEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from segcore.recipes import LossParams

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


def divisor(target: Tensor, params: LossParams) -> Tensor:
    """What a sum of losses over these labels is to be divided by: () float32, from the labels alone.

    target: (N, h, w). Without weights and mining the number of valid positions.
    """
    return _divisors(target, params).sum()


def cross_entropy_sum(logits: Tensor, target: Tensor, params: LossParams) -> Tensor:
    """Sum of the cross-entropies over the positions that count: () float32.

    logits: (N, C, h, w), resized to the labels where these are larger. target: (N, h, w) integer, 255 ignored.
    ValueError: the maps do not lie on each other.
    """
    logits = _on_grid(logits, target)
    target = target.long()
    losses = F.cross_entropy(logits.float(), target, reduction="none", ignore_index=IGNORE_LABEL)  # (N, h, w)
    weights = _position_weights(target, params)
    if params.ohem_share >= 1:
        return (losses * weights).sum()
    total = losses.new_zeros(())
    for image_losses, image_weights, image_target in zip(losses, weights, target, strict=True):
        count = _kept(int((image_target != IGNORE_LABEL).sum()), params)
        # Ignored positions have loss 0 and weight 0: they may fill up a tie, but add nothing
        hardest = image_losses.detach().flatten().topk(count).indices
        total = total + (image_losses * image_weights).flatten()[hardest].sum()
    return total


def soft_cross_entropy_sum(logits: Tensor, soft: Tensor, inside: Tensor) -> Tensor:
    """Sum of the cross-entropies against a teacher's probabilities: () float32, to divide by the positions inside.

    logits: (N, C, h, w). soft: (N, C, h, w) float, brought to a sum of 1. inside: (N, h, w) bool, where `soft` means
    something. ValueError: another grid or another number of classes.
    """
    if logits.shape != soft.shape:
        raise ValueError(f"Scores are {tuple(logits.shape)}, the teacher's probabilities {tuple(soft.shape)}.")
    soft = soft.float()
    soft = soft / soft.sum(1, keepdim=True).clamp(min=1e-6)
    losses = -(soft * logits.float().log_softmax(1)).sum(1)  # (N, h, w)
    return (losses * inside).sum()


def inverse_root_weights(pixels: Sequence[int]) -> tuple[float, ...]:
    """Class weights that fall with the root of a class's pixels: 1 on average over pixels, 0 for absent classes."""
    roots = [1 / math.sqrt(count) if count else 0.0 for count in pixels]
    mean = sum(root * count for root, count in zip(roots, pixels, strict=True)) / max(1, sum(pixels))
    return tuple(root / mean if mean else 1.0 for root in roots)


def _on_grid(logits: Tensor, target: Tensor) -> Tensor:
    size = (target.shape[1], target.shape[2])
    if logits.shape[2:] == torch.Size(size):
        return logits
    if size[0] < logits.shape[2] or size[1] < logits.shape[3]:
        raise ValueError(
            f"Scores of {tuple(logits.shape[2:])} and labels of {size} do not lie on each other; "
            "use crops of 8k + 1 pixels."
        )
    return resize_scores(logits.float(), size)


def _kept(valid: int, params: LossParams) -> int:
    return math.ceil(params.ohem_share * valid)


def _position_weights(target: Tensor, params: LossParams) -> Tensor:
    """(N, h, w) float32: the weight of each label, 0 where it is ignored."""
    valid = target != IGNORE_LABEL
    if params.class_weights is None:
        return valid.float()
    weights = torch.tensor(params.class_weights, dtype=torch.float32, device=target.device)
    return weights[torch.where(valid, target, 0).long()] * valid


def _divisors(target: Tensor, params: LossParams) -> Tensor:
    """(N,) float32, of each image."""
    valid = (target != IGNORE_LABEL).flatten(1).sum(1).float()
    weights = _position_weights(target, params).flatten(1).sum(1)
    if params.ohem_share >= 1:
        return weights
    # As if the positions that are kept had the average weight of the image
    return torch.ceil(params.ohem_share * valid) * weights / valid.clamp(min=1)
