"""The images of a gallery: photograph, thumbnail, masks and facts of each, written side by side."""

import base64
import contextlib
import functools
import io
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from segcore.images.containers import jpeg_frame
from segcore.images.decoding import decode
from segcore.images.errors import ErrorKind, ImageError
from segcore.images.masks import decode_mask, resize_labels
from segcore.images.pixels import fit_long_side
from segcore.images.regions import reduced
from segcore.images.rle import encode_runs
from tasks.ahead import ahead
from tasks.archive.stored_content import StoredContent
from tasks.results.gallery_files import write_file, write_script
from tasks.results.photographs import Photographs
from tasks.results.reading import Results
from tasks.results.truth import Truth
from tasks.storage import Location

_THUMB_SIDE_PX = 360
_PHOTO_SIDE_PX = 960
_JPEG_QUALITY = 82
_BATCH_IMAGES = 16
_WORKERS = min(16, 2 * len(os.sched_getaffinity(0)))


@dataclass
class Gallery:
    """What the images of a gallery have in common."""

    results: Results
    photographs: Photographs
    sheet: frozenset[int]
    """Numbers of the images on the contact sheet."""

    folder: Location
    """The versioned folder."""

    truth: Truth | None = None
    """True masks, where they are asked for."""


@dataclass
class ShownImage:
    """One image after its files are written."""

    number: int
    entry: list[Any]
    """Its row of the index."""

    missing: bool
    has_before: bool
    """Whether there is a second mask to compare with."""

    has_truth: bool = False
    """Whether the true mask is shown too."""

    picture: tuple[np.ndarray, np.ndarray, str] | None = None
    classes: dict[int, str] = field(default_factory=dict)


def write_images(
    gallery: Gallery, rows: Iterable[dict[str, Any]], num_images: int, advance: Callable[[int, int], None] | None
) -> list[ShownImage]:
    """Write the files of every image, a few batches at a time; returns the images in the order of the rows.

    rows: of the results, with their masks. advance: told how many images are done, of how many.
    """
    done: list[ShownImage] = []
    numbered = enumerate(rows)
    batches = iter(lambda: list(itertools.islice(numbered, _BATCH_IMAGES)), [])
    for images in ahead(functools.partial(_write_batch, gallery), batches, _WORKERS, _WORKERS + 2):
        done.extend(images)
        if advance is not None:
            advance(len(done), num_images)
    return done


def _write_batch(gallery: Gallery, batch: Sequence[tuple[int, dict[str, Any]]]) -> list[ShownImage]:
    photographs = gallery.photographs.read([row for _, row in batch])
    return [_write_image(gallery, n, row, data) for (n, row), (_, data) in zip(batch, photographs, strict=True)]


def _write_image(gallery: Gallery, number: int, row: dict[str, Any], data: bytes | ImageError) -> ShownImage:
    name = f"{number // 1000:03d}/{number:06d}"
    image, why = _decode(data)
    labels = gallery.results.labels_of(row, small=True)
    if image is not None:
        _write_jpeg(gallery.folder / f"photos/{name}.jpg", image)
        _write_jpeg(gallery.folder / f"thumbs/{name}.jpg", _smaller(image, _THUMB_SIDE_PX))
        height, width = image.shape[:2]
    elif labels is not None:
        width, height = fit_long_side(labels.shape[1], labels.shape[0], _PHOTO_SIDE_PX)
    else:
        width, height = 4, 3
    item: dict[str, Any] = {
        "uri": row["uri"],
        "bytes": row["source_size"],
        "size": [row["width"], row["height"]],
        "mask_size": [row["mask_width"], row["mask_height"]],
        "shown": [width, height],
        "device": row["device"],
        "photo": why,
        "error": row["error"],
        "classes": [
            [c["index"], c["pixels"], _rounded(c["confidence"]), [c["box"][side] for side in ("x0", "y0", "x1", "y1")]]
            for c in row["classes"] or ()
        ],
    }
    if labels is not None:
        shown = resize_labels(labels, width, height)
        item["mask"] = _runs(shown)
        if shown.dtype.itemsize > 1:
            item["wide"] = True  # Two bytes a label
        if row["mask_before_crf"] is not None:
            item["before"] = _runs(resize_labels(decode_mask(row["mask_before_crf"]), width, height))
        true = None if gallery.truth is None else gallery.truth.read(row["image_id"])
        if true is not None:
            item["truth"] = _runs(resize_labels(true, width, height))
    write_script(gallery.folder / f"items/{name}.js", f"archive.item({number},", item)
    area = max(1, (row["mask_width"] or 0) * (row["mask_height"] or 0))
    entry = [
        row["image_id"],
        round(width / height, 3),
        *(_rounded(row[column]) for column in ("confidence", "entropy", "changed_by_crf")),
        row["error_kind"],
        [[c["index"], round(c["pixels"] / area, 4), _rounded(c["confidence"])] for c in row["classes"] or ()],
        int(image is not None),
    ]
    done = ShownImage(number, entry, image is None and row["error_kind"] is None, "before" in item, "truth" in item)
    done.classes = {c["index"]: c["name"] for c in row["classes"] or ()}
    if number in gallery.sheet and labels is not None and image is not None:
        small = _smaller(image, _THUMB_SIDE_PX)
        told = [f"{c['name']} {_percent(c['pixels'] / area)}" for c in row["classes"] if c["index"] != 0][:3]
        caption = f"{row['image_id'].rpartition('/')[2]}: {', '.join(told) or row['classes'][0]['name']}"
        done.picture = (small, resize_labels(shown, small.shape[1], small.shape[0]), caption)
    return done


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "<1%"


def _decode(data: Any) -> tuple[np.ndarray | None, str | None]:
    """The photograph (h, w, 3) uint8 as it is shown, or the reason why there is none. data: of `Photographs`."""
    if isinstance(data, ImageError):
        return None, str(data)
    try:
        if isinstance(data, StoredContent):
            return _smaller(reduced(data, _PHOTO_SIDE_PX), _PHOTO_SIDE_PX), None
        return decode(data, _PHOTO_SIDE_PX).image, None
    except ImageError as error:
        if error.kind is ErrorKind.TOO_LARGE and isinstance(data, bytes) and jpeg_frame(data) is not None:
            with contextlib.suppress(ImageError):
                return _smaller(reduced(data, _PHOTO_SIDE_PX), _PHOTO_SIDE_PX), None
        return None, str(error)


def _smaller(image: np.ndarray, side_px: int) -> np.ndarray:
    width, height = fit_long_side(image.shape[1], image.shape[0], side_px)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0))


def _runs(labels: np.ndarray) -> str:
    return base64.b64encode(encode_runs(labels)).decode("ascii")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _write_jpeg(place: Location, image: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    write_file(place, buffer.getvalue(), "image/jpeg")
