"""A run, or what a question finds in it, in the formats of other tools; `export_formats/` has a file for each.

One mask file of the run, or one row group of a large one, is exported at a time, and leaves a fragment with its counts:
what has a fragment is not done again. A fragment's name is a function of the run as it stands, so nothing old is mixed
with anything new.
"""

import contextlib
import csv
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import annotated_types
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks import storage
from tasks.ahead import ahead
from tasks.errors import JobError
from tasks.results.export_formats.coco import Coco
from tasks.results.export_formats.cvat import Cvat
from tasks.results.export_formats.folders import PngTree, VocLayout
from tasks.results.export_formats.formats import Export, Format, Picture
from tasks.results.export_formats.hf import HuggingFace
from tasks.results.export_formats.label_studio import LabelStudio
from tasks.results.export_formats.yolo import Yolo
from tasks.results.export_names import file_names, name_bytes
from tasks.results.photographs import Photographs
from tasks.results.query import FindJob, find
from tasks.results.reading import Piece, Results, open_results
from tasks.storage import Location

_WORKERS = 4
_COLUMNS = [
    *("image_id", "uri", "width", "height", "mask", "mask_file", "mask_width", "mask_height"),
    *("classes", "confidence", "model"),
]
_FRAGMENTS = "export-parts"
_LAYOUT = 2  # Raised when the same run gives other files

_FORMATS: dict[str, type[Format]] = {
    "coco": Coco,
    "cvat": Cvat,
    "hf": HuggingFace,
    "label-studio": LabelStudio,
    "png": PngTree,
    "voc": VocLayout,
    "yolo": Yolo,
}
_WITH_POLYGONS = ("coco", "cvat", "label-studio")

SUMMARY = "export.json"
"""Written last: its existence means that the export is complete."""


