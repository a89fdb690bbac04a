"""Many small mask files of a finished run into few large ones; the rows stay what they are, masks are never decoded.

    compacted/run=<run id>/<segment>-<digest>/000-of-003.parquet   the rows of one segment of the manifest
    compacted/run=<run id>/pointers/000001-<digest>.json           what stands for what; written last

A whole segment is compacted or nothing of it, and only segments that the finish of the run has proved complete: images
that are added later come in other segments, and are read beside. A prefix is named by what it is made from, so a killed
compaction goes on where it ended, and two at once write equal files under equal names; whoever writes the pointer later
writes it upon the one that stands then, and adds only what that lacks. See docs/decisions/0095-compaction.md.
"""

import collections
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Annotated

import annotated_types
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel

from tasks import storage
from tasks.archive import pointer as pointers
from tasks.archive import runs
from tasks.archive.output import Output
from tasks.archive.pointer import CompactedFile, CompactedSegment, Pointer, compacted_folder, masks_folder, segment_of
from tasks.archive.schema import MASKS, conform
from tasks.errors import JobError
from tasks.parquet_files import naming_damage
from tasks.results.reading import REMEDY
from tasks.storage import Location, StoredFile

_LAYOUT = 1  # Raised when the same small files give other large ones

_FILE_BYTES = 128 * 2**20
"""Bytes of small files that go into one large file: what a compaction holds in memory, twice."""

_GROUP_BYTES, _GROUP_ROWS = 8 * 2**20, 8192
"""Of a row group, whichever comes first: what is read for one mask by its identity."""

_READERS = 8
_PATTERN = "{number:03d}-of-{total:03d}.parquet"


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
    """Small files that large ones stand for since now."""

    files: int = 0
    """Large files that stand for them."""

    rows: int = 0
    size: int = 0
    """Bytes of the large files."""

    left: int = 0
    """Small files that are read as they are: of images added since the run was proved, or too few to be worth it."""

    removed: int = 0
    """Small files removed."""

    waiting: int = 0
    """Small files that large ones stand for, and that are still there."""

    grace_minutes: float = 60
    seconds: float = 0.0

    def told(self) -> str:
        """What was done, in words."""
        lines = []
        if self.files and not self.sources:
            lines.append(f"{self.files} large files of run {self.run_id} that nothing named are read again.")
        elif self.files:
            lines.append(
                f"{self.rows} rows of run {self.run_id}: {self.sources} files are now {self.files}, "
                f"{self.size / 2**20:.1f} MiB, in {self.seconds:.1f} s."
            )
        else:
            lines.append(f"Nothing to compact in run {self.run_id}.")
        if self.removed:
            lines.append(f"{self.removed} small files were removed.")
        if self.waiting:
            lines.append(
                f"{self.waiting} small files that nobody needs any more are kept; --expire removes them "
                f"{self.grace_minutes:g} minutes after their compaction (--grace-minutes)."
            )
        if self.left:
            lines.append(f"{self.left} small files are read as they are.")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Work:
    """One segment to compact."""

    segment: str
    prefix: str
    parts: tuple[tuple[StoredFile, ...], ...]
    """Small files of each large one."""

    def names(self) -> list[str]:
        return [_PATTERN.format(number=number, total=len(self.parts)) for number in range(len(self.parts))]


@dataclass
class _State:
    """What a compaction finds, and must find again before it writes the pointer."""

    segments: list[str]
    """Proved complete."""

    small: dict[str, list[StoredFile]] = field(default_factory=dict)
    """By segment, in the order of names."""

    others: int = 0
    pointer: Pointer = field(default_factory=Pointer)


