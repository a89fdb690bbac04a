"""Which large files stand for the many small ones of a run: one object, `compacted/run=<run id>/pointers/<name>.json`.

It names whole segments of the manifest, and for each the files that hold its rows: whoever reads a run takes a segment
that the pointer names from there, and everything else from the small files. A reader lists the small files first and
reads the pointer afterwards: small files are removed only once a pointer names their segment, so every row is found,
and found once.

A new pointer is a new object, written after all that it names; the ones that it continues are removed then. Where two
were written at once, both stand, until the next continues both, and whoever reads applies one rule:

    A segment is as the highest revision says that any pointer has of it.

It is made by `tasks/results/compaction.py`.
"""

import contextlib
import datetime
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace

from tasks import storage
from tasks.errors import JobError
from tasks.storage import Location, StoredFile

VERSION = 1


@dataclass(frozen=True)
class CompactedFile:
    """One large file."""

    name: str
    size: int
    """Bytes."""

    rows: int


@dataclass(frozen=True)
class CompactedSegment:
    """The rows of one segment of the manifest."""

    prefix: str
    """Folder of its files; the name follows from what they were made of, so another content is another prefix."""

    files: tuple[CompactedFile, ...]
    sources: int
    """Small files that it stands for."""

    since: str
    """When a pointer first named it, in ISO 8601."""

    revision: int = 1
    """Counts what has become of the segment: the highest is valid."""


@dataclass(frozen=True)
class Pointer:
    """What of a run has been compacted."""

    segments: dict[str, CompactedSegment] = field(default_factory=dict)
    """By the name of the segment."""

    dropped: dict[str, int] = field(default_factory=dict)
    """Segments that are read from small files again, and the revision that was the last to stand for them."""

    superseded: dict[str, str] = field(default_factory=dict)
    """Prefixes that an older pointer named, and since when none does: somebody may still be reading them."""

    names: tuple[str, ...] = field(default=(), compare=False)
    """The objects that it was read from."""

    def covers(self, file_name: str) -> bool:
        """Whether a small file is stood for by large ones."""
        return segment_of(file_name) in self.segments

    def naming(self, added: Mapping[str, CompactedSegment]) -> "Pointer":
        """The pointer that stands for these segments too, or in another way."""
        changed, superseded = dict(self.segments), dict(self.superseded)
        for segment, held in added.items():
            before = self.segments.get(segment)
            if before is not None and before.prefix != held.prefix:
                superseded[before.prefix] = now()
            last = self.dropped.get(segment, 0) if before is None else before.revision
            changed[segment] = replace(held, revision=last + 1)
            superseded.pop(held.prefix, None)  # The same small files once more
        return replace(self, segments=changed, superseded=superseded)

    def without(self, segment: str) -> "Pointer":
        """The pointer that no longer stands for a segment."""
        held = self.segments[segment]
        rest = {name: other for name, other in self.segments.items() if name != segment}
        dropped = self.dropped | {segment: held.revision}
        return replace(self, segments=rest, dropped=dropped, superseded=self.superseded | {held.prefix: now()})

    def merged(self, other: "Pointer") -> "Pointer":
        """Both, by the rule of this module."""
        dropped = {n: max(self.dropped.get(n, 0), other.dropped.get(n, 0)) for n in {*self.dropped, *other.dropped}}
        segments: dict[str, CompactedSegment] = {}
        for name, held in [*self.segments.items(), *other.segments.items()]:
            best = segments.get(name, held)
            if held.revision > dropped.get(name, 0):
                segments[name] = max(best, held, key=lambda h: (h.revision, h.prefix))
        named = {held.prefix for held in segments.values()}
        old = {prefix: since for prefix, since in (self.superseded | other.superseded).items() if prefix not in named}
        return Pointer(segments, dropped, old, self.names + other.names)


def masks_folder(output: Location, run_id: str) -> Location:
    """Folder of a run's small files."""
    return output / "masks" / f"run={run_id}"


