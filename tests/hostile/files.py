"""Files of models, datasets and results to damage, with bombs made by hand; each is read as its owner reads it."""

import functools
import io
import json
import os
import pickle
import random
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from segcore import checkpoint, models
from segcore.card import ModelCard
from segcore.images import ImageError
from segcore.models import deeplab_v1, vgg
from segcore.preprocessing import DEEPLAB
from segcore.sbd import decode_annotation
from segcore.weights.importer import import_weights
from segcore.weights.sources import CAFFE_DEEPLAB_VGG
from tasks import shards
from tasks.errors import JobError
from tasks.results import MaskFile, Results
from tasks.schema import MASKS
from tasks.sources import Source, list_source, read_entries
from tasks.storage import locate
from tasks.unpack import unpack
from tests.hostile.mutants import mutant
from tests.sbd_files import annotation
from tests.segcore.weights.caffe_files import write as write_caffe

BOMB_SHARE = 0.2
VARIANT = "deeplab_v1_largefov"
CLASSES = ("background", "cat", "dog")
MAX_SENTENCE = 21_000
"""Characters; the longest names all tensors of a network."""

_FOLDER = tempfile.TemporaryDirectory()
FOLDER = Path(_FOLDER.name)
MARK = FOLDER / "executed"
"""Appears where something of a file was run."""


@functools.cache
def narrow() -> None:
    """Networks of the real depth and names with a few channels: this process reads nothing else."""
    vgg.STAGES = ((2, 2), (2, 2), (2, 3), (2, 3), (2, 3))
    head = deeplab_v1.FcHead
    deeplab_v1.FcHead = lambda kernel, rate, _, classes: head(kernel, rate, 4, classes)


@functools.cache
def _module() -> torch.nn.Module:
    narrow()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return models.build(VARIANT, len(CLASSES)).eval()


@functools.cache
def _published() -> dict[str, torch.Tensor]:
    """Its tensors under the names of Caffe's files."""
    return {CAFFE_DEEPLAB_VGG.locate(name)[0].replace("*", "voc12"): t for name, t in _module().state_dict().items()}


def _torch_file(value: Any, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def _caffemodel(**changes: np.ndarray) -> bytes:
    layers: dict[str, tuple[str, list[np.ndarray]]] = {}
    for name, tensor in _published().items():
        layer, _, leaf = name.rpartition(".")
        layers.setdefault(layer, ("Convolution", []))[1].insert(0 if leaf == "weight" else 1, tensor.numpy())
    for layer, values in changes.items():
        layers[layer][1][0] = values
    return write_caffe(FOLDER / "made.caffemodel", layers).read_bytes()


def _card(**changes: Any) -> bytes:
    card = ModelCard(VARIANT, CLASSES, DEEPLAB, options={"average_pool5": True}, metrics={"val/miou": 12.5})
    return json.dumps(
        {key: value for key, value in (json.loads(card.to_json()) | changes).items() if value != "-"}
    ).encode()


def _safetensors(
    header: dict[str, Any] | bytes | None = None, body: bytes | None = None, length: int | None = None
) -> bytes:
    from safetensors.torch import save

    if header is None:
        return save({name: value.contiguous() for name, value in _module().state_dict().items()})
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + (body or b"")


def _labels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 21, (12, 17), dtype=np.uint8)