def compact(job: CompactJob, advance: Callable[[int, int], None] | None = None) -> CompactReport:
    """Put large files in the place of small ones. advance: told how many small files are done, of how many.

    Raises JobError where the run is not finished, or goes on meanwhile: then nothing has changed.
    """
    start = time.monotonic()
    output = storage.locate(job.output)
    with storage.explained(output):
        run_id = str(Output(output).choose(job.run)["run_id"])
        storage.sweep_temporary(compacted_folder(output, run_id))
        state = _look(output, run_id)
        report = CompactReport(run_id, compacted_folder(output, run_id).uri, grace_minutes=job.grace_minutes)
        _clean(output, run_id, state, job.grace_minutes)
        adopted = _adopt(output, run_id, state)
        works = _plan(state)
        made, total = dict(adopted), sum(len(part) for work in works for part in work.parts)
        done = 0
        for work in works:
            held = _write_segment(output, run_id, work)
            made[work.segment] = held
            done += held.sources
            if advance is not None:
                advance(done, total)
        if made:
            _commit(output, run_id, state, made)
        report.sources = sum(held.sources for held in made.values())
        for held in made.values():
            report.files += len(held.files)
            report.rows += sum(file.rows for file in held.files)
            report.size += sum(file.size for file in held.files)
        if job.expire:
            report.removed = _expire(output, run_id, job.grace_minutes)
        after = _look(output, run_id, finished=False)
        covered = {segment: files for segment, files in after.small.items() if segment in after.pointer.segments}
        report.waiting = sum(map(len, covered.values()))
        report.left = sum(map(len, after.small.values())) - report.waiting + after.others
    report.seconds = time.monotonic() - start
    return report


def uncover(output: Location, run_id: str, segment: str) -> None:
    """Let a segment be read from its small files again, and what is not there be done again."""
    pointer = pointers.read(output, run_id)
    if segment in pointer.segments:
        pointers.write(output, run_id, pointer.without(segment))


def rewrite_without(output: Location, run_id: str, segment: str, wanted: set[str]) -> None:
    """Write the large files of a segment again with the rows of these images only; readers see the old or the new."""
    pointer = pointers.read(output, run_id)
    held = pointer.segments[segment]
    prefix = f"{segment}-{_digest([held.prefix, sorted(wanted)])}"
    folder, ids = compacted_folder(output, run_id), pa.array(sorted(wanted), pa.string())
    files = []
    for number, file in enumerate(held.files if wanted else ()):
        place = pointers.place_of(output, run_id, held, file)
        name = _PATTERN.format(number=number, total=len(held.files))
        kept = (table.filter(pc.is_in(table["image_id"], ids)) for table in _row_groups(place))
        files.append(_write_file(folder / prefix / name, kept, None))
    changed = replace(held, prefix=prefix, files=tuple(files))
    pointers.write(output, run_id, pointer.naming({segment: changed}))


def _look(output: Location, run_id: str, *, finished: bool = True) -> _State:
    """The run as it stands. finished: raise JobError where it is not."""
    record = runs.read(output, run_id)
    if finished and record.get("status") != runs.FINISHED:
        raise JobError(
            f"Run {run_id} of {output.uri} is not finished, its status is {record.get('status')}: compact it when the "
            "archive job has ended well. Nothing was changed."
        )
    proved = record.get("segments")
    if not isinstance(proved, list):
        raise JobError(
            f"The record of run {run_id} does not say what was proved: run the same archive job again first."
        )
    files = sorted(storage.list_files(masks_folder(output, run_id)), key=lambda f: f.path)
    state = _State([str(name) for name in proved], pointer=pointers.read(output, run_id))
    for file in files:
        segment = segment_of(file.path)
        if file.path.endswith(".parquet") and segment in state.segments:
            state.small.setdefault(str(segment), []).append(file)
        else:
            state.others += file.path.endswith(".parquet")
    return state


def _plan(state: _State) -> list[_Work]:
    """Segments whose small files are worth it."""
    fresh = {s: files for s, files in state.small.items() if s not in state.pointer.segments and len(files) > 1}
    return [_work(segment, files) for segment, files in sorted(fresh.items())]


