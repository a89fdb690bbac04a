"""Photographs as they come: bytes of many formats in, an upright RGB array at working size out.

Owns decoding, orientation, colour conversion and scaling. Where the bytes came from is not its business.
"""

import contextlib
import ctypes
import functools
import io
import logging
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import pillow_heif
from PIL import ExifTags, Image, UnidentifiedImageError

from segcore.images import containers, inner, raw, tiff, video
from segcore.images.colour import Converted, to_srgb
from segcore.images.containers import PNG_SIGNATURE, Bare
from segcore.images.inner import InnerImage

pillow_heif.register_heif_opener()
Image.init()  # Some formats are otherwise known only after a first failure


def _silence_decoders() -> None:
    """What is wrong with an image is said by its ImageError; a line per complaint would drown everything else."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    for place in (Path(Image.__file__).parents[1] / "pillow.libs").glob("libtiff*.so*"):
        libtiff = ctypes.CDLL(str(place))  # The one that Pillow has loaded; it writes to stderr by itself
        for function in (libtiff.TIFFSetErrorHandler, libtiff.TIFFSetWarningHandler):
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
            function(None)


_silence_decoders()

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "BMP", "DIB", "TIFF", "GIF")
"""Pillow's names of what is read (a multi-picture JPEG opens as JPEG). A closed list: formats that run an interpreter,
such as EPS, stay out."""

_ENDINGS = "jpg jpeg jpe jfif mpo png webp avif heic heif hif bmp dib tif tiff gif"
EXTENSIONS = frozenset(f".{ending}" for ending in _ENDINGS.split()) | raw.EXTENSIONS
"""File names that promise one of the formats or a camera's RAW file; the bytes decide."""

MAX_PIXELS = 178_956_970
"""Pillow's own bound against decompression bombs (twice its warning bound of 1 GiB of RGB / 4 / 3)."""

MAX_JPEG_SCANS = 64
"""Each scan of a progressive JPEG walks over the whole image, however few bytes it has; encoders write 10 to 20."""

_MAX_REASON_CHARACTERS = 200


class ErrorKind(StrEnum):
    """Why an image has no mask. Stored in the column `error_kind`."""

    MISSING = "missing"
    """Listed, and gone when it was to be read."""
    UNREADABLE = "unreadable"
    """The storage, the tar shard or the Parquet file did not give the bytes."""
    CHANGED = "changed"
    """The bytes at this path are no longer the ones that were listed."""
    EMPTY = "empty"
    """No bytes."""
    UNSUPPORTED = "unsupported"
    """A kind of image that is not read here, such as a RAW file without its reader; the message has the remedy."""
    NOT_AN_IMAGE = "not_an_image"
    """No accepted format recognises the bytes."""
    TRUNCATED = "truncated"
    """The image ends too early."""
    CORRUPT = "corrupt"
    """A known format whose contents do not decode."""
    TOO_LARGE = "too_large"
    """More pixels than the bound, or a decompression bomb."""
    FAILED = "failed"
    """Decoded, but scoring or refinement failed."""
    CRASHED = "crashed"
    """Ends the process that touches it; tried alone before it was said."""
    TIMEOUT = "timeout"
    """Takes longer in one stage than an image may."""
    MEMORY = "memory"
    """Needs more memory than an image may, or than there is."""


class ImageError(ValueError):
    """An image that cannot be used: `kind` says which of the enumerated reasons, the message why."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type["ImageError"], tuple[ErrorKind, str]]:
        return (ImageError, (self.kind, str(self)))  # Exceptions with two arguments do not pickle by themselves


@dataclass(frozen=True)
class Photograph:
    """One decoded image."""

    image: np.ndarray
    """(h, w, 3) uint8 RGB, upright, at working size."""

    width: int
    """Own width in px, upright."""

    height: int
    """Own height in px, upright."""

    note: str = ""
    """What was missing, damaged or ignored, though there is a picture; for the image's row."""


