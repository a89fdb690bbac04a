"""Datasets as Parquet shards: what a row is, how a part is written, how it is read again.

    <dataset>/manifest.json                              written last: its existence means that the dataset is whole
    <dataset>/shards/split=<part of a split>/part-*.parquet

A split of the manifest names the files that it is made of. Splits share files where they share images (VOC's `train`
stands in `train_aug` and in `trainval` too), so a row's own column `split` says where it is stored, and only the
manifest says what a split contains. Rows lie in an order drawn from their ids: every row group is a fair sample.

What the images and masks show is not looked at here.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from segcore.datasets import near_duplicates
from segcore.datasets.seen_images import Looks, look_at
from tasks import storage
from tasks.engines import spread
from tasks.errors import JobError
from tasks.parquet_files import whole_parquet
from tasks.storage import Location

FORMAT_VERSION = 1
"""Of manifest and rows; a reader refuses another one."""

ROW_GROUP_BYTES = 8 << 20
"""A row group ends with the row that reaches this many bytes of image and mask: what a reader holds at a time."""

PART_BYTES = 64 << 20
"""A file ends with the row that reaches this many bytes."""

_LOOK = {"description": "perceptual hash of the image; 0: too flat", "version": str(near_duplicates.VERSION)}

SHARD = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False, metadata={"description": "unique within the dataset"}),
        pa.field("split", pa.string(), nullable=False, metadata={"description": "folder that the row is stored in"}),
        pa.field("image", pa.binary(), nullable=False, metadata={"description": "the original image file"}),
        pa.field("mask", pa.binary(), nullable=False, metadata={"description": "palette PNG; indices are labels"}),
        pa.field("width", pa.int32(), nullable=False, metadata={"description": "px, image upright, and its mask"}),
        pa.field("height", pa.int32(), nullable=False, metadata={"description": "px, image upright, and its mask"}),
        pa.field("source", pa.string(), nullable=False, metadata={"description": "where the mask comes from"}),
        pa.field("digest", pa.string(), nullable=False, metadata={"description": "sha256 of image and mask bytes"}),
        pa.field("image_digest", pa.uint64(), metadata={"description": "first eight bytes of the image's sha256"}),
        pa.field("fingerprint", pa.uint64(), metadata=_LOOK),
    ]
)
"""Columns of a shard; those that may be null stand in no shard of early versions."""

_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ShardRow:
    """One image with its mask."""

    id: str
    """Unique within the dataset."""

    split: str
    """Name of the folder that the row is stored in; what a split contains is said by the manifest alone."""

    image: bytes
    """The original image file."""

    mask: bytes
    """Palette PNG whose indices are labels, upright like the image."""

    width: int
    """px, of the upright image and of its mask."""

    height: int
    """px, of the upright image and of its mask."""

    source: str
    """Where the mask comes from, such as "VOC2012" or "SBD"."""

    digest: str
    """`row_digest` of image and mask."""

    image_digest: int | None = None
    """First eight bytes of the image's SHA-256; what is written has it always."""

    fingerprint: int | None = None
    """`near_duplicates.fingerprint` of the image, 0 where it is too flat; None: nobody has looked."""


class ShardFile(BaseModel, frozen=True, use_attribute_docstrings=True):
    """One Parquet file of a dataset."""

    path: str
    """Below the dataset."""

    bytes: int
    """Size of the file."""

    digest: str
    """sha256 of the file."""

    row_groups: list[int]
    """Rows of each row group."""

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return sum(self.row_groups)


class Split(BaseModel, frozen=True, use_attribute_docstrings=True):
    """One named list of images."""

    images: int
    """Images, which is rows of the files."""

    files: list[ShardFile]
    """The files that hold just these images."""

    class_pixels: list[int]
    """Pixels of each label, in the order of the classes."""

    class_images: list[int]
    """Images that hold each label, in the order of the classes."""

    void_pixels: int
    """Pixels with the ignored label."""

    digest: str
    """Of the ids with the digests of image and mask, whatever files they lie in."""


