"""TIFF beyond what Pillow reads: which page is the picture, what is a camera's RAW file, and samples of any depth.

Directories are read within bounds, since any of their numbers may be hostile. Pages that Pillow reads well are left to
it: it is handed the file with the directory of the chosen page in front.
"""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

MAX_DIRECTORIES = 64
MAX_ENTRIES = 4096
MAX_VALUES = 4096
MAX_PIECES = 1 << 20
"""Strips or tiles of a page."""

MAX_SAMPLE_BYTES = 1 << 30
"""Of one page, decoded."""

THUMBNAIL_PX = 320
"""A first page this small at most, before a page that is `LARGER` times as large, is a thumbnail without its mark."""
LARGER = 3

NEW_SUBFILE, SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, BYTE_COUNTS, PLANAR = 273, 274, 277, 278, 279, 284
PREDICTOR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTE_COUNTS, SUB_DIRECTORIES = 317, 322, 323, 324, 325, 330
EXTRA_SAMPLES, SAMPLE_FORMAT, SUBSAMPLING, GDAL_NODATA, DNG_VERSION = 338, 339, 530, 42113, 50706
ICC_PROFILE = 34675

_WANTED = frozenset(
    (
        *(NEW_SUBFILE, SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS, ORIENTATION, SAMPLES),
        *(ROWS_PER_STRIP, BYTE_COUNTS, PLANAR, PREDICTOR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTE_COUNTS),
        *(SUB_DIRECTORIES, EXTRA_SAMPLES, SAMPLE_FORMAT, SUBSAMPLING, GDAL_NODATA, DNG_VERSION, ICC_PROFILE),
    )
)
_TYPES = {1: "B", 2: "c", 3: "H", 4: "I", 6: "b", 7: "c", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}

_SENSOR = (32803, 34892)  # Photometric interpretations of a colour filter array, and of its linear values
_RAW_COMPRESSIONS = frozenset((262, 32767, 32769, 32770, 32772, 34713, 65000, 65535))  # Kodak, Sony, ..., Pentax

_RAW_STARTS = (
    b"FUJIFILMCCD-RAW",
    b"IIRO\x08\0\0\0",  # Olympus
    b"IIRS\x08\0\0\0",
    b"MMOR\0\0\0\x08",
    b"IIU\0",  # Panasonic, Leica
    b"FOVb",  # Sigma
    b"\0MRM",  # Minolta
    b"II\x1a\0\0\0HEAPCCDR",  # Canon, until 2004
)


@dataclass(frozen=True)
class Directory:
    """One page of a TIFF: the wanted tags of its directory."""

    offset: int
    """Of the directory in the file."""

    tags: dict[int, tuple[int, ...]]
    """Whole numbers; text as its bytes."""

    def first(self, tag: int, default: int = 0) -> int:
        """The first value of a tag."""
        values = self.tags.get(tag)
        return values[0] if values else default

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px."""
        return self.first(WIDTH), self.first(HEIGHT)

    @property
    def reduced(self) -> bool:
        """Whether it is marked as a smaller copy of another page, or as its mask."""
        return bool(self.first(NEW_SUBFILE) & 0b101) or self.first(SUBFILE) == 2

    @property
    def raw(self) -> bool:
        """Whether it holds the values of a sensor."""
        return (
            self.first(PHOTOMETRIC) in _SENSOR
            or DNG_VERSION in self.tags
            or self.first(COMPRESSION) in _RAW_COMPRESSIONS
        )


class Content(Protocol):
    """The bytes of a file: in memory, or read in slices from where they are."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice, /) -> bytes: ...


def unpack_at(form: str, data: Content, offset: int) -> tuple[Any, ...]:
    """Values at an offset. struct.error where the file ends before."""
    return struct.unpack(form, data[offset : offset + struct.calcsize(form)])


def form_of(data: Content) -> tuple[str, bool]:
    """Byte order as `struct` writes it, and whether it is a BigTIFF."""
    return ("<" if data[:2] == b"II" else ">"), data[2:4] in (b"+\0", b"\0+")


