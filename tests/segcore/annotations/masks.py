"""Masks of many kinds, small enough to be looked at."""

from collections.abc import Iterator

import numpy as np


def odd_masks(seed: int = 0, number: int = 200) -> Iterator[np.ndarray]:
    """Masks (H, W) bool: full, a pixel, a line, a ring, touching corners, noise of every density."""
    yield np.ones((1, 1), bool)
    yield np.ones((5, 7), bool)
    yield np.eye(6, dtype=bool)
    yield np.eye(6, dtype=bool)[::-1]
    ring = np.ones((9, 9), bool)
    ring[2:7, 2:7] = False
    ring[4, 4] = True
    yield ring
    comb = np.zeros((7, 11), bool)
    comb[0], comb[:, ::2] = True, True
    yield comb
    random = np.random.default_rng(seed)
    for _ in range(number):
        height, width = random.integers(1, 24, 2)
        mask = random.random((height, width)) < random.random()
        mask[random.integers(height), random.integers(width)] = True
        yield mask