class DatasetManifest(BaseModel, frozen=True, use_attribute_docstrings=True):
    """What a dataset holds. The same inputs give the same manifest, byte for byte."""

    format_version: int = FORMAT_VERSION
    """Version of manifest and rows."""

    name: str
    """For people, such as "voc2012"; part of a model's card."""

    classes: list[str]
    """Class names by label; 255 is void everywhere."""

    splits: dict[str, Split]
    """By name, such as "train_aug" and "val"."""

    digest: str
    """Of classes and splits: equal datasets have equal digests, wherever they lie."""

    provenance: dict[str, Any]
    """Archives with their checksums, options, what was left out or mended."""

    def split(self, name: str) -> Split:
        """One split. Raises JobError that names the ones that are there."""
        if name not in self.splits:
            raise JobError(f"The dataset {self.name} has no split {name!r}; it has {', '.join(self.splits)}.")
        return self.splits[name]

    def training_split(self, asked: str) -> str:
        """The split to learn from; "auto": train_aug where there is one, otherwise train, or the one `train*`."""
        if asked != "auto" or asked in self.splits:
            return asked
        own = [name for name in self.splits if name.startswith("train") and not name.startswith("trainval")]
        for name in ("train_aug", "train", *own[: len(own) == 1]):
            if name in self.splits:
                return name
        raise JobError(
            f"The dataset {self.name} has no split train; name the one to learn from: {', '.join(self.splits)}."
        )


@dataclass(frozen=True)
class RowGroup:
    """Where one row group lies: the unit of reading and of dividing work."""

    path: str
    """File, below the dataset."""

    number: int
    """Within its file, from 0."""

    rows: int
    """Rows in it."""


def read_manifest(dataset: Location) -> DatasetManifest:
    """Manifest of a dataset. Raises JobError where there is none, or one of another format."""
    place = dataset / _MANIFEST
    with storage.explained(place):
        try:
            data = storage.read_bytes(place)
        except (FileNotFoundError, NotADirectoryError):
            raise JobError(
                f"{dataset.uri} is no prepared dataset: it has no {_MANIFEST}, which is written last. Make it with "
                f"`segment-archive prepare {dataset.uri}`, or let that command finish."
            ) from None
    try:
        fields = json.loads(data)
        version = fields.get("format_version") if isinstance(fields, dict) else None
        if version != FORMAT_VERSION:
            raise JobError(
                f"{place.uri} has format version {repr(version)[:50]}, this program reads {FORMAT_VERSION}: prepare it "
                "again."
            )
        manifest = DatasetManifest.model_validate(fields)
        for part in (file for split in manifest.splits.values() for file in split.files):
            if part.path.startswith("/") or ".." in part.path.split("/"):
                path = repr(part.path[:200])
                raise JobError(f"{place.uri} names the shard {path}, which leads out of the dataset: prepare it again.")
            if not all(0 < rows < 1 << 31 for rows in part.row_groups):
                raise JobError(f"{place.uri} says row groups that no shard has: prepare it again.")
        return manifest
    except JobError:
        raise
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:200]
        raise JobError(f"{place.uri} is not the manifest of a dataset ({reason}): prepare it again.") from None


def write_manifest(dataset: Location, manifest: DatasetManifest) -> None:
    """Write the manifest, which declares the dataset whole: after everything else."""
    storage.write_whole(dataset / _MANIFEST, manifest.model_dump_json(indent=1).encode() + b"\n")


def row_groups(split: Split) -> list[RowGroup]:
    """The row groups of a split, in order. For worker k of n, take [k::n]; shuffle them for another order."""
    return [RowGroup(file.path, k, rows) for file in split.files for k, rows in enumerate(file.row_groups)]


