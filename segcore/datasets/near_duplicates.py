"""Photographs that are the same to the eye: a 64-bit hash of each, and the pairs whose hashes are close.

Figures: `python -m benchmarks.near_duplicates`, on the real photographs of the test data.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_DISTANCE: Final = 6
"""Bits of 64 that may differ. Of 1,699 photographs saved again in six sizes, qualities and formats 99.6 % or more stay
within, mirrored too. Of 6.9 million pairs of VOC photographs none is taken for copies, as they are or mirrored; of 23
million with catalogue pictures and video frames 183 are, nearly all of them two shots of one scene, or one product in
two colours."""

VERSION: Final = 2
"""Raised when an image gets another hash."""

LOOK_SIDE_PX: Final = 128
"""Decode photographs to this long side before: smaller, what a decoder leaves out at the right edge moves the bits of
mirror images."""

SAME_ASPECT: Final = 0.02
"""Copies have the same ratio of their sides, to this share: sizes in whole pixels and cameras' margins move it less."""

_SIDE = 32
_FLAT = 6.0
_BLOCK = 1 << 22
_POOL_AT_A_TIME = 1 << 12  # With the rows, a block of some MB, which stays in the cache
_ROWS_AT_A_TIME = 256

# The 63 lowest frequencies of an 8 x 8 block without the mean, and the next horizontal one
_FREQUENCIES = [(v, u) for v in range(8) for u in range(8) if (v, u) != (0, 0)] + [(0, 8)]
_ROWS, _COLUMNS = (np.array(axis) for axis in zip(*_FREQUENCIES, strict=True))
_BASIS = np.cos(np.pi * np.outer(np.arange(9), np.arange(_SIDE) + 0.5) / _SIDE)  # DCT-II, unscaled: signs alone count
# A mirror image has the same coefficients, those of odd horizontal frequency with the other sign
_MIRROR = np.uint64(int.from_bytes(np.packbits(_COLUMNS % 2 == 1).tobytes(), "big"))


class ClosePair(NamedTuple):
    """Two images that look the same."""

    first: int
    """Position in the first list."""

    second: int
    """Position in the second list."""

    mirrored: bool
    """Whether one is the mirror image of the other."""


def fingerprint(image: NDArray[np.uint8]) -> int | None:
    """64-bit perceptual hash of an image (H, W, 3) uint8 RGB: signs of its low-frequency cosine coefficients.

    The hash of the mirror image is the same with half of the bits inverted, so that one hash finds both.
    image: best at a long side of `LOOK_SIDE_PX`; it is looked at as 32 x 32.
    None for an image so flat that noise would decide.
    """
    grey = Image.fromarray(image).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    cells = np.asarray(grey).astype(np.float64)  # (32, 32)
    if cells.std() < _FLAT:
        return None
    coefficients = _BASIS @ cells @ _BASIS.T  # (9, 9): vertical, horizontal frequency
    bits = coefficients[_ROWS, _COLUMNS] > 0
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def close_pairs(
    first: NDArray[np.uint64], second: NDArray[np.uint64], max_distance: int = MAX_DISTANCE
) -> Iterator[ClosePair]:
    """Pairs whose hashes first (n,) uint64 and second (m,) uint64 differ in at most max_distance bits.

    Each pair comes once; one that fits both ways (a symmetric image) counts as not mirrored.
    """
    if not len(second):
        return
    step = max(1, _BLOCK // len(second))
    for start in range(0, len(first), step):
        differing = first[start : start + step, None] ^ second[None, :]  # (step, m)
        same = np.bitwise_count(differing) <= max_distance
        mirrored = np.bitwise_count(differing ^ _MIRROR) <= max_distance
        for i, j in np.argwhere(same | mirrored):
            yield ClosePair(start + int(i), int(j), not same[i, j])


def originals(
    looks: NDArray[np.uint64],
    aspects: NDArray[np.float64],
    known_looks: NDArray[np.uint64],
    known_aspects: NDArray[np.float64],
    max_distance: int = MAX_DISTANCE,
) -> NDArray[np.int64]:
    """Which image each of n images is a copy of, (n,): k for known image k, m + i for image i of these, or -1.

    looks: (n,) hashes, 0 where there is none: such an image is no copy. aspects: (n,) width / height.
    known_looks, known_aspects: (m,), of images that are no copies.
    In order: an image is compared with the known ones and with those before it that are no copies themselves, and the
    first that is alike counts. So a chain of small changes does not become one image. Mirror images are no copies.
    """
    known, total = len(known_looks), len(known_looks) + len(looks)
    pool, sides, numbers = np.empty(total, np.uint64), np.empty(total, np.float64), np.empty(total, np.int64)
    pool[:known], sides[:known], numbers[:known] = known_looks, known_aspects, np.arange(known)
    held = known
    found = np.full(len(looks), -1, np.int64)

    def first_alike(rows: NDArray[np.intp], start: int, end: int) -> NDArray[np.int64]:
        """Place in the pool of the first image alike, for each of the rows; -1 where there is none."""
        alike = np.bitwise_count(looks[rows, None] ^ pool[None, start:end]) <= max_distance  # (rows, pool)
        if alike.any():  # Seldom, so the sides are compared afterwards
            alike &= np.abs(np.log(aspects[rows, None] / sides[None, start:end])) <= SAME_ASPECT
        return np.where(alike.any(axis=1), start + alike.argmax(axis=1), -1)

    for first in range(0, len(looks), _ROWS_AT_A_TIME):
        rows = first + np.flatnonzero(looks[first : first + _ROWS_AT_A_TIME])
        before = held
        for start in range(0, before, _POOL_AT_A_TIME):
            rows = rows[found[rows] < 0]
            if not len(rows):
                break
            places = first_alike(rows, start, min(before, start + _POOL_AT_A_TIME))
            found[rows[places >= 0]] = numbers[places[places >= 0]]
        for row in rows[found[rows] < 0]:
            place = first_alike(np.array([row]), before, held)[0] if held > before else -1
            if place >= 0:
                found[row] = numbers[place]
                continue
            pool[held], sides[held], numbers[held] = looks[row], aspects[row], known + row
            held += 1
    return found
