"""How good label maps are: counts per class, IoU from their sums, bands around borders, bootstrap over images.

As in VOC, one IoU comes from counts summed over all images, not from a mean of IoUs of single images. Everything that
is measured is a function of counts of single images, so a subset, a sum or a bootstrap never needs the images again.
Whether one model is worse than another is decided in `comparison.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from segcore.voc import IGNORE_LABEL

NUM_COUNTS: Final = 3
"""Hits, pixels of the class in the truth, pixels of the class in the prediction."""

TRIMAP_WIDTHS_PX: Final = 40
"""Bands of 1 to this many px around borders (the released MATLAB code; DeepLab v1 figure 5, v2 figure 10)."""

Around = Literal["void", "borders"]
"""What a trimap is around: void pixels (VOC's masks), or, where a dataset has none, the borders of classes."""


def count_pixels(truth: NDArray[np.uint8], predicted: NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    """What one image contributes to IoU: (C, 3) int64, hits, truth and prediction of each class.

    truth: (H, W) uint8; pixels of 255 are dropped from all counts.
    predicted: (H, W) uint8, 0 to num_classes - 1.
    """
    return counts_of(confusion_matrix(truth, predicted, num_classes))


def confusion_matrix(truth: NDArray[np.uint8], predicted: NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    """Pixels of each class of the truth (rows) by what they were taken for (columns): (C, C) int64.

    truth: (H, W) uint8; pixels of 255 are dropped, whatever the prediction has there.
    predicted: (H, W) uint8, 0 to num_classes - 1.
    Raises ValueError for maps of two sizes and for labels out of range.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth is {truth.shape}, the prediction {predicted.shape}")
    for what, labels in (("truth", truth), ("prediction", predicted)):
        if labels.dtype.itemsize > 1 and labels.size and labels.max() > IGNORE_LABEL:
            raise ValueError(f"{what} has label {labels.max()}, but there are {num_classes} classes")
    # Pairs of labels as numbers of 16 bits: one count sees labels out of range and void too, without a mask
    pairs = (truth.astype(np.uint16) << 8) | predicted
    counted = np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)
    counted[IGNORE_LABEL] = 0
    if counted[:num_classes, :num_classes].sum() != counted.sum():
        for what, axis in (("truth", 1), ("prediction", 0)):
            largest = int(np.flatnonzero(counted.sum(axis=axis)).max())
            if largest >= num_classes:
                raise ValueError(f"{what} has label {largest}, but there are {num_classes} classes")
    return counted[:num_classes, :num_classes].astype(np.int64)


def counts_of(confusion: NDArray[Any]) -> NDArray[np.int64]:
    """(..., C, C) confusion to (..., C, 3): hits, truth and prediction of each class."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.stack([hits, confusion.sum(axis=-1), confusion.sum(axis=-2)], axis=-1).astype(np.int64)


def iou(counts: NDArray[Any]) -> NDArray[np.float64]:
    """(..., C, 3) counts to (..., C) IoU, 0 to 1; NaN for a class that is in neither truth nor prediction."""
    hits, truth, predicted = (counts[..., i].astype(np.float64) for i in range(NUM_COUNTS))
    return _ratio(hits, truth + predicted - hits)


def compared_classes(*results: NDArray[Any]) -> NDArray[np.bool_]:
    """The one set of classes that results on the same images are averaged over: (..., C) bool.

    A class is in it where the truth has it, or where any of the results predicts it. One that a result predicts though
    no image holds it has IoU 0, as in the VOC development kit (`VOCevalseg.m` divides by its predicted pixels), and has
    it in every result that it is compared with: forgetting a class adds nothing to a mean.
    results: (..., C, 3) counts each, summed over the same images.
    """
    return np.asarray(np.any([(counts[..., 1] > 0) | (counts[..., 2] > 0) for counts in results], axis=0))


def mean_iou(counts: NDArray[Any], over: NDArray[np.bool_] | NDArray[np.intp] | None = None) -> NDArray[np.float64]:
    """(..., C, 3) counts to (...,) mean IoU over one set of classes, 0 to 1; NaN where it is empty.

    over: `compared_classes` of all that is compared, (..., C) bool; or labels, (k,). By default the classes of these
        counts alone, all of them together. A class of the set without a pixel counts as 0.
    """
    if over is None:
        over = compared_classes(counts.reshape(-1, *counts.shape[-2:]).sum(axis=0))
    if over.dtype != bool:
        over = np.isin(np.arange(counts.shape[-2]), over)
    by_class = np.where(over, np.nan_to_num(iou(counts), nan=0.0), 0.0)
    return _ratio(by_class.sum(axis=-1), np.broadcast_to(over, by_class.shape).sum(axis=-1).astype(np.float64))


def pixel_accuracy(counts: NDArray[Any]) -> NDArray[np.float64]:
    """(..., C, 3) counts to (...,) share of the pixels that are not void and have the right class, 0 to 1."""
    return _ratio(counts[..., 0].sum(axis=-1).astype(np.float64), counts[..., 1].sum(axis=-1).astype(np.float64))


def class_accuracy(counts: NDArray[Any], classes: NDArray[np.intp] | None = None) -> NDArray[np.float64]:
    """(..., C, 3) counts to (...,) mean over the classes of the truth of the share of their pixels found, 0 to 1."""
    chosen = counts if classes is None else counts[..., classes, :]
    found = _ratio(chosen[..., 0].astype(np.float64), chosen[..., 1].astype(np.float64))
    present = np.isfinite(found)
    return _ratio(np.where(present, found, 0).sum(axis=-1), present.sum(axis=-1).astype(np.float64))


def border_distance(truth: NDArray[np.uint8], around: Around, limit_px: int = TRIMAP_WIDTHS_PX) -> NDArray[np.uint8]:
    """How far each pixel is from the nearest border, along rows or columns whichever is more: (H, W) uint8, px.

    A pixel at distance d from 1 on is in the trimaps of width d and more: a dilation with a square of side 2d + 1
    reaches it, and one of side 2d - 1 does not. 0 is the border itself, which no trimap holds; limit_px + 1 is
    anything farther.
    truth: (H, W) uint8. limit_px: up to 254.
    around: "void" measures from the pixels of 255; "borders" from between neighbours of two classes, the pixels on
        both sides being at distance 1.
    """
    if around == "void":
        return _chessboard(truth == IGNORE_LABEL, limit_px)
    seeds = np.zeros(truth.shape, bool)
    for axis in (0, 1):
        differ = np.diff(truth.astype(np.int16), axis=axis) != 0
        first = (slice(None, -1), slice(None)) if axis == 0 else (slice(None), slice(None, -1))
        second = (slice(1, None), slice(None)) if axis == 0 else (slice(None), slice(1, None))
        seeds[first] |= differ
        seeds[second] |= differ
    return _chessboard(seeds, limit_px - 1) + np.uint8(1)


def trimap_counts(
    truth: NDArray[np.uint8],
    predicted: NDArray[np.uint8],
    num_classes: int,
    around: Around,
    distance: NDArray[np.uint8] | None = None,
) -> NDArray[np.int64]:
    """What one image contributes to the trimap curves: (40, C, 3) int64 counts of the pixels at distance 1 to 40 px.

    The counts inside a trimap of width w are the sum of the first w. All come from one distance transform.
    truth, predicted: (H, W) uint8, checked as `confusion_matrix` does. distance: `border_distance` of the truth, where
        it is at hand.
    """
    if distance is None:
        distance = border_distance(truth, around)
    inside = (distance >= 1) & (distance <= TRIMAP_WIDTHS_PX) & (truth != IGNORE_LABEL)
    # A class is looked for at its distance: one count for all widths
    place = (distance[inside].astype(np.int32) - 1) * num_classes
    true, said = truth[inside], predicted[inside]
    if true.size and max(true.max(), said.max()) >= num_classes:
        raise ValueError(f"a label is {max(true.max(), said.max())}, but there are {num_classes} classes")
    hit = true == said
    length = TRIMAP_WIDTHS_PX * num_classes
    counted = [np.bincount(of, minlength=length) for of in ((place + true)[hit], place + true, place + said)]
    return np.stack(counted, axis=-1).reshape(TRIMAP_WIDTHS_PX, num_classes, NUM_COUNTS).astype(np.int64)


@dataclass(frozen=True)
class Figure:
    """One measured number with its 95 % interval, all 0 to 1."""

    value: float
    low: float
    high: float


def resampling(num_images: int, num_samples: int, seed: int) -> NDArray[np.float64]:
    """How much each image counts in each of many samples, rows summing to N: (samples, N) float64.

    The Bayesian bootstrap (Rubin 1981): weights of a flat Dirichlet distribution, of the same mean and spread as draws
    with replacement. No image is ever left out, so every sample has the same classes; of plain draws, one in twenty
    lacks a class that three images hold.
    The same seed gives the same weights: results of two models from one resampling are compared in pairs.
    """
    if num_images < 1:
        raise ValueError("A bootstrap needs one image at least")
    weights = np.random.default_rng(seed).exponential(size=(num_samples, num_images))
    return np.asarray(weights * (num_images / weights.sum(axis=1, keepdims=True)))


def resampled_sums(counts: NDArray[Any], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, ...) counts of single images to (samples, ...) weighted sums: one product for all of them."""
    flat = counts.reshape(len(counts), -1).astype(np.float64)
    return np.asarray((weights @ flat).reshape(len(weights), *counts.shape[1:]))


_AT_ONCE = 256
"""Images that are left out one by one in one step: bounds the memory."""


def interval(
    samples: NDArray[np.float64], images: NDArray[np.float64], level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The two ends of the expanded percentile interval of values, each (...,) (Hesterberg 2015, section 5.3).

    A plain percentile interval of few images is too narrow, as one with a normal instead of a t distribution is, and
    without their n / (n - 1): over 50 photographs it holds the truth in 86 of 100 cases (`python -m
    benchmarks.evaluation intervals`). So its tails are cut where a t distribution has them.
    samples: (samples, ...), of `resampled_sums`; NaN is left out. images: (...,), `effective_images`.
    """
    normal = NormalDist()
    shape = samples.shape[1:]
    ends = np.full((2, math.prod(shape)), np.nan)
    for index, (column, n) in enumerate(
        zip(samples.reshape(len(samples), -1).T, np.broadcast_to(images, shape).ravel(), strict=True)
    ):
        known = column[np.isfinite(column)]
        if len(known):
            tail = normal.cdf(-math.sqrt(n / (n - 1)) * t_quantile((1 + level) / 2, float(n) - 1))
            ends[:, index] = np.quantile(known, [tail, 1 - tail])
    return ends[0].reshape(shape), ends[1].reshape(shape)


def effective_images(change: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many images a value rests on, where all those mattered alike (Kish): (...,), 3 at least.

    change: (N, ...), by how much leaving out an image changes the value. A few images with large objects decide the IoU
    of a rare class, and the others do not count for it.
    """
    square = np.nan_to_num(change) ** 2
    fourth = (square**2).sum(axis=0)
    found = np.divide(square.sum(axis=0) ** 2, fourth, out=np.full(fourth.shape, 1e9), where=fourth > 0)
    return np.asarray(np.maximum(found, 3.0))


def t_quantile(probability: float, degrees: float) -> float:
    """Of Student's t distribution, by its expansion in 1 / degrees (Abramowitz and Stegun 26.7.5); 3 % low at 2."""
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))


def with_interval(
    measure: Callable[..., NDArray[np.float64]], weights: NDArray[np.float64], *counts: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """A measure of summed counts, and the ends of its 95 % interval over images: (...,) each.

    measure: takes one array of sums, (k, ...) or (...), for each of `counts`, and gives (k, ...) or (...) values.
    weights: of `resampling`. counts: (N, ...) each, of the same images in the same order.
    """
    sums = [of.sum(axis=0) for of in counts]
    value = np.asarray(measure(*sums))
    without = [
        measure(*(total - of[start : start + _AT_ONCE] for total, of in zip(sums, counts, strict=True)))
        for start in range(0, len(counts[0]), _AT_ONCE)
    ]
    samples = measure(*(resampled_sums(of, weights) for of in counts))
    return value, *interval(samples, effective_images(value - np.concatenate(without)))


def paired_difference(
    first: NDArray[Any],
    second: NDArray[Any],
    measure: Callable[[NDArray[Any]], NDArray[np.float64]],
    weights: NDArray[np.float64],
) -> Figure:
    """A measure of the second result minus that of the first, with its 95 % interval from one resampling of the images.

    first, second: (N, C, 3) counts of the same images in the same order. measure: such as `pixel_accuracy`, or
        `mean_iou` over the `compared_classes` of both.
    """
    if first.shape != second.shape:
        raise ValueError(f"Only results on the same images can be compared; these are {first.shape}, {second.shape}.")
    value, low, high = with_interval(lambda one, two: measure(two) - measure(one), weights, first, second)
    return Figure(float(value), float(low), float(high))


def confusions(confusion: NDArray[Any], num_shown: int = 20) -> list[tuple[int, int, float, int]]:
    """The largest mistakes by name: true label, label it was taken for, share of the class's pixels, pixels.

    confusion: (C, C), summed over images. Ordered by share, largest first.
    """
    totals = confusion.sum(axis=1)
    shares = np.divide(confusion, totals[:, None], out=np.zeros(confusion.shape), where=totals[:, None] > 0)
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:num_shown]
    pairs = [(int(i) // len(confusion), int(i) % len(confusion)) for i in order]
    return [(t, p, float(shares[t, p]), int(confusion[t, p])) for t, p in pairs if shares[t, p] > 0]


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0), np.float64)


def _chessboard(seeds: NDArray[np.bool_], limit_px: int) -> NDArray[np.uint8]:
    """(H, W) uint8: the larger of row and column distance to the nearest seed; limit_px + 1 beyond the limit."""
    height, width = seeds.shape
    beyond = limit_px + 1
    columns = np.arange(width, dtype=np.int32)
    # Along rows the nearest seed is the last one before or the first one after
    last = np.maximum.accumulate(np.where(seeds, columns, -beyond - 1), axis=1)
    following = np.where(seeds, columns, width + beyond)[:, ::-1]
    first = np.minimum.accumulate(following, axis=1)[:, ::-1]
    along = np.minimum(np.minimum(columns - last, first - columns), beyond).astype(np.uint8)
    nearest = along.copy()
    # k rows away, a seed is at distance k at least: eighty passes over bytes take less than one over floats
    for k in range(1, min(limit_px, height - 1) + 1):
        reach = np.maximum(along, np.uint8(k))
        np.minimum(nearest[k:], reach[:-k], out=nearest[k:])
        np.minimum(nearest[:-k], reach[k:], out=nearest[:-k])
    return nearest
