"""The last step of a unit: what the scores of its images become, one row an image, committed as one file."""

import contextlib
import ctypes
import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segcore.crf.dense_crf import Refined
from segcore.images import masks
from segcore.images.errors import ErrorKind, ImageError
from segcore.images.label_tiff import LabelTiffWriter
from segcore.images.regions import TiffRegions
from segcore.large_pictures import LargeSummary, Tile
from segcore.scoring.inference import ScoreMap
from segcore.scoring.memory import is_out_of_memory
from tasks import storage
from tasks.archive.entries import Entry
from tasks.archive.output import Output
from tasks.archive.schema import DUPLICATE_OF, SCHEMA_VERSION, empty_row, written
from tasks.storage import Location
from tasks.stream.model import predictor_of
from tasks.stream.units import Copy, Destination, MaskParams, Record

GREY = np.full((65, 65, 3), 128, np.uint8)
"""An image that nothing can be wrong with: where it fails too, the photographs are not to blame."""

_GIVE_BACK_EVERY_S = 20.0
_given_back = time.monotonic()

_CHUNK_BYTES = 8 << 20
_ROW_GROUP_BYTES = 32 * 2**20  # Row groups are cut by bytes: a binary column of one chunk overflows past 2 GiB


class MaskRows:
    """Sharpens, encodes and commits masks.

    For other rows than masks, override `begin`, `control`, `base_row`, `columns` and `commit`.
    """

    what = "refinement"
    """What an error row says has failed."""

    def __init__(self, params: MaskParams, destination: Destination) -> None:
        self.params, self.destination = params, destination
        self.predictor = predictor_of(params)

    def begin(self, records: list[Record]) -> None:
        """Called before images are refined, with the records of the unit, or of one of its images."""

    def control(self) -> tuple[Any, ...] | None:
        """A call for columns of an image that nothing is wrong with."""
        record = Record(Entry("", "", "file", b"", 0, None, ""), None, 65, 65, (65, 65), extent_px=(65, 65))
        return "columns", record, GREY, np.zeros((len(self.params.classes), 9, 9), np.float16), ""

    def base_row(self, record: Record) -> dict[str, Any]:
        """The row of an image as far as no mask is needed, with its error where it has one."""
        entry = record.entry
        row = empty_row() | {
            "image_id": entry.image_id,
            "run_id": self.destination.run_id,
            "uri": entry.uri,
            "source_size": entry.size if entry.size is not None else record.size,
            "source_etag": entry.version,
            "width": record.width or None,
            "height": record.height or None,
            "model": self.params.model_name,
            "note": record.note or None,
        }
        if self.params.skip_duplicates:
            row[DUPLICATE_OF] = None
        if record.error is not None:
            row |= {"error_kind": record.error.kind.value, "error": str(record.error)}
        return row

    def columns(self, record: Record, image: np.ndarray, scores: np.ndarray, device: str) -> dict[str, Any]:
        """What the scores of an image add to its row."""
        return self.columns_of(record, self.predictor.refine(image, ScoreMap(scores, record.extent_px)), device)

    def columns_of(self, record: Record, refined: Refined, device: str) -> dict[str, Any]:
        """What its labels at working size add to the row of an image."""
        mask = self.predictor.mask(refined.labels, record.width, record.height)
        height, width = mask.shape
        classes = masks.summarise(refined.labels, refined.class_confidence, width, height)
        columns = {
            "mask": masks.encode_mask(mask),
            "mask_width": width,
            "mask_height": height,
            "classes": self._classes(classes),
            "confidence": refined.confidence,
            "entropy": refined.entropy,
            "changed_by_crf": refined.changed,
            "device": device,
        }
        if self.params.keep_mask_before_crf:
            columns["mask_before_crf"] = masks.encode_mask(
                self.predictor.mask(refined.labels_before, record.width, record.height)
            )
        return columns

    def copied(self, copy: Copy) -> dict[str, Any]:
        """The row of an image that is a copy of another: that one's mask, at its own size, and what goes with it."""
        original = copy.original
        record = Record(copy.entry, None, copy.width, copy.height)
        row = self.base_row(record) | {name: original[name] for name in _OF_MASKS}
        row[DUPLICATE_OF] = original["image_id"]
        size = (original["mask_width"], original["mask_height"])
        row["mask_file"] = original.get("mask_file")
        beside = original["mask"] is None  # A mask too large for a row is not made anew in another size
        if beside or self.params.predict.mask_size == "working" or size == (copy.width, copy.height):
            return row
        labels = self.predictor.mask(masks.decode_mask(original["mask"]), copy.width, copy.height)
        row |= {"mask": masks.encode_mask(labels), "mask_width": copy.width, "mask_height": copy.height}
        if original["mask_before_crf"] is not None:
            before = masks.decode_mask(original["mask_before_crf"])
            row["mask_before_crf"] = masks.encode_mask(self.predictor.mask(before, copy.width, copy.height))
        confidence = np.zeros(len(self.params.classes))
        for known in original["classes"]:
            confidence[known["index"]] = known["confidence"]
        return row | {"classes": self._classes(masks.summarise(labels, confidence))}

    def columns_in_file(
        self, record: Record, picture: TiffRegions, tiles: Iterator[Tile], device: str
    ) -> dict[str, Any]:
        """What the tiles of a picture add to its row, whose mask is written beside it, whole or not at all.

        It is written before the row: a session that is killed between the two writes the same file again.
        """
        if self.destination.output is None:
            raise ImageError(ErrorKind.TOO_LARGE, f"{picture.width} x {picture.height} px are too many to be held")
        summary = LargeSummary(len(self.params.classes))
        with tempfile.TemporaryFile() as file:
            type_of_labels = masks.label_type(len(self.params.classes))
            writer = LabelTiffWriter(file, picture.width, picture.height, type_of_labels, picture.geography)
            for tile in tiles:
                writer.write(tile.top, tile.left, tile.labels)
                summary.add(tile)
            writer.close()
            file.seek(0)
            name = Output.label_name(self.destination.run_id, record.entry)
            with storage.explained(self.destination.output):
                storage.write_stream(self.destination.output / name, iter(lambda: file.read(_CHUNK_BYTES), b""))
        return {
            "mask_file": name,
            "mask_width": picture.width,
            "mask_height": picture.height,
            "classes": self._classes(summary.classes),
            "confidence": summary.confidence,
            "entropy": summary.entropy,
            "changed_by_crf": summary.changed,
            "device": device,
        }

    def _classes(self, found: Sequence[masks.ClassSummary]) -> list[dict[str, Any]]:
        return [
            {
                "index": c.index,
                "name": self.params.classes[c.index],
                "pixels": c.pixels,
                "confidence": c.confidence,
                "box": dict(zip(("x0", "y0", "x1", "y1"), c.box, strict=True)),
            }
            for c in found
        ]

    def commit(self, unit: str, rows: list[dict[str, Any]]) -> None:
        """Write the rows of a unit, whole or not at all; what another session has committed meanwhile stays.

        That session may know more: of an image that a refresh has listed again, the finish has dropped the row here.
        """
        storage.write_once(self.destination.file_of(unit), rows_as_file(rows, self.params.schema_version))