class ExportJob(FindJob, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """What to export, as what, and where to; where a question is put, only the images that it finds."""

    output: str
    """URI of the results."""

    to: Literal["coco", "cvat", "hf", "label-studio", "png", "voc", "yolo"]
    """coco: annotations.json with compressed RLE; cvat: CVAT for images 1.1; hf: Parquet for `datasets`; label-studio:
    tasks with predictions; png: a tree of palette PNG; voc: the folders of PASCAL VOC; yolo: segment polygons."""

    destination: str
    """Folder or prefix, empty or with an unfinished export of the same run."""

    run: str | None = None
    """Run to export; by default the one that finished last."""

    photographs: bool = False
    """Copy the photographs too: images/, or JPEGImages/ of VOC. Not for png; hf has them always."""

    shapes: Literal["masks", "polygons"] = "masks"
    """How coco, cvat and label-studio draw regions: every pixel, or polygons; yolo has polygons always."""

    tolerance_px: Annotated[float, annotated_types.Interval(ge=0, le=100)] = 1.0
    """How far a polygon may be from the outline of its region; 0 keeps every pixel, with many points."""

    images_at: str | None = None
    """Address at which Label Studio finds the photographs, before their names; by default images/ of the export below
    its document root where they are copied, else where they were read."""

    ids: str | None = None
    """File with the identities of the images to export: one a line, as the gallery saves them, or what `find --to`
    wrote; by default all."""

    @property
    def question(self) -> FindJob | None:
        """What is looked for; None: every image."""
        asked = FindJob(**{name: getattr(self, name) for name in FindJob.model_fields})
        return None if asked == FindJob() else asked


@dataclass
class ExportReport:
    """What was exported: `masks` is the number of images that have one."""

    run_id: str
    format: str
    destination: str
    masks: int = 0
    without_mask: int = 0
    """Error rows: they have nothing to export."""

    annotations: int = 0
    """Regions; background has none, and png, voc and hf have no regions."""

    photographs: int = 0
    photographs_missing: int = 0
    """Photographs that could not be read any more."""

    classes: dict[str, int] = field(default_factory=dict)
    """Labels by name."""

    too_large: int = 0
    """Masks beside their rows that have too many pixels for regions, and are left out."""

    done_before: int = 0
    """Masks that an earlier session had exported."""

    seconds: float = 0.0


def export_run(job: ExportJob, advance: Callable[[int, int], None] | None = None) -> ExportReport:
    """Export one run. advance: told how many rows are done, of how many.

    Raises JobError where the run is not finished, or the destination holds something else.
    """
    start = time.monotonic()
    output, destination = storage.locate(job.output), storage.locate(job.destination)
    with storage.explained(output):
        results = open_results(job.output, job.run)
        if not results.is_finished:
            raise JobError(f"Run {results.run_id} is not finished: export it when every image has its row.")
        _require_sense(job)
        counts = [piece.rows for piece in results.pieces]
    wanted = _wanted(job, results)
    with storage.explained(destination):
        key = _key(job, results, wanted)
        before = _finished_before(destination, key)
        if before is not None:
            return before
        _require_ours(destination)
        storage.require_writable(destination)
        done = {f.path for f in storage.list_files(destination / _FRAGMENTS)}
    writer = _Writer(job, results, destination, wanted)
    report = ExportReport(results.run_id, job.to, destination.uri)
    rows_done, num_rows = 0, sum(counts)
    first_rows = np.concatenate([[0], np.cumsum(counts)])

    def write(number: int) -> dict[str, Any]:
        place = destination / _FRAGMENTS / _fragment(key, number)
        if place.name in done:
            return _read_tally(place, before=True)
        return writer.write(number, int(first_rows[number]), place)

    with storage.explained(destination):
        for number, tally in enumerate(ahead(write, range(len(results.pieces)), _WORKERS)):
            _add(report, tally)
            rows_done += counts[number]
            if advance is not None:
                advance(rows_done, num_rows)
        if wanted is None and report.masks != results.record.get("masks", report.masks):
            raise JobError(
                f"Run {results.run_id} has {results.record['masks']} masks by its record, but {report.masks} were "
                "exported: did somebody else write there? Run the archive job again, then the export."
            )
        fragments = [destination / _FRAGMENTS / _fragment(key, number) for number in range(len(results.pieces))]
        classes = dict(sorted((label, name) for name, label in report.classes.items()))
        writer.format.finish(classes, lambda which: _lines(fragments, which))
        report.seconds = time.monotonic() - start
        facts = {name: value for name, value in vars(report).items() if name not in ("destination", "done_before")}
        storage.write_whole(destination / SUMMARY, f"{json.dumps({'key': key, **facts}, indent=1)}\n".encode())
        for place in fragments:
            storage.remove(place)
    return report


class _Writer:
    """Gives a format the images of one piece of the run, and keeps what comes of it."""

    def __init__(self, job: ExportJob, results: Results, destination: Location, wanted: frozenset[str] | None) -> None:
        self.results = results
        self.wanted = None if wanted is None else pa.array(sorted(wanted), pa.string())
        kind = _FORMATS[job.to]
        with_photographs = job.photographs or kind.needs_photographs
        tolerance_px = job.tolerance_px if job.shapes == "polygons" or kind is Yolo else None
        self.format = kind(
            Export(destination, results.run_id, results.record, with_photographs, tolerance_px, job.images_at)
        )
        self.photographs = Photographs(results) if with_photographs else None
        self.names: dict[str, str] = {}
        if kind.names_files or (with_photographs and not kind.needs_photographs):
            ids = results.to_arrow(["image_id"])["image_id"].to_pylist()
            ids = ids if wanted is None else [image_id for image_id in ids if image_id in wanted]
            self.names = file_names(ids, kind.suffix, name_bytes(destination))

    def write(self, number: int, first_row: int, place: Location) -> dict[str, Any]:
        """Export the rows of one piece, then leave its fragment; returns its counts."""
        rows = self._rows(self.results.pieces[number])
        with_mask = [(first_row + offset, row) for offset, row in rows if row["mask_width"] is not None]
        written = self.format.write(self._pictures(with_mask), number)
        written.tally["without_mask"] = len(rows) - len(with_mask)
        written.tally["masks"] = len(with_mask)
        classes = {c["name"]: c["index"] for _, row in with_mask for c in row["classes"]}
        fragment = {"tally": written.tally, "classes": classes, "lines": written.lines}
        storage.write_whole(place, json.dumps(fragment).encode(), durable=False)
        return {**written.tally, "classes": classes}

    def _pictures(self, rows: list[tuple[int, dict[str, Any]]]) -> Iterator[Picture]:
        only = [row for _, row in rows]
        read = (data for _, data in self.photographs.read(only)) if self.photographs is not None else None
        for number, row in rows:
            name = self.names.get(row["image_id"], row["image_id"])
            yield Picture(number, row, name, None if read is None else next(read), self.results)

    def _rows(self, piece: Piece) -> list[tuple[int, dict[str, Any]]]:
        """The rows of a piece that are exported, each with its number in it."""
        if self.wanted is None:
            return list(enumerate(Results.read_piece(piece, _COLUMNS).to_pylist()))
        numbers = np.flatnonzero(pc.is_in(Results.read_piece(piece, ["image_id"])["image_id"], self.wanted).to_numpy())
        if not len(numbers):
            return []
        table = Results.read_piece(piece, _COLUMNS).take(pa.array(numbers))
        return list(zip(numbers.tolist(), table.to_pylist(), strict=True))


def _lines(fragments: list[Location], which: int) -> Iterator[str]:
    for data in ahead(storage.read_bytes, fragments, _WORKERS):
        yield from json.loads(data)["lines"][which]


def _require_sense(job: ExportJob) -> None:
    if job.photographs and not _FORMATS[job.to].takes_photographs:
        raise JobError("A tree of PNG masks has no place for photographs; use --to voc or --to coco.")
    if job.shapes == "polygons" and job.to not in (*_WITH_POLYGONS, "yolo"):
        raise JobError(f"Masks of {job.to} are pictures; polygons are for --to {', '.join(_WITH_POLYGONS)} and yolo.")
    if job.images_at is not None and job.to != "label-studio":
        raise JobError("--images-at is for --to label-studio, whose tasks hold addresses of photographs.")


def _wanted(job: ExportJob, results: Results) -> frozenset[str] | None:
    """The identities of the images to export; None: all."""
    wanted = None if job.ids is None else _read_ids(storage.locate(job.ids), results)
    if (question := job.question) is None:
        return wanted
    answer = find(job.output, question, results.run_id)
    where = answer.columns.index("image_id")
    found = frozenset(str(row[where]) for row in answer.rows())
    found = found if wanted is None else found & wanted
    if not found:
        raise JobError(f"No image of run {results.run_id} is what was asked for: there is nothing to export.")
    return found


def _read_ids(place: Location, results: Results) -> frozenset[str]:
    """The identities of a list; those with line breaks are written as JSON strings."""
    with storage.explained(place):
        data = storage.read_bytes(place)
    ending = PurePosixPath(place.path).suffix.lower()
    try:
        answer = _answer(data, ending)
    except (ValueError, KeyError, TypeError, pa.ArrowException):
        raise JobError(f"{place.uri} has no column image_id: is it what `find --to` wrote?") from None
    ids = set(_lines_of(data)) if answer is None else set(answer)
    missing = sorted(ids - set(results.to_arrow(["image_id"])["image_id"].to_pylist()))
    if not ids or missing:
        named = f"{len(missing)} images that run {results.run_id} has not: {', '.join(missing[:5])}"
        raise JobError(
            f"{place.uri} lists {named if ids else 'no images'}. Identities are paths relative to the source."
        )
    return frozenset(ids)


def _answer(data: bytes, ending: str) -> list[str] | None:
    """Identities in a table that `find --to` wrote; None where the file is no table."""
    if ending == ".parquet":
        return [str(i) for i in pq.read_table(pa.BufferReader(data), columns=["image_id"])["image_id"].to_pylist()]
    if ending == ".json":
        return [str(row["image_id"]) for row in json.loads(data)]
    if ending == ".csv":
        text = io.StringIO(data.decode("utf-8-sig"), newline="")
        return [row["image_id"] for row in csv.DictReader(text)]
    return None


def _lines_of(data: bytes) -> Iterator[str]:
    for line in data.decode("utf-8-sig", errors="replace").split("\n"):
        line = line.rstrip("\r")
        with contextlib.suppress(ValueError):
            line = json.loads(line) if line.startswith('"') and isinstance(json.loads(line), str) else line
        if line.strip():
            yield line


def _key(job: ExportJob, results: Results, wanted: frozenset[str] | None) -> str:
    """Names an export of this run as it stands now."""
    files = [(file.place.name, file.size, file.version) for file in results.files]
    chosen = None if wanted is None else sorted(wanted)
    facts = [_LAYOUT, results.run_id, job.to, job.photographs, chosen, files]
    others = [job.shapes, job.tolerance_px, job.images_at]
    if job.to not in ("png", "voc") and others != ["masks", 1.0, None]:
        facts += others
    text = json.dumps(facts)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _fragment(key: str, number: int) -> str:
    return f"{key}-{number:06d}.json"


def _read_tally(place: Location, *, before: bool) -> dict[str, Any]:
    fragment = json.loads(storage.read_bytes(place))
    done_before = fragment["tally"].get("masks", 0) if before else 0
    return {**fragment["tally"], "classes": fragment["classes"], "done_before": done_before}


def _add(report: ExportReport, tally: dict[str, Any]) -> None:
    report.classes.update(tally.pop("classes"))
    for name, count in tally.items():
        setattr(report, name, getattr(report, name) + count)


def _finished_before(destination: Location, key: str) -> ExportReport | None:
    try:
        summary = json.loads(storage.read_bytes(destination / SUMMARY))
    except FileNotFoundError:
        return None
    except ValueError:
        summary = {}
    if summary.pop("key", None) != key:
        raise JobError(
            f"{destination.uri} holds an export of something else, or of the run as it was: give an empty folder."
        )
    return ExportReport(destination=destination.uri, done_before=summary["masks"], **summary)


def _require_ours(destination: Location) -> None:
    first = next(storage.list_files(destination), None)
    if first is not None and next(storage.list_files(destination / _FRAGMENTS), None) is None:
        raise JobError(
            f"{destination.uri} is not empty ({first.path}): give an empty folder, so that nothing is mixed."
        )
