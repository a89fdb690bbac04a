"""Which large files stand for the many small ones of a run: one object, `compacted/run=<run id>/pointer.json`.

It names whole segments of the manifest, and for each the files that hold its rows: whoever reads a run takes a segment
that the pointer names from there, and everything else from the small files. The pointer is replaced as a whole, after
all that it names. A reader lists the small files first and reads the pointer afterwards: small files are removed only
once a pointer names their segment, so every row is found, and found once. It is made by `tasks/compaction.py`.
"""

import contextlib
import datetime
import json
from collections.abc import Iterable
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
    """When the pointer first named it, in ISO 8601."""


@dataclass(frozen=True)
class Pointer:
    """What of a run has been compacted."""

    segments: dict[str, CompactedSegment] = field(default_factory=dict)
    """By the name of the segment."""

    superseded: dict[str, str] = field(default_factory=dict)
    """Prefixes that an older pointer named, and since when none does: somebody may still be reading them."""

    def covers(self, file_name: str) -> bool:
        """Whether a small file is stood for by large ones."""
        return segment_of(file_name) in self.segments

    def without(self, segment: str, now: str) -> "Pointer":
        """The pointer that no longer stands for a segment."""
        rest = {name: held for name, held in self.segments.items() if name != segment}
        return replace(self, segments=rest, superseded=self.superseded | {self.segments[segment].prefix: now})


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
    place = compacted_folder(output, run_id) / "pointer.json"
    try:
        found = json.loads(storage.read_bytes(place))
        if found["version"] != VERSION:
            raise JobError(f"{place.uri} is of version {found['version']}, made by a newer program than this one.")
        segments = {
            name: CompactedSegment(**(held | {"files": tuple(CompactedFile(**file) for file in held["files"])}))
            for name, held in found["segments"].items()
        }
        return Pointer(segments, dict(found["superseded"]))
    except FileNotFoundError:
        return Pointer()
    except JobError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # Going on without it would show a run with holes where small files have been removed
        raise JobError(
            f"{place.uri} is not a pointer of ours ({type(error).__name__}): put back a copy of it; only where every "
            f"file of {masks_folder(output, run_id).uri} is still there, remove it."
        ) from None


def write(output: Location, run_id: str, pointer: Pointer) -> None:
    """Replace the pointer of a run. What it names must be there."""
    text = json.dumps({"version": VERSION, "run_id": run_id, **asdict(pointer)}, indent=1, sort_keys=True)
    storage.write_whole(compacted_folder(output, run_id) / "pointer.json", f"{text}\n".encode())


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
        if slash and prefix not in named:
            found.setdefault(prefix, []).append(name)
    return found.items()
