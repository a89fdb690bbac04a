"""One image seen several times: at several scales, mirrored, through sliding windows; and the scores fused again.

Everything here is on tensors of one shape whose sides are 8k + 1, so that score maps align with corner pixels and with
each other. Two ways of fusing (`InferenceParams.fusion`): "max" stays in logits, mirrored and overlapping scores are
averaged there and scales take the largest (DeepLab v2 section 4.1.2); "mean" averages probabilities throughout
(PSPNet as hszhao/semseg tests it; its Caffe code adds mirrored logits) and returns their logarithm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from segcore.models.layers import resize_scores

if TYPE_CHECKING:
    from segcore.inference import InferenceParams

Network = Callable[[Tensor], Tensor]
"""(N, 3, H, W) float32 normalised, sides 8k + 1 -> (N, C, (H - 1) / 8 + 1, (W - 1) / 8 + 1) float32 logits."""


def score_views(network: Network, images: Tensor, params: InferenceParams, tiles_at_once: int) -> Tensor:
    """Fused scores of a batch, on the grid of scale 1.

    images: (N, 3, H, W) float32 normalised, 0 is the mean; sides 8k + 1. tiles_at_once: windows per pass.
    Returns (N, C, (H - 1) / 8 + 1, (W - 1) / 8 + 1) float32 logits, or log-probabilities where views were averaged.
    """
    grid = ((images.shape[2] - 1) // 8 + 1, (images.shape[3] - 1) // 8 + 1)
    in_probabilities = params.fusion == "mean"
    fused: Tensor | None = None
    for number, scale in enumerate(params.scales, start=1):
        view = _windowed(network, _scaled(images, scale), params, tiles_at_once)
        if params.mirror:
            mirrored = _windowed(network, _scaled(images, scale).flip(3), params, tiles_at_once).flip(3)
            view = _mean([view, mirrored], in_probabilities)
        view = resize_scores(view, grid)
        if fused is None:
            fused = view
        elif in_probabilities:
            # A running mean needs one map, however many scales there are.
            share = 1 / number
            fused = _log(fused.softmax(1) * (1 - share) + view.softmax(1) * share)
        else:
            fused = torch.maximum(fused, view)
    assert fused is not None, "scales has at least one entry"
    return fused


def scaled_px(length_px: int, scale: float) -> int:
    """The 8k + 1 next to (length - 1) x scale + 1, Caffe's `Interp`; at least 33."""
    return max(33, 8 * round((length_px - 1) * scale / 8) + 1)


def window_starts(length_px: int, crop_px: int, stride: float) -> list[int]:
    """First pixels of the windows along one side, all multiples of 8, the last one flush with the end.

    length_px, crop_px: 8k + 1. stride: distance as a share of the crop, rounded down to 8 px (473 x 2/3: 312).
    """
    if length_px <= crop_px:
        return [0]
    step = max(8, int(crop_px * stride) // 8 * 8)
    last = length_px - crop_px
    return [*range(0, last, step), last]


def _scaled(images: Tensor, scale: float) -> Tensor:
    size = (scaled_px(images.shape[2], scale), scaled_px(images.shape[3], scale))
    if size == (images.shape[2], images.shape[3]):
        return images
    # Without antialiasing, as Caffe's Interp and OpenCV's linear resize, which the published numbers come from.
    return F.interpolate(images, size=size, mode="bilinear", align_corners=True)


def _windowed(network: Network, images: Tensor, params: InferenceParams, tiles_at_once: int) -> Tensor:
    """Scores through windows of `crop_px`, or in one pass where the image is no larger than one window."""
    num_images, _, height, width = images.shape
    crop_px = None if params.crop_px is None else (params.crop_px - 1) // 8 * 8 + 1
    if crop_px is None or (height <= crop_px and width <= crop_px):
        return network(images)
    size = (min(crop_px, height), min(crop_px, width))
    places = [
        (image, top, left)
        for image in range(num_images)
        for top in window_starts(height, size[0], params.crop_stride)
        for left in window_starts(width, size[1], params.crop_stride)
    ]
    total: Tensor | None = None
    rows, columns = (size[0] - 1) // 8 + 1, (size[1] - 1) // 8 + 1
    count = images.new_zeros(1, 1, (height - 1) // 8 + 1, (width - 1) // 8 + 1)
    for chunk in _chunks(places, tiles_at_once):
        tiles = torch.stack(
            [images[image, :, top : top + size[0], left : left + size[1]] for image, top, left in chunk]
        )
        scores = network(tiles)
        scores = scores.softmax(1) if params.fusion == "mean" else scores
        if total is None:
            total = images.new_zeros(num_images, scores.shape[1], *count.shape[2:])
        for (image, top, left), score in zip(chunk, scores, strict=True):
            place = (slice(top // 8, top // 8 + rows), slice(left // 8, left // 8 + columns))
            total[image, :, *place] += score
            if image == 0:
                count[0, 0, *place] += 1
    assert total is not None, "an image has at least one window"
    total /= count
    return _log(total) if params.fusion == "mean" else total


def _chunks(places: list[tuple[int, int, int]], size: int) -> Iterator[list[tuple[int, int, int]]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]


def _mean(views: list[Tensor], in_probabilities: bool) -> Tensor:
    if in_probabilities:
        return _log(torch.stack([view.softmax(1) for view in views]).mean(0))
    return torch.stack(views).mean(0)


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=1e-30).log()
