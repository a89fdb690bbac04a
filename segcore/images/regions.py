"""Pictures of which one region at a time is in memory: arrays, and TIFFs in tiles or strips.

A tile or strip becomes a TIFF of its own that `decoding.decode` reads, so colours, depths and compressions are the
same as in a picture that is decoded whole. Which page is the picture, `tiff.py` decides.
"""

import collections
import struct
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from segcore.images import containers, large_jpeg, tiff
from segcore.images.decoding import decode
from segcore.images.errors import ErrorKind, ImageError
from segcore.images.turns import upright

MAX_REGIONAL_PIXELS = 10_000_000_000
"""Of a picture that is read region by region: 100,000 x 100,000 px."""

MAX_PIECE_PIXELS = 1 << 25
"""Of one tile or strip, which is decoded at once."""

_CACHE_BYTES = 256 << 20

_KEPT = frozenset((258, 259, 262, 266, 277, 284, 317, 320, 332, 338, 339, 347, 529, 530, 531, 532, 34675))
"""Tags that say what the samples of a piece are: depth, compression, predictor, palette, JPEG tables, ICC profile."""

GEOGRAPHIC = (33550, 33922, 34264, 34735, 34736, 34737)
"""Tags of GeoTIFF: scale, tie points, transformation, keys and their numbers and texts."""

_MOST_TAG_BYTES = 4 << 20


class Regions(Protocol):
    """A picture that is read region by region."""

    @property
    def width(self) -> int:
        """In px, upright."""
        ...

    @property
    def height(self) -> int:
        """In px, upright."""
        ...

    def read(self, top: int, left: int, rows: int, columns: int) -> np.ndarray:
        """(rows, columns, 3) uint8 RGB of a region within the picture. Raises ImageError."""
        ...


