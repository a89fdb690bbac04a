"""Colours of any embedded profile to sRGB, which the networks were trained on.

A profile that is sRGB by its numbers changes nothing. A hostile or broken one is ignored, with a note for the row.
`rgb_profile` makes a profile from primaries and a curve, where a file names those instead (PNG's gAMA, cHRM and cICP,
AVIF's nclx).
"""

import functools
import io
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 8 << 20
"""Larger profiles are ignored; those of printing presses have up to 3 MiB."""

SAME_LEVELS = 2
"""A profile that moves no probe colour by more than this many of 255 levels is sRGB, and nothing is converted."""

Primaries = tuple[tuple[float, float], tuple[float, float], tuple[float, float], tuple[float, float]]
"""CIE x, y of red, green, blue and white."""

_D65 = (0.3127, 0.3290)
SRGB: Primaries = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), _D65)
DISPLAY_P3: Primaries = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65)
ADOBE_RGB: Primaries = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), _D65)
PROPHOTO: Primaries = ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), (0.3457, 0.3585))
BT2020: Primaries = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65)

_CODED_PRIMARIES: dict[int, Primaries] = {
    1: SRGB,
    4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), (0.310, 0.316)),
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), _D65),
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),
    9: BT2020,
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: DISPLAY_P3,
}
"""By number, of ITU-T H.273."""

_CODED_GAMMAS: dict[int, float | None] = {1: None, 4: 2.2, 5: 2.8, 6: None, 8: 1.0, 13: None, 14: None, 15: None}
"""Exponents by number, of ITU-T H.273; None is the curve of sRGB, which browsers show BT.709's with, too."""

_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Pillow's mode by the colour space that a profile names."""


class Converted(NamedTuple):
    """An image in sRGB."""

    image: Image.Image
    """Mode RGB."""

    note: str = ""
    """Why a profile was ignored; empty where it was not."""


def to_srgb(image: Image.Image, profile: bytes | None) -> Converted:
    """The picture in sRGB.

    image: without alpha, in any mode but those of deep grey. profile: an ICC profile, or None.
    A profile of another colour space than the picture's is ignored, but a grey picture may have a colour profile.
    """
    if image.mode == "LAB":  # Says its colours by itself
        transform = _lab_transform()
        return Converted(ImageCms.applyTransform(image, transform) or image.convert("RGB"))

    def as_it_is(note: str = "") -> Converted:
        return Converted(plain if plain.mode == "RGB" else plain.convert("RGB"), note)

    plain = image if image.mode in ("RGB", "L", "CMYK") else image.convert("L" if image.mode == "1" else "RGB")
    if not profile:
        return as_it_is()
    if len(profile) > MAX_PROFILE_BYTES:
        return as_it_is(f"its colour profile has {len(profile):,} bytes and is ignored")
    if profile[36:40] != b"acsp":
        return as_it_is("its colour profile is broken and is ignored")
    mode = _MODES.get(profile[16:20].decode("latin-1"), "")
    if plain.mode == "L" and mode == "RGB":
        plain = plain.convert("RGB")
    if plain.mode != mode:
        return as_it_is("its colour profile is for other colours than it has and is ignored")
    found = _transform(profile, mode)
    if isinstance(found, str):
        return as_it_is(found)
    converted = None if found is None else ImageCms.applyTransform(plain, found)
    return as_it_is() if converted is None else Converted(converted)


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | str | None:
    """What converts to sRGB; None where nothing changes; a note where the profile is broken."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, _srgb(), mode, "RGB", ImageCms.Intent.PERCEPTUAL)
        if mode == "CMYK":
            return transform
        probe = _probe().convert(mode)
        moved = ImageCms.applyTransform(probe, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return "its colour profile is broken and is ignored"
    assert moved is not None
    before, after = np.asarray(probe.convert("RGB")).astype(int), np.asarray(moved).astype(int)
    return None if np.abs(before - after).max() <= SAME_LEVELS else transform


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@functools.cache
def _lab_transform() -> ImageCms.ImageCmsTransform:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    return ImageCms.buildTransform(lab, _srgb(), "LAB", "RGB", ImageCms.Intent.PERCEPTUAL)


@functools.cache
def _probe() -> Image.Image:
    """A row of colours: 9 levels of each channel."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3))


def coded_profile(primaries: int, transfer: int) -> bytes | None:
    """The ICC profile of code points of ITU-T H.273; None for sRGB, and for what is not known (HDR curves)."""
    known, gamma = _CODED_PRIMARIES.get(primaries), _CODED_GAMMAS.get(transfer, 0.0)
    if known is None or gamma == 0.0 or (known == SRGB and gamma is None):
        return None
    return rgb_profile(known, gamma)


@functools.lru_cache(maxsize=32)
def rgb_profile(primaries: Primaries, gamma: float | None = None) -> bytes:
    """An ICC profile (version 4) of a display.

    primaries: CIE x, y of red, green, blue and white. gamma: exponent of the curve; None is the curve of sRGB.
    ValueError for primaries that span no colours.
    """
    red, green, blue, white = (np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in _checked(primaries))
    columns = np.stack([red, green, blue], axis=1)
    try:
        to_xyz = columns * np.linalg.solve(columns, white)
    except np.linalg.LinAlgError:
        raise ValueError("The primaries lie on a line.") from None
    # Bradford's adaptation to the D50 of profiles
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50 = np.array([0.9642, 1.0, 0.8249])
    scale = np.diag((bradford @ d50) / (bradford @ white))
    adapted = np.linalg.inv(bradford) @ scale @ bradford @ to_xyz
    if not np.isfinite(adapted).all() or np.abs(adapted).max() > 100:
        raise ValueError("The primaries span no colours.")
    curve = b"para\0\0\0\0\0\0\0\0" + _fixed(gamma or 0)
    if gamma is None:
        curve = b"para\0\0\0\0\0\3\0\0" + _fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    text = "made from primaries".encode("utf-16-be")
    description = b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    tags = {b"desc": description, b"cprt": description, b"wtpt": b"XYZ \0\0\0\0" + _fixed(*d50)}
    tags |= {name: b"XYZ \0\0\0\0" + _fixed(*adapted[:, k]) for k, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp").ljust(32, b"\0") + bytes(12) + _fixed(*d50)
    return head.ljust(128, b"\0") + table + body


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _checked(primaries: Primaries) -> Primaries:
    if not all(0 <= x <= 1 and 1e-5 <= y <= 1 for x, y in primaries):
        raise ValueError(f"Primaries must lie in [0, 1], y above 0, got {primaries}.")
    return primaries