@dataclass(frozen=True)
class Reading:
    """What is taken of a file where there is a choice; decides pixels."""

    raw: Literal["preview", "full"] = "preview"
    """Of a camera's RAW file: the preview that the camera has put in, where it is large enough, or always the values of
    the sensor, developed."""

    ignore_profiles: bool = False
    """Take the numbers of every picture for sRGB, as versions before colour profiles were converted did."""


def decode(
    data: bytes | InnerImage,
    long_side_px: int | None = None,
    max_pixels: int = MAX_PIXELS,
    reading: Reading = Reading(),
) -> Photograph:
    """Decode an image, turn it upright, convert it to sRGB and scale it down to the working size.

    data: the file, or one image of a file that holds several. First frame of GIF, first page of TIFF that is no
        thumbnail, of a RAW file what `reading` says. EXIF orientation is applied; colours go through
        the embedded profile; alpha is laid over white; deep samples become bytes (`_to_bytes`). Metadata that is
        damaged is ignored, and so is the end of a file that has nearly all of its rows (`MIN_ROWS`).
    long_side_px: images with a longer long side are scaled down to it (never up); None keeps the own size.
    max_pixels: larger images are refused before their pixels are decoded; at most `MAX_PIXELS`.
    Raises ImageError for anything that is not a usable image.
    """
    if not data:
        raise ImageError(ErrorKind.EMPTY, "the file is empty")
    want = _Want(long_side_px, min(max_pixels, MAX_PIXELS), reading)
    if isinstance(data, InnerImage):
        return _explained(functools.partial(_read_inner, data, want))
    if tiff.is_raw(data, tiff.directories(data) if tiff.is_tiff(data) else []):
        return _explained(lambda: _read_raw(data, want))
    bare = _bare(data)
    try:
        return _explained(lambda: _read(bare, want))
    except ImageError as error:
        if error.kind not in (ErrorKind.CORRUPT, ErrorKind.TRUNCATED, ErrorKind.NOT_AN_IMAGE):
            raise
        for attempt in (_read_without_metadata, _read_cut_jpeg, _read_cut_png, _read_cut_other):
            photograph = attempt(bare, want)
            if photograph is not None:
                return photograph
        raise


def _bare(data: bytes) -> Bare:
    return containers.bare_png(data) if data.startswith(PNG_SIGNATURE) else Bare(data)


def from_picture(
    picture: Image.Image | np.ndarray, long_side_px: int | None = None, max_pixels: int = MAX_PIXELS
) -> Photograph:
    """The same for what is decoded already: a PIL image in any mode, or (H, W, 3) uint8 RGB.

    Orientation and profile count where the PIL image still has them. Raises ImageError as `decode` does, and
    ValueError for an array of another form.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise ValueError(f"The image is {picture.dtype} {picture.shape}; expected (H, W, 3) uint8 RGB.")
        picture = Image.fromarray(picture)
    opened = picture
    want = _Want(long_side_px, min(max_pixels, MAX_PIXELS))
    return _explained(lambda: _upright_rgb(opened, Bare(b""), want))


class _Want(NamedTuple):
    """What is asked of a reader; the first two as in `decode`."""

    long_side_px: int | None
    max_pixels: int
    reading: Reading = Reading()


Read = TypeVar("Read")


def _explained(read: Callable[[], Read]) -> Read:
    """What `read` returns; whatever the decoders raise becomes an ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of bombs and odd metadata; the bound below decides
            return read()
    except ImageError:
        raise
    except (raw.UnsupportedRawError, video.UnsupportedVideoError) as error:
        raise ImageError(ErrorKind.UNSUPPORTED, str(error)) from None
    except UnidentifiedImageError:
        raise ImageError(ErrorKind.NOT_AN_IMAGE, "no accepted image format recognises the bytes") from None
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ImageError(ErrorKind.TOO_LARGE, str(error) or "not enough memory to decode the image") from None
    except Exception as error:  # Decoders raise whatever their parsers trip over; each is this one image's fault
        text = " ".join(str(error).split())[:_MAX_REASON_CHARACTERS] or type(error).__name__
        cut = isinstance(error, EOFError) or "truncated" in text.lower() or "unexpected end" in text.lower()
        raise ImageError(ErrorKind.TRUNCATED if cut else ErrorKind.CORRUPT, text) from None


