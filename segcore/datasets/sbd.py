"""The Semantic Boundaries Dataset (Hariharan et al. 2011): its annotations as label maps, its lists merged with VOC's.

Annotations are MATLAB 5 files with a struct `GTcls`. Just its field `Segmentation` is read, by a reader of our own:
SciPy's also builds the sparse boundaries of twenty classes, and does not bound what a small file may unpack to.
"""

import math
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from segcore.voc import CLASSES

MAX_UNPACKED_BYTES = 64 << 20
"""All that one file may unpack to; an annotation of a photograph of 500 px has less than one MiB."""

_MAX_FIELDS = 64  # Of a struct; GTcls has three

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""NumPy's names of MATLAB's storage types (MAT-File Format, table 1-1)."""

_MATRIX, _COMPRESSED = 14, 15
_STRUCT_CLASS = 2
_NUMERIC_CLASSES = range(6, 16)


@dataclass(frozen=True)
class _Element:
    kind: int
    data: memoryview
    end: int


def decode_annotation(data: bytes) -> np.ndarray:
    """Label map (H, W) uint8, 0 to 20, of one of SBD's `cls/*.mat`; SBD has no void.

    Raises ValueError in one sentence for anything else.
    """
    try:
        labels = _segmentation(data)
    except (struct.error, IndexError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"the .mat file is damaged: {error}") from None
    if labels.ndim != 2 or not labels.size:
        raise ValueError(f"GTcls.Segmentation has the shape {labels.shape[:8]}, not (height, width)")
    if labels.min() < 0 or labels.max() >= len(CLASSES) or not np.array_equal(labels, np.trunc(labels)):
        raise ValueError(f"GTcls.Segmentation holds {labels.max()}; SBD's labels are 0 to {len(CLASSES) - 1}")
    return np.ascontiguousarray(labels, dtype=np.uint8)


def merged_lists(
    voc_train: Iterable[str], voc_val: Iterable[str], sbd_train: Iterable[str], sbd_val: Iterable[str]
) -> dict[str, list[str]]:
    """The lists of VOC 2012 with SBD, sorted: train, val, trainval, train_aug, trainval_aug.

    train_aug is all that is annotated and not in VOC's val: SBD's own lists hold images of VOC's val. Official
    lists give 1,464, 1,449, 2,913, 10,582 and 12,031.
    """
    train, val = set(voc_train), set(voc_val)
    augmented = (train | set(sbd_train) | set(sbd_val)) - val
    lists = {
        "train": train - val,
        "val": val,
        "trainval": train | val,
        "train_aug": augmented,
        "trainval_aug": augmented | val,
    }
    return {name: sorted(ids) for name, ids in lists.items()}


def _segmentation(data: bytes) -> np.ndarray:
    if data[:8] == b"\x89HDF\r\n\x1a\n" or data[:10] == b"MATLAB 7.3":
        raise ValueError("the .mat file is in MATLAB's format 7.3 (HDF5); SBD's are in format 5: save it with -v6")
    if len(data) < 136 or data[126:128] not in (b"IM", b"MI"):
        raise ValueError("the file is no MATLAB 5 file")
    order = "<" if data[126:128] == b"IM" else ">"
    whole, at, room = memoryview(data), 128, MAX_UNPACKED_BYTES
    while at + 8 <= len(whole):
        element = _element(whole, at, order)
        at = element.end
        content = element.data
        if element.kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            unpacked = unpacker.decompress(content, room) if room else b""
            room -= len(unpacked)
            if unpacker.unconsumed_tail or not room:
                raise ValueError(f"the .mat file unpacks to more than {MAX_UNPACKED_BYTES} bytes")
            element = _element(memoryview(unpacked), 0, order)
            content = element.data
        if element.kind == _MATRIX:
            parts, name = _matrix_head(content, order)
            if name == "GTcls":
                return _field(content, parts, order, "Segmentation")
    raise ValueError("the .mat file has no variable GTcls; SBD's class annotations lie in dataset/cls")


def _element(data: memoryview, at: int, order: str) -> _Element:
    """The data element that begins at a byte; small ones carry their data in the second half of their tag."""
    kind, size = struct.unpack_from(f"{order}II", data, at)
    if kind >> 16:
        kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
    else:
        start = at + 8
        end = start + size + (0 if kind == _COMPRESSED else -size % 8)
    if start + size > len(data):
        raise ValueError("the .mat file ends too early")
    return _Element(kind, data[start : start + size], end)


def _matrix_head(data: memoryview, order: str) -> tuple[tuple[int, tuple[int, ...], int], str]:
    """Class, dimensions and where the contents begin; and the name."""
    flags = _element(data, 0, order)
    sizes = _element(data, flags.end, order)
    name = _element(data, sizes.end, order)
    matrix_class = struct.unpack_from(f"{order}I", flags.data)[0] & 0xFF
    shape = struct.unpack(f"{order}{len(sizes.data) // 4}i", sizes.data)
    return (matrix_class, shape, name.end), bytes(name.data).decode("ascii")


def _field(data: memoryview, head: tuple[int, tuple[int, ...], int], order: str, wanted: str) -> np.ndarray:
    matrix_class, shape, at = head
    if matrix_class != _STRUCT_CLASS or math.prod(shape) != 1:
        raise ValueError("GTcls is no single struct")
    length = _element(data, at, order)
    names = _element(data, length.end, order)
    step = struct.unpack_from(f"{order}i", length.data)[0]
    if step < 1 or len(names.data) // step > _MAX_FIELDS:
        raise ValueError("the fields of GTcls have no names that make sense")
    fields = [bytes(names.data[k : k + step]).split(b"\0")[0] for k in range(0, len(names.data), step)]
    at = names.end
    for name in fields:
        element = _element(data, at, order)
        at = element.end
        if name == wanted.encode():
            return _numbers(element.data, order)
    raise ValueError(f"GTcls has no field {wanted}")


def _numbers(data: memoryview, order: str) -> np.ndarray:
    (matrix_class, shape, at), _ = _matrix_head(data, order)
    values = _element(data, at, order)
    if matrix_class not in _NUMERIC_CLASSES or values.kind not in _NUMBERS:
        raise ValueError("GTcls.Segmentation is no plain array of numbers")
    kind = np.dtype(f"{order}{_NUMBERS[values.kind]}")
    if len(values.data) % kind.itemsize:
        raise ValueError("the .mat file is damaged: GTcls.Segmentation ends within a number")
    flat = np.frombuffer(values.data, kind)
    if min(shape) < 0 or flat.size != math.prod(shape):
        raise ValueError(f"GTcls.Segmentation says {shape[:8]} and holds {flat.size} values")
    return flat.reshape(shape, order="F")  # MATLAB stores column by column
