"""Two runs of one output against each other: agreement per class, and the images that changed most.

Neither run is the truth. Streams along the pieces of the first run; of the second a few pieces are held, since runs of
one source share their parts.
"""

import heapq
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segcore.images.masks import resize_labels
from segcore.metrics.evaluation import count_pixels, iou
from tasks import storage
from tasks.ahead import ahead
from tasks.errors import JobError
from tasks.results.reading import Piece, Results, open_results

_WORKERS = 4
_LABELS = 65_536
_COLUMNS = ["image_id", "mask", "mask_file", "error_kind", "entropy", "classes"]

CHANGES = pa.schema(
    [
        ("image_id", pa.string()),
        ("disagreement", pa.float32()),
        ("label_a", pa.string()),
        ("label_b", pa.string()),
        ("entropy_a", pa.float32()),
        ("entropy_b", pa.float32()),
    ]
)
"""One row per image with a mask in both runs: share of pixels that differ, 0..1, and the most frequent change."""


@dataclass
class ClassAgreement:
    """One class in both runs, over all images that both have a mask of."""

    agreement: float | None
    """IoU between the two runs, 0..1; None where neither has it."""

    pixels_a: int
    pixels_b: int


@dataclass
class DiffReport:
    """How two runs differ."""

    run_a: str
    run_b: str
    images: int = 0
    """Images with a mask in both."""

    only_a: int = 0
    """Images with a mask in the first run alone."""

    only_b: int = 0
    equal: int = 0
    """Images whose masks are the same in every pixel."""

    agreement: float = 1.0
    """Share of pixels with the same label, over all images in both."""

    classes: dict[str, ClassAgreement] = field(default_factory=dict)
    """By name; least agreement first."""

    changed_most: list[tuple[str, float]] = field(default_factory=list)
    """Identity and share of pixels that differ, most first."""

    folder: str = ""
    """Where images.parquet and diff.json are."""


def diff_runs(
    output: str, run_a: str, run_b: str, *, most: int = 200, advance: Callable[[int, int], None] | None = None
) -> DiffReport:
    """Compare two runs, and write `images.parquet` (`CHANGES`) and `diff.json` under diff/.

    most: changed images that the report names. Masks of different sizes are compared at the size of the first.
    Raises JobError where their class names differ, or they have no image in common.
    """
    place = storage.locate(output)
    with storage.explained(place):
        first, second = open_results(output, run_a), open_results(output, run_b)
        if first.run_id == second.run_id:
            raise JobError(f"{run_a} and {run_b} are the same run: name two.")
        return _Comparison(first, second).run(most, advance)


