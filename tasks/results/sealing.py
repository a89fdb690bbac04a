"""Sealing: the rows of many small mask files of a finished run in few large ones; masks are never decoded.

Segment by segment of the manifest, only those that the finish of the run has verified: the large files are written, and
then the seal that says that they are whole (`tasks/archive/seals.py` has the layout and the rule by which readers
choose). A seal is a copy until it is alone, so whoever commits, refreshes or verifies meanwhile works on small files as
ever, and a sealing that is killed leaves nothing that counts. Two at once write equal files under equal names.
`--expire` makes seals alone and then removes what they stand for. See docs/decisions/0095-compaction.md.
"""

import contextlib
import datetime
import functools
import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import annotated_types
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel

from tasks import storage
from tasks.ahead import ahead
from tasks.archive import runs, seals
from tasks.archive.output import Output, RunFiles
from tasks.archive.schema import conform, schema_of
from tasks.archive.seals import Seal
from tasks.errors import JobError
from tasks.parquet_files import naming_damage
from tasks.results.reading import REMEDY
from tasks.storage import Location, StoredFile
from tasks.words import counted

_FILE_BYTES = 128 * 2**20
"""Bytes of small files that go into one large file: what a sealing holds in memory, twice."""

_GROUP_BYTES, _GROUP_ROWS = 8 * 2**20, 8192
"""Of a row group, whichever comes first: what is read for one mask by its identity."""

_BATCH_SEGMENTS = 64
"""Segments between two listings of the run: four million images."""

_READERS = 8


