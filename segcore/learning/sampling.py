"""Which images make up a batch: a function of seed and iteration alone, so that a resumed run sees the same ones.

The number of workers has no part in it; they share out what this module says.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sample:
    """One image of one epoch."""

    epoch: int
    """From 0; with the image's identity and the seed it decides the augmentation."""

    index: int
    """Position in the data set."""


def batch_samples(iteration: int, batch_size: int, num_images: int, seed: int) -> list[Sample]:
    """The images of an iteration's global batch, in order.

    Every epoch is a permutation of its own of all images; a batch may begin in one and end in the next, so no image is
    left out at the end of an epoch. iteration: from 0. ValueError: no images.
    """
    if num_images < 1:
        raise ValueError("There are no images to train on.")
    positions = range(iteration * batch_size, (iteration + 1) * batch_size)
    return [
        Sample(position // num_images, int(_order(position // num_images, num_images, seed)[position % num_images]))
        for position in positions
    ]


def drawn_samples(iteration: int, batch_size: int, weights: np.ndarray, seed: int) -> list[Sample]:
    """The images of an iteration's global batch where some are drawn more often; every iteration is its own epoch.

    weights: (N,) float, summing to 1. Within a batch every image is there once, as far as there are enough.
    """
    rng = np.random.default_rng([seed, iteration, 2])
    enough = int((weights > 0).sum()) >= batch_size
    return [Sample(iteration, int(i)) for i in rng.choice(len(weights), batch_size, replace=not enough, p=weights)]


MAX_DRAW_RATIO = 12.0
"""No image is drawn more often than this many times the mean: of a few photographs everything is soon known."""


def drawing_weights(pixels: np.ndarray, power: float) -> np.ndarray:
    """How often each image is drawn: (N,) float64, summing to 1.

    An image counts as its rarest class but label 0, with (1 / share of images that hold it) ** power; a class is held
    from 1 % of the pixels on. pixels: (N, C), of each class in each image.
    """
    holds = pixels[:, 1:] > 0.01 * pixels.sum(1, keepdims=True)
    shares = holds.mean(0)
    rarest = np.where(holds, shares, 1.0).min(1, initial=1.0)
    weights: np.ndarray = rarest**-power
    weights = np.minimum(weights / weights.mean(), MAX_DRAW_RATIO)
    return np.asarray(weights / weights.sum())


def share_of(samples: list[Sample], rank: int, num_workers: int) -> list[Sample]:
    """The consecutive part of a global batch that worker `rank` computes; the first ones have one more where need be.

    ValueError: there are fewer samples than workers.
    """
    if len(samples) < num_workers:
        raise ValueError(
            f"A batch of {len(samples)} images cannot be shared by {num_workers} workers; "
            "choose a larger batch size or fewer workers."
        )
    each, more = divmod(len(samples), num_workers)
    start = rank * each + min(rank, more)
    return samples[start : start + each + (rank < more)]


@functools.lru_cache(maxsize=4)
def _order(epoch: int, num_images: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, 1]).permutation(num_images)