def _read(bare: Bare, want: _Want) -> Photograph:
    data = bare.data
    pages = tiff.directories(data) if tiff.is_tiff(data) else []
    if pages:
        return _read_tiff(bare, pages, want)
    _require_few_scans(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
        return _upright_rgb(opened, bare, want)


def _read_inner(image: InnerImage, want: _Want) -> Photograph:
    """One image of a file that holds several."""
    data, which = image.file, inner.which(image.fragment)
    if isinstance(which, float):
        frame = video.frame_at(data, which, want.max_pixels)
        return _upright_rgb(Image.fromarray(frame), Bare(b""), want, 1)
    if tiff.is_tiff(data):
        pages = tiff.directories(data, inner.MAX_PAGES)
        pictures = tiff.pictures(pages)
        if which > len(pictures):
            raise EOFError(f"the file has {len(pictures)} pages, and no page {which}")
        return _read_page(Bare(data), pages, pictures[which - 1], want)
    with Image.open(io.BytesIO(data), formats=_ANIMATIONS) as opened:
        _require_modest_size(*opened.size, want.max_pixels)
        opened.seek(which - 1)
        profile = opened.info.get("icc_profile")
        return _upright_rgb(opened.convert("RGBA"), Bare(b"", profile), want, 1)


_ANIMATIONS = ("GIF", "WEBP")


def count_pages(data: bytes) -> int:
    """Images that a file holds as pages or frames, `inner.MAX_PAGES` at most; 1 for any other. Raises ImageError.

    Pages of a TIFF that are marked reduced, or as masks, do not count, nor do thumbnails before the first.
    """

    def count() -> int:
        if tiff.is_tiff(data):
            pages = tiff.directories(data, inner.MAX_PAGES)
            return 1 if tiff.is_raw(data, pages) else max(1, len(tiff.pictures(pages)))
        if not data.startswith((b"GIF8", b"RIFF")):
            return 1
        with Image.open(io.BytesIO(data), formats=_ANIMATIONS) as opened:
            return min(int(getattr(opened, "n_frames", 1)), inner.MAX_PAGES)

    return _explained(count)


def frame_times(data: bytes, every_s: float | None, max_pixels: int = MAX_PIXELS) -> list[float]:
    """Times of frames of a video as `video.times` says. Raises ImageError."""
    return _explained(lambda: video.times(data, every_s, min(max_pixels, MAX_PIXELS)))


def _read_raw(data: bytes, want: _Want) -> Photograph:
    """The picture of a camera's RAW file, of the size that it has when it is developed, however it was read."""
    with raw.opened(data) as file:
        width, height = file.size
        _require_modest_size(width, height, want.max_pixels)
        side = max(fit_long_side(width, height, want.long_side_px))
        preview = None if want.reading.raw == "full" else file.preview()
        if preview is not None and max(preview.size) >= side:
            with contextlib.suppress(Exception):  # A damaged preview: the sensor's values are there too
                return replace(_of_preview(preview, want), width=width, height=height)
        try:
            read = _upright_rgb(Image.fromarray(file.developed(side)), Bare(b""), want, 1)
        except raw.DAMAGED:
            if preview is None or max(preview.size) < raw.USABLE_PX:
                raise
            shown = "{} x {}".format(*preview.size)
            note = f"the sensor's values do not decode: its preview of {shown} px is read"
            read = replace(_of_preview(preview, want), note=note)
        return replace(read, width=width, height=height)


def _of_preview(preview: raw.Preview, want: _Want) -> Photograph:
    if isinstance(preview.picture, np.ndarray):
        return _upright_rgb(Image.fromarray(preview.picture), Bare(b""), want, preview.orientation)
    _require_few_scans(preview.picture)
    with Image.open(io.BytesIO(preview.picture), formats=("JPEG",)) as opened:
        return _upright_rgb(opened, Bare(b""), want, preview.orientation)


def _read_tiff(bare: Bare, pages: list[tiff.Directory], want: _Want) -> Photograph:
    number = tiff.choose_page(pages)
    if number:
        bare.notes.append(f"page {number + 1} of its {len(pages)}, since those before are thumbnails")
    return _read_page(bare, pages, number, want)


def _read_page(bare: Bare, pages: list[tiff.Directory], number: int, want: _Want) -> Photograph:
    page = pages[number]
    data = tiff.with_page_first(bare.data, page) if number else bare.data
    if tiff.is_deep(page):
        _require_modest_size(*page.size, want.max_pixels)
        bare.profile = tiff.read_profile(data, page)
        opened = _of_samples(tiff.read_samples(data, page), page)
        return _upright_rgb(opened, bare, want, page.first(tiff.ORIENTATION, 1))
    with Image.open(io.BytesIO(data), formats=("TIFF",)) as opened:
        return _upright_rgb(opened, bare, want)


def _read_without_metadata(bare: Bare, want: _Want) -> Photograph | None:
    """The picture of a file whose metadata the decoder has tripped over."""
    for data, note in containers.without_metadata(bare.data):
        with contextlib.suppress(ImageError):
            return _explained(functools.partial(_read, Bare(data, notes=[note]), want))
    return None


MIN_ROWS = 0.9
"""A JPEG or PNG that ends too early is read where it has this share of its rows at least; a row's note says how much it
has. Of a progressive JPEG, whose scans each cover all rows, the coarse picture must be whole."""


def _read_cut_jpeg(bare: Bare, want: _Want) -> Photograph | None:
    """The picture of a JPEG without its end. The rows that it has are those that do not depend on what follows it."""
    if not bare.data.startswith(containers.JPEG_START):
        return None
    cut = bare.data.rstrip(b"\xff")
    for start in (cut, *(data for data, _ in containers.without_metadata(cut))):
        with contextlib.suppress(ImageError):
            ended = Bare(start + _JPEG_END)
            photograph = _explained(functools.partial(_read, ended, want))
            share = 1.0 if containers.has_whole_picture(start) else _explained(functools.partial(_share_of_rows, start))
            if share < MIN_ROWS:
                return None
            what = "the JPEG has no end" if share == 1 else f"the JPEG is cut: {share:.0%} of its rows are there"
            return replace(photograph, note=_joined(photograph.note, what))
    return None


_JPEG_END = b"\xff\xd9"
_OTHER_DATA = b"\x35\xa9\x6c" * 40


def _share_of_rows(start: bytes) -> float:
    """The share of rows that a JPEG has before its data ends, 0 to 1, to about 8 rows."""
    shown = []
    for end in (_JPEG_END, _OTHER_DATA + _JPEG_END):
        with Image.open(io.BytesIO(start + end), formats=("JPEG",)) as opened:
            opened.draft(None, (1, 1))  # An eighth of the size: the mean of each block
            opened.load()
            shown.append(np.asarray(opened).reshape(opened.height, -1))
    rows = (shown[0] != shown[1]).any(axis=1)
    return float(rows.argmax() / len(rows)) if rows.any() else 1.0


def _read_cut_other(bare: Bare, want: _Want) -> Photograph | None:
    """The picture of another file that is cut; rows that are missing repeat the last one that is there."""
    if bare.data.startswith((containers.JPEG_START, PNG_SIGNATURE)):
        return None
    if bare.data.startswith(b"GIF8"):
        return _read_cut_gif(bare, want)
    read: list[Photograph] = []
    for data in containers.completed(bare.data):
        with contextlib.suppress(ImageError):
            read.append(_explained(functools.partial(_read, Bare(data), want._replace(long_side_px=None))))
        if len(read) == 2:
            break
    if len(read) < 2:
        return None
    image = read[0].image.copy()
    missing = (image != read[1].image).any(axis=2)
    # Upright by now: rows may have become columns, and a BMP begins at the bottom
    spans = [np.flatnonzero(missing.any(axis=axis)) for axis in (1, 0)]
    if not len(spans[0]):
        what = _joined(read[0].note, "the file has no end")
        return replace(from_picture(image, want.long_side_px, want.max_pixels), note=what)
    shares = [1 - (span[-1] + 1 - span[0]) / size for span, size in zip(spans, missing.shape, strict=True)]
    axis = int(np.argmax(shares))
    if shares[axis] < MIN_ROWS:
        return None
    lines = image if axis == 0 else image.swapaxes(0, 1)
    first, end = spans[axis][0], spans[axis][-1] + 1
    lines[first:end] = lines[first - 1] if first else lines[end]
    what = _joined(read[0].note, f"the file is cut: {shares[axis]:.0%} of its rows are there")
    return replace(from_picture(image, want.long_side_px, want.max_pixels), note=what)


def _read_cut_gif(bare: Bare, want: _Want) -> Photograph | None:
    """The same of a GIF, whose missing rows all have colour 0, and lie apart where it is interlaced."""
    for data in containers.completed(bare.data):
        with contextlib.suppress(ImageError, OSError), Image.open(io.BytesIO(data), formats=("GIF",)) as opened:
            if opened.width * opened.height > want.max_pixels:
                return None
            colours = np.array(opened)
            missing = (colours == 0).reshape(len(colours), -1).all(axis=1)
            empty = np.flatnonzero(missing)
            if len(empty):  # The row that was drawn before them is empty in part
                missing[max(0, empty[0] - (2 if len(empty) > 1 and empty[1] - empty[0] == 2 else 1))] = True
            share = 1 - missing.mean()
            if share < MIN_ROWS:
                return None
            for row in np.flatnonzero(missing):
                colours[row] = colours[row - 1]
            filled = Image.fromarray(colours)
            if opened.mode == "P" and opened.palette is not None:
                filled.putpalette(opened.palette.palette, opened.palette.mode)
            buffer = io.BytesIO()
            filled.save(buffer, "PNG", compress_level=1, transparency=opened.info.get("transparency"))
            note = f"the GIF is cut: {share:.0%} of its rows are there"
            whole = replace(bare, data=buffer.getvalue(), notes=[*bare.notes, note])
            return _explained(functools.partial(_read, whole, want))
    return None


def _read_cut_png(bare: Bare, want: _Want) -> Photograph | None:
    """The picture of a PNG whose pixels end too early; its last row is repeated."""
    if not bare.data.startswith(PNG_SIGNATURE):
        return None
    completed = containers.completed_png(bare.data, MIN_ROWS, want.max_pixels)
    if completed is None:
        return None
    data, share = completed
    with contextlib.suppress(ImageError):
        notes = [*bare.notes, f"the PNG is cut: {share:.0%} of its rows are there"]
        return _explained(functools.partial(_read, replace(bare, data=data, notes=notes), want))
    return None


def _joined(*notes: str) -> str:
    return "; ".join(dict.fromkeys(filter(None, notes)))


def fit_long_side(width: int, height: int, long_side_px: int | None) -> tuple[int, int]:
    """Size (width, height) in px scaled down so that the longer side is long_side_px; never scaled up, never 0."""
    longest = max(width, height)
    if long_side_px is None or longest <= long_side_px:
        return width, height
    scale = long_side_px / longest
    return max(1, round(width * scale)), max(1, round(height * scale))


def orientation(data: bytes) -> int:
    """How a file turns its pixels upright, as an EXIF orientation, 1 to 8; 1 where it says nothing.

    AVIF and HEIC turn them by boxes of the container, whatever their EXIF says. Just the header is read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = _bare(data)
        with Image.open(io.BytesIO(bare.data), formats=FORMATS) as opened:
            if opened.format in ("AVIF", "HEIF"):
                return _orientation_of_boxes(bare.data)
            if opened.format != "TIFF":
                return containers.exif_orientation(bare.exif or opened.info.get("exif") or b"")
            said = opened.getexif().get(ExifTags.Base.Orientation, 1)
    return said if said in _TURNS else 1


def _orientation_of_boxes(data: bytes) -> int:
    """The orientation that does what the boxes of an AVIF or HEIC do, one after another."""
    corners = turned = np.arange(4, dtype=np.uint8).reshape(2, 2)
    for kind, value in containers.quarter_turns_and_mirrors(data):
        turned = np.rot90(turned, value) if kind == "irot" else np.flip(turned, axis=value)
    return next(number for number in range(1, 9) if np.array_equal(upright(corners, number), turned))


def upright(labels: np.ndarray, orientation: int) -> np.ndarray:
    """Label map (h, w) uint8 turned as `decode` turns an image of that EXIF orientation."""
    turn = _TURNS.get(orientation)
    return labels if turn is None else np.asarray(Image.fromarray(labels).transpose(turn))


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


def _require_few_scans(data: bytes) -> None:
    """Refuse a JPEG that some kilobytes of scans would make a work of minutes."""
    if data[:2] == b"\xff\xd8" and data.count(_START_OF_SCAN) > MAX_JPEG_SCANS:
        scans = _count_scans(data)
        if scans > MAX_JPEG_SCANS:
            raise ImageError(ErrorKind.TOO_LARGE, f"the JPEG has {scans} scans, more than {MAX_JPEG_SCANS}")


_START_OF_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff([^\0\xd0-\xd7\xff])")  # Neither a stuffed zero nor a restart


def _count_scans(data: bytes) -> int:
    """Scans of a JPEG up to its end; what stands in other segments or behind the end (a film) does not count."""
    at, scans = 2, 0
    while (found := _MARKER.search(data, at)) is not None:
        at, marker = found.end(), found[1]
        if marker == b"\xd9":
            break
        scans += marker == b"\xda"
        if marker[0] != 0x01 and len(data) >= at + 2:
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return scans


def _require_modest_tiles(opened: Image.Image, max_pixels: int) -> None:
    tags = getattr(opened, "tag_v2", {})
    width, height = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    if isinstance(width, int) and isinstance(height, int) and width * height > max_pixels:
        raise ImageError(
            ErrorKind.TOO_LARGE, f"the tiles of the TIFF have {width} x {height} px, more than {max_pixels} pixels"
        )


_TILE_WIDTH, _TILE_LENGTH = 322, 323


def _require_modest_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(ErrorKind.CORRUPT, f"the image says that it is {width} x {height} px")
    if width * height > max_pixels:
        raise ImageError(
            ErrorKind.TOO_LARGE,
            f"the image has {width} x {height} px, more than the bound of {max_pixels} pixels: as a tiled TIFF it is "
            "read region by region, with --long-side none",
        )


def _upright_rgb(opened: Image.Image, bare: Bare, want: _Want, orientation: int | None = None) -> Photograph:
    """orientation: where it is known already; else EXIF's."""
    width, height = opened.size
    _require_modest_size(width, height, want.max_pixels)
    _require_modest_tiles(opened, want.max_pixels)
    if want.long_side_px is not None and opened.format in ("JPEG", "MPO"):
        # JPEG decodes at 1/2, 1/4 or 1/8 for a fraction of the time; twice the working size leaves room to resample.
        target_width, target_height = fit_long_side(width, height, 2 * want.long_side_px)
        opened.draft(None, (target_width, target_height))
    opened.load()
    if orientation is None:
        # Pillow turns a TIFF when it loads it
        exif = bare.exif or opened.info.get("exif") or b""
        orientation = 1 if opened.format == "TIFF" else containers.exif_orientation(exif)
    profile = bare.profile or opened.info.get("icc_profile")
    if profile is None and opened.format in ("AVIF", "HEIF"):
        profile = containers.nclx_profile(bare.data)
    if want.reading.ignore_profiles:
        profile = None
    width, height = opened.size if opened.format == "TIFF" else (width, height)
    size = fit_long_side(width, height, want.long_side_px)
    # Scaled first and turned afterwards: so a large photograph is held once, not three times
    rgb, note = _scaled_rgb(opened, size, profile, _transparent_key(opened, bare))
    turn = _TURNS.get(orientation)
    if turn is not None:
        rgb = rgb.transpose(turn)
        if turn in _LYING:
            width, height = height, width
    return Photograph(np.asarray(rgb), width, height, _joined(*bare.notes, note))


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""

_LYING = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)


