"""Multi-scale inputs in training (DeepLab v2 section 4.1.2): one network on several sizes of the image.

Inference does the same with more choices in `scoring/tta.py`; the losses over these logits are in `learning/losses.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.models.layers import resize_scores


class MultiScaleLogits(NamedTuple):
    """Scores of one batch at several scales."""

    logits: Tensor
    """(N, C, h, w) at scale 1."""

    per_scale: tuple[Tensor, ...]
    """(N, C, h', w') at the other scales, in their order, each at its own resolution."""

    fused: Tensor
    """(N, C, h, w): elementwise maximum over all, after bilinear interpolation to scale 1."""


def multi_scale_logits(network: nn.Module, images: Tensor, scales: Sequence[float] = (0.75, 0.5)) -> MultiScaleLogits:
    """Run `network` on the images and on smaller copies of them.

    images: (N, 3, H, W) float32; crops of 8k + 1 whose scaled sides are whole, such as 321 (-> 241, 161).
    scales: besides scale 1. Gradients flow through all. The released training sums four softmax losses: scale 1, scale
    0.75 interpolated to scale 1, scale 0.5 at its own resolution against labels shrunk by 16, and the fused map.
    """
    logits = network(images)
    size = (logits.shape[2], logits.shape[3])
    per_scale = tuple(network(_shrunk(images, scale)) for scale in scales)
    fused: Tensor = logits
    for smaller in per_scale:
        fused = torch.maximum(fused, resize_scores(smaller, size))
    return MultiScaleLogits(logits, per_scale, fused)


def _shrunk(images: Tensor, scale: float) -> Tensor:
    # Caffe's `Interp` maps n points to (n - 1) x scale + 1.
    height, width = (round((side - 1) * scale) + 1 for side in images.shape[2:])
    return F.interpolate(images, size=(height, width), mode="bilinear", align_corners=True)
