"""The metrics of an evaluation with their intervals, from the counts of its images."""

import functools
from collections.abc import Collection, Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segcore.metrics import evaluation
from segcore.metrics.evaluation import Figure
from tasks.evaluation.counts import Counts

BOOTSTRAP_SAMPLES = 1000

LEAST_IMAGES = 5
"""A class that fewer images hold has no interval: resamplings of the same one or two would make it look certain."""


def figures(counts: Counts, classes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """By stage, every metric with its 95 % bootstrap interval over images, as JSON values, 0 to 1.

    mean_iou, pixel_accuracy, class_accuracy; iou and images by class, without interval where few images hold it;
    trimap by measure and width (index 0: 1 px); absent: the classes that are in neither truth nor any prediction.
    All stages have one set of classes, those of `iou`: `evaluation.compared_classes` of all of them.
    """
    single = {stage: counts.of(stage) for stage in counts.confusion}
    bands = {stage: np.cumsum(counts.trimap[stage], axis=1) for stage in single}  # Wider ones hold the narrower
    over = evaluation.compared_classes(*(of.sum(axis=0) for of in single.values()))  # (C,)
    in_bands = evaluation.compared_classes(*(of.sum(axis=0) for of in bands.values()))  # (40, C)
    weights = evaluation.resampling(len(counts.ids), BOOTSTRAP_SAMPLES, seed=0)
    return {stage: _of_stage(single[stage], bands[stage], over, in_bands, weights, classes) for stage in single}


def _of_stage(
    single: NDArray[np.int64],
    bands: NDArray[np.int64],
    over: NDArray[np.bool_],
    in_bands: NDArray[np.bool_],
    weights: NDArray[np.float64],
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """Metrics of a stage. single: (N, C, 3). bands: (N, 40, C, 3). over: (C,), in_bands: (40, C), the classes."""
    found: dict[str, Any] = {"images": len(single)}
    for name in ("mean_iou", "pixel_accuracy", "class_accuracy"):
        [found[name]] = _figures(evaluation.with_interval(functools.partial(_measure, name, over), weights, single))
    by_class, low, high = evaluation.with_interval(evaluation.iou, weights, single)
    holding = (single[..., 1] > 0).sum(axis=0)
    found["absent"] = [name for name, compared in zip(classes, over, strict=True) if not compared]
    found["iou"] = {}
    for c in np.flatnonzero(over):
        certain = holding[c] >= LEAST_IMAGES
        ends = {"low": float(low[c]) if certain else None, "high": float(high[c]) if certain else None}
        value = float(np.nan_to_num(by_class[c], nan=0.0))  # Another stage predicts it
        found["iou"][classes[c]] = {"value": value, **ends, "images": int(holding[c])}
    found["trimap"] = {}
    for name in ("mean_iou", "pixel_accuracy", "class_accuracy"):
        curve = evaluation.with_interval(functools.partial(_measure, name, in_bands), weights, bands)
        if np.isfinite(curve[0]).all():  # Otherwise nothing has a border: one class everywhere
            found["trimap"][name] = _figures(curve)
    return found


def compared_names(records: Iterable[dict[str, Any]]) -> set[str]:
    """Names of the classes that evaluations on the same images are averaged over: those of any of them."""
    return {name for record in records for of_stage in record["figures"].values() for name in of_stage["iou"]}


def mean_iou_over(of_stage: dict[str, Any], names: Collection[str]) -> dict[str, float]:
    """Mean IoU of a stage of a record with its interval, over the classes of a whole comparison.

    names: `compared_names`. A class that just another evaluation has is in no image, and counts as 0: the interval is
    scaled as the mean is, since every resampling has the same classes.
    """
    scale = len(of_stage["iou"]) / max(1, len(names))
    return {end: scale * of_stage["mean_iou"][end] for end in ("value", "low", "high")}


def in_percent(figure: dict[str, float]) -> str:
    """A metric with its interval, both 0 to 1, as people read it: "71.21 (69.02 to 73.40)"."""
    return f"{100 * figure['value']:.2f} ({100 * figure['low']:.2f} to {100 * figure['high']:.2f})"


def _measure(name: str, over: NDArray[np.bool_], counts: NDArray[Any]) -> NDArray[np.float64]:
    """A measure of (..., C, 3) counts, (...,)."""
    if name == "mean_iou":
        return evaluation.mean_iou(counts, over)
    return evaluation.pixel_accuracy(counts) if name == "pixel_accuracy" else evaluation.class_accuracy(counts)


def _figures(ends: tuple[NDArray[np.float64], ...]) -> list[dict[str, float]]:
    """Value, low and high of one or more figures as JSON values."""
    return [asdict(Figure(*map(float, of))) for of in zip(*map(np.atleast_1d, ends), strict=True)]