@dataclass(frozen=True)
class ArrayRegions:
    """A picture that is decoded already."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""

    @property
    def width(self) -> int:
        return int(self.image.shape[1])

    @property
    def height(self) -> int:
        return int(self.image.shape[0])

    def read(self, top: int, left: int, rows: int, columns: int) -> np.ndarray:
        """A view, not a copy."""
        return self.image[top : top + rows, left : left + columns]


@dataclass
class TiffRegions:
    """A page of a TIFF, upright; the pieces that were read last are kept."""

    data: tiff.Content
    width: int
    height: int
    orientation: int
    columns: int
    """Of a piece: a tile, or a strip of the whole width."""

    rows: int
    is_tiled: bool
    offsets: tuple[int, ...]
    byte_counts: tuple[int, ...]
    planes: int
    tags: tuple[tuple[int, int, int, bytes], ...]
    """Tag, type, count and bytes of what a piece needs to be read, in the byte order of the file."""

    geography: tuple[tuple[int, int, int, bytes], ...]
    """The same of what says where on the Earth it is, in little-endian order; none where it is not stored upright."""

    note: str = ""
    _pieces: "collections.OrderedDict[int, np.ndarray]" = field(default_factory=collections.OrderedDict, repr=False)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_pieces": collections.OrderedDict()}

    def read(self, top: int, left: int, rows: int, columns: int) -> np.ndarray:
        """(rows, columns, 3) uint8 RGB. Raises ImageError for a piece that is not there or does not decode."""
        if self.orientation > 4:
            top, left, rows, columns = left, top, columns, rows
            width, height = self.height, self.width
        else:
            width, height = self.width, self.height
        if self.orientation in (3, 4, 6, 7):
            top = height - top - rows
        if self.orientation in (2, 3, 7, 8):
            left = width - left - columns
        stored = np.empty((rows, columns, 3), np.uint8)
        across = -(-width // self.columns)
        for down in range(top // self.rows, (top + rows - 1) // self.rows + 1):
            for along in range(left // self.columns, (left + columns - 1) // self.columns + 1):
                piece = self._piece(down * across + along, across * -(-height // self.rows), height)
                y, x = down * self.rows, along * self.columns
                from_y, from_x = max(top, y), max(left, x)
                to_y, to_x = min(top + rows, y + self.rows), min(left + columns, x + self.columns)
                stored[from_y - top : to_y - top, from_x - left : to_x - left] = piece[
                    from_y - y : to_y - y, from_x - x : to_x - x
                ]
        return upright(stored, self.orientation)

    def _piece(self, number: int, each_plane: int, height: int) -> np.ndarray:
        if number in self._pieces:
            self._pieces.move_to_end(number)
            return self._pieces[number]
        rows = self.rows if self.is_tiled else min(self.rows, height - number * self.rows)
        piece = self._decoded(number, each_plane, rows)
        self._pieces[number] = piece
        most = max(2, _CACHE_BYTES // (self.rows * self.columns * 3))
        while len(self._pieces) > most:
            self._pieces.popitem(last=False)
        return piece

    def _decoded(self, number: int, each_plane: int, rows: int) -> np.ndarray:
        packed = []
        for plane in range(self.planes):
            place = number + plane * each_plane
            start, count = self.offsets[place], self.byte_counts[place]
            if count == 0:  # As GDAL leaves out tiles that hold nothing
                return np.zeros((rows, self.columns, 3), np.uint8)
            if start + count > len(self.data):
                raise ImageError(ErrorKind.TRUNCATED, f"{self._named(number)} lies beyond the end of the file")
            packed.append(self.data[start : start + count])
        try:
            photograph = decode(self._as_file(packed, rows))
        except ImageError as error:
            raise ImageError(error.kind, f"{self._named(number)} does not decode: {error}") from None
        if photograph.image.shape[:2] != (rows, self.columns):
            raise ImageError(ErrorKind.CORRUPT, f"{self._named(number)} has another size than its page says")
        self.note = self.note or photograph.note
        return photograph.image

    def _named(self, number: int) -> str:
        what = "tile" if self.is_tiled else "strip"
        return f"{what} {number + 1} of the TIFF"

    def _as_file(self, packed: list[bytes], rows: int) -> bytes:
        """A TIFF of one strip in each plane."""
        order, _ = tiff.form_of(self.data)
        at, places = 8, []
        for content in packed:
            places.append(at)
            at += len(content)

        def longs(tag: int, values: list[int]) -> tuple[int, int, int, bytes]:
            return tag, 4, len(values), struct.pack(f"{order}{len(values)}I", *values)

        tags = [
            *self.tags,
            longs(tiff.WIDTH, [self.columns]),
            longs(tiff.HEIGHT, [rows]),
            longs(tiff.OFFSETS, places),
            longs(tiff.ROWS_PER_STRIP, [rows]),
            longs(tiff.BYTE_COUNTS, [len(content) for content in packed]),
        ]
        head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", at + at % 2)
        return b"".join([head, *packed, bytes(at % 2), directory(tags, at + at % 2, order)])


def directory(tags: list[tuple[int, int, int, bytes]], at: int, order: str = "<", *, big: bool = False) -> bytes:
    """A directory of a TIFF with what does not fit into it behind it, without a successor.

    tags: tag, type, count and bytes. at: where in the file it will stand.
    """
    entry_bytes, inline, number = (20, 8, "Q") if big else (12, 4, "I")
    head = struct.pack(f"{order}{'Q' if big else 'H'}", len(tags))
    behind = at + len(head) + entry_bytes * len(tags) + inline
    entries, rest = b"", b""
    for tag, kind, count, value in sorted(tags):
        entries += struct.pack(f"{order}HH{number}", tag, kind, count)
        if len(value) <= inline:
            entries += value.ljust(inline, b"\0")
        else:
            entries += struct.pack(f"{order}{number}", behind + len(rest))
            rest += value + bytes(len(value) % 2)
    return head + entries + bytes(inline) + rest


def open_tiff(data: tiff.Content, page: tiff.Directory) -> TiffRegions:
    """A page of a TIFF, to be read region by region; its pixels are not touched.

    Raises ImageError for a page that says of itself what cannot be, or that has to be decoded whole.
    """
    width, height = page.size
    if width < 1 or height < 1:
        raise ImageError(ErrorKind.CORRUPT, f"the image says that it is {width} x {height} px")
    if width * height > MAX_REGIONAL_PIXELS:
        raise ImageError(
            ErrorKind.TOO_LARGE,
            f"the image has {width} x {height} px, more than the bound of {MAX_REGIONAL_PIXELS} pixels",
        )
    _require_plain_samples(page)
    page = tiff.with_long_tags(data, page)
    tiled = tiff.TILE_OFFSETS in page.tags
    columns = page.first(tiff.TILE_WIDTH) if tiled else width
    rows = page.first(tiff.TILE_HEIGHT) if tiled else min(height, page.first(tiff.ROWS_PER_STRIP, height) or height)
    what = "tiles" if tiled else "strips"
    if columns < 1 or rows < 1:
        raise ImageError(ErrorKind.CORRUPT, f"the TIFF has {what} of {columns} x {rows} px")
    if columns * rows > MAX_PIECE_PIXELS:
        raise ImageError(
            ErrorKind.TOO_LARGE,
            f"the {what} of the TIFF have {columns} x {rows} px each: write it in tiles of 512 px, by vips or GDAL",
        )
    planes = page.first(tiff.SAMPLES, 1) if page.first(tiff.PLANAR, 1) == 2 else 1
    pieces = -(-width // columns) * -(-height // rows) * planes
    offsets = page.tags.get(tiff.TILE_OFFSETS if tiled else tiff.OFFSETS, ())
    counts = page.tags.get(tiff.TILE_BYTE_COUNTS if tiled else tiff.BYTE_COUNTS, ())
    if pieces > tiff.MAX_PIECES:
        raise ImageError(ErrorKind.TOO_LARGE, f"the TIFF has {pieces} {what}, more than {tiff.MAX_PIECES}")
    if len(offsets) < pieces or len(counts) < pieces:
        named = min(len(offsets), len(counts))
        raise ImageError(ErrorKind.CORRUPT, f"the TIFF names {named} {what}, its size needs {pieces}")
    orientation = page.first(tiff.ORIENTATION, 1)
    orientation = orientation if 1 <= orientation <= 8 else 1
    geography = _entries(data, page, frozenset(GEOGRAPHIC)) if orientation == 1 else ()
    return TiffRegions(
        data=data,
        width=height if orientation > 4 else width,
        height=width if orientation > 4 else height,
        orientation=orientation,
        columns=columns,
        rows=rows,
        is_tiled=tiled,
        offsets=offsets,
        byte_counts=counts,
        planes=planes,
        tags=_entries(data, page, _KEPT),
        geography=tuple(_little_endian(entry, tiff.form_of(data)[0]) for entry in geography),
    )


def open_jpeg(data: bytes) -> TiffRegions:
    """A JPEG, to be read region by region from a TIFF that is made of it. Raises ImageError."""
    content = large_jpeg.as_tiff(data)
    return open_tiff(content, tiff.directories(content)[0])


def reduced(data: tiff.Content, side_px: int) -> np.ndarray:
    """(h, w, 3) uint8 RGB of a large TIFF or JPEG, much smaller: its long side from `side_px` to twice that.

    From its smallest page that is large enough and marked as a smaller copy of another, else from single pixels of it
    all. Raises ImageError.
    """
    if containers.jpeg_frame(data[:_MOST_TAG_BYTES]) is not None:
        data = large_jpeg.as_tiff(data[:])
    pages = tiff.directories(data) if tiff.is_tiff(data) else []
    if not pages:
        raise ImageError(ErrorKind.NOT_AN_IMAGE, "it is neither TIFF nor JPEG")
    whole = pages[tiff.choose_page(pages)]
    copies = [page for page in pages if page.first(tiff.NEW_SUBFILE) & 1 and max(page.size) >= side_px]
    same_shape = [
        page for page in copies if abs(page.size[0] * whole.size[1] / max(1, page.size[1] * whole.size[0]) - 1) < 0.1
    ]
    picture = open_tiff(data, min([whole, *same_shape], key=lambda page: page.size))
    step = max(1, max(picture.width, picture.height) // side_px)
    band = max(1, 1024 // step) * step
    bands = [
        picture.read(top, 0, min(band, picture.height - top), picture.width)[::step, ::step]
        for top in range(0, picture.height, band)
    ]
    return np.concatenate(bands)


def _require_plain_samples(page: tiff.Directory) -> None:
    """Samples whose meaning depends on the whole picture cannot be read piece by piece."""
    bits, kind = page.first(tiff.BITS, 1), page.first(tiff.SAMPLE_FORMAT, 1)
    if page.first(tiff.COMPRESSION, 1) == 6:
        reason = "its JPEG is of the kind that TIFF 6.0 described first"
    elif page.first(tiff.PHOTOMETRIC) == 3 and bits > 8:
        reason = f"its palette has {2 ** min(bits, 16)} colours"
    elif kind not in (1, 4) or bits > 16:
        reason = f"its samples are {'floats' if kind == 3 else 'numbers'} of {bits} bits, whose range is unknown"
    else:
        return
    raise ImageError(
        ErrorKind.TOO_LARGE, f"the TIFF is too large to be decoded whole, and {reason}: write it with 8 bits, in tiles"
    )


def _entries(
    data: tiff.Content, page: tiff.Directory, wanted: frozenset[int]
) -> tuple[tuple[int, int, int, bytes], ...]:
    """Tag, type, count and bytes of some tags of a page; those that do not lie within the file are left out."""
    order, big = tiff.form_of(data)
    number, inline, entry_bytes = ("Q", 8, 20) if big else ("I", 4, 12)
    head = f"{order}{'Q' if big else 'H'}"
    try:
        (entries,) = tiff.unpack_at(head, data, page.offset)
        start = page.offset + struct.calcsize(head)
        found: dict[int, tuple[int, int, int, bytes]] = {}
        for at in range(start, start + entry_bytes * min(entries, tiff.MAX_ENTRIES), entry_bytes):
            tag, kind, count = tiff.unpack_at(f"{order}HH{number}", data, at)
            size = tiff.SIZES.get(kind, 0) * count
            if tag not in wanted or kind > 13 or not 0 < size <= _MOST_TAG_BYTES:
                continue
            place = at + entry_bytes - inline
            if size > inline:
                (place,) = tiff.unpack_at(f"{order}{number}", data, place)
            value = data[place : place + size]
            if len(value) == size:
                found.setdefault(tag, (tag, kind, count, value))
        return tuple(found.values())
    except struct.error:
        return ()


def _little_endian(entry: tuple[int, int, int, bytes], order: str) -> tuple[int, int, int, bytes]:
    tag, kind, count, value = entry
    size = 4 if kind in (5, 10) else tiff.SIZES[kind]  # Fractions are two numbers
    if order == ">" and size > 1:
        value = np.frombuffer(value, f">u{size}").astype(f"<u{size}").tobytes()
    return tag, kind, count, value