def _tar(members: list[tuple[tarfile.TarInfo | str, bytes]], mode: str = "w", **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg() and not info.issparse():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


_MEMBERS: list[tuple[tarfile.TarInfo | str, bytes]] = [
    ("JPEGImages/a.jpg", b"a" * 700),
    ("JPEGImages/" + "long" * 40 + ".jpg", b"bb"),
    ("JPEGImages/ünï.png", b"c" * 100),
    ("notes.json", b"{}"),
]


def _zip(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _parquet(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def _photographs(**columns: Any) -> pa.Table:
    return pa.table({"id": ["a", "b", "c", "d"], "image": [b"1" * 300, b"2", None, b""]} | columns)


@functools.cache
def _mask_rows() -> bytes:
    from segcore.masks import encode_mask
    from tasks.schema import empty_row

    rows = [
        empty_row()
        | {"image_id": f"{k}.jpg", "run_id": "r", "uri": f"/{k}.jpg", "model": "m", "mask": encode_mask(_labels(k))}
        for k in range(6)
    ]
    return _parquet(pa.Table.from_pylist(rows, MASKS), compression="zstd", row_group_size=3)


@functools.cache
def _shard_rows() -> bytes:
    rows = [shards.ShardRow(f"i{k}", "train", b"x" * 50, b"y" * 20, 5, 4, "VOC2012", "d" * 64) for k in range(6)]
    return shards.encode_part(rows, 200)[0]


@functools.cache
def _manifest(**changes: Any) -> bytes:
    data = _shard_rows()
    file = shards.ShardFile(path="shards/a.parquet", bytes=len(data), digest="0", row_groups=[3, 3])
    split = shards.Split(images=6, files=[file], class_pixels=[1], class_images=[1], void_pixels=0, digest="0")
    whole = shards.DatasetManifest(name="n", classes=["a"], splits={"train": split}, digest="0", provenance={})
    return json.dumps(json.loads(whole.model_dump_json()) | changes).encode()


@functools.cache
def originals() -> dict[str, list[bytes]]:
    """Sound files by kind."""
    labels = _labels(0)
    return {
        ".pth": [_torch_file(_published()), _torch_file(_published(), legacy=True), _torch_file({"state_dict": _published()})],
        ".caffemodel": [_caffemodel()],
        "safetensors": [_safetensors()],
        "model card": [_card()],
        ".mat": [annotation(labels), annotation(labels, compressed=False), annotation(labels.astype(float), edges=False)],
        "tar shard": [_tar(_MEMBERS), _tar(_MEMBERS, format=tarfile.GNU_FORMAT), _tar(_MEMBERS[:1], format=tarfile.USTAR_FORMAT)],
        "dataset archive": [
            _tar(_MEMBERS),
            _tar(_MEMBERS, "w:gz"),
            _tar(_MEMBERS, "w:xz"),
            _zip({str(name): data for name, data in _MEMBERS}),
        ],
        "Parquet source": [
            _parquet(_photographs()),
            _parquet(_photographs(), compression="zstd", use_dictionary=False),
            _parquet(pa.table({"id": [1, 2], "image": [{"bytes": b"x", "path": "p"}] * 2}), compression="gzip"),
        ],
        "dataset shard": [_shard_rows()],
        "dataset manifest": [_manifest()],
        "mask file": [_mask_rows()],
    }  # fmt: skip


def make(number: int, seed: int) -> tuple[str, tuple[str, bytes]]:
    """Kind and content of a hostile file."""
    draw = random.Random(f"file {seed} {number}")
    by_kind = originals()
    kind = list(by_kind)[number % len(by_kind)]
    if draw.random() < BOMB_SHARE:
        return kind, (kind, draw.choice(bombs()[kind])())
    every = [data for group in by_kind.values() for data in group]
    own = by_kind[kind]
    return kind, (kind, mutant(draw, draw.choice(own), own if draw.random() < 0.8 else every))


def read(file: tuple[str, bytes]) -> str:
    """Read a file as its owner does; what came of it, or the fault."""
    kind, data = file
    name, reader = _READERS[kind]
    place = FOLDER / "read" / name
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(data)
    try:
        told = reader(place)
    except (JobError, ValueError) as error:
        said = str(error)
        told = "refused"
        if type(error) not in (JobError, ValueError):
            told = f"FAULT: {type(error).__name__}: {said[:200]}"
        elif "\n" in said or not said.isprintable() or len(said) > MAX_SENTENCE:
            told = f"FAULT: no sentence of one line: {said[:200]!r}"
        elif str(place.parent) not in said:
            told = f"FAULT: the file is not named: {said[:200]}"
    if MARK.exists():
        MARK.unlink()
        return "FAULT: something of the file was executed"
    return told


def _read_weights(place: Path) -> str:
    import_weights(place, VARIANT, classes=CLASSES, as_init=False)
    return "read"


def _read_model(place: Path) -> str:
    if place.name == "card.json":
        (place.parent / "model.safetensors").write_bytes(originals()["safetensors"][0])
        place = place.parent / "model.safetensors"
    else:
        (place.parent / "card.json").write_bytes(originals()["model card"][0])
    loaded = checkpoint.load(place)
    assert all(bool(torch.isfinite(value).all()) for value in loaded.module.state_dict().values())
    return "read"


def _read_annotation(place: Path) -> str:
    try:
        labels = decode_annotation(place.read_bytes())
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None  # As the doctor names it
    return "read" if labels.dtype == np.uint8 and labels.max() < 21 else f"FAULT: labels up to {labels.max()}"


def _read_source(place: Path) -> str:
    location = locate(str(place))
    entries = list(list_source(Source(location)))
    pa.array([entry.size for entry in entries], pa.int64())  # As the manifest stores them
    pa.array([entry.image_id for entry in entries], pa.string())
    if len({entry.image_id for entry in entries}) != len(entries):
        return "FAULT: an identity twice"
    outcomes = list(read_entries(location, entries))
    if len(outcomes) != len(entries):
        return f"FAULT: {len(entries)} entries, {len(outcomes)} outcomes"
    if not all(
        isinstance(outcome, bytes) or (isinstance(outcome, ImageError) and str(outcome)) for _, outcome in outcomes
    ):
        return "FAULT: an outcome that is neither bytes nor a reason"
    wrong = any(isinstance(outcome, ImageError) for _, outcome in outcomes) or not entries
    return "error rows" if wrong else "read"


def _read_archive(place: Path) -> str:
    target = FOLDER / "unpacked"
    before = {file for file in FOLDER.rglob("*") if target not in file.parents}
    try:
        unpack(place, target, lambda name: name if name.startswith("JPEGImages/") else None, key="k", title="t")
        return "read"
    finally:
        outside = {file for file in FOLDER.rglob("*") if target not in file.parents and file != target} - before
        links = [file for file in target.rglob("*") if file.is_symlink() or not (file.is_file() or file.is_dir())]
        for file in sorted(target.rglob("*"), reverse=True):
            if file.is_dir() and not file.is_symlink():
                file.rmdir()
            else:
                file.unlink()
        assert not outside and not links, f"unpacked elsewhere: {outside}, {links}"


def _read_shard(place: Path) -> str:
    root = locate(str(place.parent))
    split = shards.DatasetManifest.model_validate_json(originals()["dataset manifest"][0]).splits["train"]
    file = split.files[0].model_copy(update={"path": place.name})
    own = split.model_copy(update={"files": [file]})
    shards.read_index(root, own)
    for row in shards.iterate_rows(root, own):
        assert set(row) == set(shards.SHARD.names), row.keys()
    return "read"


def _read_manifest(place: Path) -> str:
    shards.read_manifest(locate(str(place.parent)))
    return "read"


def _read_masks(place: Path) -> str:
    location = locate(str(place.parent))
    size = place.stat().st_size
    results = Results(location, "r", {}, (MaskFile(location / place.name, size, "1"),))
    assert len(results) >= 0 and results.to_arrow().num_rows >= 0
    for image_id, labels in results.masks():
        assert labels.ndim == 2 and isinstance(image_id, str | None)
    results.row("1.jpg") if any(row["image_id"] == "1.jpg" for row in results.rows(["image_id"])) else None
    return "read"


_READERS: dict[str, tuple[str, Callable[[Path], str]]] = {
    ".pth": ("hostile.pth", _read_weights),
    ".caffemodel": ("hostile.caffemodel", _read_weights),
    "safetensors": ("model.safetensors", _read_model),
    "model card": ("card.json", _read_model),
    ".mat": ("cls.mat", _read_annotation),
    "tar shard": ("shard.tar", _read_source),
    "dataset archive": ("archive", _read_archive),
    "Parquet source": ("source.parquet", _read_source),
    "dataset shard": ("shard.parquet", _read_shard),
    "dataset manifest": ("manifest.json", _read_manifest),
    "mask file": ("part-0.parquet", _read_masks),
}


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
    return _zip(members, zipfile.ZIP_STORED)


def _wide(shape: tuple[int, ...], strides: tuple[int, ...]) -> torch.Tensor:
    return torch.as_strided(torch.zeros(1), shape, strides)


def _changed(**tensors: torch.Tensor) -> bytes:
    return _torch_file(_published() | tensors)


def _element(name: str, begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {name: {"dtype": dtype, "shape": [1] if shape is None else shape, "data_offsets": [begin, end]}}


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
    block[124:136] = (
        (size & ((1 << 95) - 1) | (1 << 95)).to_bytes(12, "big") if size >= 8**11 or size < 0 else b"%011o\0" % size
    )
    if size < 0:
        block[124:136] = b"\xff" + (size & ((1 << 88) - 1)).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + b"abc" + bytes(509) + bytes(1024)


def _pax(records: bytes) -> bytes:
    head = _info("x", type=tarfile.XHDTYPE, size=len(records))
    padded = records + bytes(-len(records) % 512)
    return head.tobuf(tarfile.USTAR_FORMAT) + padded + _tar([("JPEGImages/a.jpg", b"a")])


def _mat_of(content: bytes, kind: int = 15) -> bytes:
    head = annotation(_labels(0))[:128]
    return head + struct.pack("<II", kind, len(content)) + content


def _mat_claiming(rows: int, columns: int) -> bytes:
    data = annotation(_labels(0), compressed=False)
    return data.replace(struct.pack("<ii", 12, 17), struct.pack("<ii", rows, columns))


@functools.cache
def _repeated_text(megabytes: int, rows: int) -> bytes:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * (megabytes << 20)]))
    return _parquet(pa.table({"id": column, "image": [b"1"] * rows}), compression="zstd")


def _nested(text: bytes, depth: int) -> bytes:
    return text * depth


@functools.cache
def bombs() -> dict[str, list[Callable[[], bytes]]]:
    """Made by hand, by kind."""
    zeros = bytes(200 << 20)
    part = functools.partial
    members = {str(name): data for name, data in _MEMBERS}
    rows = pq.read_table(pa.BufferReader(_mask_rows()))
    return {
        ".pth": [
            *(part(lambda how: _torch_file({"conv1_1.weight": _Runs(how)}), how) for how in range(3)),
            *(part(lambda how: _torch_file(_Runs(how), legacy=True), how) for how in range(3)),
            *(part(lambda how: _pickled(_Runs(how)), how) for how in range(3)),
            *(part(lambda how: _in_torch_zip(_pickled({"a": _Runs(how)})), how) for how in range(3)),
            lambda: _zip({"archive/data.pkl": zeros, "archive/version": b"3\n"}),
            lambda: _zip({"archive/data.pkl": _pickled({}), "archive/data/0": zeros, "archive/version": b"3\n"}),
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
            lambda: _torch_file({1: torch.zeros(1)}),
            lambda: _torch_file([torch.zeros(1)]),
            lambda: _torch_file({"conv1_1.weight": [[[]]] * 10}),
            lambda: _in_torch_zip(b"\x80\x02" + b"]" + b"2a" * 50_000 + b"."),
            lambda: _in_torch_zip(b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"."),
            lambda: _in_torch_zip(b"\x80\x02\x8b\xff\xff\xff\x7f" + b"1" * 1000),
        ],
        ".caffemodel": [
            lambda: _caffemodel(fc8_voc12=np.full((21, 4, 1, 1), np.inf, np.float32)),
            lambda: _caffemodel(fc8_voc12=np.zeros((10_000, 4, 1, 1), np.float32)),
            lambda: _caffemodel(fc8_voc12=np.zeros(21, np.float32)),
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
            lambda: _safetensors({}, b"", 1 << 62),
            lambda: _safetensors({}, b"", (1 << 64) - 1),
            lambda: struct.pack("<Q", 90 << 20) + b" " * (1 << 20),
            lambda: _safetensors(_element("a", 0, 4) | _element("b", 0, 4), bytes(4)),
            lambda: _safetensors(_element("a", 4, 0), bytes(4)),
            lambda: _safetensors(_element("a", 0, 1 << 60, [1 << 58]), bytes(4)),
            lambda: _safetensors(_element("a", 0, 4, [1 << 33, 1 << 33]), bytes(4)),
            lambda: _safetensors(_element("a", 0, 4, [-1]), bytes(4)),
            lambda: _safetensors(_element("a", 0, 4, ["x"]), bytes(4)),
            lambda: _safetensors(_element("\x1b[2J\n" + "y" * 5000, 0, 4), bytes(4)),
            lambda: _safetensors({k: v for n in range(5000) for k, v in _element(f"t{n}", 4 * n, 4 * n + 4).items()}, bytes(20_000)),
            lambda: _safetensors(b'{"a":' * 100_000),
            lambda: _safetensors(b'{"a": {"dtype":"F32","shape":[' + b"9" * 5000 + b']}}'),
            _duplicate_name,
            part(_changed_numbers, b"F32", float("nan")),
            part(_changed_numbers, b"I32", 1.0),
            part(_changed_numbers, b"F4", 1.0),
            lambda: b"",
        ],
        "model card": [
            *(part(lambda change: _card(**change), change) for change in _CARD_LIES),
            lambda: b"[" * 200_000,
            lambda: b'{"a":' * 200_000,
            lambda: b" " * (6 << 20) + _card(),
            lambda: b"\xff\xfe" + "{}".encode("utf-16-le"),
            lambda: b"null",
            lambda: _card() * 2,
            lambda: b"",
        ],
        ".mat": [
            lambda: _mat_of(zlib.compress(zeros)),
            lambda: annotation(_labels(0))[:128] + (struct.pack("<II", 15, len(_packed_zeros())) + _packed_zeros()) * 200,
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
            lambda: _tar([("../../evil.jpg", b"x"), ("/etc/evil.jpg", b"y"), ("a/../b.jpg", b"z")]),
            lambda: _tar([(_info("a.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), b""), ("b.jpg", b"x")]),
            lambda: _tar([("a.jpg", b"1"), ("a.jpg", b"2"), ("a.jpg!#512", b"3"), ("a.jpg", b"4")]),
            *(part(_claiming, "a.jpg", size) for size in (100, 1 << 40, 1 << 70, 8**11 - 1, -1, -512, -1024, -(1 << 60))),
            lambda: _tar([("a.jpg", b"1")])[:1024] + _claiming("b.jpg", -1024),
            lambda: _tar([("a.jpg", b"1")])[:1024] + bytes(512) + _tar([("b.jpg", b"2")]),
            lambda: _tar([(_info("a.jpg", type=tarfile.GNUTYPE_SPARSE), b"")]) ,
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
            lambda: _tar([("JPEGImages/a.jpg", b"x"), ("../../evil.jpg", b"x")]),
            lambda: _tar([("/tmp/evil.jpg", b"x")]),
            lambda: _tar([(_info("JPEGImages", type=tarfile.SYMTYPE, linkname="/tmp"), b""), ("JPEGImages/a", b"x")]),
            lambda: _tar([(_info("JPEGImages/a", type=tarfile.LNKTYPE, linkname="/etc/passwd"), b"")]),
            lambda: _tar([(_info("JPEGImages/a", type=tarfile.CHRTYPE, devmajor=1, devminor=3), b"")]),
            lambda: _tar([("JPEGImages/a", b"x"), ("JPEGImages/a/b", b"y")]),
            lambda: _tar([("JPEGImages/a/b", b"x"), ("JPEGImages/a", b"y")]),
            lambda: _tar([("JPEGImages/" + "n" * 300, b"x")]),
            lambda: _tar([("JPEGImages/\x1b[2J\n", b"x"), (_info("JPEGImages/\x1b]0;x\x07", type=tarfile.FIFOTYPE), b"")]),
            *(part(_claiming, "JPEGImages/a", size) for size in (1 << 40, 1 << 70, -512, -1024)),
            lambda: _tar([("JPEGImages/a", bytes(1 << 20))] * 5, "w:gz"),
            lambda: zlib.compress(zeros, wbits=31),
            lambda: _zip({"JPEGImages/a": zeros * 2}),
            lambda: _zip({f"JPEGImages/{'../' * k}x": b"" for k in range(4)}),
            lambda: _zip(members).replace(struct.pack("<I", 700), struct.pack("<I", 0xFFFFFFFF)),
            lambda: _zip(members).replace(b"PK\x01\x02", b"PK\x01\x03"),
            lambda: _pax(b"1" * 200_000),
            lambda: _info("x", type=tarfile.GNUTYPE_LONGNAME, size=512).tobuf(tarfile.GNU_FORMAT) * 3000,
            lambda: b"",
        ],
        "Parquet source": [
            lambda: _parquet(_photographs(image=[10**12, 1, 2, 3])),
            lambda: _parquet(_photographs(image=[[1, 2], [300], None, []])),
            lambda: _parquet(_photographs(image=[1.5, 2.0, None, float("nan")])),
            lambda: _parquet(_photographs(image=["text", "a", None, ""])),
            lambda: _parquet(_photographs(image=[{"bytes": 5, "path": "x"}] * 4)),
            lambda: _parquet(_photographs(image=[{"bytes": None, "path": "x"}] * 4)),
            lambda: _parquet(_photographs(id=["a"] * 4)),
            lambda: _parquet(_photographs(id=[None] * 4)),
            lambda: _parquet(_photographs(id=["a", "a!#1", "a", "a"])),
            lambda: _parquet(_photographs(id=[["a"]] * 4)),
            lambda: _parquet(_photographs(id=[{"a": 1}] * 4)),
            lambda: _parquet(_photographs(id=pa.array([1 << 62] * 4, pa.timestamp("us")))),
            lambda: _parquet(_photographs(id=pa.array([b"\xff\xfe"] * 4, pa.binary()))),
            lambda: _parquet(pa.table({"x": [1]})),
            lambda: _parquet(pa.table({"\x1b[2J": [1]})),
            lambda: _parquet(pa.table({"id": pa.array([], pa.string()), "image": pa.array([], pa.binary())})),
            part(_repeated_text, 1, 60_000),
            part(_repeated_text, 50, 1000),
            lambda: b"PAR1" + bytes(100) + struct.pack("<I", 0x7FFFFFFF) + b"PAR1",
            lambda: b"PAR1PAR1",
            lambda: b"",
        ],
        "dataset shard": [
            lambda: _parquet(pa.table({"id": ["a"]})),
            lambda: _parquet(pq.read_table(pa.BufferReader(_shard_rows())).slice(0, 3)),
            lambda: _parquet(pa.table({name: [1] * 6 for name in shards.SHARD.names})),
            lambda: _parquet(pa.table({name: [None] * 6 for name in shards.SHARD.names})),
            lambda: b"PAR1" + bytes(100) + struct.pack("<I", 0x7FFFFFFF) + b"PAR1",
            lambda: b"",
        ],
        "dataset manifest": [
            *(part(lambda change: json.dumps(json.loads(_manifest()) | change).encode(), change) for change in _MANIFEST_LIES),
            lambda: _manifest().replace(b"shards/a.parquet", b"../../etc/passwd"),
            lambda: _manifest().replace(b"shards/a.parquet", b"/etc/passwd"),
            lambda: _manifest().replace(b"[3, 3]", b"[" + b"1" * 4000 + b"]"),
            lambda: _manifest().replace(b"[3, 3]", b"[-1]"),
            lambda: b"[" * 200_000,
            lambda: b'{"a":' * 200_000,
            lambda: b"",
        ],
        "mask file": [
            lambda: _parquet(rows.drop_columns(["mask"])),
            lambda: _parquet(rows.drop_columns(["image_id"])),
            lambda: _parquet(rows.set_column(rows.schema.get_field_index("mask"), "mask", pa.array([1] * 6))),
            lambda: _parquet(_with_masks(rows, [b"no PNG"] * 6)),
            lambda: _parquet(_with_masks(rows, [_mask_bomb()] * 6)),
            lambda: _parquet(_with_masks(rows, [encoded[:-30] for encoded in rows["mask"].to_pylist()])),
            lambda: b"PAR1" + bytes(100) + struct.pack("<I", 0x7FFFFFFF) + b"PAR1",
            lambda: b"",
        ],
    }  # fmt: skip


_CARD_LIES: list[dict[str, Any]] = [
    {"format": 2}, {"format": "1"}, {"variant": "nobody"}, {"variant": "x" * 10**6}, {"variant": 3}, {"variant": None},
    {"variant": "-"}, {"classes": "-"}, {"classes": []}, {"classes": ["a"] * 3}, {"classes": [1, 2]}, {"classes": "abc"},
    {"classes": [f"c{k}" for k in range(256)]}, {"classes": ["a", "b", "\x1b[2J"]}, {"classes": ["a", "b", "c\nd"]},
    {"classes": ["a", "b", "x" * 10**6]}, {"classes": ["../../a", "b", "c"]}, {"classes": ["a", "b", ""]},
    {"classes": ["a", "b"]}, {"preprocessing": []}, {"preprocessing": {}}, {"preprocessing": {"colour_order": "XYZ"}},
    {"preprocessing": {"colour_order": "RGB", "mean": [1, 2], "std": [1, 1, 1]}},
    {"preprocessing": {"colour_order": "RGB", "mean": [1, 2, 10**400], "std": [1, 1, 1]}},
    {"preprocessing": {"colour_order": "RGB", "mean": [1, 2, 3], "std": [0, 1, 1]}},
    {"preprocessing": {"colour_order": "RGB", "mean": [1, 2, float("nan")], "std": [1, 1, 1]}},
    {"preprocessing": {"colour_order": ["RGB"], "mean": [1, 2, 3], "std": [1, 1, 1]}},
    {"options": {"nobody": 1}}, {"options": {"average_pool5": "yes"}}, {"options": {"num_classes": 10**9}}, {"options": []},
    {"metrics": {"a": 10**400}}, {"metrics": {"a": "1"}}, {"metrics": {"a": None}}, {"metrics": {"a": float("inf")}},
    {"metrics": {"\x1b[2J": 1.0}}, {"untrained": "no"}, {"training_split": "\x1b]0;x\x07"}, {"training_split": 5},
    {"init": "x" * 10**6}, {"notes": 7}, {"nobody": 1}, {"\x1b[2J" * 100: 1}, {str(k): k for k in range(5000)},
]  # fmt: skip

_MANIFEST_LIES: list[dict[str, Any]] = [
    {"format_version": 2}, {"format_version": "\x1b[2J" * 1000}, {"format_version": None}, {"splits": []}, {"splits": {"a": 1}},
    {"classes": 5}, {"classes": [1]}, {"name": None}, {"digest": []}, {"provenance": "x"}, {"splits": {"train": {"images": 1}}},
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
    data = _safetensors()
    length = struct.unpack("<Q", data[:8])[0]
    header = data[8 : 8 + length].rstrip()
    name = next(iter(_module().state_dict()))
    entry = json.dumps(json.loads(header)[name]).encode()
    return _safetensors(header[:-1] + b',"' + name.encode() + b'":' + entry + b"}", data[8 + length :])


def _changed_numbers(dtype: bytes, value: float) -> bytes:
    data = bytearray(_safetensors())
    length = struct.unpack("<Q", data[:8])[0]
    data[8 + length : 12 + length] = struct.pack("<f", value)
    header = bytes(data[8 : 8 + length]).replace(b'"F32"', b'"' + dtype + b'"')
    return struct.pack("<Q", len(header)) + header + bytes(data[8 + length :])


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


def kinds() -> Iterator[str]:
    """Names of all kinds."""
    yield from originals()
