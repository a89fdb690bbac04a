"""Images in the rows of Parquet files: which column holds them, what identifies a row, and the bytes.

Column names of Hugging Face, img2dataset, WebDataset and Spark are known; nested fields are named with dots.
"""

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segcore.images.errors import ErrorKind, ImageError
from tasks import storage
from tasks.archive.entries import (
    BROKEN,
    BUFFER_BYTES,
    Entry,
    broken,
    encode_path,
    first_line,
    looks_like_image,
    readable,
)
from tasks.errors import JobError
from tasks.storage import Location, StoredFile

MAX_ID_BYTES = 4096
"""Of an identity in a Parquet file: more is no name, and a column of such would not fit into the memory."""

ID_COLUMNS = ("image_id", "id", "key", "__key__", "name", "path")
"""Usual names of what identifies a row, best first."""

IMAGE_COLUMNS = ("image", "image_bytes", "bytes", "jpg", "content", "data", "img", "img_bytes", "image_data", "jpeg",
                 "png", "webp", "jpg_bytes", "picture", "photo", "images", "binary", "blob")  # fmt: skip
"""Usual names of what holds the bytes, best first; upper and lower case are one."""

_FIELDS = ("bytes", "data", "content", "image", "binary", "value")
"""Of a struct that holds an image: Hugging Face's `Image` is a struct of `bytes` and `path`; Spark's has `data`."""

_BASE64_STARTS = ("data:image/", "/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")


@dataclass(frozen=True, slots=True)
class Table:
    """A Parquet file with a column of images."""

    place: Location
    file: StoredFile

    image: str
    """Its column, or a nested field with dots."""

    id: str | None
    """Column that identifies rows; None: their number does."""

    holds_bytes: bool
    """By the type of the column; it may hold text or numbers under the name of an image, too."""


def survey(place: Location, file: StoredFile, id_column: str | None, image_column: str | None) -> Table | Entry | str:
    """What a Parquet file holds: a table of images, an entry that says what is damaged, or a reason why no images.

    id_column, image_column: as the person named them. Raises JobError for an id column that cannot be one.
    """
    try:
        with storage.open_for_reading(place) as opened, pq.ParquetFile(opened, buffer_size=BUFFER_BYTES) as table:
            schema = table.schema_arrow
            image = _image_column(table, image_column)
    except Exception as error:  # Arrow raises nearly everything of a file that was tampered with
        if place.protocol != "file" and not isinstance(error, BROKEN):
            raise
        return broken(place, file, f"the Parquet file cannot be listed: {first_line(error)}")
    if image is None:
        missing = f"has no column {image_column!r}" if image_column else "has no column of images"
        return f"{readable(place.uri)} {missing}; it has {_told(schema)}. Name the right one with --image-column."
    return Table(place, file, image, _id_column(schema, id_column, place), _holds_bytes(_type(schema, image)))


def with_identities(
    tables: Sequence[Table], listed: Mapping[bytes, bool], others: Callable[[], Iterable[str]]
) -> tuple[list[Table], str]:
    """The tables, by row numbers where an id column that nobody named identifies no rows; and a word about that.

    An identity means one image of the whole source. A file that the manifest lists goes on as it was listed, whatever
    has joined the source since: otherwise its images would be listed again under other identities.
    listed: `Manifest.parquet_files`. others: identities of the files that are images of their own.
    """
    new = [table for table in tables if encode_path(table.place.path) not in listed]
    reason = ""
    by_number = bool(listed) and not all(listed.values())  # Which was said when the first of them were listed
    if not by_number:
        reason = _why_no_ids(new, [table for table in tables if table not in new], others)
        by_number = bool(reason)
    going_by = [
        table if listed.get(encode_path(table.place.path), not by_number) else replace(table, id=None)
        for table in tables
    ]
    return going_by, reason and f"{reason[0].upper()}{reason[1:]}: rows are known by their file and number."


def _why_no_ids(new: Sequence[Table], old: Sequence[Table], others: Callable[[], Iterable[str]]) -> str:
    """Why the id columns of new tables do not tell their rows from all others; empty where they do."""
    seen: set[int | None] = set()
    for table in (*old, *new):
        own = set(_id_hashes(table))
        if None in own:
            return f"the column {table.id} of {readable(table.file.path)} holds long texts"
        if table in new and not seen.isdisjoint(own):
            names = ", ".join(sorted({table.id for table in (*old, *new) if table.id is not None}))
            return f"values of the column {names} stand in more than one Parquet file"
        seen |= own
    twin = twin_of_a_file(new, others)
    return f"the name {twin} is that of a file and that of a row" if twin else ""