def is_tiff(data: Content) -> bool:
    """Whether the bytes begin as a TIFF."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_raw(data: Content, pages: list[Directory]) -> bool:
    """Whether it is a camera's RAW file, by its content. pages: its `directories`, where it is a TIFF."""
    if data[:32].startswith(_RAW_STARTS) or data[4:12] == b"ftypcrx ":
        return True
    if is_tiff(data) and (data[8:10] == b"CR" or data[8:12] == b"IIII"):  # Canon, Phase One
        return True
    return any(page.raw for page in pages)


def directories(data: Content, most: int = MAX_DIRECTORIES) -> list[Directory]:
    """Pages in their order, each followed by those that it names as its own; at most `MAX_DIRECTORIES`."""
    order, big = form_of(data)
    found: list[Directory] = []
    seen: set[int] = set()

    def walk(offset: int) -> None:
        while offset and offset not in seen and len(found) < most:
            seen.add(offset)
            read = _directory(data, offset, order, big)
            if read is None:
                return
            page, following = read
            found.append(page)
            for child in page.tags.get(SUB_DIRECTORIES, ())[:MAX_DIRECTORIES]:
                walk(child)
            offset = following

    with contextlib.suppress(struct.error, RecursionError):
        walk(unpack_at(f"{order}Q", data, 8)[0] if big else unpack_at(f"{order}I", data, 4)[0])
    return found


def _directory(
    data: Content, offset: int, order: str, big: bool, most_values: int = MAX_VALUES
) -> tuple[Directory, int] | None:
    """A directory and the offset of the next one; None where it does not lie within the file. Tags with more values
    are left out."""
    count_format, entry_bytes, inline = (f"{order}Q", 20, 8) if big else (f"{order}H", 12, 4)
    try:
        (entries,) = unpack_at(count_format, data, offset)
        start = offset + struct.calcsize(count_format)
        if entries > MAX_ENTRIES:
            return None
        tags: dict[int, tuple[int, ...]] = {}
        for number in range(entries):
            at = start + entry_bytes * number
            tag, kind = unpack_at(f"{order}HH", data, at)
            (count,) = unpack_at(f"{order}Q" if big else f"{order}I", data, at + 4)
            if tag not in _WANTED or kind not in _TYPES or not 0 < count <= most_values:
                continue
            value_at = at + (12 if big else 8)
            if count * SIZES[kind] > inline:
                (value_at,) = unpack_at(f"{order}Q" if big else f"{order}I", data, value_at)
            if value_at + count * SIZES[kind] > len(data):
                continue
            values = unpack_at(f"{order}{count}{_TYPES[kind].replace('c', 'B')}", data, value_at)
            tags.setdefault(tag, tuple(values))
        after = start + entry_bytes * entries
        following = data[after : after + inline].ljust(inline, b"\0")
        return Directory(offset, tags), int.from_bytes(following, "little" if order == "<" else "big")
    except struct.error:
        return None


def choose_page(pages: list[Directory]) -> int:
    """Number of the page that is the picture: the first that is not marked reduced, nor a thumbnail by its size."""
    chosen = next((number for number, page in enumerate(pages) if not page.reduced and min(page.size) > 0), 0)
    if not pages:
        return chosen
    width, height = pages[chosen].size
    if max(width, height) <= THUMBNAIL_PX:
        for number, page in enumerate(pages[chosen + 1 :], start=chosen + 1):
            if not page.reduced and page.size[0] >= LARGER * width and page.size[1] >= LARGER * height:
                return number
    return chosen


def pictures(pages: list[Directory]) -> list[int]:
    """Numbers of the pages that are pictures of their own: that of `choose_page`, and those after it that are no copies
    or masks."""
    if not pages:
        return []
    first = choose_page(pages)
    others = range(first + 1, len(pages))
    return [first, *(number for number in others if not pages[number].reduced and min(pages[number].size) > 0)]


def with_page_first(data: bytes, page: Directory) -> bytes:
    """The file with this page as its first one."""
    big = data[2:4] in (b"+\0", b"\0+")
    endian = "little" if data[:2] == b"II" else "big"
    if big:
        return data[:8] + page.offset.to_bytes(8, endian) + data[16:]  # type: ignore[arg-type]
    return data[:4] + page.offset.to_bytes(4, endian) + data[8:]  # type: ignore[arg-type]


def read_profile(data: Content, page: Directory) -> bytes | None:
    """The ICC profile of a page."""
    whole = with_long_tags(data, page)
    return bytes(whole.tags[ICC_PROFILE]) if ICC_PROFILE in whole.tags else None


