"""Counts of single images, one row an image: what every figure, subset and bootstrap afterwards is a query over.

They stand in OUTPUT/counts/evaluation=<id>/part-*.parquet, with the masks that they are of.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segcore.metrics import evaluation
from tasks import storage
from tasks.errors import JobError
from tasks.evaluation.evaluate import Evaluation
from tasks.parquet_files import read_parquet, write_parquet
from tasks.storage import Location

_CONFUSION = pa.list_(pa.struct([("truth", pa.uint8()), ("predicted", pa.uint8()), ("pixels", pa.int64())]))
_TRIMAP = pa.list_(
    pa.struct(
        [
            ("distance_px", pa.uint8()),
            ("label", pa.uint8()),
            ("hits", pa.int64()),
            ("truth", pa.int64()),
            ("predicted", pa.int64()),
        ]
    )
)

_FIELDS: dict[str, tuple[pa.DataType, str]] = {
    "image_id": (pa.string(), "identity of the image in its dataset"),
    "width": (pa.int32(), "of the image and its masks, px"),
    "height": (pa.int32(), "of the image and its masks, px"),
    "confusion_without_crf": (_CONFUSION, "pixels by label and what it was taken for, where there are any; no void"),
    "confusion_with_crf": (_CONFUSION, "the same after the CRF; null where it was left out"),
    "trimap_without_crf": (_TRIMAP, "counts by distance from the border, where there are any"),
    "trimap_with_crf": (_TRIMAP, "the same after the CRF; null where it was left out"),
    "mask_without_crf": (pa.binary(), "palette PNG of what was predicted"),
    "mask_with_crf": (pa.binary(), "the same after the CRF; null where it was left out"),
    "device": (pa.string(), "where and in which precision it was scored"),
    "error": (pa.string(), "why the image has no counts"),
}

COUNTS = pa.schema([pa.field(name, kind, metadata={"description": told}) for name, (kind, told) in _FIELDS.items()])
"""Columns of a file of counts."""


@dataclass
class Counts:
    """Counts of single images, in the order of their identities."""

    ids: list[str]
    confusion: dict[str, NDArray[np.int64]]
    """By stage: (N, C, C)."""

    trimap: dict[str, NDArray[np.int64]]
    """By stage: (N, 40, C, 3), by distance."""

    def of(self, stage: str) -> NDArray[np.int64]:
        """(N, C, 3) counts of a stage."""
        return evaluation.counts_of(self.confusion[stage])


def counts_folder(output: Location, evaluation_id: str) -> Location:
    """Folder of the counts of an evaluation."""
    return output / "counts" / f"evaluation={evaluation_id}"


def write_counts(place: Location, rows: list[dict[str, Any]]) -> None:
    """Write one file of counts, whole or not at all."""
    write_parquet(place, pa.Table.from_pylist(rows, schema=COUNTS))


def read_counts(output: Location, of: Evaluation) -> Counts:
    """Counts of every image of an evaluation. Raises JobError where they are gone."""
    folder, num_classes = counts_folder(output, of.id), len(of.classes)
    columns = ["image_id", *(f"{what}_{_column(stage)}" for what in ("confusion", "trimap") for stage in of.stages)]
    rows: dict[str, dict[str, Any]] = {}
    with storage.explained(folder):
        for file in storage.list_files(folder):
            rows |= {row["image_id"]: row for row in _table(folder / file.path, columns).to_pylist()}
    if not rows:
        raise JobError(f"{folder.uri} holds no counts any more: evaluate again.")
    ids = sorted(rows)
    confusion = {stage: np.zeros((len(ids), num_classes, num_classes), np.int64) for stage in of.stages}
    widths = evaluation.TRIMAP_WIDTHS_PX
    trimap = {stage: np.zeros((len(ids), widths, num_classes, evaluation.NUM_COUNTS), np.int64) for stage in of.stages}
    for n, image_id in enumerate(ids):
        for stage in of.stages:
            for cell in rows[image_id][f"confusion_{_column(stage)}"] or ():
                confusion[stage][n, cell["truth"], cell["predicted"]] = cell["pixels"]
            for cell in rows[image_id][f"trimap_{_column(stage)}"] or ():
                trimap[stage][n, cell["distance_px"] - 1, cell["label"]] = (
                    cell["hits"],
                    cell["truth"],
                    cell["predicted"],
                )
    return Counts(ids, confusion, trimap)


def read_masks(output: Location, of: Evaluation, stage: str, ids: list[str]) -> dict[str, bytes]:
    """Predicted masks of some images, palette PNG by identity."""
    folder, column = counts_folder(output, of.id), f"mask_{_column(stage)}"
    found: dict[str, bytes] = {}
    for file in storage.list_files(folder):
        names = _table(folder / file.path, ["image_id"]).column(0).to_pylist()
        if not set(names) & set(ids):
            continue
        for row in _table(folder / file.path, ["image_id", column]).to_pylist():
            if row["image_id"] in ids:
                found[row["image_id"]] = row[column]
    return found


def forget_errors(folder: Location) -> list[tuple[str, str]]:
    """Images without counts with the reasons; their files are removed, so that the next run does them again."""
    errors = []
    for file in list(storage.list_files(folder)):
        table = _table(folder / file.path, ["image_id", "error"])
        bad = [(row["image_id"], row["error"]) for row in table.to_pylist() if row["error"] is not None]
        if bad:
            storage.remove(folder / file.path)
        errors += bad
    return errors


def _column(stage: str) -> str:
    return stage.replace(" ", "_").lower()


def _table(place: Location, columns: list[str]) -> pa.Table:
    return read_parquet(place, "remove it and evaluate again, which judges just its images anew", columns)
