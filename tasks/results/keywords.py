"""The classes of a run as keywords in XMP sidecars beside the photographs, and the way back.

Before a sidecar is written, what it was is kept in OUTPUT/keywords/: a part for some hundred sidecars at a time, the
later ones over the earlier ones. So a stop at any moment can be undone, and a second session begins where nobody had
written.
A sidecar that somebody else has changed since keeps their change: our keywords alone come and go in it.
"""

import collections
import hashlib
import itertools
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import annotated_types
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from segcore.annotations import xmp
from segcore.annotations.regions import BACKGROUND
from segcore.annotations.xmp import Keywords
from tasks import progress, storage
from tasks.ahead import ahead
from tasks.archive.output import Output
from tasks.errors import JobError
from tasks.parquet_files import read_parquet
from tasks.results.reading import Results, open_results
from tasks.storage import Location

_WORKERS = 16
_AT_ONCE = 256
"""Shots whose sidecars are written together, after one part of the journal."""

_MAX_BYTES = 16 << 20
_TOLD = 100
_REMEDY = "restore it from a backup: what sidecars were before their keywords stands in it"

_JOURNAL = pa.schema(
    [
        ("sidecar", pa.string()),
        ("before", pa.binary()),
        ("after", pa.string()),
        ("flat", pa.list_(pa.string())),
        ("hierarchical", pa.list_(pa.string())),
    ]
)
"""One row per sidecar: its bytes before us (null: it was not there), the digest of what was written (null: nothing is
there), and the keywords that are ours in it."""


