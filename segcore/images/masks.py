"""Label maps as palette PNG, and what one image's mask says without being decoded."""

import functools
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from segcore.voc import MOST_BYTE_CLASSES, palette

PNG_COMPRESS_LEVEL = 9
"""zlib strength of the mask column: against 6, a third fewer bytes for 3 ms a mask, which is a hundredth of the work on
an image; no slower at 12 megapixels (docs/benchmarks-results.md)."""


@dataclass(frozen=True)
class ClassSummary:
    """What one class does in one image."""

    index: int
    """Label."""

    pixels: int
    """Pixels of this class in the stored mask."""

    confidence: float
    """Mean probability of the class before the CRF over the pixels assigned to it, 0..1."""

    box: tuple[int, int, int, int]
    """Bounding box of its pixels in the stored mask: x0, y0, x1, y1 in px, x1 and y1 exclusive."""


def label_type(num_classes: int) -> np.dtype:
    """Type of the labels of so many classes: uint8, or uint16."""
    return np.dtype(np.uint8 if num_classes <= MOST_BYTE_CLASSES else np.uint16)


def encode_mask(labels: np.ndarray) -> bytes:
    """PNG of a label map (H, W) whose pixel values are the labels: uint8 in the VOC palette, uint16 grey of 16 bits."""
    image = Image.fromarray(np.ascontiguousarray(labels))
    if labels.dtype == np.uint8:
        image.putpalette(_palette_bytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=PNG_COMPRESS_LEVEL)
    return buffer.getvalue()


def decode_mask(data: bytes) -> np.ndarray:
    """Label map (H, W) of a PNG: uint8 of a palette the index, never the colour, or of 8-bit grey; uint16 of 16 bits.

    Raises ValueError where the PNG is none of these.
    """
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if image.mode not in ("P", "L", "I;16"):
            raise ValueError(f"A mask is a palette PNG whose values are labels; this one has mode {image.mode}.")
        return np.array(image, np.uint16 if image.mode == "I;16" else np.uint8)


def resize_labels(labels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Label map (h, w) uint8 at another size, nearest: each pixel takes the label under its centre."""
    h, w = labels.shape
    if (h, w) == (height, width):
        return labels
    resized: np.ndarray = labels[nearest_index(height, h)][:, nearest_index(width, w)]
    return resized


def nearest_index(size: int, source_size: int) -> np.ndarray:
    """(size,) int64: which of source_size cells lies under the centre of each of size cells."""
    return ((2 * np.arange(size, dtype=np.int64) + 1) * source_size) // (2 * size)


def summarise(
    labels: np.ndarray, confidence: np.ndarray, width: int | None = None, height: int | None = None
) -> list[ClassSummary]:
    """Pixels, confidence and box of each class present, most pixels first.

    labels: (h, w) uint8, at working size.
    confidence: (C,) float, by class.
    width, height: size of the stored mask in px, onto which the labels go by nearest, never smaller than the working
        size; None: the working size.
    Counted without making the large mask: nearest scaling repeats rows and columns.
    """
    h, w = labels.shape
    height, width = height or h, width or w
    rows, columns = nearest_index(height, h), nearest_index(width, w)
    row_repeats = np.bincount(rows, minlength=h)  # (h,) how often each working row stands in the stored mask
    column_repeats = np.bincount(columns, minlength=w)
    row_starts = np.concatenate([[0], np.cumsum(row_repeats)])
    column_starts = np.concatenate([[0], np.cumsum(column_repeats)])
    summaries = []
    for index in np.flatnonzero(np.bincount(labels.ravel(), minlength=256)):
        here = labels == index
        pixels = int(row_repeats @ (here @ column_repeats))
        in_row = np.flatnonzero(here.any(axis=1))
        in_column = np.flatnonzero(here.any(axis=0))
        box = (
            int(column_starts[in_column[0]]),
            int(row_starts[in_row[0]]),
            int(column_starts[in_column[-1] + 1]),
            int(row_starts[in_row[-1] + 1]),
        )
        summaries.append(ClassSummary(int(index), pixels, float(confidence[index]), box))
    return sorted(summaries, key=lambda s: (-s.pixels, s.index))


@functools.cache
def _palette_bytes() -> bytes:
    return palette().tobytes()