def _work(segment: str, files: Sequence[StoredFile]) -> _Work:
    parts: list[list[StoredFile]] = []
    held = _FILE_BYTES
    for file in files:
        if held + file.size > _FILE_BYTES:
            parts.append([])
            held = 0
        parts[-1].append(file)
        held += file.size
    digest = _digest([_LAYOUT, _FILE_BYTES, [(file.path, file.size, file.version) for file in files]])
    return _Work(segment, f"{segment}-{digest}", tuple(tuple(part) for part in parts))


def _write_segment(output: Location, run_id: str, work: _Work) -> CompactedSegment:
    """The large files of a segment; those that a killed compaction has left are taken as they are."""
    folder = compacted_folder(output, run_id) / work.prefix
    there = {file.path: file.size for file in storage.list_files(folder)}
    files, seen = [], set[str]()
    for name, part in zip(work.names(), work.parts, strict=True):
        if name in there:
            file, ids = _read_file(folder / name)
            seen |= ids
        else:
            file = _write_file(folder / name, _small_tables(masks_folder(output, run_id), part), seen)
        files.append(file)
    if len(seen) != sum(file.rows for file in files):
        raise JobError(
            f"The files of {work.segment} hold an image twice: run the same archive job again, then compact."
        )
    return CompactedSegment(work.prefix, tuple(files), sum(map(len, work.parts)), pointers.now())


def _write_file(place: Location, tables: Iterator[pa.Table], seen: set[str] | None) -> CompactedFile:
    """Write one large file, row group by row group, and remember the identities in it."""
    sink, rows = pa.BufferOutputStream(), 0
    group: list[pa.Table] = []
    group_rows = group_bytes = 0
    with pq.ParquetWriter(sink, MASKS, compression="zstd") as writer:
        for table in tables:
            if seen is not None:
                seen.update(table["image_id"].to_pylist())
            # A small file that is larger than a group is a group of its own
            full = group_bytes + table.nbytes > _GROUP_BYTES or group_rows + table.num_rows > _GROUP_ROWS
            if group and full:
                writer.write_table(pa.concat_tables(group).combine_chunks())
                group, group_rows, group_bytes = [], 0, 0
            group.append(table)
            rows += table.num_rows
            group_rows += table.num_rows
            group_bytes += table.nbytes
        if group:
            writer.write_table(pa.concat_tables(group).combine_chunks())
    data = sink.getvalue()
    storage.write_whole(place, data.to_pybytes())
    return CompactedFile(place.name, data.size, rows)


def _small_tables(folder: Location, files: Sequence[StoredFile]) -> Iterator[pa.Table]:
    with ThreadPoolExecutor(_READERS) as pool:
        waiting: collections.deque[Future[pa.Table]] = collections.deque()
        for file in files:
            waiting.append(pool.submit(_read_small, folder / file.path))
            if len(waiting) > _READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read_small(place: Location) -> pa.Table:
    try:
        with naming_damage(place, REMEDY):
            table = pq.ParquetFile(pa.BufferReader(storage.read_bytes(place))).read()
    except FileNotFoundError:
        raise JobError(f"{place.uri} was removed while it was compacted: run the same command again.") from None
    return conform(table)


def _row_groups(place: Location) -> Iterator[pa.Table]:
    with storage.open_for_reading(place, sparse=True) as opened:
        file = pq.ParquetFile(opened)
        for number in range(file.metadata.num_row_groups):
            yield conform(file.read_row_group(number))


def _read_file(place: Location) -> tuple[CompactedFile, set[str]]:
    size = storage.stat(place).size
    with storage.open_for_reading(place, sparse=True) as opened:
        ids = pq.ParquetFile(opened).read(["image_id"])["image_id"].to_pylist()
    return CompactedFile(place.name, size, len(ids)), set(ids)


def _commit(output: Location, run_id: str, before: _State, made: dict[str, CompactedSegment]) -> None:
    """Write the pointer upon the one that stands, if the run is still what was compacted."""
    _require_unchanged(before, _look(output, run_id), made)
    standing = pointers.read(output, run_id)
    added = {segment: held for segment, held in made.items() if segment not in standing.segments}
    if not added:
        return  # Another compaction has named them all meanwhile
    pointers.write(output, run_id, standing.naming(added))
    # A run that went on in this very moment may have taken rows out of a small file
    now = _look(output, run_id, finished=False)
    for segment, held in added.items():
        changed = segment in now.small and now.small[segment] != before.small.get(segment)
        there = [_size(pointers.place_of(output, run_id, held, file)) == file.size for file in held.files]
        if changed or not all(there):
            uncover(output, run_id, segment)


