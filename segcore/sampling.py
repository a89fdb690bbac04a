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