class _Comparison:
    def __init__(self, first: Results, second: Results) -> None:
        self.first, self.second = first, second
        self.piece_of: dict[str, int] = {}
        with ThreadPoolExecutor(_WORKERS) as pool:
            for number, ids in enumerate(pool.map(_ids_with_mask, second.pieces)):
                self.piece_of |= dict.fromkeys(ids, number)
        self.names: dict[int, str] = {}
        self.masks_of = lru_cache(maxsize=4 * _WORKERS)(self._masks_of)

    def run(self, most: int, advance: Callable[[int, int], None] | None) -> DiffReport:
        report = DiffReport(self.first.run_id, self.second.run_id)
        counts = np.zeros((_LABELS, 3), np.int64)
        leaders: list[tuple[float, str]] = []
        folder = self.first.output.diff_folder(report.run_a, report.run_b)
        buffer = io.BytesIO()
        with pq.ParquetWriter(buffer, CHANGES, compression="zstd") as writer:
            for rows, file_counts, only_a, names in ahead(self._compare_piece, self.first.pieces, _WORKERS):
                counts = counts + file_counts
                report.only_a += only_a
                report.images += len(rows)
                for label, name in names.items():
                    if self.names.setdefault(label, name) != name:
                        raise JobError(
                            f"Label {label} is {self.names[label]!r} in one run and {name!r} in the other: their "
                            "classes are not the same, so their masks cannot be compared."
                        )
                report.equal += sum(row["disagreement"] == 0 for row in rows)
                leaders = heapq.nlargest(most, leaders + [(row["disagreement"], row["image_id"]) for row in rows])
                if rows:
                    writer.write_table(pa.Table.from_pylist(rows, schema=CHANGES))
                if advance is not None:
                    advance(report.images, len(self.piece_of))
        if not report.images:
            raise JobError(f"Runs {report.run_a} and {report.run_b} have no image with a mask in common.")
        report.only_b = len(self.piece_of) - report.images
        report.agreement = float(counts[:, 0].sum() / max(1, counts[:, 1].sum()))
        agreement = iou(counts)
        present = np.flatnonzero(counts[:, 1:].sum(axis=1))
        report.classes = {
            self.names.get(int(c), str(c)): ClassAgreement(float(agreement[c]), int(counts[c, 1]), int(counts[c, 2]))
            for c in sorted(present, key=lambda c: agreement[c])
        }
        report.changed_most = [(image_id, share) for share, image_id in leaders if share > 0]
        report.folder = folder.uri
        storage.write_whole(folder / "images.parquet", buffer.getvalue())
        text = json.dumps(asdict(report), indent=1, ensure_ascii=False)
        storage.write_whole(folder / "diff.json", f"{text}\n".encode())  # Last: the comparison is complete
        return report

    def _compare_piece(self, piece: Piece) -> tuple[list[dict[str, Any]], np.ndarray, int, dict[int, str]]:
        rows, only_a = [], 0
        counts = np.zeros((_LABELS, 3), np.int64)
        names: dict[int, str] = {}
        for row in Results.read_piece(piece, _COLUMNS).to_pylist():
            if row["error_kind"] is not None:
                continue
            number = self.piece_of.get(row["image_id"])
            if number is None:
                only_a += 1
                continue
            other = self.masks_of(number)[row["image_id"]]
            for found in (*row["classes"], *other["classes"]):
                if names.setdefault(found["index"], found["name"]) != found["name"]:
                    raise JobError(
                        f"Label {found['index']} is {names[found['index']]!r} in one run and {found['name']!r} in "
                        "the other: their classes are not the same, so their masks cannot be compared."
                    )
            # Of masks that are too large for their rows, the small copies
            a, b = (run.labels_of(r, small=True) for run, r in ((self.first, row), (self.second, other)))
            assert a is not None and b is not None, "neither has an error"
            b = resize_labels(b, a.shape[1], a.shape[0])
            counts += _count(a, b)
            rows.append(_change(row, other, a, b, names))
        return rows, counts, only_a, names

    def _masks_of(self, number: int) -> dict[str, dict[str, Any]]:
        return {row["image_id"]: row for row in Results.read_piece(self.second.pieces[number], _COLUMNS).to_pylist()}


def _ids_with_mask(piece: Piece) -> list[str]:
    table = Results.read_piece(piece, ["image_id", "error_kind"])
    ids: list[str] = table["image_id"].filter(pc.is_null(table["error_kind"])).to_pylist()
    return ids


def _count(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(`_LABELS`, 3) int64: pixels of each label in both masks, in a, and in b; without what is void in a of bytes."""
    counts = np.zeros((_LABELS, 3), np.int64)
    if a.dtype == b.dtype == np.uint8:
        counts[:256] = count_pixels(a, b, 256)
    else:
        for column, labels in enumerate((a[a == b], a, b)):
            counts[:, column] = np.bincount(labels.ravel(), minlength=_LABELS)
    return counts


def _change(
    row: dict[str, Any], other: dict[str, Any], a: np.ndarray, b: np.ndarray, names: dict[int, str]
) -> dict[str, Any]:
    differs = a != b
    change = {"image_id": row["image_id"], "disagreement": float(differs.mean()), "label_a": None, "label_b": None}
    if differs.any():
        pairs, pixels = np.unique(a[differs].astype(np.int64) * _LABELS + b[differs], return_counts=True)
        before, after = divmod(int(pairs[pixels.argmax()]), _LABELS)
        change |= {"label_a": names.get(before, str(before)), "label_b": names.get(after, str(after))}
    return change | {"entropy_a": row["entropy"], "entropy_b": other["entropy"]}
