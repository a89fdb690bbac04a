"""JPEGs with more pixels than are decoded whole: by libvips, line after line, into a tiled TIFF on disk.

`regions.py` reads that as any other TIFF. The file has no name, so that nothing is left of it whatever happens.
"""

import logging
import mmap
import os
import shutil
import tempfile
from typing import Any

from segcore import extras
from segcore.images import containers
from segcore.images.errors import ErrorKind, ImageError

_TILE_PX = 512


class MadeTiff:
    """The bytes of a TIFF that was made of a JPEG; in another process it is made anew."""

    def __init__(self, jpeg: bytes, content: mmap.mmap) -> None:
        self._jpeg, self._content = jpeg, content

    def __len__(self) -> int:
        return len(self._content)

    def __getitem__(self, place: slice) -> bytes:
        return self._content[place]

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return as_tiff, (self._jpeg,)


def as_tiff(data: bytes) -> MadeTiff:
    """A TIFF of the same pixels, profile and orientation, in tiles, lossless. Raises ImageError."""
    width, height, is_progressive = containers.jpeg_frame(data) or (0, 0, False)
    about = f"the JPEG has {width} x {height} px"
    if not extras.is_here("pyvips"):
        remedy = "or as a tiled TIFF it is read region by region"
        raise ImageError(ErrorKind.TOO_LARGE, f"{about}: with pip install 'segment-archive[vips]' {remedy}")
    if is_progressive:
        # Its coefficients would all be in memory at once
        raise ImageError(ErrorKind.TOO_LARGE, f"{about} and is progressive: write it as baseline, or as a tiled TIFF")
    folder, needed = tempfile.gettempdir(), 3 * width * height
    if shutil.disk_usage(folder).free < needed:
        told = f"{about}, for which {folder} needs {needed >> 30} GiB of room: free some, or set TMPDIR"
        raise ImageError(ErrorKind.MEMORY, told)
    vips = _vips()
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            picture = vips.Image.jpegload_buffer(data, access="sequential", fail_on="truncated")
            picture.tiffsave(
                f"/proc/self/fd/{file.fileno()}",
                tile=True,
                tile_width=_TILE_PX,
                tile_height=_TILE_PX,
                compression="lzw",
                predictor="horizontal",
                bigtiff=True,
            )
        except vips.Error as error:
            reason = " ".join(str(error).split())[:200]
            if "no space" in reason.lower():  # Another has filled the disk meanwhile: not the picture's fault
                raise ImageError(
                    ErrorKind.MEMORY, f"{about}, and {folder} is full: free some room, or set TMPDIR"
                ) from None
            kind = ErrorKind.TRUNCATED if "end" in reason.lower() else ErrorKind.CORRUPT
            raise ImageError(kind, reason) from None
        return MadeTiff(data, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _vips() -> Any:
    """The library, with one thread: a worker is one of many."""
    os.environ.setdefault("VIPS_CONCURRENCY", "1")
    logging.getLogger("pyvips").setLevel(logging.CRITICAL)  # What is wrong is raised
    import pyvips

    pyvips.cache_set_max(0)
    return pyvips
