"""One image seen several times: at several scales, mirrored, through sliding windows; and the scores fused again.

In the convention "caffe" everything is on tensors of one shape whose sides are 8k + 1, so that score maps align with
corner pixels and with each other; the other two take images of any size as their repositories do.

Two ways of fusing (`InferenceParams.fusion`): "max" stays in logits, mirrored and overlapping scores are averaged there
and scales take the largest (DeepLab v2 section 4.1.2); "mean" averages probabilities throughout (PSPNet as
hszhao/semseg tests it; its Caffe code adds mirrored logits) and returns their logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from segcore.models.layers import resize_scores

if TYPE_CHECKING:
    from segcore.scoring.inference import InferenceParams

Network = Callable[[Tensor], Tensor]
"""(N, 3, H, W) float32 normalised, sides 8k + 1 -> (N, C, (H - 1) / 8 + 1, (W - 1) / 8 + 1) float32 logits."""


def score_views(
    network: Network, images: Tensor, params: InferenceParams, tiles_at_once: int, convention: str = "caffe"
) -> Tensor:
    """Fused scores of a batch, on the grid of scale 1; by the conventions of other repositories at the images' size.

    images: (N, 3, H, W) float32 normalised, 0 is the mean; sides 8k + 1 in the convention "caffe", any otherwise.
    tiles_at_once: windows per pass. convention: one of `segcore.models.card.CONVENTIONS`.
    Returns (N, C, (H - 1) / 8 + 1, (W - 1) / 8 + 1), or (N, C, H, W) by the other conventions: float32 logits, or
    log-probabilities where views were averaged.
    """
    if convention != "caffe":
        return _score_as_published(network, images, params, tiles_at_once, convention)
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


def _score_as_published(
    network: Network, images: Tensor, params: InferenceParams, tiles_at_once: int, convention: str
) -> Tensor:
    """Views as kazuto1011/deeplab-pytorch (`libs/models/msc.py`) and hszhao/semseg (`tool/test.py`) make and fuse them.

    Images are scaled with pixels as areas (`align_corners=False`). deeplab-pytorch scores whole images and fuses logits
    on the grid of scale 1; semseg pads around the image to at least one window, moves windows by the share rounded up,
    and averages probabilities at the size of the view, whose long side is the scale's share of `long_side_px`.
    """
    height, width = images.shape[2:]
    in_probabilities = params.fusion == "mean"
    on_grid = convention == "deeplab-pytorch" and params.crop_px is None
    fused: Tensor | None = None
    # Scale 1 first: its grid is the one to fuse on
    for number, scale in enumerate(sorted(params.scales, key=lambda scale: abs(scale - 1)), start=1):
        view = _resized(images, _published_size(height, width, scale, params, convention))
        if on_grid:
            scores = network(view)
            if params.mirror:
                scores = _mean([scores, network(view.flip(3)).flip(3)], in_probabilities)
            scores = scores.softmax(1) if in_probabilities else scores
            size = (scores.shape[2], scores.shape[3]) if fused is None else (fused.shape[2], fused.shape[3])
        else:
            scores = _published_windows(network, view, params, tiles_at_once, aligned=convention == "semseg")
            size = (height, width)
        scores = _resized(scores, size)
        if fused is None:
            fused = scores
        elif in_probabilities:
            fused += (scores - fused) / number
        else:
            fused = torch.maximum(fused, scores)
    assert fused is not None, "scales has at least one entry"
    return _resized(_log(fused) if in_probabilities else fused, (height, width))


def _published_size(height: int, width: int, scale: float, params: InferenceParams, convention: str) -> tuple[int, int]:
    if convention == "deeplab-pytorch":
        return max(1, int(height * scale)), max(1, int(width * scale))
    if params.crop_px is None or params.long_side_px is None:  # Not how semseg tests: the image as it is
        return max(1, round(height * scale)), max(1, round(width * scale))
    long_side = round(scale * params.long_side_px)
    if height > width:
        return long_side, max(1, round(long_side / height * width))
    return max(1, round(long_side / width * height)), long_side


def _published_windows(
    network: Network, images: Tensor, params: InferenceParams, tiles_at_once: int, *, aligned: bool
) -> Tensor:
    """Mean scores of windows at the size of the images: probabilities where `fusion` is "mean", else logits.

    aligned: corners of a window's score map are its corner pixels, as in semseg's networks.
    """
    num_images, _, height, width = images.shape
    crop_px = None if params.crop_px is None else (params.crop_px - 1) // 8 * 8 + 1
    # In one pass: the next size whose score map has its corners on corner pixels
    window = tuple(crop_px or max(33, -(-(side - 1) // 8) * 8 + 1) for side in (height, width))
    missing = [max(0, side - have) for side, have in zip(window, (height, width), strict=True)]
    above, before = missing[0] // 2, missing[1] // 2
    padded = F.pad(images, (before, missing[1] - before, above, missing[0] - above))
    places = [
        (image, top, left)
        for image in range(num_images)
        for top in _published_starts(padded.shape[2], window[0], params.crop_stride)
        for left in _published_starts(padded.shape[3], window[1], params.crop_stride)
    ]
    total: Tensor | None = None
    count = images.new_zeros(1, 1, padded.shape[2], padded.shape[3])
    for chunk in _chunks(places, tiles_at_once):
        tiles = torch.stack(
            [padded[image, :, top : top + window[0], left : left + window[1]] for image, top, left in chunk]
        )
        scores = _at_size(network(tiles), params, window, aligned)
        if params.mirror:
            scores = (scores + _at_size(network(tiles.flip(3)), params, window, aligned).flip(3)) / 2
        if total is None:
            total = images.new_zeros(num_images, scores.shape[1], *count.shape[2:])
        for (image, top, left), score in zip(chunk, scores, strict=True):
            place = (slice(top, top + window[0]), slice(left, left + window[1]))
            total[image, :, *place] += score
            if image == 0:
                count[0, 0, *place] += 1
    assert total is not None, "an image has at least one window"
    total /= count
    return total[:, :, above : above + height, before : before + width]


def _published_starts(length_px: int, crop_px: int, stride: float) -> list[int]:
    """First pixels of semseg's windows along one side (473 x 2/3: every 316), the last one flush with the end."""
    step = math.ceil(crop_px * stride)
    last = length_px - crop_px
    return [min(number * step, last) for number in range(math.ceil(last / step) + 1)]


def _at_size(scores: Tensor, params: InferenceParams, size: tuple[int, ...], aligned: bool) -> Tensor:
    scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=aligned)
    return scores.softmax(1) if params.fusion == "mean" else scores


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels are areas, nothing is averaged: torch's `align_corners=False`, OpenCV's linear resize."""
    if size == (maps.shape[2], maps.shape[3]):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _chunks(places: list[tuple[int, int, int]], size: int) -> Iterator[list[tuple[int, int, int]]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]


def _mean(views: list[Tensor], in_probabilities: bool) -> Tensor:
    if in_probabilities:
        return _log(torch.stack([view.softmax(1) for view in views]).mean(0))
    return torch.stack(views).mean(0)


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=1e-30).log()
