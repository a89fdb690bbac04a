"""Images with their masks in pieces of work: reading and checking them, writing them into shards.

What workers import: neither Prefect nor the steps of a job. What one pair is checked for is in `segcore/pair_check.py`.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segcore import pair_check, sbd
from segcore.label_set import LabelSet
from segcore.masks import encode_mask
from segcore.pair_check import Finding, Kind
from tasks import storage, storage_faults
from tasks.datasets import shards
from tasks.datasets.shards import ShardFile, ShardRow
from tasks.datasets.voc_layout import FileRef, Pair
from tasks.errors import JobError
from tasks.parquet_files import read_parquet
from tasks.storage import Location

CHECK_VERSION = 3
"""Raised when a check changes, so that no stored one of before is taken for it."""

CHUNK_PAIRS = 128
"""Pairs of one piece of work, and of one stored file of checks."""

MAX_FILE_BYTES = 256 << 20
"""A larger photograph or mask is not read."""

REMEDY = "remove it and prepare again"
"""What to do about a damaged file of the preparation, as the end of a sentence."""

CHECKED = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("labels", pa.list_(pa.uint8())),
        ("pixels", pa.list_(pa.int64())),
        ("fingerprint", pa.uint64()),
        ("image_digest", pa.string()),
        ("digest", pa.string()),
        ("stored_bytes", pa.int64()),
        ("mask_is", pa.string()),
        ("kinds", pa.list_(pa.string())),
        ("details", pa.list_(pa.string())),
    ]
)
"""One row per pair: what the check found. `mask_is`: whether the stored mask is the "file" itself, "mended", "sbd", or
"none"; `digest`: of what is stored, empty where nothing can be."""


@dataclass(frozen=True)
class Checked:
    """What is known of one pair after it was read once."""

    id: str
    source: str
    width: int
    height: int
    labels: list[int]
    pixels: list[int]
    fingerprint: int | None
    image_digest: str
    digest: str
    stored_bytes: int
    mask_is: str
    kinds: list[str]
    details: list[str]

    @property
    def findings(self) -> list[Finding]:
        """What is wrong."""
        return [Finding(Kind[kind], detail) for kind, detail in zip(self.kinds, self.details, strict=True)]


def chunks(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Pieces of work."""
    return [list(pairs[start : start + CHUNK_PAIRS]) for start in range(0, len(pairs), CHUNK_PAIRS)]


def check_chunk(pairs: list[Pair], label_set: LabelSet, store: Location | None, root: Location) -> pa.Table:
    """Read and check some pairs; a table of `CHECKED`.

    store: folder in which the table is kept under a name made of all that decides it, and found again. root: a folder
    that must be seen here, or every file would be called missing on a machine of the cluster that does not share it.
    """
    place = None if store is None else store / checked_name(pairs, label_set)
    if place is not None and storage.exists(place):
        return read_parquet(place, REMEDY)
    if root.protocol == "file" and not Path(root.path).is_dir():
        raise JobError(f"A worker of the cluster does not see {root.path}: use a shared folder or a bucket.")
    table = pa.Table.from_pylist([asdict(_check(pair, label_set)) for pair in pairs], CHECKED)
    # What could not be read is looked at again next time: it may be there by then
    failed = {Kind.IMAGE_UNREADABLE.name, Kind.MASK_UNREADABLE.name}
    if place is not None and not any(failed & set(kinds) for kinds in table["kinds"].to_pylist()):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        storage.write_whole(place, sink.getvalue().to_pybytes())
    return table


def checked_name(pairs: list[Pair], label_set: LabelSet) -> str:
    """File name of a stored table of checks."""
    return f"{_key(pairs, label_set)}.parquet"


def rows_of(table: pa.Table) -> Iterator[Checked]:
    """The rows of a table of `CHECKED`."""
    for row in table.to_pylist():
        yield Checked(**row)


@dataclass(frozen=True)
class Part:
    """One file of a dataset that is to be written."""

    path: str
    """Below the dataset."""

    split: str
    """Folder that it is stored in."""

    pairs: list[Pair]
    """In the order of rows."""

    checks: list[Checked]
    """One for each pair."""


def write_part(part: Part, label_set: LabelSet, dataset: Location) -> ShardFile:
    """Read the pairs of a part again and write them; or say what is there, where the part is written already."""
    if storage.is_file(dataset / part.path):
        return shards.read_part(dataset, part.path)
    return shards.write_part(dataset, part.path, _rows(part, label_set))