def _scaled_rgb(image: Image.Image, size: tuple[int, int], profile: bytes | None, key: Any) -> Converted:
    """RGB of a picture in any mode, at this size, in sRGB, over white. key: the colour that stands for transparent."""
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I", "F"):
        values = np.asarray(image)
        alpha = None if key is None else Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
        image, key = Image.fromarray(_to_bytes(values)), None
        if alpha is not None:
            image.putalpha(alpha)
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or key is not None:
        return _over_white(image, size, profile)
    if image.mode == "P":
        image = image.convert("RGB")
    return to_srgb(_resized(image, size), profile)


def _over_white(image: Image.Image, size: tuple[int, int], profile: bytes | None) -> Converted:
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode == "La":
        image = image.convert("LA")
    whole = image if image.mode in ("RGBA", "RGBa") else image.convert("RGBA")
    if image.format in ("BMP", "DIB", "TIFF") and whole.mode == "RGBA" and whole.getchannel(3).getextrema() == (0, 0):
        return to_srgb(_resized(whole.convert("RGB"), size), profile)  # Nobody stores a picture that cannot be seen
    # Scaled premultiplied, or hidden colours would bleed over the edge of what is seen
    rgba = _resized(whole if whole.mode == "RGBa" else whole.convert("RGBa"), size).convert("RGBA")
    seen, note = to_srgb(rgba.getchannel(0) if grey else rgba.convert("RGB"), profile)
    seen.putalpha(rgba.getchannel(3))
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Converted(Image.alpha_composite(white, seen).convert("RGB"), note)


