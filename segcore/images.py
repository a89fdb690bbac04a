"""Photographs as they come: bytes of many formats in, an upright RGB array at working size out.

Owns decoding, orientation, colour conversion and scaling. Where the bytes came from is not its business.
"""

import ctypes
import io
import logging
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

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
EXTENSIONS = frozenset(f".{ending}" for ending in _ENDINGS.split())
"""File names that promise one of the formats; the bytes decide."""

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


def decode(data: bytes, long_side_px: int | None = None, max_pixels: int = MAX_PIXELS) -> Photograph:
    """Decode an image, turn it upright, convert it to RGB and scale it down to the working size.

    data: the file. First frame of GIF, first page of TIFF. EXIF orientation is applied; CMYK goes through its
        embedded profile where there is one; alpha is laid over white; 16-bit grey keeps its upper byte.
    long_side_px: images with a longer long side are scaled down to it (never up); None keeps the own size.
    max_pixels: larger images are refused before their pixels are decoded; at most `MAX_PIXELS`.
    Raises ImageError for anything that is not a usable image.
    """
    if not data:
        raise ImageError(ErrorKind.EMPTY, "the file is empty")

    def read() -> Photograph:
        _require_few_scans(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            return _upright_rgb(opened, long_side_px, min(max_pixels, MAX_PIXELS))

    return _explained(read)


def from_picture(
    picture: Image.Image | np.ndarray, long_side_px: int | None = None, max_pixels: int = MAX_PIXELS
) -> Photograph:
    """The same for what is decoded already: a PIL image in any mode, or (H, W, 3) uint8 RGB.

    Orientation and profile count where the PIL image still has them. Raises ImageError as `decode` does.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise ValueError(f"The image is {picture.dtype} {picture.shape}; expected (H, W, 3) uint8 RGB.")
        picture = Image.fromarray(picture)
    opened = picture
    return _explained(lambda: _upright_rgb(opened, long_side_px, min(max_pixels, MAX_PIXELS)))


def _explained(read: Callable[[], Photograph]) -> Photograph:
    """What `read` returns; whatever the decoders raise becomes an ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of bombs and odd metadata; the bound below decides
            return read()
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(ErrorKind.NOT_AN_IMAGE, "no accepted image format recognises the bytes") from None
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ImageError(ErrorKind.TOO_LARGE, str(error) or "not enough memory to decode the image") from None
    except Exception as error:  # Decoders raise whatever their parsers trip over; each is this one image's fault
        text = " ".join(str(error).split())[:_MAX_REASON_CHARACTERS] or type(error).__name__
        cut = "truncated" in text.lower() or "unexpected end" in text.lower()
        raise ImageError(ErrorKind.TRUNCATED if cut else ErrorKind.CORRUPT, text) from None


def fit_long_side(width: int, height: int, long_side_px: int | None) -> tuple[int, int]:
    """Size (width, height) in px scaled down so that the longer side is long_side_px; never scaled up, never 0."""
    longest = max(width, height)
    if long_side_px is None or longest <= long_side_px:
        return width, height
    scale = long_side_px / longest
    return max(1, round(width * scale)), max(1, round(height * scale))


def orientation(data: bytes) -> int:
    """EXIF orientation of an image file, 1 to 8; 1, upright, where it says none. Just the header is read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            said = opened.getexif().get(ExifTags.Base.Orientation, 1)
    return said if said in _TURNS else 1


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


def _upright_rgb(opened: Image.Image, long_side_px: int | None, max_pixels: int) -> Photograph:
    width, height = opened.size
    if width < 1 or height < 1:
        raise ImageError(ErrorKind.CORRUPT, f"the image says that it is {width} x {height} px")
    if width * height > max_pixels:
        raise ImageError(
            ErrorKind.TOO_LARGE, f"the image has {width} x {height} px, more than the bound of {max_pixels} pixels"
        )
    _require_modest_tiles(opened, max_pixels)
    if long_side_px is not None and opened.format in ("JPEG", "MPO"):
        # JPEG decodes at 1/2, 1/4 or 1/8 for a fraction of the time; twice the working size leaves room to resample.
        target_width, target_height = fit_long_side(width, height, 2 * long_side_px)
        opened.draft(None, (target_width, target_height))
    opened.load()
    size = fit_long_side(width, height, long_side_px)
    # Scaled first and turned afterwards: so a large photograph is held once, not three times
    rgb = _scaled_rgb(opened, size, opened.info.get("icc_profile"))
    turn = _TURNS.get(opened.getexif().get(ExifTags.Base.Orientation, 1))
    if turn is not None:
        rgb = rgb.transpose(turn)
        if turn in _LYING:
            width, height = height, width
    return Photograph(np.asarray(rgb), width, height)


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


def _scaled_rgb(image: Image.Image, size: tuple[int, int], profile: bytes | None) -> Image.Image:
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I", "F"):
        return _resized(Image.fromarray(_grey_to_byte(np.asarray(image))), size).convert("RGB")
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        # Scaled premultiplied, or hidden colours would bleed over the edge of what is seen
        whole = image if image.mode == "RGBA" else image.convert("RGBA")
        rgba = _resized(whole.convert("RGBa"), size).convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode == "P":
        image = image.convert("RGB")
    image = _resized(image, size)
    if image.mode in ("CMYK", "LAB") and profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # A broken profile: the plain conversion is what a viewer shows
    return image if image.mode == "RGB" else image.convert("RGB")


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size:
        return image
    if image.mode == "1":
        image = image.convert("L")
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def _grey_to_byte(grey: np.ndarray) -> np.ndarray:
    """Deep grey (H, W) of any number type to uint8: 16 bits by their upper byte, anything wider by its own range."""
    if grey.dtype == np.uint16:
        return (grey >> 8).astype(np.uint8)
    low, high = float(np.nanmin(grey)), float(np.nanmax(grey))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError(ErrorKind.CORRUPT, "the image holds values that are not finite")
    if grey.dtype == np.int32 and low >= 0 and 255 < high <= 65535:
        return (grey >> 8).astype(np.uint8)
    if low >= 0 and high <= 255 and grey.dtype == np.int32:
        return grey.astype(np.uint8)
    # Row by row of blocks: the whole in double precision would be eight times the picture
    rows = max(1, _GREY_BLOCK_PIXELS // max(1, grey.shape[1]))
    result = np.empty(grey.shape, dtype=np.uint8)
    for top in range(0, len(grey), rows):
        block = grey[top : top + rows]
        result[top : top + rows] = np.nan_to_num((block - low) / max(high - low, 1e-12)) * 255.0
    return result


_GREY_BLOCK_PIXELS = 1 << 20