def with_long_tags(data: Content, page: Directory) -> Directory:
    """The page with its long tags, too."""
    order, big = form_of(data)
    whole = _directory(data, page.offset, order, big, MAX_PIECES)
    return page if whole is None else whole[0]


_UNPACKED = frozenset((1, 8, 32946))
_BY_LIBTIFF = frozenset((5, 32773, 34925, 50000))


def is_deep(page: Directory) -> bool:
    """Whether `read_samples` is to read it: samples that Pillow cuts, swaps, inverts or does not know."""
    bits, kinds = page.tags.get(BITS, (1,)), page.tags.get(SAMPLE_FORMAT, (1,))
    photometric, planes = page.first(PHOTOMETRIC), page.first(PLANAR, 1)
    if (
        page.first(COMPRESSION, 1) not in _UNPACKED | _BY_LIBTIFF
        or len(set(bits)) > 1
        or bits[0] not in (8, 16, 32, 64)
    ):
        return False
    if photometric in (0, 1):
        return bits[0] > 8 or (planes == 2 and page.first(SAMPLES, 1) > 1)
    if photometric == 2:
        return bits[0] > 16 or kinds[0] != 1 or (planes == 2 and (bits[0] > 8 or page.first(SAMPLES, 1) > 3))
    return _is_subsampled(page)


def _is_subsampled(page: Directory) -> bool:
    """YCbCr without JPEG, which Pillow takes for unsampled where it is not packed."""
    return page.first(PHOTOMETRIC) == 6 and page.first(COMPRESSION, 1) == 1 and page.first(BITS) == 8


def read_samples(data: bytes, page: Directory) -> np.ndarray:
    """(H, W, S) samples of a page as they are stored, in the machine's byte order; YCbCr with its colours repeated.

    ValueError for what is not a sound page, EOFError for one that ends too early.
    """
    width, height = page.size
    samples = page.first(SAMPLES, 1)
    kind = {1: "u", 2: "i", 3: "f", 4: "u"}.get(page.first(SAMPLE_FORMAT, 1))
    size = page.first(BITS, 8) // 8
    if kind is None or (kind == "f" and size == 1) or not 1 <= samples <= 16 or width < 1 or height < 1:
        raise ValueError("the TIFF has samples of an unknown kind")
    if width * height * samples * size > MAX_SAMPLE_BYTES:
        raise ValueError(f"the TIFF has more than {MAX_SAMPLE_BYTES >> 20} MiB of samples")
    order = "<" if data[:2] == b"II" else ">"
    page = with_long_tags(data, page)
    if _is_subsampled(page):
        return _read_subsampled(data, page)
    stored = np.dtype(f"{order}{kind}{size}")
    planes = samples if page.first(PLANAR, 1) == 2 else 1
    together = samples // planes
    result = np.zeros((height, width, samples), stored.newbyteorder("="))
    for plane, top, left, rows, columns, content in _pieces(data, page, planes, together * size):
        block = _without_predictor(content, page.first(PREDICTOR, 1), rows, columns, together, stored)
        shown = result[top : top + rows, left : left + columns, plane * together : (plane + 1) * together]
        shown[:] = block[: shown.shape[0], : shown.shape[1]]
    return result


