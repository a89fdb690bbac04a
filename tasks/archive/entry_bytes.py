"""Bytes of the images of a source, or the reason why there are none.

An outage is no image's fault and becomes no image's reason: it ends the job, which goes on later.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.images import ErrorKind, ImageError
from tasks import storage, storage_faults
from tasks.archive.entries import BUFFER_BYTES, Entry, decode_path, first_line
from tasks.errors import InterruptedJobError, JobError
from tasks.storage import Location

MAX_FILE_BYTES = 2**30
"""A larger file is not read at all; no photograph within the pixel bound comes near."""


def read_entries(root: Location, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes | ImageError]]:
    """Bytes of each entry, in order; an ImageError that says why in place of bytes that cannot be had.

    root: the source. Entries of one container are read together, and only while it is the one that was listed. A file
    that was replaced since comes with its new size and version.
    Raises JobError where the source itself cannot be read any more: an outage is no image's fault.
    """
    for together in _together(entries):
        if together[0].kind in ("tar", "parquet"):
            outcomes = _read_container(root.protocol, together)
        else:
            outcomes = iter([_read_file(root.protocol, together[0])])
        for entry, outcome in outcomes:
            if isinstance(outcome, ImageError) and entry.kind != "broken":
                may_be_outage = outcome.kind in (ErrorKind.MISSING, ErrorKind.UNREADABLE)
                if may_be_outage and not storage.answers(root):
                    raise JobError(f"The source {root.uri} cannot be read any more ({outcome}).")
            yield entry, outcome


def _together(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Runs of entries of one container; files of their own alone."""
    group: list[Entry] = []
    for entry in entries:
        if group and (
            entry.kind not in ("tar", "parquet") or (entry.kind, entry.path) != (group[0].kind, group[0].path)
        ):
            yield group
            group = []
        group.append(entry)
    if group:
        yield group


def _read_file(protocol: str, entry: Entry) -> tuple[Entry, bytes | ImageError]:
    if entry.kind == "broken":
        return entry, ImageError(ErrorKind.UNREADABLE, entry.note)
    if entry.size is not None and entry.size > MAX_FILE_BYTES:
        return entry, ImageError(ErrorKind.TOO_LARGE, f"the file has {entry.size} bytes, more than {MAX_FILE_BYTES}")
    place = Location(protocol, decode_path(entry.path))
    try:
        data, version = storage.read_versioned(place)
    except FileNotFoundError:
        return entry, ImageError(ErrorKind.MISSING, "listed, but not there any more when it was to be read")
    except Exception as error:  # Whatever the storage says of one image is that image's reason
        _require_no_outage(place, error)
        return entry, ImageError(ErrorKind.UNREADABLE, f"the storage did not give the bytes: {first_line(error)}")
    same = version == entry.version and len(data) == entry.size
    return (entry if same else replace(entry, version=version, size=len(data))), data


def _read_container(protocol: str, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes | ImageError]]:
    place = Location(protocol, decode_path(entries[0].path))
    what = "tar shard" if entries[0].kind == "tar" else "Parquet file"
    read = _read_tar if entries[0].kind == "tar" else _read_parquet
    found: dict[int, bytes | ImageError] = {}
    try:
        # Positions hold for the container that was listed and for no other, before and after
        _require_version(place, entries[0])
        found = read(place, entries)
        _require_version(place, entries[0])
        rest = ImageError(ErrorKind.MISSING, f"the {what} ends before this image")
    except ImageError as error:
        found, rest = {}, error
    except FileNotFoundError:
        rest = ImageError(ErrorKind.MISSING, f"the {what} is not there any more")
    except Exception as error:
        _require_no_outage(place, error)
        rest = ImageError(ErrorKind.UNREADABLE, f"the {what} did not give the bytes: {first_line(error)}")
        with contextlib.suppress(OSError):  # Half of one container and half of another is no damage of either
            try:
                _require_version(place, entries[0])
            except ImageError as changed:
                rest = changed
    for entry in entries:
        yield entry, found.get(entry.position, rest)


def _require_no_outage(place: Location, error: Exception) -> None:
    """Raise JobError for what says nothing of an image: it would stand in its row for ever."""
    if place.protocol != "file" and storage_faults.is_outage(error):
        raise InterruptedJobError(
            f"The source cannot be read any more: {storage_faults.explain(error, place)}"
        ) from None


def _require_version(place: Location, entry: Entry) -> None:
    listed = entry.version.rpartition("/")[0] if entry.kind == "tar" else entry.version
    if storage.stat(place).version != listed:
        raise ImageError(
            ErrorKind.CHANGED, f"{place.name} was replaced after it was listed; --refresh-changed does its images again"
        )


def _read_tar(place: Location, entries: Sequence[Entry]) -> dict[int, bytes | ImageError]:
    found: dict[int, bytes | ImageError] = {}
    for entry in entries:
        size = entry.size or 0
        if size > MAX_FILE_BYTES:
            found[entry.position] = ImageError(ErrorKind.TOO_LARGE, f"the member has {size} bytes")
            continue
        data = storage.read_range(place, entry.position, size) if size else b""
        cut = ImageError(ErrorKind.TRUNCATED, "the tar shard ends within this member")
        found[entry.position] = data if len(data) == size else cut
    return found


def _read_parquet(place: Location, entries: Sequence[Entry]) -> dict[int, bytes | ImageError]:
    wanted = {entry.position for entry in entries}
    last = max(wanted)
    found: dict[int, bytes | ImageError] = {}
    with storage.open_for_reading(place) as opened, pq.ParquetFile(opened, buffer_size=BUFFER_BYTES) as table:
        row = 0
        for group in range(table.num_row_groups):
            end = row + table.metadata.row_group(group).num_rows
            if not any(row <= position < end for position in wanted):
                row = end
                continue
            for batch in table.iter_batches(batch_size=16, row_groups=[group], columns=[entries[0].note]):
                for offset in range(len(batch)):
                    if row + offset in wanted:
                        found[row + offset] = _image_value(batch.column(0)[offset])
                row += len(batch)
                if row > last:
                    return found
    return found


def _image_value(value: pa.Scalar) -> bytes | ImageError:
    content = value.as_py()
    if isinstance(content, dict):  # Hugging Face's Image feature: a struct of bytes and path
        content = content.get("bytes")
    if content is None:
        return ImageError(ErrorKind.EMPTY, "the image column is null in this row")
    if isinstance(content, str):
        return ImageError(ErrorKind.NOT_AN_IMAGE, "the image column holds text, not bytes")
    if not isinstance(content, bytes):
        return ImageError(ErrorKind.NOT_AN_IMAGE, f"the image column holds {value.type}, not bytes")
    return content