def compacted_folder(output: Location, run_id: str) -> Location:
    """Folder of a run's large files and their pointer."""
    return output / "compacted" / f"run={run_id}"


def segment_of(file_name: str) -> str | None:
    """Segment of the manifest that a small file belongs to: `part-<sequence>-<digest>-<part>...`; None for others."""
    pieces = file_name.split("-")
    return f"{pieces[1]}-{pieces[2]}" if len(pieces) >= 4 and pieces[0] == "part" else None


def read(output: Location, run_id: str) -> Pointer:
    """The pointer of a run; an empty one where nothing was compacted. Raises JobError where it cannot be understood."""
    folder = compacted_folder(output, run_id) / "pointers"
    while True:
        pointer = Pointer()
        try:
            for file in storage.list_files(folder):
                if file.path.endswith(".json"):
                    pointer = pointer.merged(_parse(folder / file.path))
        except FileNotFoundError:
            continue  # Another continues it by now
        return pointer


def write(output: Location, run_id: str, pointer: Pointer) -> None:
    """Write a pointer that continues those it was read from, then remove them. What it names must be there."""
    facts = {"version": VERSION, "run_id": run_id, **asdict(pointer)}
    del facts["names"]
    data = f"{json.dumps(facts, indent=1, sort_keys=True)}\n".encode()
    number = 1 + max((int(name.partition("-")[0]) for name in pointer.names), default=0)
    name = f"{number:06d}-{hashlib.sha256(data).hexdigest()[:8]}.json"
    folder = compacted_folder(output, run_id) / "pointers"
    storage.write_whole(folder / name, data)
    for continued in pointer.names:
        storage.remove(folder / continued)


def _parse(place: Location) -> Pointer:
    data = storage.read_bytes(place)
    try:
        found = json.loads(data)
        if found["version"] != VERSION:
            raise JobError(f"{place.uri} is of version {found['version']}, made by a newer program than this one.")
        segments = {
            name: CompactedSegment(**(held | {"files": tuple(CompactedFile(**file) for file in held["files"])}))
            for name, held in found["segments"].items()
        }
        int(place.name.partition("-")[0])
        return Pointer(segments, dict(found["dropped"]), dict(found["superseded"]), (place.name,))
    except JobError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # Going on without it would show a run with holes where small files have been removed
        raise JobError(
            f"{place.uri} is not a pointer of ours ({type(error).__name__}): put back a copy of it, or remove it and "
            "run `segment-archive compact`, which finds large files that nothing names."
        ) from None


def list_run(output: Location, run_id: str) -> tuple[list[StoredFile], Pointer]:
    """The small files of a run that are read, and the pointer to the large ones: together one row for each image.

    In this order: a small file that is gone from the listing is named by the pointer that is read after it.
    """
    files = [f for f in storage.list_files(masks_folder(output, run_id)) if f.path.endswith(".parquet")]
    pointer = read(output, run_id)
    return [file for file in files if not pointer.covers(file.path)], pointer


def place_of(output: Location, run_id: str, held: CompactedSegment, file: CompactedFile) -> Location:
    """Where a large file stands."""
    return compacted_folder(output, run_id) / held.prefix / file.name


def now() -> str:
    """This moment, as pointers write it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def older_than(since: str, minutes: float) -> bool:
    """Whether a moment is at least so many minutes past."""
    with contextlib.suppress(ValueError):
        past = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(since)
        return past >= datetime.timedelta(minutes=minutes)
    return False


def prefixes(output: Location, run_id: str, pointer: Pointer) -> Iterable[tuple[str, list[str]]]:
    """Prefixes below the folder of large files that the pointer does not name, each with the names of its files."""
    named = {held.prefix for held in pointer.segments.values()} | set(pointer.superseded)
    found: dict[str, list[str]] = {}
    for file in storage.list_files(compacted_folder(output, run_id)):
        prefix, slash, name = file.path.rpartition("/")
        if slash and prefix not in named and prefix != "pointers":
            found.setdefault(prefix, []).append(name)
    return found.items()