def _pieces(
    data: bytes, page: Directory, planes: int, pixel_bytes: int
) -> Iterator[tuple[int, int, int, int, int, bytes]]:
    """Plane, top, left, rows, columns and bytes of every strip or tile, unpacked."""
    width, height = page.size
    tiled = TILE_OFFSETS in page.tags
    offsets = page.tags.get(TILE_OFFSETS if tiled else OFFSETS, ())
    counts = page.tags.get(TILE_BYTE_COUNTS if tiled else BYTE_COUNTS, ())
    columns = page.first(TILE_WIDTH) if tiled else width
    rows = page.first(TILE_HEIGHT) if tiled else min(height, page.first(ROWS_PER_STRIP, height) or height)
    if columns < 1 or rows < 1 or columns * rows * pixel_bytes > MAX_SAMPLE_BYTES:
        raise ValueError("the TIFF has strips or tiles of an impossible size")
    across, down = -(-width // columns), -(-height // rows)
    if len(offsets) < across * down * planes:
        raise EOFError("the TIFF is truncated: it names fewer strips than it has rows")
    for number in range(across * down * planes):
        plane, place = divmod(number, across * down)
        top, left = place // across * rows, place % across * columns
        own_rows = rows if tiled else min(rows, height - top)
        expected = own_rows * columns * pixel_bytes
        start = offsets[number]
        stop = start + (counts[number] if number < len(counts) else expected)
        content = _unpack(data[start:stop], page.first(COMPRESSION, 1), own_rows, columns * pixel_bytes)
        if len(content) < expected:
            raise EOFError(f"the TIFF is truncated: a strip has {len(content)} of {expected} bytes")
        yield plane, top, left, own_rows, columns, content[:expected]


def _unpack(packed: bytes, compression: int, rows: int, row_bytes: int) -> bytes:
    if compression == 1:
        return packed
    if compression in (8, 32946):
        try:
            return zlib.decompressobj().decompress(packed, rows * row_bytes)
        except zlib.error as error:
            raise ValueError(f"the TIFF does not unpack: {error}") from None
    # libtiff unpacks a strip of bytes for Pillow; what they mean is not its business
    tags = [(WIDTH, row_bytes), (HEIGHT, rows), (BITS, 8), (COMPRESSION, compression), (PHOTOMETRIC, 1)]
    tags += [(OFFSETS, 8), (SAMPLES, 1), (ROWS_PER_STRIP, rows), (BYTE_COUNTS, len(packed))]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    at = 8 + len(packed)
    file = b"II*\0" + struct.pack("<I", at) + packed + struct.pack("<H", len(tags)) + table + bytes(4)
    with Image.open(io.BytesIO(file), formats=("TIFF",)) as opened:
        return opened.tobytes()


def _without_predictor(
    content: bytes, predictor: int, rows: int, columns: int, samples: int, stored: np.dtype
) -> np.ndarray:
    """(rows, columns, samples): differences summed up."""
    if predictor == 3:
        steps = np.frombuffer(content, np.uint8).reshape(rows, -1, samples)
        planes = np.cumsum(steps, axis=1, dtype=np.uint8).reshape(rows, stored.itemsize, columns * samples)
        values = np.ascontiguousarray(planes.transpose(0, 2, 1)).view(stored.newbyteorder(">"))
        return values.reshape(rows, columns, samples)
    values = np.frombuffer(content, stored).reshape(rows, columns, samples)
    if predictor == 2 and stored.kind in "ui":
        return np.cumsum(values.astype(stored.newbyteorder("=")), axis=1, dtype=stored.newbyteorder("="))
    return values


def _read_subsampled(data: bytes, page: Directory) -> np.ndarray:
    """YCbCr in units of h x v brightness samples with one of each colour (TIFF 6.0, section 21)."""
    width, height = page.size
    across, down = (*page.tags.get(SUBSAMPLING, (2, 2)), 2)[:2]
    if across not in (1, 2, 4) or down not in (1, 2, 4) or page.first(SAMPLES) != 3 or page.first(PLANAR, 1) != 1:
        raise ValueError("the TIFF has colours of an unknown sampling")
    columns = -(-width // across)
    unit = across * down + 2
    result = np.zeros((height, width, 3), np.uint8)
    rows = min(height, page.first(ROWS_PER_STRIP, height) or height)
    offsets = page.tags.get(OFFSETS, ())
    if len(offsets) < -(-height // rows):
        raise EOFError("the TIFF is truncated: it names fewer strips than it has rows")
    for number, top in enumerate(range(0, height, rows)):
        lines = -(-min(rows, height - top) // down)
        strip = data[offsets[number] : offsets[number] + lines * columns * unit]
        if len(strip) < lines * columns * unit:
            raise EOFError("the TIFF is truncated: a strip ends too early")
        units = np.frombuffer(strip, np.uint8).reshape(lines, columns, unit)
        grey = units[..., :-2].reshape(lines, columns, down, across).transpose(0, 2, 1, 3)
        whole = np.empty((lines * down, columns * across, 3), np.uint8)
        whole[..., 0] = grey.reshape(lines * down, columns * across)
        whole[..., 1:] = units[..., -2:].repeat(down, axis=0).repeat(across, axis=1)
        shown = result[top : top + rows]
        shown[:] = whole[: shown.shape[0], :width]
    return result
