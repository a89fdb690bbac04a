"""A run in the formats of other tools: COCO with RLE, a tree of palette PNG, the layout of PASCAL VOC.

One mask file of the run, or one row group of a large one, is exported at a time, and leaves a fragment with its counts:
what has a fragment is not done again. A fragment's name is a function of the run as it stands, so nothing old is mixed
with anything new.
"""

import collections
import contextlib
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import ExifTags, Image, UnidentifiedImageError
from pydantic import BaseModel

from segcore import voc
from segcore.images.decoding import MAX_PIXELS, ImageError, decode
from segcore.images.rle import encode_coco
from tasks import storage
from tasks.ahead import ahead
from tasks.archive.stored_content import StoredContent
from tasks.errors import JobError
from tasks.results.export_names import file_names, name_bytes
from tasks.results.photographs import Photographs
from tasks.results.reading import Piece, Results, open_results
from tasks.storage import Location

_WORKERS = 4
_COPY_BYTES = 8 << 20
_COLUMNS = ["image_id", "uri", "mask", "mask_file", "mask_width", "mask_height", "classes"]
_FRAGMENTS = "export-parts"
_LAYOUT = 2  # Raised when the same run gives other files

NAMES = "names.jsonl"
"""Which file is of which image: a JSON object with name, image_id and uri a line."""

SUMMARY = "export.json"
"""Written last: its existence means that the export is complete."""


