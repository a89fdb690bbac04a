"""What turns a picture upright: EXIF's orientations, and the boxes of AVIF and HEIC in their terms."""

import numpy as np
from PIL import Image

from segcore.images import containers

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""

LYING = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)


def of_boxes(data: bytes) -> int:
    """The orientation that does what the boxes of an AVIF or HEIC do, one after another."""
    corners = turned = np.arange(4, dtype=np.uint8).reshape(2, 2)
    for kind, value in containers.quarter_turns_and_mirrors(data):
        turned = np.rot90(turned, value) if kind == "irot" else np.flip(turned, axis=value)
    return next(number for number in range(1, 9) if np.array_equal(upright(corners, number), turned))


def upright(labels: np.ndarray, orientation: int) -> np.ndarray:
    """Label map (h, w) uint8 turned as `decode` turns an image of that EXIF orientation."""
    turn = TURNS.get(orientation)
    return labels if turn is None else np.asarray(Image.fromarray(labels).transpose(turn))