def twin_of_a_file(tables: Sequence[Table], others: Callable[[], Iterable[str]]) -> str | None:
    """The first of other identities that is one of a row, too; None where there is none."""
    hashes = {h for table in tables for h in _id_hashes(table)}
    return next((name for name in others() if hash(name) in hashes), None) if hashes else None


def _id_hashes(table: Table) -> Iterator[int | None]:
    """Of the values of the id column as they become identities (1 and "1" are one); None for those too long."""
    if table.id is None:
        return
    try:
        for values in _id_batches(table):
            yield from (hash(str(value)) for value in values if value is not None)
    except JobError:
        yield None
    except Exception as error:
        if table.place.protocol != "file" and not isinstance(error, BROKEN):
            raise
        # Listing it says what is damaged


def list_rows(table: Table) -> Iterator[Entry]:
    """An entry for each row."""
    file, uri = readable(table.file.path), readable(table.place.uri)
    path = encode_path(table.place.path)
    row = 0
    try:
        for values in _id_batches(table):
            for value in values:
                image_id = str(value) if value is not None else f"{file}!/row {row}"
                shown = f"{uri}!/{image_id}" if value is not None else f"{uri}!/row {row}"
                yield Entry(image_id, shown, "parquet", path, row, None, table.file.version, table.image)
                row += 1
    except JobError:
        raise
    except Exception as error:
        if table.place.protocol != "file" and not isinstance(error, BROKEN):
            raise
        yield broken(table.place, table.file, f"the Parquet file cannot be listed: {first_line(error)}")


def read_rows(place: Location, entries: Sequence[Entry]) -> dict[str, bytes | ImageError]:
    """Bytes of the rows of one file, by identity."""
    by_row: dict[int, str] = {entry.position: entry.image_id for entry in entries}
    last = max(by_row)
    found: dict[str, bytes | ImageError] = {}
    column = entries[0].note
    with storage.open_for_reading(place) as opened, pq.ParquetFile(opened, buffer_size=BUFFER_BYTES) as table:
        row = 0
        for group in range(table.num_row_groups):
            end = row + table.metadata.row_group(group).num_rows
            if not any(row <= position < end for position in by_row):
                row = end
                continue
            for batch in table.iter_batches(batch_size=16, row_groups=[group], columns=[column]):
                values = _values(batch, column)
                for offset in range(len(batch)):
                    if (image_id := by_row.get(row + offset)) is not None:
                        found[image_id] = image_bytes(values[offset].as_py(), values.type)
                row += len(batch)
                if row > last:
                    return found
    return found


def image_bytes(content: Any, kind: pa.DataType) -> bytes | ImageError:
    """What a row holds, as the bytes of one image file, or the reason why it is none."""
    if isinstance(content, dict):
        fields = [content[name] for name in _FIELDS if content.get(name) is not None]
        path = content.get("path") or content.get("url") or content.get("uri")
        if not fields and path:
            return ImageError(
                ErrorKind.EMPTY,
                f"the row names a file ({str(path)[:100]!r}) and holds no bytes; Dataset.to_parquet of Hugging Face's "
                "datasets writes them into the table",
            )
        content = fields[0] if fields else None
    if isinstance(content, list) and pa.types.is_list(kind) | pa.types.is_large_list(kind):
        if kind.value_type in (pa.uint8(), pa.int8()):
            content = bytes(value & 255 for value in content if value is not None) or None
        elif len(content) > 1:
            return ImageError(
                ErrorKind.NOT_AN_IMAGE,
                f"the row holds {len(content)} values in one list; give each image a row of its own",
            )
        else:
            return image_bytes(content[0] if content else None, kind.value_type)
    if content is None:
        return ImageError(ErrorKind.EMPTY, "the image column is null in this row")
    if isinstance(content, str):
        return _text_bytes(content)
    if not isinstance(content, bytes):
        return ImageError(ErrorKind.NOT_AN_IMAGE, f"the image column holds {kind}, not bytes")
    return content


def _text_bytes(text: str) -> bytes | ImageError:
    if text.startswith(_BASE64_STARTS):
        try:
            return base64.b64decode(text.partition("base64,")[2] or text, validate=True)
        except (binascii.Error, ValueError):
            return ImageError(ErrorKind.NOT_AN_IMAGE, "the image column holds base64 that is damaged")
    return ImageError(ErrorKind.NOT_AN_IMAGE, f"the image column holds text ({text[:100]!r}), not bytes")


