"""The labels of Ultralytics' YOLO for segmentation: a text file an image, an outline a line.

0 0.10 0.12 0.55 0.12 0.55 0.60         number of the class, then x and y of each vertex as shares of the image
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from segcore.annotations import polygons
from segcore.annotations.regions import Region

Outline = tuple[int, NDArray[np.float64]]
"""Number of the class, and (K, 2) float64 of x and y, 0..1."""


def read_outlines(text: str) -> list[Outline]:
    """The outlines of one image, the largest first. Raises ValueError for what is no such file, or one of boxes."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) == 5:
            raise ValueError(f"its line {number} is a box, not an outline")
        try:
            label, points = int(words[0]), polygons.points_of([float(word) for word in words[1:]])
        except ValueError:
            label = -1
        if label < 0:
            raise ValueError(f"its line {number} is no outline of YOLO: {line[:60]!r}")
        found.append((label, points))
    return sorted(found, key=lambda outline: -_area(outline[1]))


def regions(outlines: Sequence[Outline], names: Sequence[str], width: int, height: int) -> Iterator[Region]:
    """The regions of an image of this size, px. names: of the classes. Raises ValueError for a number without one."""
    for label, points in outlines:
        if label >= len(names):
            raise ValueError(f"it has the class {label}, and {len(names)} are named, from 0 on")
        yield Region(names[label], polygons.filled([points * [width, height]], height, width))


def _area(points: NDArray[np.float64]) -> float:
    x, y = points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