def read_row_group(dataset: Location, group: RowGroup, columns: Sequence[str] | None = None) -> pa.Table:
    """One row group, at most about `ROW_GROUP_BYTES`; columns: only these are fetched."""
    with _opened(dataset / group.path) as parquet:
        return parquet.read_row_group(group.number, columns=None if columns is None else list(columns))


def looks_of(dataset: Location, split: Split) -> tuple[list[str], Looks]:
    """Identities and digests of the images of a split, in the order of its rows; read where it lacks them."""
    found = list(spread(_look_at_group, row_groups(split), dataset))
    looks = [looks for _, looks in found]
    return [image_id for ids, _ in found for image_id in ids], Looks(
        np.concatenate([look.digests for look in looks]), np.concatenate([look.fingerprints for look in looks])
    )


def iterate_rows(
    dataset: Location, split: Split, columns: Sequence[str] | None = None, worker: int = 0, num_workers: int = 1
) -> Iterator[dict[str, Any]]:
    """Rows of a split as dictionaries, holding one row group at a time.

    worker: takes every num_workers-th row group from this one on, so that all workers together see each row once.
    """
    for path, numbers in _by_file(row_groups(split)[worker::num_workers]):
        with _opened(dataset / path) as parquet:  # Once a file: the footer tells where all its row groups are
            for number in numbers:
                table = parquet.read_row_group(number, columns=None if columns is None else list(columns))
                yield from _rows(table)


def read_index(dataset: Location, split: Split) -> pa.Table:
    """What a split holds, without fetching an image or a mask.

    Columns: id, width, height, source, digest, and where the row lies: path, row_group, row (within the row group).
    """
    columns = ["id", "width", "height", "source", "digest"]
    places = [("path", pa.string()), ("row_group", pa.int32()), ("row", pa.int32())]
    tables = [pa.schema([*map(SHARD.field, columns), *(pa.field(*place) for place in places)]).empty_table()]
    for part in split.files:
        # Buffered ahead: the small columns lie side by side, so a row group costs two requests and not ten
        with _opened(dataset / part.path, pre_buffer=True) as parquet:
            table = parquet.read(columns=columns)
            if table.num_rows != part.rows:
                raise pa.ArrowInvalid(f"it has {table.num_rows} rows, the manifest says {part.rows}")
        group = [number for number, rows in enumerate(part.row_groups) for _ in range(rows)]
        row = [row for rows in part.row_groups for row in range(rows)]
        for (name, kind), values in zip(places, ([part.path] * part.rows, group, row), strict=True):
            table = table.append_column(name, pa.array(values, kind))
        tables.append(table)
    return pa.concat_tables(tables).cast(tables[0].schema)


def row_digest(image: bytes, mask: bytes) -> str:
    """sha256 over an image file and its mask file, with the length of the first so that the two cannot shift."""
    whole = hashlib.sha256(len(image).to_bytes(8, "little"))
    whole.update(image)
    whole.update(mask)
    return whole.hexdigest()