def _image_column(table: pq.ParquetFile, asked: str | None) -> str | None:
    """The column to take: the one that was asked for, else the first of the usual names that holds bytes."""
    schema: pa.Schema = table.schema_arrow
    if asked is not None:
        return asked if _type(schema, asked) is not None else None
    by_name: dict[str, str] = {}
    for name in schema.names:
        by_name.setdefault(name.lower(), name)
    usual = [by_name[name] for name in IMAGE_COLUMNS if name in by_name]
    images = [name for name in _hugging_face_images(schema) if name in schema.names]
    nested = [
        field.name for field in schema if pa.types.is_struct(field.type) and {"bytes", "path"} <= _children(field)
    ]
    for name in (*usual, *images, *nested):
        if _holds_bytes(schema.field(name).type):
            return str(name)
    for field in schema:
        # Bytes under a name of their own; a look at them tells images from embeddings and hashes
        if _is_binary(field.type) and any(looks_like_image(value) for value in _first_values(table, field.name)):
            return str(field.name)
    return next(iter((*usual, *images)), None)


def _first_values(table: pq.ParquetFile, name: str) -> Iterable[bytes]:
    for batch in table.iter_batches(batch_size=4, columns=[name]):
        return [value for value in batch.column(0).to_pylist() if isinstance(value, bytes)]
    return []


def _hugging_face_images(schema: pa.Schema) -> list[str]:
    """Columns that the `datasets` library has marked as images."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [name for name, feature in features.items() if feature.get("_type") == "Image"]
    except Exception:  # Whatever somebody wrote there
        return []


def _children(field: pa.Field) -> set[str]:
    return {child.name for child in field.type}


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def _holds_bytes(kind: pa.DataType | None) -> bool:
    if kind is None:
        return False
    if pa.types.is_struct(kind):
        return any(child.name in _FIELDS and _is_binary(child.type) for child in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return kind.value_type in (pa.uint8(), pa.int8()) or _holds_bytes(kind.value_type)
    return _is_binary(kind)


def _id_column(schema: pa.Schema, asked: str | None, place: Location) -> str | None:
    if asked is None:
        return next(
            (name for name in ID_COLUMNS if name in schema.names and _identifies(schema.field(name).type)), None
        )
    kind = _type(schema, asked)
    if kind is None:
        raise JobError(
            f"{place.uri} has no column {asked!r}; it has {_told(schema)}. Name the right one with --id-column."
        )
    if pa.types.is_nested(kind):
        raise JobError(f"{place.uri}: a column of {kind} cannot identify images: name another with --id-column.")
    return asked


def _identifies(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return not (
        pa.types.is_nested(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    )


def _type(schema: pa.Schema, name: str) -> pa.DataType | None:
    """Type of a column, or of a nested field that is named with dots."""
    if name in schema.names:
        return schema.field(name).type
    first, *rest = name.split(".")
    if first not in schema.names:
        return None
    kind = schema.field(first).type
    for part in rest:
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return None
        kind = kind.field(part).type
    return kind


def _values(batch: pa.RecordBatch, name: str) -> pa.Array:
    column = batch.column(0)
    if name == batch.schema.names[0]:
        return column
    # A null of the struct is a null of its field
    return pc.struct_field(column, name.split(".")[1:])


def _id_batches(table: Table) -> Iterator[list[object]]:
    """Identities of all rows, None for those that go by their number.

    Raises JobError where one is too long to be an identity.
    """
    with storage.open_for_reading(table.place) as opened:
        if table.id is None:
            with pq.ParquetFile(opened, buffer_size=BUFFER_BYTES) as rows:
                for start in range(0, rows.metadata.num_rows, 65_536):
                    yield [None] * min(65_536, rows.metadata.num_rows - start)
            return
        # As a dictionary: a long text that a file repeats in few bytes is held once
        with pq.ParquetFile(opened, buffer_size=BUFFER_BYTES, read_dictionary=[table.id]) as rows:
            for batch in rows.iter_batches(batch_size=65_536, columns=[table.id]):
                yield _identities(_values(batch, table.id), table.place)


def _identities(column: pa.Array, place: Location) -> list[object]:
    values = column.dictionary if isinstance(column, pa.DictionaryArray) else column
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_string(kind):
        longest = pc.max(pc.binary_length(values)).as_py() or 0
        if longest > MAX_ID_BYTES:
            raise JobError(
                f"{place.uri} holds an identity of {longest} bytes, more than {MAX_ID_BYTES}: name another column with "
                "--id-column."
            )
    if isinstance(column, pa.DictionaryArray):
        texts = values.to_pylist()
        return [None if k is None else texts[k] for k in column.indices.to_pylist()]
    return list(column.to_pylist())


def _told(schema: pa.Schema) -> str:
    """Names of the columns, nested ones with dots, printable and short."""
    names = [
        name
        for field in schema
        for name in (
            [f"{field.name}.{child.name}" for child in field.type] if pa.types.is_struct(field.type) else [field.name]
        )
    ]
    return ", ".join(name if name.isprintable() and len(name) < 100 else repr(name[:100]) for name in names[:50])
