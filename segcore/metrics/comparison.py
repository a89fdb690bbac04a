"""Whether one model is worse than another on the same images: a paired bootstrap for many figures at a time.

A night looks at dozens of figures: the IoU of every class, their mean, the accuracy of pixels, with and without CRF, of
every model. An interval of 95 % for each of them would cry wolf nearly every night. The intervals here are
simultaneous: one resampling of the images serves all figures of all models, and the width of every interval is that
multiple of its standard error that the largest of all deviations exceeds in a stated share of the resamplings (the
max-t method: Westfall and Young 1993, Romano and Wolf 2005). Figures that move together, such as a class with and
without CRF, so count about once. Where few images decide a figure, its multiple is that of Student's t.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Any

import annotated_types
import numpy as np
from numpy.typing import NDArray

from segcore.metrics import evaluation

NIGHTS = 30
"""Of a month."""

_ENOUGH_DRAWS = 20
"""Beyond the point that a tail is read from as it is; farther out it is taken for that of normal deviations."""


@dataclass(frozen=True)
class AlarmParams:
    """When a difference is worth waking somebody."""

    false_alarms: Annotated[float, annotated_types.Interval(gt=0, lt=0.5)] = 0.02
    """Share of the months of thirty nights without any change that may raise an alarm all the same, over all figures of
    all models."""

    tolerance_points: Annotated[float, annotated_types.Interval(ge=0, le=100)] = 0.5
    """A figure is worse when its whole interval is below minus this many percentage points."""

    least_images: Annotated[int, annotated_types.Ge(2)] = 20
    """A class is tested alone if at least this many images hold it; fewer say too little, and only enter the mean."""

    num_samples: Annotated[int, annotated_types.Interval(ge=200, le=100_000)] = 4000
    """Resamplings of the images."""

    seed: int = 0
    """Draws the resamplings."""


@dataclass(frozen=True)
class Difference:
    """One figure, now and before; all values are shares, 0 to 1."""

    name: str
    """ "mean_iou", "pixel_accuracy" or "iou"."""

    label: int | None
    """Of the class; None for a figure over all of them."""

    before: float
    now: float

    low: float
    """Lower end of the simultaneous interval of now minus before."""

    high: float
    """Its upper end."""

    worse: bool
    """Whether the interval is below the tolerance as a whole."""


def compare(
    pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]], params: AlarmParams, weights: NDArray[np.float64] | None = None
) -> list[list[Difference]]:
    """Differences of each pair, with intervals that hold for all figures of all pairs together.

    pairs: counts before and now, (N, C, 3) each, of the same images in the same order; N is the same for all pairs.
    weights: `evaluation.resampling` of the images, where it is at hand.
    """
    if not pairs:
        return []
    num_images = {len(counts) for pair in pairs for counts in pair}
    if len(num_images) != 1:
        raise ValueError(f"Only results on the same images can be compared; these have {sorted(num_images)} images.")
    if weights is None:
        weights = evaluation.resampling(num_images.pop(), params.num_samples, params.seed)
    named, values, deviations, resting_on = [], [], [], []
    for before, now in pairs:
        keys, labels = _tested(before, now, params.least_images)
        sums = [evaluation.resampled_sums(counts, weights) for counts in (before, now)]
        over = evaluation.compared_classes(before.sum(axis=0), now.sum(axis=0))
        own = [_figures(counts.sum(axis=0), labels, over) for counts in (before, now)]
        resampled = _figures(sums[1], labels, over) - _figures(sums[0], labels, over)
        named.append(keys)
        values.append(own)
        deviations.append((own[1] - own[0]) - resampled)
        without = [_figures(counts.sum(axis=0) - counts, labels, over) for counts in (before, now)]
        resting_on.append(evaluation.effective_images((own[1] - own[0]) - (without[1] - without[0])))
    errors = [np.nanstd(deviation, axis=0) for deviation in deviations]
    multiple = _multiple(deviations, errors, 1 - (1 - params.false_alarms) ** (1 / NIGHTS))
    results = []
    for keys, (before_values, now_values), error, images in zip(named, values, errors, resting_on, strict=True):
        differences = []
        widths = _wider(multiple, images) * error
        for (name, label), was, is_now, width in zip(keys, before_values, now_values, widths, strict=True):
            low, high = is_now - was - width, is_now - was + width
            worse = bool(high < -params.tolerance_points / 100)
            differences.append(Difference(name, label, float(was), float(is_now), float(low), float(high), worse))
        results.append(differences)
    return results


def _tested(before: NDArray[Any], now: NDArray[Any], least_images: int) -> tuple[list[tuple[str, int | None]], Any]:
    """Names of the figures, and the labels of the classes that are tested alone."""
    holding = (before[..., 1] > 0).sum(axis=0)
    labels = np.flatnonzero(holding >= least_images)
    return [("mean_iou", None), ("pixel_accuracy", None), *(("iou", int(label)) for label in labels)], labels


def _figures(counts: NDArray[Any], labels: NDArray[np.intp], over: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(..., C, 3) to (..., 2 + labels): mean IoU over one set of classes, pixel accuracy, IoU of the labels."""
    overall = np.stack([evaluation.mean_iou(counts, over), evaluation.pixel_accuracy(counts)], axis=-1)
    return np.concatenate([overall, evaluation.iou(counts[..., labels, :])], axis=-1)


def _wider(multiple: float, images: NDArray[np.float64]) -> NDArray[np.float64]:
    """The multiple of the error of each figure that has the same tail where so few images decide it: Student's t."""
    beyond = math.erfc(multiple / math.sqrt(2)) / 2
    if not 1e-15 < beyond < 0.5:
        return np.full(images.shape, multiple)
    return np.array([math.sqrt(n / (n - 1)) * evaluation.t_quantile(1 - beyond, n - 1) for n in images.tolist()])


def _multiple(deviations: list[NDArray[Any]], errors: list[NDArray[Any]], share: float) -> float:
    """The multiple of their standard errors that the largest deviation of all figures exceeds in `share` of the draws.

    One-sided, since only a fall raises an alarm: all upper ends hold together at 1 - share.
    """
    largest = np.zeros(len(deviations[0]))
    for deviation, error in zip(deviations, errors, strict=True):
        # A figure that no image changes has no deviation either
        moving = error > 1e-12
        scaled = -deviation[:, moving] / error[moving]
        if scaled.size:
            largest = np.maximum(largest, np.nan_to_num(scaled, nan=0.0).max(axis=1))
    seen = max(share, _ENOUGH_DRAWS / len(largest))
    multiple = float(np.quantile(largest, 1 - seen))
    beyond = math.erfc(multiple / math.sqrt(2)) / 2
    if share >= seen or multiple <= 0 or beyond < 1e-300:
        return multiple
    # As many independent figures as would be beyond it equally often
    return max(multiple, -NormalDist().inv_cdf(min(0.5, beyond * share / seen)))
