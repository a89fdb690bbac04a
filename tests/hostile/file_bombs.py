"""Files of models, datasets and results that somebody made to do harm, by kind."""

import base64
import functools
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tasks.datasets import shards
from tests.hostile.sound_files import (
    FOLDER,
    MEMBERS,
    caffemodel,
    card,
    coco,
    cvat_file,
    label_studio_file,
    labelme_file,
    labels,
    manifest,
    mask_rows,
    module,
    parquet,
    photographs,
    published,
    safetensors,
    shard_rows,
    tar,
    torch_file,
    zip,
)
from tests.sbd_files import annotation

MARK = FOLDER / "executed"
"""Appears where something of a file was run."""


class _Runs:
    """A pickle of this runs a command when it is loaded with trust."""

    def __init__(self, how: int) -> None:
        self.how = how

    def __reduce__(self) -> tuple[Any, ...]:
        command = f"touch {MARK}"
        return ((os.system, (command,)), (eval, (f"__import__('os').system({command!r})",)),
                (exec, (f"open({str(MARK)!r}, 'w')",)))[self.how]  # fmt: skip


def _pickled(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)


def _in_torch_zip(pickled: bytes) -> bytes:
    members = {"archive/data.pkl": pickled, "archive/byteorder": b"little", "archive/version": b"3\n"}
    return zip(members, zipfile.ZIP_STORED)


def _wide(shape: tuple[int, ...], strides: tuple[int, ...]) -> torch.Tensor:
    return torch.as_strided(torch.zeros(1), shape, strides)


def _changed(**tensors: torch.Tensor) -> bytes:
    return torch_file(published() | tensors)


def _element(name: str, begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {name: {"dtype": dtype, "shape": [1] if shape is None else shape, "data_offsets": [begin, end]}}


def _many_elements(number: int) -> dict[str, Any]:
    return {k: v for n in range(number) for k, v in _element(f"t{n}", 4 * n, 4 * n + 4).items()}


def _info(name: str, **changes: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in changes.items():
        setattr(info, key, value)
    return info


def _claiming(name: str, size: int) -> bytes:
    """A tar of one member whose header says a size that its bytes do not have; negative ones in base 256."""
    info = tarfile.TarInfo(name)
    info.size = 3
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if 0 <= size < 8**11:
        block[124:136] = b"%011o\0" % size
    else:  # The highest bit says that the rest is a number in base 256
        block[124:136] = b"\x80\0\0" + size.to_bytes(9, "big") if size > 0 else size.to_bytes(12, "big", signed=True)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + b"abc" + bytes(509) + bytes(1024)


def _after_another(size: int) -> bytes:
    """A size that leads back to the same header, or to the one before."""
    return tar([("a.jpg", b"1")])[:1024] + _claiming("b.jpg", size)


def _pax(records: bytes) -> bytes:
    head = _info("x", type=tarfile.XHDTYPE, size=len(records))
    padded = records + bytes(-len(records) % 512)
    return head.tobuf(tarfile.USTAR_FORMAT) + padded + tar([("JPEGImages/a.jpg", b"a")])


def _mat_of(content: bytes, kind: int = 15) -> bytes:
    head = annotation(labels(0))[:128]
    return head + struct.pack("<II", kind, len(content)) + content


def _mat_claiming(rows: int, columns: int) -> bytes:
    data = annotation(labels(0), compressed=False)
    return data.replace(struct.pack("<ii", 12, 17), struct.pack("<ii", rows, columns))


@functools.cache
def _repeated_text(megabytes: int, rows: int) -> bytes:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * (megabytes << 20)]))
    return parquet(pa.table({"id": column, "image": [b"1"] * rows}), compression="zstd")


def _nested(text: bytes, depth: int) -> bytes:
    return text * depth