_OF_MASKS = (
    *("mask", "mask_before_crf", "mask_width", "mask_height", "classes"),
    *("confidence", "entropy", "changed_by_crf", "device"),
)
"""Columns that say something of a mask."""


def failure_of(what: str, error: Exception) -> ImageError:
    """What an error row says of an exception that one image has raised."""
    if isinstance(error, ImageError):
        return error
    return ImageError(ErrorKind.MEMORY if is_out_of_memory(error) else ErrorKind.FAILED, f"{what} failed: {error}")


def give_back_memory() -> None:
    """Return what units have left free to the system: buffers of ever other sizes leave holes that add up.

    Now and then, since what is given back comes again page by page.
    """
    global _given_back
    if time.monotonic() - _given_back < _GIVE_BACK_EVERY_S:
        return
    _given_back = time.monotonic()
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # Only the GNU C library has it
        ctypes.CDLL(None).malloc_trim(0)


def write_rows(place: Location, rows: list[dict[str, Any]] | pa.Table) -> None:
    """Write one mask file, whole or not at all."""
    storage.write_whole(place, rows_as_file(rows))


def rows_as_file(
    rows: list[dict[str, Any]] | pa.Table, version: int = SCHEMA_VERSION, *, with_copies: bool = False
) -> bytes:
    """The bytes of a mask file. version: of rows that are no table yet.

    with_copies: whether its run skips duplicates, as rows say by themselves.
    """
    if isinstance(rows, pa.Table):
        table = rows
    else:
        with_copies |= any(DUPLICATE_OF in row for row in rows)
        table = pa.Table.from_pylist(rows, schema=written(version, with_copies=with_copies))
    buffer = io.BytesIO()
    per_row = max(1, table.nbytes // max(1, table.num_rows))
    # PNG and identities are dense already; the other columns are small
    pq.write_table(table, buffer, compression="zstd", row_group_size=max(1, _ROW_GROUP_BYTES // per_row))
    return buffer.getvalue()