class ExportJob(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """What to export, as what, and where to."""

    output: str
    """URI of the results."""

    to: Literal["coco", "png", "voc"]
    """coco: annotations.json with compressed RLE; png: a tree of palette PNG; voc: the folders of PASCAL VOC."""

    destination: str
    """Folder or prefix, empty or with an unfinished export of the same run."""

    run: str | None = None
    """Run to export; by default the one that finished last."""

    photographs: bool = False
    """Copy the photographs too: images/ of COCO, JPEGImages/ of VOC. Not for png."""

    ids: str | None = None
    """File with the identities of the images to export, one a line, as the gallery saves them; by default all."""


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
    """Regions of COCO; background has none."""

    photographs: int = 0
    photographs_missing: int = 0
    """Photographs that could not be read any more."""

    classes: dict[str, int] = field(default_factory=dict)
    """Labels by name."""

    too_large: int = 0
    """Masks beside their rows that have too many pixels for COCO's run lengths."""

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
        if job.photographs and job.to == "png":
            raise JobError("A tree of PNG masks has no place for photographs; use --to voc or --to coco.")
        counts = [piece.rows for piece in results.pieces]
    wanted = None if job.ids is None else _read_ids(storage.locate(job.ids), results)
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
        return writer.write(results.pieces[number], int(first_rows[number]), place)

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
        writer.finish(report, fragments)
        report.seconds = time.monotonic() - start
        facts = {name: value for name, value in vars(report).items() if name not in ("destination", "done_before")}
        storage.write_whole(destination / SUMMARY, f"{json.dumps({'key': key, **facts}, indent=1)}\n".encode())
        for place in fragments:
            storage.remove(place)
    return report


class _Writer:
    """What one format does with one piece of the run, and at the end."""

    def __init__(self, job: ExportJob, results: Results, destination: Location, wanted: frozenset[str] | None) -> None:
        self.job, self.results, self.destination = job, results, destination
        self.wanted = None if wanted is None else pa.array(sorted(wanted), pa.string())
        self.photographs = Photographs(results) if job.photographs else None
        self.few_classes = len(results.record.get("class_names") or ()) <= voc.MOST_BYTE_CLASSES
        self.names: dict[str, str] = {}
        if job.to != "coco" or job.photographs:
            ids = results.to_arrow(["image_id"])["image_id"].to_pylist()
            ids = ids if wanted is None else [image_id for image_id in ids if image_id in wanted]
            self.names = file_names(ids, None if job.to == "coco" else ".png", name_bytes(destination))

    def write(self, piece: Piece, first_row: int, place: Location) -> dict[str, Any]:
        """Export the rows of one piece, then leave its fragment; returns its counts."""
        tally: collections.Counter[str] = collections.Counter()
        classes: dict[str, int] = {}
        lines: tuple[list[str], list[str]] = ([], [])
        rows = self._rows(piece)
        with_mask = [(first_row + offset, row) for offset, row in rows if row["mask_width"] is not None]
        tally["without_mask"] = len(rows) - len(with_mask)
        for number, row in with_mask:
            classes |= {c["name"]: c["index"] for c in row["classes"]}
            tally["masks"] += 1
            name = self.names.get(row["image_id"])
            if name is not None and self.job.to != "coco":
                folder = self.destination / "SegmentationClass" if self.job.to == "voc" else self.destination
                beside = self.results.output.label_file(row)
                if beside is None:
                    storage.write_whole(folder / f"{name}.png", row["mask"], durable=False)
                else:
                    _copy(beside, folder / f"{name}.tif")
                lines[0].append(name)
                lines[1].append(json.dumps({"name": name, "image_id": row["image_id"], "uri": row["uri"]}))
            else:
                labels = None
                if row["mask_file"] is None or row["mask_width"] * row["mask_height"] <= MAX_PIXELS:
                    labels = self.results.labels_of(row)
                tally["too_large"] += labels is None
                file = None if name is None else f"images/{name}"
                image, annotations = _coco(number + 1, row, labels, file, 256 if self.few_classes else 65536)
                lines[0].append(json.dumps(image))
                lines[1].extend(json.dumps(annotation) for annotation in annotations)
                tally["annotations"] += len(annotations)
        if self.photographs is not None:
            self._copy_photographs(self.photographs, [row for _, row in with_mask], tally)
        fragment = {"tally": tally, "classes": classes, "lines": lines}
        storage.write_whole(place, json.dumps(fragment).encode(), durable=False)
        return {**tally, "classes": classes}

    def _rows(self, piece: Piece) -> list[tuple[int, dict[str, Any]]]:
        """The rows of a piece that are exported, each with its number in it."""
        if self.wanted is None:
            return list(enumerate(Results.read_piece(piece, _COLUMNS).to_pylist()))
        numbers = np.flatnonzero(pc.is_in(Results.read_piece(piece, ["image_id"])["image_id"], self.wanted).to_numpy())
        if not len(numbers):
            return []
        table = Results.read_piece(piece, _COLUMNS).take(pa.array(numbers))
        return list(zip(numbers.tolist(), table.to_pylist(), strict=True))

    def finish(self, report: ExportReport, fragments: list[Location]) -> None:
        """Join what the fragments hold."""
        classes = dict(sorted(report.classes.items(), key=lambda item: item[1]))
        if self.job.to == "coco":
            storage.write_stream(
                self.destination / "annotations.json", _coco_document(self.results, classes, fragments)
            )
            return
        storage.write_whole(self.destination / "labelmap.txt", _labelmap(self.results.record, classes).encode())
        if self.job.to == "voc":
            sets = self.destination / "ImageSets/Segmentation"
            storage.write_stream(sets / "all.txt", (f"{line}\n".encode() for line in _lines(fragments, 0)))
        storage.write_stream(self.destination / NAMES, (f"{line}\n".encode() for line in _lines(fragments, 1)))

    def _copy_photographs(
        self, photographs: Photographs, rows: list[dict[str, Any]], tally: collections.Counter[str]
    ) -> None:
        for row, data in photographs.read(rows):
            if isinstance(data, ImageError) or (self.job.to == "voc" and row["mask_file"] is not None):
                tally["photographs_missing"] += 1  # Or has more pixels than a JPEG of VOC's
                continue
            if self.job.to == "voc":
                place = self.destination / f"JPEGImages/{self.names[row['image_id']]}.jpg"
                data = _upright_jpeg(data)
            else:
                place = self.destination / f"images/{self.names[row['image_id']]}"
            if isinstance(data, StoredContent):
                _copy(data.place, place)
            else:
                storage.write_whole(place, data, durable=False)
            tally["photographs"] += 1


def _labelmap(record: dict[str, Any], found: dict[str, int]) -> str:
    """Every class in the order of labels with its colour in the palette: `name:red,green,blue::`, CVAT's form.

    record: of the run; its classes are those of the model. found: labels by name of the classes that are in a mask.
    """
    names = dict(enumerate(record.get("class_names") or ()))
    if any(names.get(label) != name for name, label in found.items()):  # A run of before records named them
        by_label = {label: name for name, label in found.items()}
        agrees = all(label < len(voc.CLASSES) and voc.CLASSES[label] == name for label, name in by_label.items())
        others = dict(enumerate(voc.CLASSES)) if agrees else {n: f"class {n}" for n in range(max(by_label, default=0))}
        names = others | by_label
    colours = voc.palette(max([256, *(label + 1 for label in names)]))
    lines = []
    for label, name in sorted(names.items()):
        red, green, blue = colours[label]
        plain = " ".join("".join(c if c.isprintable() and c not in ":#" else " " for c in name).split())
        lines.append(f"{plain or f'class {label}'}:{red},{green},{blue}::")
    return "# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n"


def _copy(source: Location, destination: Location) -> None:
    with storage.open_for_reading(source) as opened:
        storage.write_stream(destination, iter(lambda: opened.read(_COPY_BYTES), b""))


def _coco(
    number: int, row: dict[str, Any], labels: np.ndarray | None, file: str | None, each: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An image and its regions. Ids are functions of the row's number in the run, so that fragments need no counter.

    labels: (H, W); None: too large, and it has no regions. file: path of its copy; None: it has none, and is named by
        its identity. each: ids of an image, more than its largest label.
    """
    height, width = row["mask_height"], row["mask_width"]
    facts = {"width": width, "height": height, "uri": row["uri"], "identity": row["image_id"]}
    image = {"id": number, "file_name": row["image_id"] if file is None else file, **facts}
    encoded = {} if labels is None else encode_coco(labels)
    annotations: list[dict[str, Any]] = []
    for found in row["classes"] if labels is not None else ():
        if _is_background(found["name"], found["index"]):
            continue
        box = found["box"]
        annotations.append(
            {
                "id": number * each + found["index"],
                "image_id": number,
                "category_id": found["index"],
                "segmentation": {"size": [height, width], "counts": encoded[found["index"]].decode("ascii")},
                "area": found["pixels"],
                "bbox": [box["x0"], box["y0"], box["x1"] - box["x0"], box["y1"] - box["y0"]],
                "iscrowd": 0,
                "score": round(found["confidence"], 5),
            }
        )
    return image, annotations


def _coco_document(results: Results, classes: dict[str, int], fragments: list[Location]) -> Iterator[bytes]:
    """annotations.json, streamed: fragments are read twice rather than held."""
    about = {"description": f"run {results.run_id} of model {results.record.get('model')}", "version": "1.0"}
    categories = [
        {"id": label, "name": name, "supercategory": ""}
        for name, label in classes.items()
        if not _is_background(name, label)
    ]
    yield f'{{"info": {json.dumps(about)},\n"licenses": [],\n"categories": {json.dumps(categories)}'.encode()
    for which, name in enumerate(("images", "annotations")):
        yield f',\n"{name}": ['.encode()
        for number, line in enumerate(_lines(fragments, which)):
            yield f"{',' if number else ''}\n{line}".encode()
        yield b"]"
    yield b"}\n"


def _lines(fragments: list[Location], which: int) -> Iterator[str]:
    for data in ahead(storage.read_bytes, fragments, _WORKERS):
        yield from json.loads(data)["lines"][which]


def _is_background(name: str, label: int) -> bool:
    return label == 0 and name == "background"


def _upright_jpeg(data: bytes) -> bytes:
    """A photograph as JPEG whose pixels lie as its mask does: its own bytes where they do already."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.format == "JPEG" and opened.getexif().get(ExifTags.Base.Orientation, 1) == 1:
                return data
    except (UnidentifiedImageError, OSError):
        pass
    buffer = io.BytesIO()
    Image.fromarray(decode(data).image).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def _read_ids(place: Location, results: Results) -> frozenset[str]:
    """The identities of a list; those with line breaks are written as JSON strings."""
    with storage.explained(place):
        text = storage.read_bytes(place).decode("utf-8-sig", errors="replace")
    ids = set()
    for line in text.split("\n"):
        line = line.rstrip("\r")
        with contextlib.suppress(ValueError):
            line = json.loads(line) if line.startswith('"') and isinstance(json.loads(line), str) else line
        if line.strip():
            ids.add(line)
    missing = sorted(ids - set(results.to_arrow(["image_id"])["image_id"].to_pylist()))
    if not ids or missing:
        named = f"{len(missing)} images that run {results.run_id} has not: {', '.join(missing[:5])}"
        raise JobError(
            f"{place.uri} lists {named if ids else 'no images'}. Identities are paths relative to the source."
        )
    return frozenset(ids)


def _key(job: ExportJob, results: Results, wanted: frozenset[str] | None) -> str:
    """Names an export of this run as it stands now."""
    files = [(file.place.name, file.size, file.version) for file in results.files]
    chosen = None if wanted is None else sorted(wanted)
    text = json.dumps([_LAYOUT, results.run_id, job.to, job.photographs, chosen, files])
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
