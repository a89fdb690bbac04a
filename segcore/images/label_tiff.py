"""Label maps that are too large for a row: TIFF in tiles, deflated, with a small copy of the whole.

Tiles are written as they come, each once; where they lie is written at the end. Reading takes the bytes of a file in
slices (`tiff.Content`), and decodes the tiles that a region needs.
"""

import math
import struct
import zlib
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from segcore.images import tiff
from segcore.images.regions import directory
from segcore.voc import palette

SIDE_PX = 256
"""Side of a tile of the file."""

OVERVIEW_PX = 2048
"""Long side of the small copy, at most."""

MAX_WHOLE_PIXELS = 2_000_000_000
"""Of a label map that is read into memory as a whole."""

_CLASSIC_BYTES = 3 << 30  # A file with more labels than this may need offsets of 64 bits
_LEVEL = 6


class LabelTiffWriter:
    """Writes a label map of one file, tile by tile.

    file: seekable, empty. dtype: uint8, with the colours of VOC's palette, or uint16, grey. geography: tags of GeoTIFF,
    as `regions.TiffRegions.geography` has them.
    """

    def __init__(
        self,
        file: BinaryIO,
        width: int,
        height: int,
        dtype: np.dtype,
        geography: Sequence[tuple[int, int, int, bytes]] = (),
    ) -> None:
        self.file, self.width, self.height = file, width, height
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.geography = tuple(geography)
        self.big = width * height * self.dtype.itemsize > _CLASSIC_BYTES
        self.across, self.down = -(-width // SIDE_PX), -(-height // SIDE_PX)
        self.places = np.zeros((2, self.across * self.down), np.uint64)
        self.step = max(1, -(-max(width, height) // OVERVIEW_PX))
        self.overview = np.zeros((-(-height // self.step), -(-width // self.step)), self.dtype)
        file.write(bytes(16))

    def write(self, top: int, left: int, labels: np.ndarray) -> None:
        """Add a part whose top and left are multiples of `SIDE_PX`, and which ends at such a one or with the map.

        labels: (h, w) of `dtype`.
        """
        height, width = labels.shape
        for y in range(0, height, SIDE_PX):
            for x in range(0, width, SIDE_PX):
                part = labels[y : y + SIDE_PX, x : x + SIDE_PX]
                tile = np.zeros((SIDE_PX, SIDE_PX), self.dtype)
                tile[: part.shape[0], : part.shape[1]] = part
                number = (top + y) // SIDE_PX * self.across + (left + x) // SIDE_PX
                self.places[:, number] = self._append(zlib.compress(tile.tobytes(), _LEVEL))
        rows, columns = -top % self.step, -left % self.step
        small = labels[rows :: self.step, columns :: self.step]
        y, x = -(-top // self.step), -(-left // self.step)
        self.overview[y : y + small.shape[0], x : x + small.shape[1]] = small

    def close(self) -> None:
        """Write the directories, the large one first; every part must be there."""
        assert self.places[1].all(), "a part of the label map was not written"
        small = self._append(zlib.compress(self.overview.tobytes(), _LEVEL))
        height, width = self.overview.shape
        strip = [
            self._tag(tiff.NEW_SUBFILE, "I", [1]),
            self._tag(tiff.ROWS_PER_STRIP, "I", [height]),
            self._tag(tiff.OFFSETS, "Q" if self.big else "I", [small[0]]),
            self._tag(tiff.BYTE_COUNTS, "I", [small[1]]),
        ]
        second, _ = self._append(self._directory(width, height, strip))
        tiles = [
            self._tag(tiff.TILE_WIDTH, "I", [SIDE_PX]),
            self._tag(tiff.TILE_HEIGHT, "I", [SIDE_PX]),
            self._tag(tiff.TILE_OFFSETS, "Q" if self.big else "I", self.places[0].tolist()),
            self._tag(tiff.TILE_BYTE_COUNTS, "I", self.places[1].tolist()),
            *self.geography,
        ]
        whole = self._directory(self.width, self.height, tiles)
        first, _ = self._append(whole)
        # The successor stands behind the entries
        entry_bytes, head = (20, 8) if self.big else (12, 2)
        count = struct.unpack("<Q" if self.big else "<H", whole[:head])[0]
        self.file.seek(first + head + entry_bytes * count)
        self.file.write(struct.pack("<Q" if self.big else "<I", second))
        self.file.seek(0)
        self.file.write(
            struct.pack("<2sHHHQ", b"II", 43, 8, 0, first) if self.big else struct.pack("<2sHI", b"II", 42, first)
        )
        self.file.flush()

    def _append(self, content: bytes) -> tuple[int, int]:
        """Offset, which is even, and length of what is written at the end."""
        at = self.file.seek(0, 2)
        if at % 2:
            at += self.file.write(b"\0")
        self.file.write(content)
        return at, len(content)

    def _directory(self, width: int, height: int, tags: list[tuple[int, int, int, bytes]]) -> bytes:
        is_palette = self.dtype.itemsize == 1
        colours = (palette().T.astype(np.uint16) * 257).ravel().tolist()
        tags = [
            *tags,
            self._tag(tiff.WIDTH, "I", [width]),
            self._tag(tiff.HEIGHT, "I", [height]),
            self._tag(tiff.BITS, "H", [8 * self.dtype.itemsize]),
            self._tag(tiff.COMPRESSION, "H", [8]),
            self._tag(tiff.PHOTOMETRIC, "H", [3 if is_palette else 1]),
            self._tag(tiff.SAMPLES, "H", [1]),
            *([self._tag(320, "H", colours)] if is_palette else []),
        ]
        at = self.file.seek(0, 2)
        return directory(tags, at + at % 2, big=self.big)

    @staticmethod
    def _tag(tag: int, form: str, values: Sequence[int]) -> tuple[int, int, int, bytes]:
        return tag, {"H": 3, "I": 4, "Q": 16}[form], len(values), struct.pack(f"<{len(values)}{form}", *values)


class LabelTiff:
    """A file of `LabelTiffWriter`, for reading. ValueError for what is none."""

    def __init__(self, data: tiff.Content) -> None:
        pages = tiff.directories(data) if tiff.is_tiff(data) else []
        if len(pages) != 2 or tiff.TILE_OFFSETS not in tiff.with_long_tags(data, pages[0]).tags:
            raise ValueError("it is no label map of ours, or it is cut")
        self.data, self.page, self.small = data, tiff.with_long_tags(data, pages[0]), pages[1]
        self.width, self.height = self.page.size
        self.dtype = np.dtype("<u2" if self.page.first(tiff.BITS) == 16 else "u1")

    def read(self, top: int = 0, left: int = 0, rows: int | None = None, columns: int | None = None) -> np.ndarray:
        """(rows, columns) uint8 or uint16 of a region within the map, by default all of it.

        ValueError for a map that is damaged, or for more than `MAX_WHOLE_PIXELS`.
        """
        rows = self.height - top if rows is None else rows
        columns = self.width - left if columns is None else columns
        if rows * columns > MAX_WHOLE_PIXELS:
            raise ValueError(f"it has {columns} x {rows} px, too many to be held at once: read it region by region")
        found = np.empty((rows, columns), self.dtype.newbyteorder("="))
        across = -(-self.width // SIDE_PX)
        for y in range(top // SIDE_PX * SIDE_PX, top + rows, SIDE_PX):
            for x in range(left // SIDE_PX * SIDE_PX, left + columns, SIDE_PX):
                tile = self._tile(y // SIDE_PX * across + x // SIDE_PX)
                from_y, from_x = max(top, y), max(left, x)
                to_y, to_x = min(top + rows, y + SIDE_PX), min(left + columns, x + SIDE_PX)
                found[from_y - top : to_y - top, from_x - left : to_x - left] = tile[
                    from_y - y : to_y - y, from_x - x : to_x - x
                ]
        return found

    def overview(self) -> np.ndarray:
        """(h, w) uint8 or uint16: the small copy, nearest."""
        width, height = self.small.size
        return self._unpacked(self.small.first(tiff.OFFSETS), self.small.first(tiff.BYTE_COUNTS), height, width)

    def _tile(self, number: int) -> np.ndarray:
        offsets, counts = self.page.tags[tiff.TILE_OFFSETS], self.page.tags[tiff.TILE_BYTE_COUNTS]
        return self._unpacked(offsets[number], counts[number], SIDE_PX, SIDE_PX)

    def _unpacked(self, offset: int, count: int, height: int, width: int) -> np.ndarray:
        if math.prod((height, width)) > max(SIDE_PX, OVERVIEW_PX + 1) ** 2:
            raise ValueError("it is no label map of ours")
        size = height * width * self.dtype.itemsize
        try:
            content = zlib.decompressobj().decompress(self.data[offset : offset + count], size)
        except zlib.error as error:
            raise ValueError(f"it is damaged ({error})") from None
        if len(content) != size:
            raise ValueError("it is cut")
        return np.frombuffer(content, self.dtype).reshape(height, width)
