"""Photographs as they come: bytes of many formats in, an upright RGB array at working size out.

Owns decoding, orientation, colour conversion and scaling. Where the bytes came from is not its business.
"""

import contextlib
import ctypes
import functools
import io
import logging
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import pillow_heif
from PIL import ExifTags, Image, UnidentifiedImageError

from segcore.images import containers, inner, pixels, raw, tiff, turns, video
from segcore.images.containers import PNG_SIGNATURE, Bare
from segcore.images.errors import ErrorKind, ImageError
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
        the embedded profile; alpha is laid over white; deep samples become bytes (`pixels.to_bytes`). Metadata that is
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
        side = max(pixels.fit_long_side(width, height, want.long_side_px))
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
        opened = pixels.of_samples(tiff.read_samples(data, page), page)
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


def orientation(data: bytes) -> int:
    """How a file turns its pixels upright, as an EXIF orientation, 1 to 8; 1 where it says nothing.

    AVIF and HEIC turn them by boxes of the container, whatever their EXIF says. Just the header is read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = _bare(data)
        with Image.open(io.BytesIO(bare.data), formats=FORMATS) as opened:
            if opened.format in ("AVIF", "HEIF"):
                return turns.of_boxes(bare.data)
            if opened.format != "TIFF":
                return containers.exif_orientation(bare.exif or opened.info.get("exif") or b"")
            said = opened.getexif().get(ExifTags.Base.Orientation, 1)
    return said if said in turns.TURNS else 1


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
        target_width, target_height = pixels.fit_long_side(width, height, 2 * want.long_side_px)
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
    size = pixels.fit_long_side(width, height, want.long_side_px)
    # Scaled first and turned afterwards: so a large photograph is held once, not three times
    rgb, note = pixels.scaled_rgb(opened, size, profile, pixels.transparent_key(opened, bare))
    turn = turns.TURNS.get(orientation)
    if turn is not None:
        rgb = rgb.transpose(turn)
        if turn in turns.LYING:
            width, height = height, width
    return Photograph(np.asarray(rgb), width, height, _joined(*bare.notes, note))
