"""How good label maps are: counts per class, IoU from their sums, bootstrap over images.

As in VOC, one IoU comes from counts summed over all images, not from a mean of IoUs of single images.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segcore.voc import IGNORE_LABEL

NUM_COUNTS: Final = 3
"""Hits, pixels of the class in the truth, pixels of the class in the prediction."""


def count_pixels(truth: NDArray[np.uint8], predicted: NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    """What one image contributes to IoU: (C, 3) int64, hits, truth and prediction of each class.

    truth: (H, W) uint8; pixels of 255 are dropped from all counts.
    predicted: (H, W) uint8, 0 to num_classes - 1.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth is {truth.shape}, the prediction {predicted.shape}")
    seen = truth != IGNORE_LABEL
    truth, predicted = truth[seen], predicted[seen]
    for what, labels in (("truth", truth), ("prediction", predicted)):
        if labels.size and labels.max() >= num_classes:
            raise ValueError(f"{what} has label {labels.max()}, but there are {num_classes} classes")
    counted = [np.bincount(of, minlength=num_classes) for of in (truth[truth == predicted], truth, predicted)]
    return np.stack(counted, axis=-1).astype(np.int64)


def iou(counts: NDArray[Any]) -> NDArray[np.float64]:
    """(..., C, 3) counts to (..., C) IoU, 0 to 1; NaN for a class that is in neither truth nor prediction."""
    hits, truth, predicted = (counts[..., i].astype(np.float64) for i in range(NUM_COUNTS))
    union = truth + predicted - hits
    return np.asarray(np.divide(hits, union, out=np.full(hits.shape, np.nan), where=union > 0), np.float64)


def bootstrap_mean_iou(
    counts: NDArray[Any], classes: NDArray[np.intp], *, num_samples: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Mean IoU over `classes` of `num_samples` sets of images drawn with replacement: (num_samples,), 0 to 1.

    counts: (N, C, 3), one image each. The same seed draws the same images: two results can be
    compared in pairs.
    """
    rng = np.random.default_rng(seed)
    num_images = len(counts)
    # How often each image is drawn, instead of the draws themselves: one product sums them all
    weights = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=num_samples)
    flat = counts[:, classes].reshape(num_images, -1).astype(np.float64)
    sums = (weights @ flat).reshape(num_samples, len(classes), NUM_COUNTS)
    return np.asarray(np.nanmean(iou(sums), axis=-1), np.float64)