def _require_unchanged(before: _State, now: _State, made: dict[str, CompactedSegment]) -> None:
    for segment in made:
        # Another compaction may have removed the small files of a segment that it has named by now
        same = segment in now.segments and now.small.get(segment) == before.small.get(segment)
        if not same and segment not in now.pointer.segments:
            raise JobError("The run went on while it was compacted. Nothing was changed; run the same command again.")


def _clean(output: Location, run_id: str, state: _State, grace_minutes: float) -> None:
    """Remove what killed compactions left and nobody goes on with, and prefixes that nobody reads any more."""
    folder = compacted_folder(output, run_id)
    pointer = state.pointer
    old = [prefix for prefix, since in pointer.superseded.items() if pointers.older_than(since, grace_minutes)]
    if old:
        for prefix in old:
            storage.remove_folder(folder / prefix)
        pointer = pointers.read(output, run_id)
        kept = {prefix: since for prefix, since in pointer.superseded.items() if prefix not in old}
        state.pointer = pointer = replace(pointer, superseded=kept)
        pointers.write(output, run_id, pointer)
    wanted = {work.prefix for work in _plan(state)}
    left = dict(pointers.prefixes(output, run_id, pointer))
    pointer = state.pointer = pointers.read(output, run_id)  # After them: none of them is named by now
    for prefix in set(left) - {held.prefix for held in pointer.segments.values()} - set(pointer.superseded):
        segment = prefix.rpartition("-")[0]
        # Where neither pointer nor small files have the rows, this may be the only copy of them
        if prefix not in wanted and (segment in pointer.segments or segment in state.small):
            storage.remove_folder(folder / prefix)


def _adopt(output: Location, run_id: str, state: _State) -> dict[str, CompactedSegment]:
    """Complete prefixes of proved segments that have no small files any more and that no pointer names: it was lost."""
    found: dict[str, list[tuple[str, list[str]]]] = {}
    for prefix, names in pointers.prefixes(output, run_id, state.pointer):
        segment = prefix.rpartition("-")[0]
        missing = segment not in state.small and segment not in state.pointer.segments
        complete = sorted(names) == [_PATTERN.format(number=n, total=len(names)) for n in range(len(names))]
        if segment in state.segments and missing and complete:
            found.setdefault(segment, []).append((prefix, sorted(names)))
    adopted = {}
    for segment, candidates in found.items():
        if len(candidates) == 1:
            prefix, names = candidates[0]
            folder = compacted_folder(output, run_id) / prefix
            files = tuple(_read_file(folder / name)[0] for name in names)
            adopted[segment] = CompactedSegment(prefix, files, 0, pointers.now())
    return adopted


def _expire(output: Location, run_id: str, grace_minutes: float) -> int:
    """Remove small files that large ones have stood for during the grace; returns how many."""
    state, removed = _look(output, run_id, finished=False), 0
    with ThreadPoolExecutor(_READERS) as pool:
        for segment, held in state.pointer.segments.items():
            small = state.small.get(segment, [])
            if not small or not pointers.older_than(held.since, grace_minutes):
                continue
            for file in held.files:
                place = pointers.place_of(output, run_id, held, file)
                if _size(place) != file.size:
                    raise JobError(f"{place.uri} is not as it was written: no small file of {segment} was removed.")
            folder = masks_folder(output, run_id)
            removed += sum(1 for _ in pool.map(lambda f: storage.remove(folder / f.path), small))  # noqa: B023
    return removed


def _size(place: Location) -> int | None:
    """Bytes of a file; None where there is none."""
    try:
        return storage.stat(place).size
    except FileNotFoundError:
        return None


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]
