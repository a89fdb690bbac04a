"""Decoded pixels of any mode and depth, as sRGB bytes at working size, over white."""

import math
from typing import Any

import numpy as np
from PIL import Image

from segcore.images import tiff
from segcore.images.colour import Converted, to_srgb
from segcore.images.containers import Bare
from segcore.images.errors import ErrorKind, ImageError


def fit_long_side(width: int, height: int, long_side_px: int | None) -> tuple[int, int]:
    """Size (width, height) in px scaled down so that the longer side is long_side_px; never scaled up, never 0."""
    longest = max(width, height)
    if long_side_px is None or longest <= long_side_px:
        return width, height
    scale = long_side_px / longest
    return max(1, round(width * scale)), max(1, round(height * scale))


def scaled_rgb(image: Image.Image, size: tuple[int, int], profile: bytes | None, key: Any) -> Converted:
    """RGB of a picture in any mode, at this size, in sRGB, over white. key: the colour that stands for transparent."""
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I", "F"):
        values = np.asarray(image)
        alpha = None if key is None else Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
        image, key = Image.fromarray(to_bytes(values)), None
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


def transparent_key(image: Image.Image, bare: Bare) -> Any:
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


def of_samples(samples: np.ndarray, page: tiff.Directory) -> Image.Image:
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
    values = to_bytes(samples[..., :colours], nodata)
    if photometric == 0:
        values = 255 - values
    mode = {1: "L", 3: "YCbCr" if photometric == 6 else "RGB"}[colours]
    kind = page.first(tiff.EXTRA_SAMPLES)
    if count > colours and kind in (1, 2) and photometric != 6:
        alpha = samples[..., colours : colours + 1]
        alpha = to_bytes(alpha) if alpha.dtype.kind == "u" else (np.nan_to_num(alpha).clip(0, 1) * 255).astype(np.uint8)
        values = np.concatenate([values, alpha], axis=-1)
        mode = {"L": "LA", "RGB": "RGBA"}[mode] if kind == 2 else {"L": "La", "RGB": "RGBa"}[mode]
    return Image.frombytes(mode, (width, height), np.ascontiguousarray(values).tobytes())


def to_bytes(values: np.ndarray, nodata: float | None = None) -> np.ndarray:
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