def mended_mask(pair: Pair, label_set: LabelSet) -> bytes:
    """The mask of a pair as it is stored: palette PNG, upright, mended where that is safe."""
    assert pair.mask is not None
    image = None if pair.image is None else storage.read_bytes(pair.image.place)
    mask = pair_check.check_pair(
        image, storage.read_bytes(pair.mask.place), label_set, sbd_mask=_is_sbd(pair.mask)
    ).mask
    if mask is None:
        raise JobError(f"{pair.mask.place.uri} was changed while it was read: run again.")
    return mask


def _rows(part: Part, label_set: LabelSet) -> Iterator[ShardRow]:
    for pair, check in zip(part.pairs, part.checks, strict=True):
        assert pair.image is not None and pair.mask is not None
        with storage.explained(pair.image.place):
            image = storage.read_bytes(pair.image.place)
            if check.mask_is == "mended":
                mask = mended_mask(pair, label_set)
            else:
                mask = storage.read_bytes(pair.mask.place)
                mask = encode_mask(sbd.decode_annotation(mask)) if check.mask_is == "sbd" else mask
        if shards.row_digest(image, mask) != check.digest:
            raise JobError(f"Image or mask of {pair.id} was changed while the dataset was prepared: run again.")
        size, look = (check.width, check.height), check.fingerprint or 0
        yield ShardRow(pair.id, part.split, image, mask, *size, pair.source, check.digest, fingerprint=look)


def _check(pair: Pair, label_set: LabelSet) -> Checked:
    before: list[Finding] = []
    image = _read(pair.image, Kind.MISSING_IMAGE, Kind.IMAGE_UNREADABLE, before)
    mask = _read(pair.mask, Kind.MISSING_MASK, Kind.MASK_UNREADABLE, before)
    is_sbd = pair.mask is not None and _is_sbd(pair.mask)
    check = pair_check.check_pair(image, mask, label_set, sbd_mask=is_sbd)
    check.findings[:0] = before
    stored = check.mask if check.usable and image is not None else None
    mask_is = "none" if stored is None else "file" if stored == mask else "mended"
    if is_sbd and mask_is == "mended" and Kind.EXIF_ROTATED not in {f.kind for f in check.findings}:
        mask_is = "sbd"  # Written again without a look at the image
    present = np.flatnonzero(check.label_pixels)
    return Checked(
        id=pair.id,
        source=pair.source,
        width=check.width,
        height=check.height,
        labels=present.tolist(),
        pixels=check.label_pixels[present].tolist(),
        fingerprint=check.fingerprint,
        image_digest="" if image is None else hashlib.sha256(image).hexdigest(),
        digest="" if stored is None or image is None else shards.row_digest(image, stored),
        stored_bytes=0 if stored is None or image is None else len(image) + len(stored),
        mask_is=mask_is,
        kinds=[finding.kind.name for finding in check.findings],
        details=[finding.detail for finding in check.findings],
    )


def _read(file: FileRef | None, missing: Kind, unreadable: Kind, findings: list[Finding]) -> bytes | None:
    if file is None:
        findings.append(Finding(missing, ""))
        return None
    if file.size > MAX_FILE_BYTES:
        findings.append(Finding(unreadable, f"it has {file.size} bytes, more than {MAX_FILE_BYTES}"))
        return None
    # An outage or credentials that have expired stop the job, or every pair would be called broken and left out
    own_fault = (FileNotFoundError, PermissionError) if file.place.protocol == "file" else FileNotFoundError
    with storage.explained(file.place):
        try:
            return storage.read_bytes(file.place)
        except own_fault as error:
            findings.append(Finding(unreadable, storage_faults.explain(error, file.place)))
            return None


def _is_sbd(mask: FileRef) -> bool:
    return mask.place.path.endswith(".mat")


def _key(pairs: list[Pair], label_set: LabelSet) -> str:
    files = [(p.id, p.source, _stamp(p.image), _stamp(p.mask)) for p in pairs]
    whole = json.dumps([CHECK_VERSION, asdict(label_set), files], sort_keys=True)
    return hashlib.sha256(whole.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _stamp(file: FileRef | None) -> list[str | int] | None:
    return None if file is None else [file.place.uri, file.size, file.version]
