"""The one declaration of what a row of the output is: the Arrow schema of the mask files, described field by field."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from segcore.images.decoding import ErrorKind

SCHEMA_VERSION = 2
"""Raised with every change of a column's name, type or meaning; part of the run id. 2 has the column `note`."""


def _field(name: str, type_: pa.DataType, description: str, nullable: bool = True) -> pa.Field:
    return pa.field(name, type_, nullable=nullable, metadata={"description": description})


CLASS = pa.struct(
    [
        _field("index", pa.uint8(), "label of the class"),
        _field("name", pa.string(), "name of the class"),
        _field("pixels", pa.int64(), "pixels of the class in the mask"),
        _field("confidence", pa.float32(), "mean probability of the class before the CRF over its pixels, 0..1"),
        _field(
            "box",
            pa.struct([_field(n, pa.int32(), f"{n} in px of the mask") for n in ("x0", "y0", "x1", "y1")]),
            "bounding box of its pixels, x1 and y1 exclusive",
        ),
    ]
)

MASKS = pa.schema(
    [
        _field("image_id", pa.string(), "path relative to the source, shard!/member, or value of the id column", False),
        _field("run_id", pa.string(), "run that made the row; equal parameters, equal run", False),
        _field("uri", pa.string(), "where the photograph was read", False),
        _field("source_size", pa.int64(), "bytes of the photograph"),
        _field(
            "source_etag",
            pa.string(),
            "etag, or modification time in ns and a mark of the file, of the photograph when it was listed",
        ),
        _field("width", pa.int32(), "width of the photograph in px, upright"),
        _field("height", pa.int32(), "height of the photograph in px, upright"),
        _field("mask_width", pa.int32(), "width of the mask in px: the photograph's, or the working size on request"),
        _field("mask_height", pa.int32(), "height of the mask in px"),
        _field("mask", pa.binary(), "palette PNG, pixel values are labels; null where error_kind is set"),
        _field("mask_before_crf", pa.binary(), "the same before the CRF, on request"),
        _field("classes", pa.list_(CLASS), "every class present in the mask, most pixels first"),
        _field("confidence", pa.float32(), "mean probability before the CRF of the assigned class over all pixels"),
        _field("entropy", pa.float32(), "mean entropy per pixel before the CRF, nats"),
        _field("changed_by_crf", pa.float32(), "share of pixels whose label the CRF changed, 0..1"),
        _field("device", pa.string(), "where it was scored, and in which precision: cpu/bf16, cuda/fp16, ..."),
        _field("model", pa.string(), "name of the model, with a word where it is untrained", False),
        _field("error_kind", pa.string(), f"null, or one of: {', '.join(ErrorKind)}"),
        _field("error", pa.string(), "null, or the reason in words why there is no mask"),
        _field("note", pa.string(), "null, or what of the photograph was damaged or ignored though it has a mask"),
    ],
    metadata={"segment_archive.schema_version": str(SCHEMA_VERSION)},
)
"""One row per image: a mask, or the reason why there is none."""

DUPLICATE_OF = "duplicate_of"

ROWS = MASKS.append(
    _field(
        DUPLICATE_OF, pa.string(), "null, or image_id of the image that this one is a copy of: its mask is that one's"
    )
)
"""Every column that a row may have. The last is only in runs that skip duplicates, so that others stay as they were."""

_LATER = ("note", DUPLICATE_OF)  # Columns that runs of earlier versions do not have


def conform(table: pa.Table, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of any version in columns of today: those that the version did not have are null.

    columns: None: those of every run, and what these rows have beside them.
    Raises ArrowInvalid where a column is missing that every version has.
    """
    if columns is None:
        columns = [name for name in ROWS.names if name in MASKS.names or name in table.column_names]
    for name in columns:
        if name not in table.column_names:
            field = ROWS.field(name)
            if name not in _LATER:
                raise pa.ArrowInvalid(f"it has no column {name}")
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    table = table.select(list(columns))
    return table.cast(pa.schema([ROWS.field(name) for name in columns], MASKS.metadata))


def empty_row() -> dict[str, Any]:
    """A row with every column null."""
    return dict.fromkeys(MASKS.names)
