"""Datasets as Hugging Face keeps them: Parquet files with a column of images and one of masks, a pair a row.

    data/train-00000-of-00003.parquet    image: {bytes, path}, label: {bytes, path}

An image is called after its file and the number of its row.
"""

import functools
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks import storage
from tasks.archive.parquet_rows import IMAGE_COLUMNS
from tasks.datasets.layout import FileRef, ending_of, split_in
from tasks.datasets.names import NamedFile
from tasks.parquet_files import whole_parquet
from tasks.storage import Location, StoredFile

_MASK_COLUMNS = (
    *("mask", "label", "annotation", "segmentation", "segmentation_mask", "semantic_segmentation", "semantic", "seg"),
    *("masks", "labels", "annotations", "gt", "ground_truth", "target", "label_bytes", "mask_bytes"),
)
"""Usual names of what holds the masks, best first."""

_REMEDY = "bring it back from a copy"
_GROUPS = 4
"""Columns of row groups that a process keeps: rows of one group are asked for one after the other."""


def find(folder: Location, files: dict[str, StoredFile]) -> tuple[list[NamedFile], list[NamedFile]]:
    """Images and masks of the rows of Parquet files; of files without such columns none. Raises JobError for damage."""
    images: list[NamedFile] = []
    masks: list[NamedFile] = []
    for path in sorted(path for path in files if ending_of(path) == ".parquet"):
        place = folder / path
        with whole_parquet(place, _REMEDY), storage.open_for_reading(place, sparse=True) as opened:
            table = pq.ParquetFile(opened)
            image = _column(table.schema_arrow, IMAGE_COLUMNS)
            mask = _column(table.schema_arrow, _MASK_COLUMNS)
            counts = [table.metadata.row_group(number).num_rows for number in range(table.metadata.num_row_groups)]
        if image is None or mask is None:
            continue
        split, stem, row = split_in(place), PurePosixPath(path).stem, 0
        for group, count in enumerate(counts):
            for number in range(count):
                for column, held in ((image, images), (mask, masks)):
                    read = functools.partial(_cell, place, files[path].version, column, group, number)
                    file = FileRef(place, 0, files[path].version, read, f"row {row}")
                    held.append(NamedFile(split, f"{stem}-{row}", file))
                row += 1
    return images, masks


def _column(schema: pa.Schema, names: tuple[str, ...]) -> str | None:
    """The first column under one of these names that holds bytes, plain or in a struct's `bytes`."""
    by_name = {field.name.lower(): field for field in schema}
    for name in names:
        if (field := by_name.get(name)) is None:
            continue
        kind = field.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return str(field.name)
    return None


def _cell(place: Location, version: str, column: str, group: int, number: int) -> bytes:
    """Bytes of one row. Raises ValueError where it has none."""
    cells = _column_of_group(place, version, column, group)
    value = cells[number].as_py() if number < len(cells) else None  # Of a damaged file there may be fewer
    value = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(value, bytes):
        raise ValueError(f"the column {column} has no bytes in this row")
    return value


@functools.lru_cache(maxsize=_GROUPS)
def _column_of_group(place: Location, version: str, column: str, group: int) -> Any:
    with whole_parquet(place, _REMEDY), storage.open_for_reading(place, version=version) as opened:
        return pq.ParquetFile(opened).read_row_group(group, columns=[column])[column]
