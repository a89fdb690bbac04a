"""What every annotation format holds of one image: regions of classes, in the order in which they are painted."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segcore.datasets.label_set import VOID_NAMES
from segcore.voc import IGNORE_LABEL

BACKGROUND = "background"
"""The class that formats of regions leave out: what no region covers."""

MAX_PIXELS = 1 << 27
"""A mask of more pixels is refused before it is decoded."""


@dataclass(frozen=True)
class Region:
    """Pixels of one class."""

    name: str
    """Of the class."""

    mask: NDArray[np.bool_]
    """(H, W) bool, of the whole image."""

    score: float | None = None
    """How sure the model is of it, 0..1; None where a person drew it."""


@dataclass(frozen=True)
class Annotated:
    """One image with its regions, as a file of annotations names it."""

    name: str
    """Path or address of the image."""

    identity: str | None
    """The image's identity in our output, where the format carried it."""

    width: int
    """Px."""

    height: int
    """Px."""

    regions: Callable[[], Iterable[Region]]
    """Decodes the regions, the lowest first. Raises ValueError where one is damaged or of an unknown shape."""

    reviewed: bool = True
    """Whether a person has confirmed or changed it."""

    known_names: tuple[str, ...] = ()
    """Classes that the file declares, in its order, or those of the regions where it declares none."""


def has_background(names: Mapping[int, str]) -> bool:
    """Whether label 0 is what no region covers. names: classes by label."""
    return names.get(0, BACKGROUND) == BACKGROUND


def regions_of(labels: np.ndarray, names: Mapping[int, str], scores: Mapping[int, float] | None = None) -> list[Region]:
    """A region for each class of a label map (H, W) but background. names, scores: by label."""
    background = has_background(names)
    return [
        Region(names.get(label, f"class {label}"), labels == label, (scores or {}).get(label))
        for label in map(int, np.unique(labels))
        if not (label == 0 and background) and not (label == IGNORE_LABEL and labels.dtype == np.uint8)
    ]


def painted(regions: Iterable[Region], labels: Mapping[str, int], height: int, width: int, empty: int) -> np.ndarray:
    """Label map (height, width) uint8 of regions, each over those before it. labels: by name; empty: of the rest.

    Names that mean void paint 255, "background" paints `empty`. Raises ValueError for a name without a label.
    """
    canvas = np.full((height, width), empty, np.uint8)
    folded = {name.casefold(): label for name, label in labels.items()}
    for region in regions:
        label = labels.get(region.name, folded.get(region.name.casefold()))
        if label is None and region.name.casefold() in VOID_NAMES:
            label = IGNORE_LABEL
        if label is None and region.name.casefold() == BACKGROUND:
            label = empty
        if label is None:
            raise ValueError(f"no class is called {region.name!r}")
        canvas[region.mask] = label
    return canvas


def require_size(width: object, height: object) -> tuple[int, int]:
    """A size that a file claims, as numbers. Raises ValueError where it is none, or too large."""
    try:
        size = int(float(str(width))), int(float(str(height)))
    except (ValueError, OverflowError):
        raise ValueError(f"its size is {width!r} x {height!r}") from None
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"its size is {size[0]} x {size[1]} px")
    return size


def hex_colour(rgb: tuple[int, int, int]) -> str:
    """#rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)
