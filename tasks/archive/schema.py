"""The one declaration of what a row of the output is: the Arrow schema of the mask files, described field by field."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from segcore.images.errors import ErrorKind

SCHEMA_VERSION = 2
"""Raised with every change of a column's name, type or meaning; part of the run id. 2 has the column `note`."""

LARGE_SCHEMA_VERSION = 3
"""Of runs whose masks may lie beside their rows, or have more than 255 classes: the column `mask_file`, and labels of
16 bits. Other runs stay what they were."""


def _field(name: str, type_: pa.DataType, description: str, nullable: bool = True) -> pa.Field:
    return pa.field(name, type_, nullable=nullable, metadata={"description": description})


CLASS = pa.struct(
    [
        _field("index", pa.uint16(), "label of the class; 8 bits in runs of up to 255 classes"),
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
        _field(
            "mask",
            pa.binary(),
            "PNG, pixel values are labels: palette, or grey of 16 bits in runs of more than 255 classes; null where "
            "error_kind or mask_file is set",
        ),
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
        _field("mask_file", pa.string(), "tiled TIFF of a mask too large for `mask`, relative to the output, or null"),
    ],
    metadata={"segment_archive.schema_version": str(LARGE_SCHEMA_VERSION)},
)
"""One row per image: a mask, or the reason why there is none. What readers have of every run."""

DUPLICATE_OF = "duplicate_of"

ROWS = MASKS.append(
    _field(
        DUPLICATE_OF, pa.string(), "null, or image_id of the image that this one is a copy of: its mask is that one's"
    )
)
"""Every column that a row may have. The last is only in runs that skip duplicates, so that others stay as they were."""

_LATER = ("note", "mask_file", DUPLICATE_OF)  # Columns that runs of earlier versions do not have


def version_of(record: dict[str, Any]) -> int:
    """Version of the rows of a run. record: of the run."""
    deciding = record.get("deciding")
    version = deciding.get("schema_version") if isinstance(deciding, dict) else None
    return LARGE_SCHEMA_VERSION if version == LARGE_SCHEMA_VERSION else SCHEMA_VERSION


def written(version: int, *, with_copies: bool = False) -> pa.Schema:
    """What the rows of a run are written as. version: `SCHEMA_VERSION` or `LARGE_SCHEMA_VERSION`.

    with_copies: whether the run skips duplicates.
    """
    fields = list(MASKS)
    if version != LARGE_SCHEMA_VERSION:
        index = _field("index", pa.uint8(), "label of the class")
        of_class = pa.struct([index, *(CLASS.field(n) for n in range(1, CLASS.num_fields))])
        classes = MASKS.field("classes").with_type(pa.list_(of_class))
        fields = [classes if field.name == "classes" else field for field in MASKS if field.name != "mask_file"]
    if with_copies:
        fields.append(ROWS.field(DUPLICATE_OF))
    return pa.schema(fields, metadata={"segment_archive.schema_version": str(version)})


def schema_of(record: dict[str, Any]) -> pa.Schema:
    """What the rows of a run are written as. record: of the run."""
    deciding = record.get("deciding")
    return written(version_of(record), with_copies=isinstance(deciding, dict) and "duplicates" in deciding)


def conform(table: pa.Table, columns: Sequence[str] | None = None, schema: pa.Schema = ROWS) -> pa.Table:
    """Rows of any version in columns of today, or of another schema: those that the version did not have are null.

    columns: None: those of every run, and what these rows have beside them.
    Raises ArrowInvalid where a column is missing that every version has.
    """
    if columns is None:
        columns = [name for name in schema.names if name in MASKS.names or name in table.column_names]
    for name in columns:
        if name not in table.column_names:
            field = schema.field(name)
            if name not in _LATER:
                raise pa.ArrowInvalid(f"it has no column {name}")
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    table = table.select(list(columns))
    return table.cast(pa.schema([schema.field(name) for name in columns], metadata=schema.metadata))


def empty_row() -> dict[str, Any]:
    """A row with every column null."""
    return dict.fromkeys(MASKS.names)