def _transparent_key(image: Image.Image, bare: Bare) -> Any:
    """Colour that stands for transparent, in the numbers that Pillow has decoded it to; None where there is none."""
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None or not bare.data:
        return key
    depth = bare.data[24]
    if image.mode == "L" and depth in (2, 4):  # Pillow spreads the pixels to 8 bits, and leaves the key
        key = image.info["transparency"] = key * 255 // (2**depth - 1)
    elif image.mode == "RGB" and depth == 16:
        key = image.info["transparency"] = tuple(value >> 8 for value in key)
    return key


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size:
        return image
    if image.mode == "1":
        image = image.convert("L")
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def _of_samples(samples: np.ndarray, page: tiff.Directory) -> Image.Image:
    """Picture of the samples (H, W, S) of a page of a TIFF; in mode L, RGB or YCbCr, with alpha where it has that."""
    height, width, count = samples.shape
    photometric = page.first(tiff.PHOTOMETRIC)
    colours = 3 if photometric in (2, 6) else 1
    if count < colours:
        raise ImageError(ErrorKind.CORRUPT, f"the TIFF has {count} samples in a pixel, its colours need {colours}")
    text = bytes(page.tags.get(tiff.GDAL_NODATA, ())).decode("latin-1").strip("\0 ")
    try:
        nodata = float(text) if text else None
    except ValueError:
        nodata = None
    values = _to_bytes(samples[..., :colours], nodata)
    if photometric == 0:
        values = 255 - values
    mode = {1: "L", 3: "YCbCr" if photometric == 6 else "RGB"}[colours]
    kind = page.first(tiff.EXTRA_SAMPLES)
    if count > colours and kind in (1, 2) and photometric != 6:
        alpha = samples[..., colours : colours + 1]
        alpha = (
            _to_bytes(alpha) if alpha.dtype.kind == "u" else (np.nan_to_num(alpha).clip(0, 1) * 255).astype(np.uint8)
        )
        values = np.concatenate([values, alpha], axis=-1)
        mode = {"L": "LA", "RGB": "RGBA"}[mode] if kind == 2 else {"L": "La", "RGB": "RGBa"}[mode]
    return Image.frombytes(mode, (width, height), np.ascontiguousarray(values).tobytes())


