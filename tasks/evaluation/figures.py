"""The figures of an evaluation with their intervals, from the counts of its images."""

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segcore import evaluation
from segcore.evaluation import Figure
from tasks.evaluation.counts import Counts

BOOTSTRAP_SAMPLES = 1000

LEAST_IMAGES = 5
"""A class that fewer images hold has no interval: draws of the same one or two images would make it look certain."""


def figures(counts: Counts, stage: str, classes: tuple[str, ...]) -> dict[str, Any]:
    """Every figure of a stage with its 95 % bootstrap interval over images, as JSON values, 0 to 1.

    mean_iou, pixel_accuracy, class_accuracy; iou and images by class, without interval where few images hold it;
    trimap by measure and width (index 0: 1 px); absent: the classes that are in neither truth nor prediction.
    """
    single = counts.of(stage)
    weights = evaluation.resampling(len(single), BOOTSTRAP_SAMPLES, seed=0)
    summed, resampled = single.sum(axis=0), evaluation.resampled_sums(single, weights)
    found: dict[str, Any] = {"images": len(single)}
    for name in ("mean_iou", "pixel_accuracy", "class_accuracy"):
        measure = getattr(evaluation, name)
        found[name] = _figure(measure(summed), measure(resampled))
    by_class, samples = evaluation.iou(summed), evaluation.iou(resampled)
    low, high = evaluation.interval(samples)
    holding = (single[..., 1] > 0).sum(axis=0)
    absent = set(evaluation.absent_classes(single))
    found["absent"] = [classes[c] for c in sorted(absent)]
    found["iou"] = {}
    for c, name in enumerate(classes):
        if c not in absent:
            certain = holding[c] >= LEAST_IMAGES
            ends = {"low": float(low[c]) if certain else None, "high": float(high[c]) if certain else None}
            found["iou"][name] = {"value": float(by_class[c]), **ends, "images": int(holding[c])}
    bands = np.cumsum(counts.trimap[stage], axis=1)  # (N, 40, C, 3): all that is nearer is in a wider trimap
    band_sums = bands.sum(axis=0)
    band_samples = np.cumsum(evaluation.resampled_sums(counts.trimap[stage], weights), axis=1)
    found["trimap"] = {}
    for name in ("mean_iou", "pixel_accuracy", "class_accuracy"):
        measure = getattr(evaluation, name)
        values, of_samples = measure(band_sums), measure(band_samples)
        if not np.isfinite(values).all():
            continue  # Nothing has a border: one class everywhere
        low, high = evaluation.interval(of_samples)
        found["trimap"][name] = [
            asdict(Figure(float(v), float(a), float(b))) for v, a, b in zip(values, low, high, strict=True)
        ]
    return found


def in_percent(figure: dict[str, float]) -> str:
    """A figure with its interval, both 0 to 1, as people read it: "71.21 (69.02 to 73.40)"."""
    return f"{100 * figure['value']:.2f} ({100 * figure['low']:.2f} to {100 * figure['high']:.2f})"


def _figure(value: NDArray[Any], samples: NDArray[np.float64]) -> dict[str, float]:
    low, high = evaluation.interval(samples)
    return asdict(Figure(float(value), float(low), float(high)))
