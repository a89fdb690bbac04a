"""Corrected masks come back as a dataset: photographs and masks in VOC's layout, and what was changed in numbers.

    DATASET/corrected/JPEGImages, SegmentationClass, classes.json    what was corrected, pixel by pixel
    DATASET/corrections.csv                                          each image: changed or not, and by how much
    DATASET/corrections.json                                         marks the folder as an import's, and sums it up

`flows/jobs.py` then prepares the same folder as any other dataset (`tasks/datasets/prepare.py`).
"""

import csv
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import annotated_types
import numpy as np
from pydantic import BaseModel

from segcore.annotations.regions import Annotated as AnnotatedImage
from segcore.annotations.regions import Region, has_background, painted
from segcore.datasets.division import VAL_SHARE
from segcore.datasets.label_set import VOID_NAMES
from segcore.images.errors import ImageError
from segcore.images.masks import decode_mask, encode_mask, resize_labels
from segcore.voc import IGNORE_LABEL, MOST_BYTE_CLASSES
from tasks import progress, storage
from tasks.ahead import ahead
from tasks.datasets.layout import IMAGES, MASK_FOLDERS
from tasks.datasets.prepare import DatasetJob, DatasetReport
from tasks.errors import JobError
from tasks.results.export_formats.formats import class_names, upright_jpeg
from tasks.results.export_names import file_names, name_bytes
from tasks.results.photographs import Photographs
from tasks.results.reading import Results, open_results
from tasks.review.correction_files import Source, read_corrections
from tasks.storage import Location

_WORKERS = 4
_BATCH = 32
_FOLDER = "corrected"
_SUMMARY = "corrections.json"
_COLUMNS = ["image_id", "uri", "width", "height", "mask", "mask_width", "mask_height"]
_PNG = b"\x89PNG"