class AnnotateJob(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Which classes become keywords, and how their sidecars are called."""

    output: str
    """URI of the results."""

    to: Literal["xmp"] = "xmp"
    """xmp: sidecars beside the photographs, which are never touched."""

    run: str | None = None
    """Run to read; by default the one that finished last."""

    min_share: Annotated[float, annotated_types.Interval(ge=0, le=1)] = 0.05
    """Least share of the mask that a class has to become a keyword, 0..1."""

    min_confidence: Annotated[float, annotated_types.Interval(ge=0, le=1)] = 0.0
    """Least confidence of the class in the image, 0..1."""

    classes: tuple[str, ...] = ()
    """Names of classes that become keywords; by default all but background."""

    root: str = "Segment Archive"
    """Widest word of the hierarchy, below which the classes stand; empty: none."""

    sidecar: Literal["darktable", "lightroom"] = "darktable"
    """How a new sidecar is called: photo.jpg.xmp (darktable, digiKam), or photo.xmp (Lightroom, of RAW files). One that
    is there under either name is used."""

    undo: bool = False
    """Bring every sidecar back to what it was before the first keyword, byte for byte."""


@dataclass
class AnnotateReport:
    """What became of the sidecars."""

    run_id: str = ""
    images: int = 0
    """That have a mask."""

    with_keywords: int = 0
    """Of those, images with at least one keyword."""

    created: int = 0
    """Sidecars that were not there."""

    changed: int = 0
    """Sidecars that were there and have other keywords now."""

    unchanged: int = 0
    """Sidecars that say already what they should."""

    restored: int = 0
    """Sidecars that are again, byte for byte, what they were, or are gone again."""

    edited: int = 0
    """Sidecars that somebody else has changed since: our keywords were taken out, the change stays."""

    without_place: int = 0
    """Images that are no files of their own, or are gone: they have no sidecar."""

    failed: dict[str, str] = field(default_factory=dict)
    """Sidecars that were left as they are, the first hundred, and why."""

    num_failed: int = 0
    keywords: dict[str, int] = field(default_factory=dict)
    """Images by class."""

    undone: bool = False

    def told(self) -> str:
        """One sentence."""
        if self.undone:
            edited = f", {self.edited:,} that were changed since without our keywords" if self.edited else ""
            return f"{self.restored:,} sidecars are what they were{edited}."
        return (
            f"{self.with_keywords:,} of {self.images:,} images have keywords: {self.created:,} sidecars made, "
            f"{self.changed:,} changed, {self.unchanged:,} said so already."
        )


@dataclass(frozen=True)
class _State:
    """What the journal knows of one sidecar."""

    before: bytes | None
    after: str | None
    ours: Keywords


def annotate(job: AnnotateJob) -> AnnotateReport:
    """Write the keywords of a run, or undo all that were ever written for this output.

    Raises JobError where there is no such run; one sidecar that cannot be written stops nothing.
    """
    output = Output.at(job.output)
    with storage.explained(output.place):
        journal = _Journal(output.keywords_folder())
        if job.undo:
            return _undo(journal)
        results = open_results(job.output, job.run)
        report = AnnotateReport(results.run_id)
        shots = _shots(results, job, report)
    journal.require_writable()
    count = sum(map(len, shots.values()))
    with progress.measured("annotating", count) as tell:
        done = 0
        for chunk in _chunks(sorted(shots.items())):
            wanted: dict[Location, list[Keywords]] = {}
            for places in ahead(lambda shot: _sidecars(shot[1], job.sidecar), chunk, _WORKERS):
                for place, keywords in places:
                    if place is None:
                        report.without_place += 1
                    else:
                        wanted.setdefault(place, []).append(keywords)
            with storage.explained(output.place):
                _write(journal, {place: xmp.joined(every) for place, every in wanted.items()}, report)
            done += sum(len(images) for _, images in chunk)
            tell(done)
    return report


def _shots(results: Results, job: AnnotateJob, report: AnnotateReport) -> dict[str, list[tuple[str, Keywords]]]:
    """URI and keywords of each image, by its path without ending: a RAW file and its JPEG may share a sidecar."""
    shots: dict[str, list[tuple[str, Keywords]]] = {}
    names: collections.Counter[str] = collections.Counter()
    known: dict[tuple[str, ...], Keywords] = {}
    classes = set(job.classes)
    seen: set[str] = set()
    for table in results.tables(["uri", "mask_width", "mask_height", "classes"]):
        for row in table.to_pylist():
            if row["mask_width"] is None:
                continue
            report.images += 1
            area = row["mask_width"] * row["mask_height"]
            found = []
            for of_class in row["classes"]:
                name = of_class["name"]
                seen.add(name)
                enough = of_class["pixels"] >= job.min_share * area and of_class["confidence"] >= job.min_confidence
                if enough and (name in classes if classes else name != BACKGROUND):
                    found.append(name)
            names.update(found)
            report.with_keywords += bool(found)
            key = tuple(found)
            if key not in known:
                known[key] = Keywords(key, tuple(_path(job.root, name) for name in key))
            folder, _, file = row["uri"].rpartition("/")
            shots.setdefault(f"{folder}/{PurePosixPath(file).stem}", []).append((row["uri"], known[key]))
    if classes - seen:
        names_told = ", ".join(sorted(seen - {BACKGROUND})[:40])
        raise JobError(f"No mask of run {results.run_id} holds {sorted(classes - seen)[0]!r}; there are {names_told}.")
    report.keywords = dict(names.most_common())
    return shots


def _path(root: str, name: str) -> str:
    """A path of Lightroom, whose steps are parted by "|"."""
    return "|".join(part.replace("|", "/") for part in (root, name) if part)


def _sidecars(
    images: list[tuple[str, Keywords]], naming: Literal["darktable", "lightroom"]
) -> list[tuple[Location | None, Keywords]]:
    """The sidecars of the images of one shot: every one that is there, or the one to be made; None: it has no place."""
    found: list[tuple[Location | None, Keywords]] = []
    for uri, keywords in images:
        place = None if "!/" in uri or "\\x" in uri else storage.locate(uri)
        try:
            if place is None or not storage.is_file(place):
                found.append((None, keywords))
                continue
            stem = str(PurePosixPath(place.path).with_suffix(""))
            names = [f"{base}{ending}" for base in (place.path, stem) for ending in (".xmp", ".XMP")]
            there = [at for name in names if storage.is_file(at := Location(place.protocol, name))]
        except OSError:
            found.append((None, keywords))
            continue
        new = names[0] if naming == "darktable" else names[2]
        found += [(at, keywords) for at in there or [Location(place.protocol, new)]]
    return found


def _write(journal: "_Journal", wanted: dict[Location, Keywords], report: AnnotateReport) -> None:
    """Bring some sidecars up to date: the journal first, then the sidecars."""
    entries: list[dict[str, Any]] = []
    changes: list[tuple[Location, bytes | None, bytes | None]] = []
    for place, now in zip(wanted, ahead(_attempted(_read), wanted, _WORKERS), strict=True):
        keywords = wanted[place]
        state = journal.state(place.uri)
        if not keywords and state is None:
            continue
        try:
            if isinstance(now, Exception):
                raise now
            base = _base(now, state)
            new = xmp.with_keywords(base, keywords) if keywords else base
            held = xmp.keywords_of(base) if base is not None else Keywords()
        except (ValueError, OSError) as error:
            _fail(report, place, error)
            continue
        if new == now:
            report.unchanged += bool(keywords)
            continue
        flat = [word for word in keywords.flat if word not in held.flat]
        paths = [path for path in keywords.hierarchical if path not in held.hierarchical]
        after = None if new is None else _digest(new)
        entries.append({"sidecar": place.uri, "before": base, "after": after, "flat": flat, "hierarchical": paths})
        changes.append((place, now, new))
    journal.add(entries)
    for (place, now, _), outcome in zip(changes, ahead(_attempted(_put), changes, _WORKERS), strict=True):
        if isinstance(outcome, Exception):
            _fail(report, place, outcome)
        elif now is None:
            report.created += 1
        else:
            report.changed += 1


def _undo(journal: "_Journal") -> AnnotateReport:
    report = AnnotateReport(undone=True)
    sidecars = journal.sidecars()
    with progress.measured("undoing", len(sidecars), "sidecars") as tell:

        def undo(uri: str) -> str:
            place, state = storage.locate(uri), journal.state(uri)
            assert state is not None
            now = _read(place)
            if now == state.before or now is None:  # Or somebody has removed it
                return "left"
            ours = _digest(now) == state.after
            _put((place, now, state.before if ours else xmp.without_keywords(now, state.ours)))
            return "restored" if ours else "edited"

        for number, (uri, outcome) in enumerate(zip(sidecars, map(_attempted(undo), sidecars), strict=True), 1):
            if isinstance(outcome, Exception):
                _fail(report, storage.locate(uri), outcome)
            report.restored += outcome == "restored"
            report.edited += outcome == "edited"
            tell(number)
    if not report.num_failed:
        journal.clear()
    return report


def _base(now: bytes | None, state: _State | None) -> bytes | None:
    """A sidecar as it is without us."""
    if state is None or now == state.before:
        return now
    if now is None:
        return None
    return state.before if _digest(now) == state.after else xmp.without_keywords(now, state.ours)


def _attempted(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same, where what one sidecar raises is its result."""

    def attempt(item: Any) -> Any:
        try:
            return function(item)
        except (ValueError, OSError) as error:
            return error

    return attempt


def _read(place: Location) -> bytes | None:
    try:
        if storage.stat(place).size > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES >> 20} MiB")
        return storage.read_bytes(place)
    except FileNotFoundError:
        return None