@functools.cache
def bombs() -> dict[str, list[Callable[[], bytes]]]:
    """Made by hand, by kind."""
    zeros = bytes(200 << 20)
    part = functools.partial
    members = {str(name): data for name, data in MEMBERS}
    rows = pq.read_table(pa.BufferReader(mask_rows()))
    return {
        ".pth": [
            *(part(lambda how: torch_file({"conv1_1.weight": _Runs(how)}), how) for how in range(3)),
            *(part(lambda how: torch_file(_Runs(how), legacy=True), how) for how in range(3)),
            *(part(lambda how: _pickled(_Runs(how)), how) for how in range(3)),
            *(part(lambda how: _in_torch_zip(_pickled({"a": _Runs(how)})), how) for how in range(3)),
            lambda: zip({"archive/data.pkl": zeros, "archive/version": b"3\n"}),
            lambda: zip({"archive/data.pkl": _pickled({}), "archive/data/0": zeros, "archive/version": b"3\n"}),
            lambda: _changed(**{"conv1_1.weight": _wide((10**6, 10**6), (0, 0))}),
            lambda: _changed(**{"conv1_1.weight": _wide((2, 3, 3, 3), (0, 0, 0, 0))}),
            lambda: _changed(**{"conv1_1.weight": torch.full((2, 3, 3, 3), float("nan"))}),
            lambda: _changed(**{"conv1_1.weight": torch.full((2, 3, 3, 3), float("inf"))}),
            lambda: _changed(**{"conv1_1.weight": torch.zeros(2, 3, 3, 3, dtype=torch.complex64)}),
            lambda: _changed(**{"conv1_1.weight": torch.sparse_coo_tensor(size=(10**6, 10**6, 3, 3))}),
            lambda: _changed(**{"conv1_1.weight": torch.zeros(())}),
            lambda: _changed(**{"fc8_voc12.weight": torch.zeros(10_000, 4, 1, 1)}),
            lambda: _changed(**{"fc8_voc12.weight": torch.zeros(())}),
            lambda: _changed(**{"\x1b[2Jclear\n": torch.zeros(1), "x" * 100_000: torch.zeros(1)}),
            lambda: _changed(**{f"layer {k}": torch.zeros(1) for k in range(3000)}),
            lambda: torch_file({1: torch.zeros(1)}),
            lambda: torch_file([torch.zeros(1)]),
            lambda: torch_file({"conv1_1.weight": [[[]]] * 10}),
            lambda: _in_torch_zip(b"\x80\x02" + b"]" + b"2a" * 50_000 + b"."),
            lambda: _in_torch_zip(b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"."),
            lambda: _in_torch_zip(b"\x80\x02\x8b\xff\xff\xff\x7f" + b"1" * 1000),
        ],
        ".caffemodel": [
            lambda: caffemodel(fc8_voc12=np.full((21, 4, 1, 1), np.inf, np.float32)),
            lambda: caffemodel(fc8_voc12=np.zeros((10_000, 4, 1, 1), np.float32)),
            lambda: caffemodel(fc8_voc12=np.zeros(21, np.float32)),
            lambda: b"\xa2\x06" + b"\xff" * 8 + b"\x7f" + bytes(100),
            lambda: b"".join(b"\xa2\x06\x80\x80\x80\x80\x04" for _ in range(500)),
            part(_nested, b"\xa2\x06\x7f", 5000),
            lambda: _caffe_shape([1 << 32, 1 << 32], 0),
            lambda: _caffe_shape([0, 1 << 62], 0),
            lambda: _caffe_shape([-1, -4], 4),
            lambda: _caffe_shape([1] * 500, 1),
            lambda: _caffe_shape([2, 3, 4], 24, b"InnerProduct"),
            lambda: _caffe_shape([4], 4, b"\x1b[2J" * 1000),
            lambda: b"",
        ],
        "safetensors": [
            lambda: safetensors({}, b"", 1 << 62),
            lambda: safetensors({}, b"", (1 << 64) - 1),
            lambda: struct.pack("<Q", 90 << 20) + b" " * (1 << 20),
            lambda: safetensors(_element("a", 0, 4) | _element("b", 0, 4), bytes(4)),
            lambda: safetensors(_element("a", 4, 0), bytes(4)),
            lambda: safetensors(_element("a", 0, 1 << 60, [1 << 58]), bytes(4)),
            lambda: safetensors(_element("a", 0, 4, [1 << 33, 1 << 33]), bytes(4)),
            lambda: safetensors(_element("a", 0, 4, [-1]), bytes(4)),
            lambda: safetensors(_element("a", 0, 4, ["x"]), bytes(4)),
            lambda: safetensors(_element("\x1b[2J\n" + "y" * 5000, 0, 4), bytes(4)),
            lambda: safetensors(_many_elements(5000), bytes(20_000)),
            lambda: safetensors(b'{"a":' * 100_000),
            lambda: safetensors(b'{"a": {"dtype":"F32","shape":[' + b"9" * 5000 + b']}}'),
            _duplicate_name,
            part(_changed_numbers, b"F32", float("nan")),
            part(_changed_numbers, b"I32", 1.0),
            part(_changed_numbers, b"F4", 1.0),
            lambda: b"",
        ],
        "model card": [
            *(part(lambda change: card(**change), change) for change in _CARD_LIES),
            lambda: b"[" * 200_000,
            lambda: b'{"a":' * 200_000,
            lambda: b" " * (6 << 20) + card(),
            lambda: b"\xff\xfe" + "{}".encode("utf-16-le"),
            lambda: b"null",
            lambda: card() * 2,
            lambda: b"",
        ],
        ".mat": [
            lambda: _mat_of(zlib.compress(zeros)),
            lambda: annotation(labels(0))[:128] + _mat_of(_packed_zeros())[128:] * 200,
            lambda: _mat_claiming(0x7FFFFFFF, 0x7FFFFFFF),
            lambda: _mat_claiming(1 << 16, 1 << 16),
            lambda: _mat_claiming(-12, -17),
            lambda: _mat_claiming(0, 0),
            lambda: annotation(np.full((12, 17), np.nan)),
            lambda: annotation(np.full((12, 17), 1e300)),
            lambda: annotation(np.full((12, 17), 200, np.uint8)),
            lambda: b"MATLAB 7.3 MAT-file" + bytes(600),
            lambda: b"\x89HDF\r\n\x1a\n" + bytes(600),
            lambda: _many_fields(),
            lambda: b"",
        ],
        "tar shard": [
            lambda: tar([("../../evil.jpg", b"x"), ("/etc/evil.jpg", b"y"), ("a/../b.jpg", b"z")]),
            lambda: tar([(_info("a.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), b""), ("b.jpg", b"x")]),
            lambda: tar([("a.jpg", b"1"), ("a.jpg", b"2"), ("a.jpg!#512", b"3"), ("a.jpg", b"4")]),
            *(part(_claiming, "a.jpg", size) for size in (100, 1 << 40, 1 << 70, 8**11 - 1)),
            *(part(_claiming, "a.jpg", size) for size in (-1, -512, -1024, -(1 << 60))),
            *(part(_after_another, size) for size in (-512, -1024, -1536)),
            lambda: tar([("a.jpg", b"1")])[:1024] + bytes(512) + tar([("b.jpg", b"2")]),
            lambda: tar([(_info("a.jpg", type=tarfile.GNUTYPE_SPARSE), b"")]) ,
            lambda: _pax(b"30 GNU.sparse.major=1\n30 GNU.sparse.minor=0\n30 GNU.sparse.size=99999999\n"),
            lambda: _pax(b"1" * 200_000),
            lambda: _pax(b"20 size=-1\n" * 100),
            lambda: _pax(b"28 size=99999999999999999999\n"),
            lambda: _info("x", type=tarfile.GNUTYPE_LONGNAME, size=512).tobuf(tarfile.GNU_FORMAT) * 3000,
            lambda: _info("x", type=tarfile.GNUTYPE_LONGNAME, size=1 << 30).tobuf(tarfile.GNU_FORMAT) + bytes(1 << 22),
            lambda: _info("x", type=tarfile.XHDTYPE, size=0).tobuf(tarfile.USTAR_FORMAT) * 3000,
            lambda: b"",
        ],
        "dataset archive": [
            lambda: tar([("JPEGImages/a.jpg", b"x"), ("../../evil.jpg", b"x")]),
            lambda: tar([("/tmp/evil.jpg", b"x")]),
            lambda: tar([(_info("JPEGImages", type=tarfile.SYMTYPE, linkname="/tmp"), b""), ("JPEGImages/a", b"x")]),
            lambda: tar([(_info("JPEGImages/a", type=tarfile.LNKTYPE, linkname="/etc/passwd"), b"")]),
            lambda: tar([(_info("JPEGImages/a", type=tarfile.CHRTYPE, devmajor=1, devminor=3), b"")]),
            lambda: tar([("JPEGImages/a", b"x"), ("JPEGImages/a/b", b"y")]),
            lambda: tar([("JPEGImages/a/b", b"x"), ("JPEGImages/a", b"y")]),
            lambda: tar([("JPEGImages/" + "n" * 300, b"x")]),
            lambda: tar([("JPEGImages/\x1b[2J\n", b"x"), (_info("JPEGImages/\x1b]0;", type=tarfile.FIFOTYPE), b"")]),
            *(part(_claiming, "JPEGImages/a", size) for size in (1 << 40, 1 << 70, -512, -1024)),
            lambda: tar([("JPEGImages/a", bytes(1 << 20))] * 5, "w:gz"),
            lambda: zlib.compress(zeros, wbits=31),
            lambda: zip({"JPEGImages/a": zeros * 2}),
            lambda: zip({f"JPEGImages/{'../' * k}x": b"" for k in range(4)}),
            lambda: zip(members).replace(struct.pack("<I", 700), struct.pack("<I", 0xFFFFFFFF)),
            lambda: zip(members).replace(b"PK\x01\x02", b"PK\x01\x03"),
            lambda: _pax(b"1" * 200_000),
            lambda: _info("x", type=tarfile.GNUTYPE_LONGNAME, size=512).tobuf(tarfile.GNU_FORMAT) * 3000,
            lambda: b"",
        ],
        "Parquet source": [
            lambda: parquet(photographs(image=[10**12, 1, 2, 3])),
            lambda: parquet(photographs(image=[[1, 2], [300], None, []])),
            lambda: parquet(photographs(image=[1.5, 2.0, None, float("nan")])),
            lambda: parquet(photographs(image=["text", "a", None, ""])),
            lambda: parquet(photographs(image=[{"bytes": 5, "path": "x"}] * 4)),
            lambda: parquet(photographs(image=[{"bytes": None, "path": "x"}] * 4)),
            lambda: parquet(photographs(id=["a"] * 4)),
            lambda: parquet(photographs(id=[None] * 4)),
            lambda: parquet(photographs(id=["a", "a!#1", "a", "a"])),
            lambda: parquet(photographs(id=[["a"]] * 4)),
            lambda: parquet(photographs(id=[{"a": 1}] * 4)),
            lambda: parquet(photographs(id=pa.array([1 << 62] * 4, pa.timestamp("us")))),
            lambda: parquet(photographs(id=pa.array([b"\xff\xfe"] * 4, pa.binary()))),
            lambda: parquet(pa.table({"x": [1]})),
            lambda: parquet(pa.table({"\x1b[2J": [1]})),
            lambda: parquet(pa.table({"id": pa.array([], pa.string()), "image": pa.array([], pa.binary())})),
            part(_repeated_text, 1, 60_000),
            part(_repeated_text, 50, 1000),
            lambda: b"PAR1" + bytes(100) + struct.pack("<I", 0x7FFFFFFF) + b"PAR1",
            lambda: b"PAR1PAR1",
            lambda: b"",
        ],
        "dataset shard": [
            lambda: parquet(pa.table({"id": ["a"]})),
            lambda: parquet(pq.read_table(pa.BufferReader(shard_rows())).slice(0, 3)),
            lambda: parquet(pa.table({name: [1] * 6 for name in shards.SHARD.names})),
            lambda: parquet(pa.table({name: [None] * 6 for name in shards.SHARD.names})),
            lambda: b"PAR1" + bytes(100) + struct.pack("<I", 0x7FFFFFFF) + b"PAR1",
            lambda: b"",
        ],
        "dataset manifest": [
            *(part(manifest_with, change) for change in _MANIFEST_LIES),
            lambda: manifest().replace(b"shards/a.parquet", b"../../etc/passwd"),
            lambda: manifest().replace(b"shards/a.parquet", b"/etc/passwd"),
            lambda: manifest().replace(b"[3, 3]", b"[" + b"1" * 4000 + b"]"),
            lambda: manifest().replace(b"[3, 3]", b"[-1]"),
            lambda: b"[" * 200_000,
            lambda: b'{"a":' * 200_000,
            lambda: b"",
        ],
        "mask file": [
            lambda: parquet(rows.drop_columns(["mask"])),
            lambda: parquet(rows.drop_columns(["image_id"])),
            lambda: parquet(rows.set_column(rows.schema.get_field_index("mask"), "mask", pa.array([1] * 6))),
            lambda: parquet(_with_masks(rows, [b"no PNG"] * 6)),
            lambda: parquet(_with_masks(rows, [_mask_bomb()] * 6)),
            lambda: parquet(_with_masks(rows, [encoded[:-30] for encoded in rows["mask"].to_pylist()])),
            lambda: b"PAR1" + bytes(100) + struct.pack("<I", 0x7FFFFFFF) + b"PAR1",
            lambda: b"",
        ],
        "annotations, JSON": [
            *(part(coco, [segmentation]) for segmentation in _SEGMENTATION_LIES),
            *(part(coco, images=[{"id": 1, "file_name": "a.jpg"} | lie]) for lie in _SIZE_LIES),
            lambda: coco(images=[1], annotations=[2], categories=[3]),
            lambda: coco(images={}, annotations={}, categories={}),
            lambda: coco(images=[{"id": [], "file_name": "a.jpg", "width": 40, "height": 30}]),
            lambda: coco(categories=[{"id": 0, "name": "\x1b[2J\n"}, {"id": 1, "name": "x" * 10**6}]),
            lambda: coco(categories=[{"id": k, "name": f"c{k}"} for k in range(300)]),
            lambda: coco(annotations=[{"image_id": 1, "category_id": 0, "segmentation": [], "area": "much"}] * 2),
            *(part(labelme_file, shapes=[lie]) for lie in _SHAPE_LIES),
            *(part(labelme_file, imageWidth=width) for width in (10**9, -1, 0, "40", None, [], 1e300)),
            *(part(label_studio_file, lie) for lie in _VALUE_LIES),
            *(part(label_studio_file, width=width) for width in (10**9, -1, "40", None, [], 1e300)),
            lambda: b"[" * 200_000 + b'"data" "result"',
            lambda: b'{"images": "annotations" "categories" "segmentation"' + b'{"a":' * 200_000,
            lambda: b"",
        ],
        "annotations, XML": [
            *(part(cvat_file, shape) for shape in _CVAT_LIES),
            *(part(cvat_file, width=width) for width in (10**9, -1, "", "4e9", "\u0664")),
            lambda: _billion_laughs(),
            lambda: b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + cvat_file(),
            lambda: b"<annotations><track/></annotations>",
            lambda: b"<annotations>" + b"<image>" * 100_000,
            lambda: b"<annotations><image " + b" ".join(b'a%d="1"' % k for k in range(50_000)) + b"/></annotations>",
            lambda: b"",
        ],
        "YOLO outlines": [
            lambda: b"0 " + b"0.5 " * 2_000_000,
            lambda: b"0 0.1 0.1 0.9 0.1 0.5 0.9\n" * 20_000,
            lambda: b"0" + b" 0.1 0 0.9 1" * 100_000,
            lambda: b"0 0.5 0.5 0.2 0.2\n",
            lambda: b"0 nan nan inf 1 -inf 2\n",
            lambda: b"0 1e300 1e300 -1e300 1e300 0 -1e300\n",
            lambda: b"9" * 5000 + b" 0.1 0.1 0.9 0.1 0.5 0.9\n",
            lambda: b"-1 0.1 0.1 0.9 0.1 0.5 0.9\n",
            lambda: "\u0660 0.1 0.1 0.9 0.1 0.5 0.9\n".encode(),
            lambda: b"\xff\xfe0\x00",
            lambda: b"",
        ],
    }  # fmt: skip


_FAR = [0, 0, 1e300, 0, 1e300, 1e300]
_SEGMENTATION_LIES: list[Any] = [
    [_FAR], [[1] * 6 * 10**5], [[1, 2, 3]], [[1, 2]], [["a"] * 6], [[None] * 6], [[[1]] * 6], "abc", 5, None, {}, [5],
    [[float("nan")] * 6], [[float("inf")] * 6], [[10**400] * 6], [_FAR] * 2000,
    {"size": [30, 40], "counts": [10**18]}, {"size": [30, 40], "counts": [-5, 1205]}, {"size": [30, 40], "counts": []},
    {"size": [10**9, 10**9], "counts": [10**18]}, {"size": [30, 40], "counts": ["a"]}, {"size": [30, 40]},
    {"size": 5, "counts": [1200]}, {"size": [30, 40], "counts": "\x1b[2J"}, {"size": [30, 40], "counts": "o" * 10**6},
    {"size": [30, 40], "counts": "PPPP0"}, {"size": [30, 40], "counts": [1] * 10**6}, {"counts": None, "size": None},
]  # fmt: skip
_SIZE_LIES: list[dict[str, Any]] = [
    {"width": 10**9, "height": 10**9}, {"width": -1, "height": 30}, {"width": "40", "height": "30"}, {},
    {"width": None},
    {"width": 1e300, "height": 30}, {"width": [], "height": {}}, {"width": 40, "height": 30, "file_name": None},
    {"width": 40, "height": 30, "file_name": "../../etc/passwd"}, {"width": float("nan"), "height": 30},
]  # fmt: skip
_SHAPE_LIES: list[Any] = [
    {}, 5, None, {"label": 5, "points": 5, "shape_type": 5}, {"label": "cat", "points": [], "shape_type": "polygon"},
    {"label": "cat", "points": [[1e300, 1e300]] * 3, "shape_type": "polygon"},
    {"label": "cat", "points": [[0, 0], [1e300, 0]], "shape_type": "circle"},
    {"label": "cat", "points": [[0, 0], [float("inf"), 1]], "shape_type": "rectangle"},
    {"label": "cat", "points": [[0, 0], [9, 9]], "shape_type": "mask", "mask": "no base64"},
    {"label": "cat", "points": [[0, 0], [9, 9]], "shape_type": "mask", "mask": base64.b64encode(b"no PNG").decode()},
    {"label": "cat", "points": [[-5, -5], [9, 9]], "shape_type": "mask", "mask": None},
    {"label": "cat", "points": [[1, 2]], "shape_type": "point"}, {"label": "cat", "shape_type": "\x1b[2J"},
    {"label": ["cat"], "points": [[0, 0], [1, 1], [1, 0]], "shape_type": "polygon"},
]  # fmt: skip
_VALUE_LIES: list[dict[str, Any]] = [
    {"rle": [255] * 10**5, "brushlabels": ["cat"]}, {"rle": [0] * 8, "brushlabels": ["cat"]},
    {"rle": [], "brushlabels": ["cat"]}, {"rle": [300, -1, "a"], "brushlabels": ["cat"]},
    {"rle": [255, 255, 255, 255, 1], "brushlabels": ["cat"]}, {"rle": {}, "brushlabels": ["cat"]},
    {"points": [[1e300, 1e300]] * 3, "polygonlabels": ["dog"]}, {"points": [1, 2, 3], "polygonlabels": ["dog"]},
    {"points": [["a"]], "polygonlabels": ["dog"]}, {"points": [[1, 1]] * 3, "polygonlabels": [5]},
    {"x": 1e300, "y": "b", "width": 1, "height": 1, "rectanglelabels": ["cat"]}, {"points": [[1, 1]] * 3},
    {"x": 1, "y": 1, "width": 1, "height": 1, "rotation": 1e300, "rectanglelabels": ["cat"]}, {"ellipselabels": ["a"]},
    {"x": 1, "y": 1, "width": 1, "height": 1, "rotation": float("inf"), "rectanglelabels": ["cat"]},
]  # fmt: skip
_CVAT_LIES = [
    '<mask label="dog" rle="999999999999" left="0" top="0" width="5" height="4"/>',
    '<mask label="dog" rle="-5,25" left="0" top="0" width="5" height="4"/>',
    '<mask label="dog" rle="20" left="-3" top="1e9" width="5" height="4"/>',
    '<mask label="dog" rle="1" left="0" top="0" width="1e9" height="1e9"/>',
    '<mask label="dog" rle="" left="0" top="0" width="5" height="4"/>', '<mask label="dog"/>',
    '<polygon points="1,2"/>',
    '<polygon label="cat" points="1e300,1e300;-1e300,0;0,0"/>', '<polygon label="cat" points="nan,nan;1,1;2,2"/>',
    '<polygon label="cat" points=";;;"/>', '<polygon label="cat" points="1,2;3,4;5,6" z_order="' + "9" * 5000 + '"/>',
    '<box label="cat" xtl="inf" ytl="0" xbr="1" ybr="1"/>', '<box label="cat" rotation="x"/>',
    '<skeleton label="cat"/>',
    '<polygon label="cat" points="' + "1,2;" * 200_000 + '1,1"/>',
    '<polygon label="cat" points="0,0;40,0;40,30"/>' * 20_000,
]  # fmt: skip


def _billion_laughs() -> bytes:
    entities = "".join(f'<!ENTITY l{k} "{f"&l{k - 1};" * 10}">' for k in range(1, 10))
    return f'<!DOCTYPE a [<!ENTITY l0 "ha">{entities}]><annotations>&l9;</annotations>'.encode()


_CARD_LIES: list[dict[str, Any]] = [
    {"format": 2}, {"format": "1"}, {"variant": "nobody"}, {"variant": "x" * 10**6}, {"variant": 3}, {"variant": None},
    {"variant": "-"}, {"classes": "-"}, {"classes": []}, {"classes": ["a"] * 3}, {"classes": [1, 2]},
    {"classes": "abc"},
    {"classes": [f"c{k}" for k in range(256)]}, {"classes": ["a", "b", "\x1b[2J"]}, {"classes": ["a", "b", "c\nd"]},
    {"classes": ["a", "b", "x" * 10**6]}, {"classes": ["../../a", "b", "c"]}, {"classes": ["a", "b", ""]},
    {"classes": ["a", "b"]}, {"preprocessing": []}, {"preprocessing": {}}, {"preprocessing": {"colour_order": "XYZ"}},
    {"preprocessing": {"colour_order": "RGB", "mean": [1, 2], "std": [1, 1, 1]}},
    {"preprocessing": {"colour_order": "RGB", "mean": [1, 2, 10**400], "std": [1, 1, 1]}},
    {"preprocessing": {"colour_order": "RGB", "mean": [1, 2, 3], "std": [0, 1, 1]}},
    {"preprocessing": {"colour_order": "RGB", "mean": [1, 2, float("nan")], "std": [1, 1, 1]}},
    {"preprocessing": {"colour_order": ["RGB"], "mean": [1, 2, 3], "std": [1, 1, 1]}},
    {"options": {"nobody": 1}}, {"options": {"average_pool5": "yes"}}, {"options": {"num_classes": 10**9}},
    {"options": []},
    {"metrics": {"a": 10**400}}, {"metrics": {"a": "1"}}, {"metrics": {"a": None}}, {"metrics": {"a": float("inf")}},
    {"metrics": {"\x1b[2J": 1.0}}, {"untrained": "no"}, {"training_split": "\x1b]0;x\x07"}, {"training_split": 5},
    {"init": "x" * 10**6}, {"notes": 7}, {"nobody": 1}, {"\x1b[2J" * 100: 1}, {str(k): k for k in range(5000)},
]  # fmt: skip

_MANIFEST_LIES: list[dict[str, Any]] = [
    {"format_version": 2}, {"format_version": "\x1b[2J" * 1000}, {"format_version": None}, {"splits": []},
    {"splits": {"a": 1}},
    {"classes": 5}, {"classes": [1]}, {"name": None}, {"digest": []}, {"provenance": "x"},
    {"splits": {"train": {"images": 1}}},
]  # fmt: skip


def _caffe_shape(sides: list[int], numbers: int, kind: bytes = b"Convolution") -> bytes:
    from segcore.weights.caffe import NetParameter

    net = NetParameter()
    layer = net.layer.add(name=b"conv1_1", type=kind)
    blob = layer.blobs.add()
    blob.shape.dim.extend(sides)
    blob.data.append(np.ones(numbers, "<f4").tobytes())
    return net.SerializeToString()


def _duplicate_name() -> bytes:
    data = safetensors()
    length = struct.unpack("<Q", data[:8])[0]
    header = data[8 : 8 + length].rstrip()
    name = next(iter(module().state_dict()))
    entry = json.dumps(json.loads(header)[name]).encode()
    return safetensors(header[:-1] + b',"' + name.encode() + b'":' + entry + b"}", data[8 + length :])


def _changed_numbers(dtype: bytes, value: float) -> bytes:
    data = bytearray(safetensors())
    length = struct.unpack("<Q", data[:8])[0]
    data[8 + length : 12 + length] = struct.pack("<f", value)
    header = bytes(data[8 : 8 + length]).replace(b'"F32"', b'"' + dtype + b'"')
    return struct.pack("<Q", len(header)) + header + bytes(data[8 + length :])


def manifest_with(change: dict[str, Any]) -> bytes:
    """A dataset's manifest with other entries."""
    return json.dumps(json.loads(manifest()) | change).encode()


@functools.cache
def _packed_zeros() -> bytes:
    return zlib.compress(bytes(60 << 20), 9)


def _many_fields() -> bytes:
    """A struct of millions of fields whose names have one letter each."""
    names = bytes(50 << 20)
    content = (
        struct.pack("<IIII", 6, 8, 2, 0) + struct.pack("<IIii", 5, 8, 1, 1) + struct.pack("<II", 1, 5) + b"GTcls\0\0\0"
    )
    content += struct.pack("<HHi", 5, 4, 1) + struct.pack("<II", 1, len(names)) + names
    return _mat_of(zlib.compress(struct.pack("<II", 14, len(content)) + content))


def _with_masks(rows: pa.Table, masks: list[bytes]) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index("mask"), "mask", pa.array(masks, pa.binary()))


def _mask_bomb() -> bytes:
    from tests.bad_files import _bomb

    return _bomb(60_000, 60_000)