class CorrectionsJob(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Which corrections to bring back, and where to."""

    output: str
    """URI of the results whose masks were corrected."""

    corrections: str
    """File, folder or zip archive that the tool exported."""

    source: Source
    """label-studio: its JSON export; cvat: CVAT for images 1.1; coco: annotations as JSON; png: masks as pictures."""

    dataset: str
    """URI that the dataset is written under: an empty folder, or one of an earlier import."""

    run: str | None = None
    """Run whose masks were corrected; by default the one that finished last."""

    only_changed: bool = False
    """Leave out images whose masks were found to be right."""

    val_share: Annotated[float, annotated_types.Interval(ge=0.0, lt=1.0)] = VAL_SHARE
    """Share of the images that becomes val, by a digest of their names."""

    name: str | None = None
    """Name of the dataset, by default that of its folder."""


class ClassChange(BaseModel, frozen=True, use_attribute_docstrings=True):
    """What became of one class."""

    gained: int
    """Pixels that were another class before."""

    lost: int
    """Pixels that are another class now."""

    kept: int
    """Pixels that have been left as they were."""


class CorrectionsReport(BaseModel, frozen=True, use_attribute_docstrings=True):
    """Who was changed, and by how much."""

    run_id: str
    """Of the run."""

    changed: int
    """Images whose masks differ from the run's in any pixel."""

    unchanged: int
    """Images that were reviewed, and found right in every pixel."""

    not_reviewed: int
    """Images of the run with a mask that nobody has looked at."""

    refused: dict[str, str]
    """Images whose corrections cannot be used, and why."""

    unknown: list[str]
    """Names in the corrections that are no image of the run."""

    pixels: int
    """Of all masks that were reviewed."""

    pixels_changed: int
    """Of those, pixels with another label."""

    classes: dict[str, ClassChange]
    """By name, those in which anything was changed."""

    new_classes: list[str]
    """Classes that the run did not have; they have the labels after the last one."""

    dataset: DatasetReport | None = None
    """What was prepared of it."""

    def told(self) -> str:
        """One sentence."""
        share = self.pixels_changed / max(1, self.pixels)
        masks = "mask" if self.changed == 1 else "masks"
        return (
            f"{self.changed:,} {masks} changed, {self.unchanged:,} left as they were, "
            f"{self.not_reviewed:,} not reviewed; {share:.2%} of the reviewed pixels have another label."
        )


@dataclass(frozen=True)
class _Reviewed:
    """One image whose correction was read."""

    row: dict[str, Any]
    photograph: bytes | ImageError
    size: tuple[int, int]
    """Height and width of the correction."""

    regions: list[Region] | str
    """Or why they cannot be used."""


def collect_corrections(job: CorrectionsJob) -> CorrectionsReport:
    """Write the corrected masks and their photographs as a dataset in VOC's layout, and count what was changed.

    Raises JobError where nothing was reviewed, or the dataset's folder holds something else.
    """
    dataset, output = storage.locate(job.dataset), storage.locate(job.output)
    with storage.explained(output):
        results = open_results(job.output, job.run)
        with_mask = results.to_arrow(["image_id", "mask_width"]).to_pylist()
        image_ids = [row["image_id"] for row in with_mask]
        names = _class_names(results)
    if len(names) > MOST_BYTE_CLASSES:
        raise JobError(
            f"Run {results.run_id} has {len(names)} classes; masks of a dataset have {MOST_BYTE_CLASSES} at most."
        )
    corrections = read_corrections(storage.locate(job.corrections), job.source, image_ids, names)
    reviewed = {image_id: image for image_id, image in corrections.images.items() if image.reviewed}
    if not reviewed:
        found = f"{len(corrections.images)} images of the run are in it, {len(corrections.unknown)} others"
        raise JobError(f"{job.corrections} has no image of run {results.run_id} that was reviewed: {found}.")
    with storage.explained(dataset):
        _require_ours(dataset)
        storage.require_writable(dataset)
        storage.write_whole(dataset / _SUMMARY, json.dumps({"run_id": results.run_id}).encode())
    book = _Book(names, dataset, file_names(sorted(reviewed), ".png", name_bytes(dataset)))
    with storage.explained(dataset), progress.measured("importing", len(reviewed)) as tell:
        for number, item in enumerate(ahead(_decoded, _items(results, reviewed), _WORKERS), 1):
            book.enter(item, job.only_changed)
            tell(number)
        for image_id in reviewed.keys() - book.seen:
            book.refuse(image_id, "the run has no mask of it in its row")
        has_mask = sum(row["mask_width"] is not None for row in with_mask)
        report = book.report(results.run_id, has_mask, corrections.unknown)
        book.close(report)
    if not book.written:
        first = next(iter(report.refused.items()), None)
        why = f"{first[0]}: {first[1]}" if first else "no mask was changed"
        raise JobError(f"No correction of {job.corrections} makes an image of a dataset ({why}).")
    return report


def dataset_job(job: CorrectionsJob) -> DatasetJob:
    """The preparation of what was collected."""
    place = storage.locate(job.dataset)
    return DatasetJob(
        output=job.dataset,
        data=(place / _FOLDER).uri,
        name=job.name or place.name,
        val_share=job.val_share,
        leave_out=True,
    )


class _Book:
    """Paints corrections, compares them with the run's masks, writes both files of each image."""

    def __init__(self, names: dict[int, str], dataset: Location, files: dict[str, str]) -> None:
        self.names, self.known = dict(names), len(names)
        self.labels = {name: label for label, name in names.items()}
        self.empty = 0 if has_background(names) else IGNORE_LABEL
        self.dataset, self.folder, self.files = dataset, dataset / _FOLDER, files
        self.confusion = np.zeros((256, 256), np.int64)
        self.seen: set[str] = set()
        self.written: set[str] = set()
        self.rows: list[tuple[str, str, int, int, str]] = []

    def enter(self, item: _Reviewed, only_changed: bool) -> None:
        row, image_id = item.row, item.row["image_id"]
        self.seen.add(image_id)
        if isinstance(item.regions, str):
            self.refuse(image_id, item.regions)
            return
        try:
            self._learn(item.regions)
            after = painted(item.regions, self.labels, *item.size, self.empty)
        except ValueError as error:
            self.refuse(image_id, str(error))
            return
        before = decode_mask(row["mask"])
        photograph = _sizes(row)[0]
        if item.size not in _sizes(row):
            self.refuse(image_id, _of_another_size(item.size, _sizes(row)))
            return
        if isinstance(item.photograph, ImageError):
            self.refuse(image_id, str(item.photograph))
            return
        pairs = resize_labels(before, *item.size[::-1]).astype(np.int64) * 256 + after
        confusion = np.bincount(pairs.ravel(), minlength=65536).reshape(256, 256)
        self.confusion += confusion
        changed = int(confusion.sum() - np.trace(confusion))
        self.rows.append((image_id, "changed" if changed else "unchanged", changed, after.size, ""))
        if changed or not only_changed:
            self._write(self.files[image_id], item.photograph, resize_labels(after, *photograph[::-1]))

    def refuse(self, image_id: str, reason: str) -> None:
        self.rows.append((image_id, "refused", 0, 0, reason))

    def report(self, run_id: str, has_mask: int, unknown: list[str]) -> CorrectionsReport:
        count = Counter(status for _, status, *_ in self.rows)
        kept = np.diag(self.confusion)
        gained, lost = self.confusion.sum(axis=0) - kept, self.confusion.sum(axis=1) - kept
        told = self.names | {IGNORE_LABEL: "void"}
        classes = {
            told.get(label, f"class {label}"): ClassChange(
                gained=int(gained[label]), lost=int(lost[label]), kept=int(kept[label])
            )
            for label in np.flatnonzero(gained + lost).tolist()
        }
        return CorrectionsReport(
            run_id=run_id,
            changed=count["changed"],
            unchanged=count["unchanged"],
            not_reviewed=has_mask - len(self.seen),
            refused={image_id: reason for image_id, status, _, _, reason in self.rows if status == "refused"},
            unknown=unknown,
            pixels=int(self.confusion.sum()),
            pixels_changed=int(gained.sum()),
            classes=classes,
            new_classes=[name for label, name in self.names.items() if label >= self.known],
        )

    def close(self, report: CorrectionsReport) -> None:
        """Write what the files mean; remove those of an earlier import that are no more."""
        names = json.dumps({str(label): name for label, name in sorted(self.names.items())}, indent=1)
        storage.write_whole(self.folder / "classes.json", f"{names}\n".encode())
        for file in list(storage.list_files(self.folder)):
            if file.path != "classes.json" and file.path not in self.written:
                storage.remove(self.folder / file.path)
        sheet = io.StringIO()
        writer = csv.writer(sheet, lineterminator="\n")
        writer.writerow(["image_id", "status", "pixels_changed", "pixels", "reason"])
        writer.writerows(sorted(self.rows))
        storage.write_whole(self.dataset / "corrections.csv", sheet.getvalue().encode("utf-8", "surrogateescape"))
        summary = report.model_dump(exclude={"dataset"})
        storage.write_whole(self.dataset / _SUMMARY, f"{json.dumps(summary, indent=1)}\n".encode())

    def _learn(self, regions: list[Region]) -> None:
        """Give classes that the run did not have the next labels."""
        folded = {name.casefold() for name in self.labels} | VOID_NAMES | {"background"}
        for region in regions:
            if region.name.casefold() in folded or not region.mask.any():
                continue
            label = 1 + max(self.names, default=0)
            if label >= IGNORE_LABEL:
                raise ValueError(f"{region.name!r} would be class {label}; 254 is the last label that a mask can hold")
            self.names[label] = region.name
            self.labels[region.name] = label
            folded.add(region.name.casefold())

    def _write(self, name: str, photograph: bytes, labels: np.ndarray) -> None:
        ending = "png" if photograph.startswith(_PNG) else "jpg"
        image, mask = f"{IMAGES}/{name}.{ending}", f"{MASK_FOLDERS[1]}/{name}.png"
        storage.write_whole(self.folder / image, photograph if ending == "png" else upright_jpeg(photograph))
        storage.write_whole(self.folder / mask, encode_mask(labels))
        self.written |= {image, mask}


def _items(
    results: Results, reviewed: dict[str, AnnotatedImage]
) -> Iterator[tuple[dict[str, Any], bytes | ImageError, AnnotatedImage]]:
    photographs = Photographs(results)
    rows = (row for row in results.rows_of(list(reviewed), _COLUMNS) if row["mask"] is not None)
    while batch := list(itertools.islice(rows, _BATCH)):
        for row, data in photographs.read(batch):
            yield row, data, reviewed[row["image_id"]]


def _decoded(item: tuple[dict[str, Any], bytes | ImageError, AnnotatedImage]) -> _Reviewed:
    row, photograph, image = item
    if image.width and (image.height, image.width) not in (sizes := _sizes(row)):  # Before anything is decoded
        return _Reviewed(row, photograph, (0, 0), _of_another_size((image.height, image.width), sizes))
    try:
        regions = list(image.regions())
    except ValueError as error:
        return _Reviewed(row, photograph, (0, 0), str(error))
    if regions:
        height, width = regions[0].mask.shape
    elif image.width and image.height:
        height, width = image.height, image.width
    else:  # Everything was erased, and nothing says of which size
        height, width = _sizes(row)[0]
    return _Reviewed(row, photograph, (height, width), regions)


def _sizes(row: dict[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of the photograph, and of its mask."""
    mask = row["mask_height"], row["mask_width"]
    return (row["height"] or mask[0], row["width"] or mask[1]), mask


def _of_another_size(size: tuple[int, int], sizes: tuple[tuple[int, int], tuple[int, int]]) -> str:
    (height, width), _ = sizes
    return f"its correction is of {size[1]} x {size[0]} px, the photograph has {width} x {height}"


def _class_names(results: Results) -> dict[int, str]:
    found: dict[int, str] = {}
    if not results.record.get("class_names"):
        for table in results.tables(["classes"]):
            found |= {c["index"]: c["name"] for row in table["classes"].to_pylist() for c in row or ()}
    return class_names(results.record, found)


def _require_ours(dataset: Location) -> None:
    if storage.is_file(dataset / _SUMMARY):
        return
    first = next(storage.list_files(dataset), None)
    if first is not None:
        raise JobError(f"{dataset.uri} is not empty ({first.path}): give an empty folder, so that nothing is mixed.")
