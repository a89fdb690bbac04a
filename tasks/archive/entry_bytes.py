"""Bytes of the images of a source, or the reason why there are none.

An outage is no image's fault and becomes no image's reason: it ends the job, which goes on later.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from segcore.images.errors import ErrorKind, ImageError
from segcore.images.inner import InnerImage
from segcore.images.tiff import Content, is_tiff
from tasks import storage, storage_faults
from tasks.archive.entries import Entry, decode_path, first_line, is_listed_as
from tasks.archive.parquet_rows import read_rows
from tasks.archive.stored_content import WHOLE_BYTES, StoredContent
from tasks.archive.tar_shards import MAX_FILE_BYTES, read_tar
from tasks.archive.zip_files import read_zip
from tasks.errors import InterruptedJobError, JobError
from tasks.storage import Location

_CONTAINERS = {
    "tar": ("tar shard", read_tar),
    "zip": ("zip archive", read_zip),
    "parquet": ("Parquet file", read_rows),
}
"""By the kind of their entries: what people call them, and what gives the bytes of entries of one of them."""


def read_entries(root: Location, entries: Sequence[Entry], *, large: bool = False) -> Iterator[tuple[Entry, Any]]:
    """Bytes of each entry, in order; an ImageError that says why in place of bytes that cannot be had.

    root: the source. large: a TIFF of many bytes is `StoredContent`, which is read in slices where it is.
    An entry that is one image of several in a file comes as `InnerImage`. Entries of one container or file are read
    together, of a container only while it is the one that was listed. A file that was replaced since comes with its
    new size and version.
    Raises JobError where the source itself cannot be read any more: an outage is no image's fault.
    """
    for together in _together(entries):
        if together[0].kind in _CONTAINERS:
            outcomes: Iterator[tuple[Entry, Any]] = _read_container(root.protocol, together)
        else:
            outcomes = _read_file(root.protocol, together, large)
        for entry, outcome in outcomes:
            if entry.fragment and isinstance(outcome, bytes):
                outcome = InnerImage(outcome, entry.fragment)
            if isinstance(outcome, ImageError) and entry.kind != "broken":
                may_be_outage = outcome.kind in (ErrorKind.MISSING, ErrorKind.UNREADABLE)
                if may_be_outage and not storage.answers(root):
                    raise JobError(f"The source {root.uri} cannot be read any more ({outcome}).")
            yield entry, outcome


def _together(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Runs of entries of one container, or of one file."""
    group: list[Entry] = []
    for entry in entries:
        if group and (entry.kind == "broken" or (entry.kind, entry.path) != (group[0].kind, group[0].path)):
            yield group
            group = []
        group.append(entry)
    if group:
        yield group


def _read_file(protocol: str, entries: Sequence[Entry], large: bool) -> Iterator[tuple[Entry, Content | ImageError]]:
    """Images of one file."""
    first, *others = entries
    if large and not first.fragment and first.kind == "file" and (first.size or 0) > WHOLE_BYTES:
        found = _in_slices(Location(protocol, decode_path(first.path)), first)
        if found is not None:
            yield found
            if others:
                yield from _read_file(protocol, others, large)
            return
    version, data = _bytes_of(protocol, first)
    for entry in entries:
        if isinstance(data, ImageError) or (is_listed_as(entry.version, version, data) and len(data) == entry.size):
            yield entry, data
        else:
            yield replace(entry, version=version, size=len(data)), data


def _bytes_of(protocol: str, entry: Entry) -> tuple[str, bytes | ImageError]:
    """Version and bytes of a file."""
    if entry.kind == "broken":
        return "", ImageError(ErrorKind.UNREADABLE, entry.note)
    if entry.size is not None and entry.size > MAX_FILE_BYTES:
        return "", ImageError(ErrorKind.TOO_LARGE, f"the file has {entry.size} bytes, more than {MAX_FILE_BYTES}")
    place = Location(protocol, decode_path(entry.path))
    try:
        data, version = storage.read_versioned(place)
    except FileNotFoundError:
        return "", ImageError(ErrorKind.MISSING, "listed, but not there any more when it was to be read")
    except Exception as error:  # Whatever the storage says of one image is that image's reason
        _require_no_outage(place, error)
        return "", ImageError(ErrorKind.UNREADABLE, f"the storage did not give the bytes: {first_line(error)}")
    return version, data


def _in_slices(place: Location, entry: Entry) -> tuple[Entry, Content | ImageError] | None:
    """A large TIFF, which stays where it is; None for what has to be read whole, where what is wrong is said too."""
    try:
        now = storage.stat(place)
        version = f"{now.version}-{now.mark}" if now.mark else now.version
        content = StoredContent(place, now.size, now.version)
        if not is_tiff(content):
            return None
    except Exception:
        return None
    listed = entry.version.partition("#")[0]  # Without its digest, which is of all bytes
    same = is_listed_as(listed, version, b"") and now.size == entry.size
    return (entry if same else replace(entry, version=version, size=now.size)), content


def _read_container(protocol: str, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes | ImageError]]:
    place = Location(protocol, decode_path(entries[0].path))
    what, read = _CONTAINERS[entries[0].kind]
    found: dict[str, bytes | ImageError] = {}
    # Several images of one member are read once
    members = {(entry.position, entry.size, entry.note): entry for entry in reversed(entries)}
    try:
        # Positions hold for the container that was listed and for no other, before and after
        _require_version(place, entries[0])
        found = read(place, list(members.values()))
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
        yield entry, found.get(members[entry.position, entry.size, entry.note].image_id, rest)


def _require_no_outage(place: Location, error: Exception) -> None:
    """Raise JobError for what says nothing of an image: it would stand in its row for ever."""
    if place.protocol != "file" and storage_faults.is_outage(error):
        raise InterruptedJobError(
            f"The source cannot be read any more: {storage_faults.explain(error, place)}"
        ) from None


def _require_version(place: Location, entry: Entry) -> None:
    listed = entry.version.rpartition("/")[0] if entry.kind in ("tar", "zip") else entry.version
    if storage.stat(place).version != listed:
        raise ImageError(
            ErrorKind.CHANGED, f"{place.name} was replaced after it was listed; --refresh-changed does its images again"
        )