def split_digest(digests: dict[str, str]) -> str:
    """Digest of a split from the row digests by id; their order does not matter."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def dataset_digest(classes: Sequence[str], splits: dict[str, Split]) -> str:
    """Digest of a dataset from its classes and the digests of its splits."""
    parts = {"classes": list(classes), "splits": {name: splits[name].digest for name in sorted(splits)}}
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def shard_order(ids: Iterable[str]) -> list[str]:
    """Ids in the order of their rows: shuffled, and the same on every machine."""
    return sorted(ids, key=lambda name: (hashlib.sha256(name.encode()).digest(), name))


def encode_part(rows: Iterable[ShardRow], row_group_bytes: int = ROW_GROUP_BYTES) -> tuple[bytes, list[int]]:
    """One Parquet file and the rows of each of its row groups. The same rows give the same bytes.

    Images and masks are compressed already, so nothing is compressed again; a row is never split, so a row group is
    larger than row_group_bytes by one row at most.
    """
    sink = pa.BufferOutputStream()
    sizes: list[int] = []
    with pq.ParquetWriter(sink, SHARD, compression="none", use_dictionary=False, write_statistics=False) as writer:
        held: list[ShardRow] = []
        num_bytes = 0

        def flush() -> None:
            digests = [int.from_bytes(hashlib.sha256(row.image).digest()[:8], "big") for row in held]
            values = [asdict(row) | {"image_digest": digest} for row, digest in zip(held, digests, strict=True)]
            writer.write_table(pa.Table.from_pylist(values, SHARD), row_group_size=len(held))
            sizes.append(len(held))
            held.clear()

        for row in rows:
            held.append(row)
            num_bytes += len(row.image) + len(row.mask)
            if num_bytes >= row_group_bytes:
                flush()
                num_bytes = 0
        if held:
            flush()
    return sink.getvalue().to_pybytes(), sizes


def write_part(dataset: Location, path: str, rows: Iterable[ShardRow]) -> ShardFile:
    """Write one file of a dataset whole; path: below the dataset."""
    data, sizes = encode_part(rows)
    storage.write_whole(dataset / path, data)
    return ShardFile(path=path, bytes=len(data), digest=hashlib.sha256(data).hexdigest(), row_groups=sizes)


def read_part(dataset: Location, path: str) -> ShardFile:
    """What `write_part` said of a file that is there. Raises JobError where it is no shard."""
    with storage.explained(dataset / path):
        data = storage.read_bytes(dataset / path)
    with _opened(dataset / path) as parquet:
        metadata = parquet.metadata
    sizes = [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]
    return ShardFile(path=path, bytes=len(data), digest=hashlib.sha256(data).hexdigest(), row_groups=sizes)


def _look_at_group(group: RowGroup, dataset: Location) -> tuple[list[str], Looks]:
    if (stored := stored_looks(dataset, group)) is not None:
        return stored
    table = read_row_group(dataset, group, ["id", "image"])
    images = table.column("image")
    return table.column("id").to_pylist(), look_at(images[k].as_py() for k in range(len(images)))


def stored_looks(dataset: Location, group: RowGroup) -> tuple[list[str], Looks] | None:
    """Ids of a row group and what its images look like, as it was stored; None where it was not, or by another hash."""
    with _opened(dataset / group.path) as parquet:
        columns = ["id", "image_digest", "fingerprint"]
        stored = {field.name: field for field in parquet.schema_arrow}
        if not stored.keys() >= set(columns):
            return None
        table = parquet.read_row_group(group.number, columns=columns)
        version = (stored["fingerprint"].metadata or {}).get(b"version")
    if version != _LOOK["version"].encode() or any(table.column(name).null_count for name in columns):
        return None
    digests, fingerprints = (table.column(name).to_numpy() for name in columns[1:])
    return table.column("id").to_pylist(), Looks(digests, fingerprints)


@contextlib.contextmanager
def _opened(place: Location, pre_buffer: bool = False) -> Iterator[pq.ParquetFile]:
    with (
        whole_parquet(place, "remove it and prepare again"),
        storage.open_for_reading(place, sparse=True) as file,
    ):
        parquet = pq.ParquetFile(file, pre_buffer=pre_buffer)
        there = {field.name: field.type for field in parquet.schema_arrow}
        for field in SHARD:
            if there.get(field.name) != field.type and not (field.nullable and field.name not in there):
                raise pa.ArrowInvalid(f"its column {field.name} is {there.get(field.name, 'missing')}")
        yield parquet


def _by_file(groups: list[RowGroup]) -> Iterator[tuple[str, list[int]]]:
    numbers: dict[str, list[int]] = {}
    for group in groups:
        numbers.setdefault(group.path, []).append(group.number)
    yield from numbers.items()


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    # One row at a time: to_pylist would copy the bytes of the whole row group at once
    for row in range(table.num_rows):
        yield {name: table.column(name)[row].as_py() for name in table.column_names}