class CompactJob(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Which run to compact."""

    output: str
    """URI of the results."""

    run: str | None = None
    """Run to compact; by default the one that finished last."""

    expire: bool = False
    """Remove small files that large ones have stood for during the grace."""

    grace_minutes: Annotated[float, annotated_types.Ge(0)] = 60
    """How long small files stay after large ones stand for them, since somebody may be reading them."""


@dataclass
class CompactReport:
    """What was done."""

    run_id: str
    folder: str
    """Where the large files are."""

    sources: int = 0
    """Small files that were sealed now."""

    files: int = 0
    """Large files that stand for them."""

    rows: int = 0
    size: int = 0
    """Bytes of the large files."""

    left: int = 0
    """Small files that are read as they are: of images added since the run was verified, or too few to be worth it."""

    removed: int = 0
    """Small files removed."""

    waiting: int = 0
    """Small files that large ones stand for, and that are still there."""

    grace_minutes: float = 60
    seconds: float = 0.0

    def told(self) -> str:
        """What was done, in words."""
        lines = [f"Nothing to compact in run {self.run_id}."]
        if self.files:
            were = f"{counted(self.sources, 'file')} {'is' if self.sources == 1 else 'are'}"
            lines = [
                f"{counted(self.rows, 'row')} of run {self.run_id}: {were} now {self.files}, "
                f"{self.size / 2**20:.1f} MiB, in {self.seconds:.1f} s."
            ]
        if self.removed:
            lines.append(f"{counted(self.removed, 'small file')} {'was' if self.removed == 1 else 'were'} removed.")
        if self.waiting:
            lines.append(
                f"{self.waiting} small files that nobody needs any more are kept; --expire removes them "
                f"{self.grace_minutes:g} minutes after their compaction (--grace-minutes)."
            )
        if self.left:
            lines.append(f"{self.left} small files are read as they are.")
        return "\n".join(lines)


def compact(job: CompactJob, advance: Callable[[int, int], None] | None = None) -> CompactReport:
    """Seal what is not sealed of a run. advance: told how many small files are done, of how many.

    Raises JobError where the run is not finished, or goes on meanwhile: then nothing has changed.
    """
    start = time.monotonic()
    output = Output.at(job.output)
    with storage.explained(output.place):
        run_id = str(output.choose(job.run)["run_id"])
        folder = output.sealed_folder(run_id)
        report = CompactReport(run_id, folder.uri, grace_minutes=job.grace_minutes)
        verified = _verified_segments(output, run_id)
        storage.sweep_temporary(folder)
        look = _with_own_seals(output, run_id)
        todo = [s for s in verified if s not in look.seals and len(look.small.get(s, ())) > 1]
        total = sum(len(look.small[segment]) for segment in todo)
        for first in range(0, len(todo), _BATCH_SEGMENTS):
            batch = {segment: look.small[segment] for segment in todo[first : first + _BATCH_SEGMENTS]}
            _seal_batch(output, run_id, batch, report, lambda: advance and advance(report.sources, total))
        others = seals.by_prefix(folder)  # Listed first: what comes meanwhile is nobody's leftover
        look = output.look(run_id)
        ready = [s for s in look.seals.values() if _older_than(_facts(folder / s.prefix, s), job.grace_minutes)]
        for seal in ready:
            _remove_others(folder, seal, others)
        if job.expire:
            report.removed = _expire(output, run_id, ready, look)
        look = output.look(run_id)
        report.waiting = sum(len(look.small.get(segment, ())) for segment in look.seals)
        report.left = len(look.names) - report.waiting
    report.seconds = time.monotonic() - start
    return report


def give_up(output: Output, run_id: str, seal: Seal) -> None:
    """Let a segment be read from its small files again, and what is not there be done again."""
    place = _own_seal(output, run_id, seal)
    storage.remove(place / seals.ALONE)
    storage.remove(place / seals.seal_name(len(seal.files)))


def rewrite_without(output: Output, run_id: str, seal: Seal, wanted: set[str], segments: int) -> None:
    """Write the large files of a seal that is alone again, with the rows of these images only.

    Readers see the old ones or the new ones; the old ones stay for the grace.
    segments: of the manifest that says so. Of two who write at one time, who knows more of them has dropped more.
    """
    _own_seal(output, run_id, seal)
    folder, ids = output.sealed_folder(run_id), pa.array(sorted(wanted), pa.string())
    schema = schema_of(output.record(run_id))
    prefix = seals.prefix_of(
        seal.segment, seals.digest([seal.prefix, sorted(wanted)]), max(seal.revision + 1, segments)
    )
    held, sizes = seal.files if wanted else (), list[int]()
    for number, file in enumerate(held):
        tables = _row_groups(folder / seal.prefix / file.path, schema)
        kept = (table.filter(pc.is_in(table["image_id"], ids)) for table in tables)
        sizes.append(_write_file(folder / prefix / seals.file_name(number, len(held)), kept, schema)[1])
    _write_seal(folder / prefix, sizes)
    _make_alone(folder / prefix)


def unseal(output: Output, run_id: str, segments: Collection[str]) -> None:
    """Take back the copies of segments whose small files are about to change.

    "Taken back" and "alone" are one name, so that of an expiry at the same time one or the other has its way.
    """
    held = output.look(run_id).seals if segments else {}
    for seal in [seal for segment, seal in held.items() if segment in segments]:
        place = output.sealed_folder(run_id) / seal.prefix
        if seal.is_alone or (
            not storage.write_once(place / seals.ALONE, seals.TAKEN_BACK) and storage.stat(place / seals.ALONE).size
        ):
            raise JobError("The run was compacted while it was verified: run the same command again.")
        storage.remove(place / seals.seal_name(len(seal.files)))


def _verified_segments(output: Output, run_id: str) -> list[str]:
    record = output.record(run_id)
    if record.get("status") != runs.FINISHED:
        raise JobError(
            f"Run {run_id} of {output.uri} is not finished, its status is {record.get('status')}: compact it when the "
            "archive job has ended well. Nothing was changed."
        )
    if not isinstance(record.get("segments"), list):
        raise JobError(
            f"The record of run {run_id} does not say what was proved: run the same archive job again first."
        )
    if not output.look(run_id).is_proved_by(record):
        raise JobError(
            f"Run {run_id} of {output.uri} went on since it was proved: run the same archive job again first."
        )
    return [str(name) for name in record["segments"]]


def _seal_batch(
    output: Output, run_id: str, batch: dict[str, list[StoredFile]], report: CompactReport, done: Callable[[], object]
) -> None:
    """Write the large files of some segments, then their seals. batch: small files by segment."""
    folder = output.sealed_folder(run_id)
    prefixes = {segment: seals.prefix_of(segment, seals.digest_of(small)) for segment, small in batch.items()}
    schema = schema_of(output.record(run_id))
    sizes = {}
    for segment, small in batch.items():
        rows, sizes[segment] = _write_segment(
            output.masks_folder(run_id), folder / prefixes[segment], segment, small, schema
        )
        report.sources, report.files = report.sources + len(small), report.files + len(sizes[segment])
        report.rows, report.size = report.rows + rows, report.size + sum(sizes[segment])
        done()
    # A run that goes on in this very moment may take rows out of a small file: before a seal, or after it
    if not _changed(output, run_id, batch):
        for segment in batch:
            _write_seal(folder / prefixes[segment], sizes[segment])
    if changed := _changed(output, run_id, batch):
        for segment in changed:
            storage.remove(folder / prefixes[segment] / seals.seal_name(len(sizes[segment])))
        raise JobError("The run went on while it was compacted. Nothing was changed; run the same command again.")


def _write_segment(
    masks: Location, folder: Location, segment: str, small: list[StoredFile], schema: pa.Schema
) -> tuple[int, list[int]]:
    """Write the large files of a segment; returns rows, and the bytes of each file."""
    parts: list[list[StoredFile]] = []
    held = _FILE_BYTES
    for file in small:
        if held + file.size > _FILE_BYTES:
            parts.append([])
            held = 0
        parts[-1].append(file)
        held += file.size
    ids: set[str] = set()
    rows, sizes = 0, list[int]()
    for number, part in enumerate(parts):
        tables = _small_tables(masks, part, ids, schema)
        count, size = _write_file(folder / seals.file_name(number, len(parts)), tables, schema)
        rows, sizes = rows + count, [*sizes, size]
    if len(ids) != rows:
        raise JobError(f"The files of {segment} hold an image twice: run the same archive job again, then compact.")
    return rows, sizes


def _changed(output: Output, run_id: str, batch: dict[str, list[StoredFile]]) -> list[str]:
    """Segments that are not as they were; those that another sealing has made alone by now do not count."""
    verified, look = _verified_segments(output, run_id), output.look(run_id)
    alone = {segment for segment, seal in look.seals.items() if seal.is_alone}
    same = {segment for segment, small in batch.items() if segment in verified and look.small.get(segment) == small}
    return [segment for segment in batch if segment not in same | alone]


def _small_tables(
    folder: Location, files: Sequence[StoredFile], ids: set[str], schema: pa.Schema
) -> Iterator[pa.Table]:
    """Their rows, a few files read ahead; adds the identities in them."""
    read = functools.partial(_read_small, schema=schema)
    for table in ahead(read, (folder / file.path for file in files), _READERS, 4 * _READERS):
        ids.update(table["image_id"].to_pylist())
        yield table


def _read_small(place: Location, schema: pa.Schema) -> pa.Table:
    try:
        with naming_damage(place, REMEDY):
            table = pq.ParquetFile(pa.BufferReader(storage.read_bytes(place))).read()
    except FileNotFoundError:
        raise JobError(f"{place.uri} was removed while it was compacted: run the same command again.") from None
    return conform(table, schema.names, schema)


def _row_groups(place: Location, schema: pa.Schema) -> Iterator[pa.Table]:
    with storage.open_for_reading(place, sparse=True) as opened:
        file = pq.ParquetFile(opened)
        for number in range(file.metadata.num_row_groups):
            yield conform(file.read_row_group(number), schema.names, schema)


def _write_file(place: Location, tables: Iterator[pa.Table], schema: pa.Schema) -> tuple[int, int]:
    """Write one large file, row group by row group; returns its rows and bytes."""
    sink, rows = pa.BufferOutputStream(), 0
    group: list[pa.Table] = []
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:

        def write_group() -> None:
            if group:
                writer.write_table(pa.concat_tables(group).combine_chunks())
                group.clear()

        for table in tables:
            # A small file that is larger than a group is a group of its own
            together = [*group, table]
            if sum(t.nbytes for t in together) > _GROUP_BYTES or sum(t.num_rows for t in together) > _GROUP_ROWS:
                write_group()
            group.append(table)
            rows += table.num_rows
        write_group()
    data = sink.getvalue()
    storage.write_whole(place, data.to_pybytes())
    return rows, data.size


def _write_seal(place: Location, sizes: list[int]) -> None:
    """Say that the large files of a prefix are whole, with their bytes, and since when."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    facts = {"version": 2, "since": now, "sizes": sizes}
    storage.write_whole(place / seals.seal_name(len(sizes)), f"{json.dumps(facts)}\n".encode())


def _make_alone(place: Location) -> bool:
    """Whether a seal is alone now; False where an archive job has taken the copy back."""
    mark = place / seals.ALONE
    text = b"The small files of this segment do not count any more.\n"
    return storage.write_once(mark, text) or storage.stat(mark).size > 0


def _own_seal(output: Output, run_id: str, seal: Seal) -> Location:
    """Folder of a seal, which has files of its own afterwards where only an old pointer named it."""
    if seal.is_old:
        _with_own_seals(output, run_id)
    return output.sealed_folder(run_id) / seal.prefix


def _with_own_seals(output: Output, run_id: str) -> RunFiles:
    """The files of a run, each seal with files of its own instead of a pointer of the version before seals."""
    look, folder = output.look(run_id), output.sealed_folder(run_id)
    old = [seal for seal in look.seals.values() if seal.is_old]
    for seal in old:
        _write_seal(folder / seal.prefix, [file.size for file in seal.files])
        _make_alone(folder / seal.prefix)
    if old:
        storage.remove_folder(folder / "pointers")
        look = output.look(run_id)
    return look


def _facts(place: Location, seal: Seal) -> dict[str, Any]:
    """What a seal was written with; empty where it is gone or cannot be read."""
    with contextlib.suppress(ValueError, FileNotFoundError):
        return dict(json.loads(storage.read_bytes(place / seals.seal_name(len(seal.files)))))
    return {}


def _older_than(facts: dict[str, Any], minutes: float) -> bool:
    """Whether a seal holds since so many minutes."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        past = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(facts["since"])
        return past >= datetime.timedelta(minutes=minutes)
    return False


def _remove_others(folder: Location, seal: Seal, held: Mapping[str, Iterable[str]]) -> None:
    """Remove what a seal has replaced and what killed sealings have left of its segment, nothing that is to replace it.

    held: as it was before the seal was found to hold.
    """
    segment, _, revision = seals.parts_of(seal.prefix)
    parts = {prefix: seals.parts_of(prefix) for prefix in held if prefix != seal.prefix}
    for prefix in [p for p, (of, _, number) in parts.items() if of == segment and number <= revision]:
        for name in sorted(held[prefix], key=lambda name: name.endswith(".parquet")):  # What makes it count goes first
            storage.remove(folder / prefix / name)
        storage.remove_folder(folder / prefix)


def _expire(output: Output, run_id: str, ready: list[Seal], look: RunFiles) -> int:
    """Make seals alone and remove the small files that they stand for; returns how many."""
    folder, masks = output.sealed_folder(run_id), output.masks_folder(run_id)
    alone: list[Seal] = []
    for seal in [seal for seal in ready if look.small.get(seal.segment)]:
        sizes = [file.size for file in seal.files]
        if 0 in sizes or sizes != _facts(folder / seal.prefix, seal).get("sizes"):
            place = folder / seal.prefix
            raise JobError(f"{place.uri} is not as it was written: no small file of {seal.segment} was removed.")
        if seal.is_alone or _make_alone(folder / seal.prefix):
            alone.append(seal)
        storage.make_durable(folder / seal.prefix, output.place)
    again, removed = output.look(run_id), 0
    with ThreadPoolExecutor(_READERS) as pool:
        for seal in alone:
            small = again.small.get(seal.segment, [])
            went_on = set(small) - set(look.small[seal.segment]) or not _facts(folder / seal.prefix, seal)
            if not seal.is_alone and went_on:
                storage.remove(folder / seal.prefix / seals.ALONE)
            elif seal.segment in again.seals:
                removed += sum(1 for _ in pool.map(lambda file: storage.remove(masks / file.path), small))
    return removed
