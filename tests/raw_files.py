"""RAW files as cameras write them, made here: DNG with a mosaic of sensor values and, where asked for, a preview."""

import io
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

# XYZ to the camera's colours, which are those of linear sRGB here
_MATRIX = (3.2406, -1.5372, -0.4986, -0.9689, 1.8758, 0.0415, 0.0557, -0.2040, 1.0570)
_FORMATS = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 7: "s", 10: "ii"}


def picture(width: int = 600, height: int = 400) -> np.ndarray:
    """(H, W, 3) uint8 RGB whose corners differ: red above on the left, green on the right, blue below on the left."""
    image = np.full((height, width, 3), 90, np.uint8)
    image[: height // 3, : width // 3] = (200, 30, 30)
    image[: height // 3, -width // 3 :] = (30, 180, 30)
    image[-height // 3 :, : width // 3] = (30, 30, 200)
    return image


def jpeg(image: np.ndarray, long_side_px: int | None = None, orientation: int | None = None) -> bytes:
    """A JPEG file, smaller where asked for, with EXIF where there is an orientation."""
    shown, buffer = Image.fromarray(image), io.BytesIO()
    if long_side_px is not None:
        shown.thumbnail((long_side_px, long_side_px))
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    shown.save(buffer, "JPEG", quality=92, exif=exif.tobytes() if orientation is not None else b"")
    return buffer.getvalue()


def dng(image: np.ndarray, preview: bytes | None = None, orientation: int = 1, *, whole: bool = True) -> bytes:
    """A DNG whose sensor has seen this image (H, W, 3) uint8 RGB, as it lies on the sensor.

    preview: a JPEG. orientation: what the camera says of how it was held. whole: else the sensor's values lie beyond
    the end of the file.
    """
    linear = (image / 255.0) ** 2.2
    mosaic = np.empty(image.shape[:2], np.float64)
    for row, column, channel in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        mosaic[row::2, column::2] = linear[row::2, column::2, channel]
    values = (mosaic * 60000).astype("<u2").tobytes()
    height, width = image.shape[:2]
    place = values if whole else (10**9,)
    camera: list[tuple[int, int, Any]] = [
        (50706, 1, (1, 4, 0, 0)),
        (50708, 2, b"Made Here 1\0"),
        (271, 2, b"Made\0"),
        (272, 2, b"Here 1\0"),
        (274, 3, (orientation,)),
        (50721, 10, [round(10000 * value) for value in _MATRIX]),
        (50728, 5, [10000] * 3),
        (50778, 3, (21,)),
    ]
    sensor: list[tuple[int, int, Any]] = [
        *[(254, 4, (0,)), (256, 4, (width,)), (257, 4, (height,)), (258, 3, (16,)), (259, 3, (1,))],
        *[
            (262, 3, (32803,)),
            (277, 3, (1,)),
            (278, 4, (height,)),
            (284, 3, (1,)),
            (273, 4, place),
        ],
        *[(279, 4, (len(values),)), (33421, 3, (2, 2)), (33422, 1, (0, 1, 1, 2)), (50717, 4, (60000,))],
    ]
    if preview is None:
        return tiff([sensor + camera])
    with Image.open(io.BytesIO(preview)) as opened:
        size = opened.size
    shown: list[tuple[int, int, Any]] = [
        *[(254, 4, (1,)), (256, 4, (size[0],)), (257, 4, (size[1],)), (258, 3, (8, 8, 8)), (259, 3, (7,))],
        *[(262, 3, (6,)), (277, 3, (3,)), (278, 4, (size[1],)), (273, 4, preview), (279, 4, (len(preview),))],
    ]
    return tiff([shown + camera, sensor], nested=True)


def tiff(pages: Sequence[Sequence[tuple[int, int, Any]]], nested: bool = False) -> bytes:
    """A TIFF of pages of (tag, type, values); bytes as offsets (273) are put into the file.

    nested: the pages after the first are SubIFDs of it.
    """
    body = bytearray(b"II*\0\0\0\0\0")

    def put(data: bytes) -> int:
        body.extend(b"\0" * (len(body) % 2))
        body.extend(data)
        return len(body) - len(data)

    def directory(tags: Sequence[tuple[int, int, Any]], following: int) -> int:
        entries = b""
        for tag, kind, values in sorted(tags, key=lambda entry: entry[0]):
            if tag == 273 and isinstance(values, bytes):
                values = (put(values),)
            if isinstance(values, bytes):
                content, count = values, len(values)
            else:
                pairs = kind in (5, 10)
                numbers = [part for value in values for part in ((value, 10000) if pairs else (value,))]
                content, count = struct.pack(f"<{len(numbers)}{_FORMATS[kind][0]}", *numbers), len(values)
            place = content.ljust(4, b"\0") if len(content) <= 4 else struct.pack("<I", put(content))
            entries += struct.pack("<HHI", tag, kind, count) + place
        return put(struct.pack("<H", len(tags)) + entries + struct.pack("<I", following))

    first, *others = pages
    if nested:
        first = [*first, (330, 4, tuple(directory(page, 0) for page in others))]
        start = directory(first, 0)
    else:
        start = 0
        for page in reversed(pages):
            start = directory(page, start)
    body[4:8] = struct.pack("<I", start)
    return bytes(body)
