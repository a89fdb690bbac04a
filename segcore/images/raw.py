"""Cameras' RAW files, by LibRaw (`rawpy`, extra `[raw]`): the camera's own preview, or the sensor's values developed.

LibRaw and the preview may each say how to turn the picture, and LibRaw writes what it knows into a preview that says
nothing; `preview` gives the one turn that is right.
"""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from segcore import extras

_ENDINGS = "3fr arw cr2 cr3 crw dcr dng erf iiq kdc mef mos mrw nef nrw orf pef raf rw2 rwl sr2 srf srw x3f"
EXTENSIONS = frozenset(f".{ending}" for ending in _ENDINGS.split())
"""File names of cameras' RAW files; the bytes decide."""

SAME_ASPECT = 0.02
"""A preview whose sides have another ratio than the picture's, by more than this share, shows a part, or borders."""

USABLE_PX = 320
"""Long side of the least preview that stands in for sensor's values that do not decode."""

_ORIENTATION = 0x0112
_LYING = (5, 6)  # LibRaw's turns by a quarter: its numbers are those of EXIF, but 5 stands for EXIF's 8
_EXIF_OF_FLIP = {0: 1, 3: 3, 5: 8, 6: 6}


class UnsupportedRawError(ValueError):
    """A RAW file that is not read here; the message has the remedy."""


DAMAGED = (ValueError, EOFError)
"""What `RawFile.developed` raises of a file whose preview may be whole."""


@dataclass(frozen=True)
class Preview:
    """The picture that a camera has put into its RAW file."""

    picture: bytes | np.ndarray
    """A JPEG file, or (h, w, 3) uint8 RGB."""

    size: tuple[int, int]
    """Width and height in px, as it is stored."""

    orientation: int
    """What turns it upright, as an EXIF orientation, 1 to 8."""


def is_readable_now(reason: str) -> bool:
    """Whether a RAW file that was refused for this reason, by this version or one of before, can be tried now."""
    return reason.startswith(_NOT_READ) and extras.is_here("rawpy")


_NEEDS = "A RAW file of a camera"
_NOT_READ = (f"{_NEEDS} needs", "a camera's RAW file, which is not read")


@contextlib.contextmanager
def opened(data: bytes) -> Iterator["RawFile"]:
    """A RAW file, opened; nothing is unpacked yet.

    Raises UnsupportedRawError where the reader is not installed or does not know the camera, EOFError for a file that
    is cut, ValueError for one that is damaged, MemoryError for one that LibRaw finds too large.
    """
    if not extras.is_here("rawpy"):
        raise UnsupportedRawError(f"{extras.sentence('rawpy', _NEEDS).removesuffix('.')}; or use the JPEG beside it")
    import rawpy

    with _explained():
        file = rawpy.imread(io.BytesIO(data))
    with file:
        yield RawFile(file)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """LibRaw's errors as those of `opened`."""
    import rawpy

    try:
        yield
    except (rawpy.LibRawFileUnsupportedError, rawpy.LibRawNotImplementedError, rawpy.NotSupportedError):
        raise UnsupportedRawError(
            "LibRaw does not know this RAW file: develop it to JPEG or TIFF, or use the JPEG beside it"
        ) from None
    except rawpy.LibRawIOError:
        raise EOFError("the RAW file is truncated") from None
    except (rawpy.LibRawUnsufficientMemoryError, rawpy.LibRawTooBigError):
        raise MemoryError("the RAW file is larger than LibRaw reads") from None
    except rawpy.LibRawError as error:
        raise ValueError(f"the RAW file does not decode: {error}") from None


class RawFile:
    """What can be had of one RAW file."""

    def __init__(self, file: Any) -> None:
        self._file, self._sizes = file, file.sizes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px of the developed picture, upright."""
        width, height, aspect = self._sizes.width, self._sizes.height, self._sizes.pixel_aspect
        if 0 < aspect < 1:
            height = int(height / aspect + 0.5)
        elif aspect > 1:
            width = int(width * aspect + 0.5)
        return (height, width) if self._sizes.flip in _LYING else (width, height)

    def preview(self) -> Preview | None:
        """The camera's largest preview; None where there is none with all of the picture. Asked for before
        `developed`, whose failure closes the file."""
        import rawpy

        try:
            found = self._file.extract_thumb()
        except (rawpy.LibRawError, rawpy.NotSupportedError):
            return None
        said = None
        if found.format == rawpy.ThumbFormat.JPEG:
            try:
                with Image.open(io.BytesIO(found.data), formats=("JPEG",)) as picture:
                    size = picture.size
                said = _said(found.data)
            except Exception:  # Whatever a damaged preview makes the decoder trip over: the sensor's values are there
                return None
        elif found.data.ndim == 3 and found.data.shape[2] == 3 and found.data.dtype == np.uint8:
            size = (found.data.shape[1], found.data.shape[0])
        else:
            return None
        orientation = _turn(size, self.size, said, self._sizes.flip)
        shown = size[::-1] if orientation >= 5 else size
        if abs(_aspect(shown) / _aspect(self.size) - 1) > SAME_ASPECT:
            return None
        return Preview(found.data, size, orientation)

    def developed(self, long_side_px: int) -> np.ndarray:
        """(h, w, 3) uint8 RGB in sRGB, upright: the camera's white balance, brightness so that 1 % is white.

        Raises as `opened` does.

        long_side_px: half of the size is developed, from cells of four sensor values, where that is no shorter.
        """
        import rawpy

        with _explained():
            developed: np.ndarray = self._file.postprocess(
                use_camera_wb=True,
                half_size=max(self.size) >= 2 * long_side_px,
                output_color=rawpy.ColorSpace.sRGB,
                gamma=(2.4, 12.92),
                output_bps=8,
            )
        return developed


def _said(jpeg: bytes) -> int | None:
    """Orientation in the EXIF of a preview: LibRaw puts a block of its own before one that does not come first."""
    blocks = []
    at = 2
    while at + 10 < len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] != 0xDA:
        length = int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if jpeg[at + 1] == 0xE1 and jpeg[at + 4 : at + 10] == b"Exif\0\0":
            blocks.append(jpeg[at + 4 : at + 2 + length])
        at += 2 + max(2, length)
    exif = Image.Exif()
    if blocks:
        exif.load(blocks[-1])
    return exif.get(_ORIENTATION)


def _turn(size: tuple[int, int], upright: tuple[int, int], said: int | None, flip: int) -> int:
    """The EXIF orientation that turns a preview upright.

    size: of the preview as it is stored. upright: of the picture. said: by the preview's EXIF. flip: LibRaw's.
    """
    if said is None or not 1 <= said <= 8:
        said = _EXIF_OF_FLIP.get(flip, 1)
    if abs(_aspect(upright) - 1) <= SAME_ASPECT:
        return said
    turned = size if said < 5 else size[::-1]
    if (turned[0] < turned[1]) == (upright[0] < upright[1]):
        return said
    # It says one thing and lies otherwise: the camera has turned it already, or has not written that it did not
    return 1 if said >= 5 else _EXIF_OF_FLIP.get(flip, 1)


def _aspect(size: tuple[int, int]) -> float:
    return size[0] / size[1]