def _to_bytes(values: np.ndarray, nodata: float | None = None) -> np.ndarray:
    """Deep samples of any number type to uint8, of the same shape.

    Unsigned 16 bits keep their upper byte. Wider whole numbers are taken for shares of 255, of 65535, or of 2**32
    (where unsigned), the first that holds them; floats for shares of 1, 255 or 65535 where they reach beyond its half.
    All else, and what is negative, is spread over its own range. Before the range is measured, NaN, infinities,
    `nodata` and an extreme value that lies further from all others than they spread (-9999, -3.4e38: marks for
    "no data") are left out; they become black, and plus infinity white.
    """
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "u" and size == 1:
        return values
    if kind == "u" and size == 2 and nodata is None:
        return (values >> 8).astype(np.uint8)
    low, high, lowest, highest = _range(values, nodata)
    tops = (1.0, 255.0, 65535.0) if kind == "f" else (255.0, 65535.0, *([2.0**32] if kind == "u" else []))
    top = next((top for top in tops if high <= top), math.inf)
    if low >= 0 and top < math.inf and (kind != "f" or high > top / 2):
        low, high = 0.0, top
    flat = values.reshape(-1)
    result = np.empty(flat.shape, np.uint8)
    # Block by block: the whole in double precision would be eight times the picture
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK].astype(np.float64)
        missing = ~((block >= lowest) & (block <= highest)) | (block == nodata if nodata is not None else False)
        shares = ((np.nan_to_num(block).clip(lowest, highest) - low) / max(high - low, 1e-300)).clip(0, 1)
        shares[missing], shares[block == np.inf] = 0, 1
        result[start : start + _BLOCK] = shares * 255
    return result.reshape(values.shape)


_BLOCK = 1 << 20


def _range(values: np.ndarray, nodata: float | None) -> tuple[float, float, float, float]:
    """Least and largest of the values that mean something, twice: as numbers, and as the bounds of what counts."""
    ends: list[tuple[float, float, float, float]] = []
    flat = values.reshape(-1)
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK]
        block = block[np.isfinite(block)].astype(np.float64)
        if nodata is not None:
            block = block[block != nodata]
        if block.size:
            # The two smallest and the two largest that differ
            least, most = block.min(), block.max()
            inner = block[(block > least) & (block < most)]
            ends.append((least, inner.min() if inner.size else most, inner.max() if inner.size else least, most))
    if not ends:
        return 0.0, 1.0, 0.0, 1.0
    distinct = np.unique(np.array(ends))
    low, high = float(distinct[0]), float(distinct[-1])
    # Whole numbers within a known range are what they are, however far apart
    if len(distinct) > 3 and (values.dtype.kind == "f" or low < 0 or high > 65535):
        if distinct[1] - distinct[0] > distinct[-1] - distinct[1]:
            low = float(distinct[1])
        elif distinct[-1] - distinct[-2] > distinct[-2] - distinct[0]:
            high = float(distinct[-2])
    return low, high, low, high