def _put(change: tuple[Location, bytes | None, bytes | None]) -> None:
    place, _, new = change
    if new is None:
        storage.remove(place)
    else:
        storage.write_whole(place, new)


def _fail(report: AnnotateReport, place: Location, error: Exception) -> None:
    report.num_failed += 1
    if len(report.failed) < _TOLD:
        told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        report.failed[place.uri] = (told or type(error).__name__).splitlines()[0]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _chunks(items: Iterable[Any]) -> Iterator[list[Any]]:
    left = iter(items)
    while chunk := list(itertools.islice(left, _AT_ONCE)):
        yield chunk


class _Journal:
    """What sidecars were before us."""

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self._at: dict[str, tuple[str, int]] = {}
        self._parts: collections.OrderedDict[str, list[dict[str, Any]]] = collections.OrderedDict()
        for file in sorted(storage.list_files(folder), key=lambda file: file.path):
            if file.path.endswith(".parquet"):
                table = read_parquet(folder / file.path, _REMEDY)
                for number, sidecar in enumerate(table["sidecar"].to_pylist()):
                    self._at[sidecar] = (file.path, number)

    def sidecars(self) -> list[str]:
        """URIs of those that were ever written, in the order of their newest parts."""
        return sorted(self._at, key=lambda uri: self._at[uri])

    def state(self, uri: str) -> _State | None:
        """What is known of a sidecar."""
        if uri not in self._at:
            return None
        part, number = self._at[uri]
        if part not in self._parts:
            self._parts[part] = read_parquet(self.folder / part, _REMEDY).to_pylist()
            while len(self._parts) > 4:
                self._parts.popitem(last=False)
        row = self._parts[part][number]
        return _State(row["before"], row["after"], Keywords(tuple(row["flat"]), tuple(row["hierarchical"])))

    def add(self, entries: list[dict[str, Any]]) -> None:
        """Keep some states, before their sidecars are written."""
        if not entries:
            return
        name = f"part-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(entries, _JOURNAL), sink, compression="zstd")
        storage.write_whole(self.folder / name, sink.getvalue().to_pybytes())
        for number, entry in enumerate(entries):
            self._at[entry["sidecar"]] = (name, number)

    def require_writable(self) -> None:
        """Raise JobError where what sidecars were could not be kept."""
        storage.require_writable(self.folder)

    def clear(self) -> None:
        """Forget everything: nothing is there to be undone."""
        for file in list(storage.list_files(self.folder)):
            storage.remove(self.folder / file.path)
