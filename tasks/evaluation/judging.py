"""Every image of an evaluation judged once, by either engine.

Images go through the units of the archive (`tasks/stream/worker.py`); the last step alone is another one, which counts
pixels instead of storing masks for good.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from segcore.crf.dense_crf import Refined
from segcore.images import masks
from segcore.images.errors import ErrorKind, ImageError
from segcore.images.masks import resize_labels
from segcore.metrics import evaluation
from segcore.metrics.evaluation import Around
from segcore.models import checkpoint
from segcore.predictor import PredictParams
from segcore.scoring.inference import ScoreMap, relative_work
from tasks import engines, progress, storage
from tasks.archive.entry_bytes import read_entries
from tasks.archive.sources import Source, list_source
from tasks.datasets.shards import Split
from tasks.errors import JobError
from tasks.evaluation.counts import COUNTS, counts_folder, forget_errors, read_counts, write_counts
from tasks.evaluation.evaluate import Evaluation, ReevaluateJob, open_dataset
from tasks.evaluation.record import read_record, write_record
from tasks.models.remote import local_model
from tasks.storage import Location
from tasks.stream.isolation import limits_of
from tasks.stream.meter import Meter
from tasks.stream.rows import MaskRows
from tasks.stream.units import Destination, MaskParams, Record, Unit, mask_file
from tasks.stream.worker import UnitWork

UNIT_IMAGES = 16
"""Images of one file of counts: what a killed evaluation does again at most, for each worker."""


def evaluate(job: ReevaluateJob, asked: Evaluation) -> dict[str, Any]:
    """Judge every image that has no counts yet, and write the figures; returns the record. Nothing is done twice.

    Raises JobError where an image could not be judged: figures of fewer images would be other figures.
    """
    output = storage.locate(job.output)
    record = read_record(output, asked.id)
    if record:
        return record
    _, split = open_dataset(job)
    folder = counts_folder(output, asked.id)
    source = storage.locate(job.dataset)
    destination = JudgeDestination(folder, asked.id, source, around=asked.around)
    params = MaskParams(
        model=asked.uri,
        untrained=False,
        seed=0,
        model_name=asked.shown_name,
        model_digest=asked.digest,
        classes=asked.classes,
        predict=PredictParams(asked.inference, asked.crf, asked.crf_engine),
        keep_mask_before_crf=True,
        limits=limits_of(relative_work(asked.inference, checkpoint.describe(local_model(asked.uri))[0].parameters)),
    )
    with storage.explained(output):
        done = {file.path for file in storage.list_files(folder)}
    units = [unit for unit in _units(source, split) if mask_file(unit.name) not in done]
    if units:
        _require_loadable(asked)
    tracker = progress.Tracker(
        split.images, split.images - sum(len(unit.entries) for unit in units), title="evaluating"
    )
    try:
        with engines.at_hand(job.engine) as engine:
            for report in engine.units(units, UnitWork(params, destination, Judge), Meter(asked.id)):
                tracker.advance(report.images, report.errors.total())
    except JobError as error:
        raise type(error)(f"{asked.model} could not be evaluated: {str(error).rstrip('.')}.") from error
    finally:
        tracker.end()
    errors = forget_errors(folder)
    if errors:
        name, reason = errors[0]
        raise JobError(
            f"{len(errors)} of {split.images} images could not be judged, the first {name}: {reason.rstrip('.')}."
        )
    counts = read_counts(output, asked)
    if len(counts.ids) != split.images:
        raise JobError(
            f"{folder.uri} holds counts of {len(counts.ids)} images, the split has {split.images}: remove that folder."
        )
    return write_record(output, asked, counts)


def _require_loadable(asked: Evaluation) -> None:
    """Find a broken model here, in one sentence, rather than in every worker."""
    try:
        checkpoint.load(local_model(asked.uri))
    except ValueError as error:
        raise JobError(str(error)) from None


def _units(source: Location, split: Split) -> Iterator[Unit]:
    """Equal slices of every file, named by file and place, so that every session cuts alike."""
    for number, file in enumerate(split.files):
        entries = list(list_source(Source(source / file.path, "id", "image")))
        for start in range(0, len(entries), UNIT_IMAGES):
            yield Unit(f"{number:05d}-{start:06d}", tuple(entries[start : start + UNIT_IMAGES]))


@dataclass(frozen=True)
class JudgeDestination(Destination):
    """Where counts go, and what the trimaps are around."""

    around: Around = "void"


class Judge(MaskRows):
    """Last step: refines as the archive does, and counts instead of storing masks for good."""

    what = "judging"
    destination: JudgeDestination

    def control(self) -> None:
        """None: an image that is judged needs a true mask."""

    def begin(self, records: list[Record]) -> None:
        """Read the true masks of the unit: another column of the rows that the images are from."""
        wanted = [dataclasses.replace(record.entry, note="mask") for record in records if not record.error]
        self.truth = {entry.image_id: data for entry, data in read_entries(self.destination.source, wanted)}

    def base_row(self, record: Record) -> dict[str, Any]:
        """Identity, size and error of an image."""
        row: dict[str, Any] = dict.fromkeys(COUNTS.names)
        row |= {"image_id": record.entry.image_id, "width": record.width or None, "height": record.height or None}
        return row | {"error": str(record.error) if record.error is not None else None}

    def columns(self, record: Record, image: np.ndarray, scores: np.ndarray, device: str) -> dict[str, Any]:
        """Counts of an image, and the masks that they are of."""
        return self.columns_of(record, self.predictor.refine(image, ScoreMap(scores, record.extent_px)), device)

    def columns_of(self, record: Record, refined: Refined, device: str) -> dict[str, Any]:
        """The same of its labels at working size."""
        data = self.truth[record.entry.image_id]
        if isinstance(data, ImageError):
            raise data
        truth = masks.decode_mask(data)
        if truth.shape != (record.height, record.width):
            raise ImageError(
                ErrorKind.FAILED,
                f"its mask is {truth.shape[1]} x {truth.shape[0]} px, it {record.width} x {record.height}",
            )
        columns = judged(
            truth, refined, self.params.predict.crf is not None, len(self.params.classes), self.destination.around
        )
        return columns | {"device": device}

    def commit(self, unit: str, rows: list[dict[str, Any]]) -> None:
        """Write the counts of a unit, whole or not at all."""
        write_counts(self.destination.file_of(unit), rows)


def judged(truth: np.ndarray, refined: Refined, with_crf: bool, num_classes: int, around: Around) -> dict[str, Any]:
    """The columns of counts of one image.

    truth: (H, W) uint8. refined: labels at the size that they were scored at; they go to the size of the truth by
        nearest, as an archive's masks go to the size of the photograph.
    """
    height, width = truth.shape
    distance = evaluation.border_distance(truth, around)
    columns: dict[str, Any] = {}
    stages = {"without_crf": refined.labels_before} | ({"with_crf": refined.labels} if with_crf else {})
    for stage, labels in stages.items():
        labels = resize_labels(labels, width, height)
        confusion = evaluation.confusion_matrix(truth, labels, num_classes)
        trimap = evaluation.trimap_counts(truth, labels, num_classes, around, distance)
        columns[f"confusion_{stage}"] = [
            {"truth": int(t), "predicted": int(p), "pixels": int(confusion[t, p])}
            for t, p in zip(*np.nonzero(confusion), strict=True)
        ]
        columns[f"trimap_{stage}"] = [
            dict(
                zip(
                    ("distance_px", "label", "hits", "truth", "predicted"),
                    (int(d) + 1, int(c), *map(int, trimap[d, c])),
                    strict=True,
                )
            )
            for d, c in zip(*np.nonzero(trimap.any(axis=-1)), strict=True)
        ]
        columns[f"mask_{stage}"] = masks.encode_mask(labels)
    return columns
