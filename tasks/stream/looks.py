"""What images look like, for who tells copies: read in a process that an image may bring down."""

import io
from typing import NamedTuple

from PIL import Image

from segcore.datasets.near_duplicates import LOOK_SIDE_PX, fingerprint
from segcore.images.decoding import Reading, decode
from segcore.images.inner import InnerImage


class Look(NamedTuple):
    """What one image looks like."""

    fingerprint: int
    """`near_duplicates.fingerprint`; 0 where it is too flat for one."""

    width: int
    height: int
    """Own size in px, upright."""


class Looker:
    """Looks at one image after another; for `isolation.Apart`."""

    def __init__(self, max_pixels: int, reading: Reading) -> None:
        self.max_pixels, self.reading = max_pixels, reading

    def look(self, data: bytes | InnerImage) -> Look:
        """Raises ImageError."""
        photograph = decode(data, LOOK_SIDE_PX, self.max_pixels, self.reading)
        return Look(fingerprint(photograph.image) or 0, photograph.width, photograph.height)


def harmless_file() -> bytes:
    """An image file that nothing can be wrong with."""
    buffer = io.BytesIO()
    Image.new("RGB", (65, 65), (128, 128, 128)).save(buffer, "PNG")
    return buffer.getvalue()
