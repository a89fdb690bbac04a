"""Where photographs come from: folders and prefixes, single files, tar shards, Parquet datasets.

Lists a source as entries with an identity and a way to the bytes, and reads the bytes of entries. What a listed entry
means for the job is `tasks/manifest.py`'s business; decoding is `segcore.images`'.
"""

import contextlib
import os
import struct
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segcore.images import EXTENSIONS, ErrorKind, ImageError
from tasks import storage, storage_faults
from tasks.errors import InterruptedJobError, JobError
from tasks.storage import Location, StoredFile
from tasks.strict_tar import StrictTarInfo

LITTER = frozenset({"Thumbs.db", "desktop.ini", "Icon\r", "_SUCCESS", "_metadata", "_common_metadata"})
"""Files that systems leave among photographs and tables; like hidden files, no part of an archive."""

MAX_FILE_BYTES = 2**30
"""A larger file is not read at all; no photograph within the pixel bound comes near."""

MAX_ID_BYTES = 4096
"""Of an identity in a Parquet file: more is no name, and a column of such would not fit into the memory."""

_BUFFER_BYTES = 2**20  # Read Parquet page by page: a column chunk of photographs may be larger than the memory

_ID_COLUMNS = ("image_id", "id", "key", "__key__", "name", "path")
_IMAGE_COLUMNS = ("image", "image_bytes", "bytes", "jpg", "content", "data")


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source: its identity and the way to its bytes."""

    image_id: str
    """Path relative to the source, shard!/member, or the value of the id column; unique in its source."""

    uri: str
    """What a person would open."""

    kind: str
    """"file", "tar", "parquet", or "broken": a container that could not be listed, `note` says why."""

    path: bytes
    """Of the file or container, as Location.path; bytes, since a local name need not be UTF-8."""

    position: int
    """Byte offset of the member in its shard, or row in its Parquet file; 0 for a file of its own."""

    size: int | None
    """Bytes of the image, where the listing tells."""

    version: str
    """Changes when the bytes are replaced: etag or modification time of the file or container."""

    note: str = ""
    """Parquet: the image column. Broken: the reason."""


@dataclass(frozen=True, slots=True)
class Source:
    """A source with everything that decides what its entries are."""

    location: Location
    """The folder, prefix or file."""

    id_column: str | None = None
    """Parquet: column with the identity; None: the first of the usual names."""

    image_column: str | None = None
    """Parquet: column with the image bytes; None: the first of the usual names."""


def list_source(source: Source, leave_out: Location | None = None) -> Iterator[Entry]:
    """Every image of a source, streamed.

    Each regular file is an entry, whatever its name: a file that is no image becomes an error row, never a gap.
    Hidden files and system litter are left out; tar shards are opened and their image members listed. Where a
    source holds Parquet files and no image files, its rows are the entries.
    leave_out: a folder inside the source that is not part of it (the output).
    Raises JobError where the source does not exist or cannot be listed.
    """
    location = source.location
    try:
        if storage.is_file(location):
            yield from _unique(_list_files(source, iter([storage.stat(location)]), single=True))
            return
        if location.protocol == "file" and not storage.exists(location):
            raise FileNotFoundError(location.path)
        files = storage.list_files(location)
        if leave_out is not None:
            files = _without(files, location, leave_out)
        yield from _unique(_list_files(source, files, single=False))
    except (OSError, ValueError) as error:
        if isinstance(error, JobError):
            raise
        raise JobError(f"Cannot read the source. {storage_faults.explain(error, location)}") from None
    except Exception as error:  # botocore's own kinds derive from Exception alone
        raise JobError(f"Cannot read the source. {storage_faults.explain(error, location)}") from None


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


def encode_path(path: str) -> bytes:
    """A path of a listing as bytes, with what was not UTF-8 as it was."""
    return path.encode("utf-8", "surrogateescape")


def _decode_path(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _readable(path: str) -> str:
    """Any path as valid Unicode: bytes that are not UTF-8 shown as \\xff."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _escape(path: str) -> str:
    """Keep "!/" free as the mark between a shard and its member."""
    return path.replace("!/", "!!/")


def _unique(entries: Iterator[Entry]) -> Iterator[Entry]:
    """Give the second and later entry of one identity its place in the container: nothing shares a row or is lost.

    The place never depends on the rest of the source, so an identity means the same image in every listing. For the
    same reason one identity in two Parquet files is refused: which of them came first could change.
    Photographs in files of their own cannot repeat; only the other identities are remembered, as hashes.
    """
    seen: dict[int, int] = {}  # Hash of the identity: hash of the container
    for entry in entries:
        if entry.kind == "file" and "\\x" not in entry.image_id and _suffix(entry.image_id) in EXTENSIONS:
            yield entry
            continue
        container = hash(entry.path)
        if entry.kind == "parquet" and seen.get(hash(entry.image_id), container) != container:
            file = entry.uri.rpartition("!/")[0]
            raise JobError(
                f"The identity {entry.image_id!r} in {file} stands in another file of the source too: name a "
                "column whose values are unique with --id-column."
            )
        image_id = entry.image_id
        while hash(image_id) in seen:
            image_id = f"{image_id}!#{entry.position}"
        seen[hash(image_id)] = container
        yield entry if image_id == entry.image_id else replace(entry, image_id=image_id)


def _without(files: Iterator[StoredFile], location: Location, leave_out: Location) -> Iterator[StoredFile]:
    prefix = f"{location.path.rstrip('/')}/"
    if leave_out.protocol == location.protocol == "file":
        prefix = f"{os.path.realpath(location.path).rstrip('/')}/"
        leave_out, location = (Location("file", os.path.realpath(place.path)) for place in (leave_out, location))
    inside = leave_out.protocol == location.protocol and f"{leave_out.path}/".startswith(prefix)
    if not inside or leave_out.path.rstrip("/") == location.path.rstrip("/"):
        # The output in the source itself: its own folders are no photographs
        own = ("manifest/source=", "masks/run=", "compacted/run=", "runs/", "png/run=") if leave_out == location else ()
        yield from (file for file in files if not (own and file.path.startswith(own)))
        return
    relative = f"{leave_out.path[len(prefix) :].rstrip('/')}/"
    yield from (file for file in files if not file.path.startswith(relative))


def _list_files(source: Source, files: Iterator[StoredFile], *, single: bool) -> Iterator[Entry]:
    location = source.location
    held: list[StoredFile] = []  # Parquet files, until it is known that there are no images beside them
    has_images = False
    for file in files:
        name = file.path.rpartition("/")[2]
        suffix = _suffix(name)
        place = location if single else location / file.path
        if name in LITTER:
            continue
        if suffix == ".tar":
            yield from _list_tar(place, file)
        elif suffix == ".parquet" and not has_images:
            held.append(file)
        else:
            if suffix in EXTENSIONS:
                has_images = True
                yield from (_file_entry(location if single else location / h.path, h) for h in held)
                held = []
            yield _file_entry(place, file)
    for file in held:
        yield from _list_parquet(source, location if single else location / file.path, file)


def _file_entry(place: Location, file: StoredFile) -> Entry:
    return Entry(
        _escape(_readable(file.path)),
        _readable(place.uri),
        "file",
        encode_path(place.path),
        0,
        file.size,
        file.version,
    )


def _broken(place: Location, file: StoredFile, reason: str) -> Entry:
    return replace(_file_entry(place, file), kind="broken", note=reason)


def _list_tar(place: Location, file: StoredFile) -> Iterator[Entry]:
    shard = _escape(_readable(file.path))
    try:
        with (
            storage.open_for_reading(place) as opened,
            tarfile.open(fileobj=opened, mode="r:", tarinfo=StrictTarInfo) as tar,
        ):
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # It would remember every member
                name = member.name.rpartition("/")[2]
                suffix = _suffix(name)
                # A shard carries labels and metadata beside its images; its names say which is which
                if not member.isreg() or name.startswith(".") or suffix not in EXTENSIONS:
                    continue
                member_name = _readable(member.name)
                entry = Entry(
                    f"{shard}!/{member_name}",
                    f"{_readable(place.uri)}!/{member_name}",
                    "tar",
                    encode_path(place.path),
                    member.offset_data,
                    member.size,
                    f"{file.version}/{member.size}",
                )
                if member.issparse():  # Its bytes do not lie in one piece
                    entry = replace(entry, kind="broken", size=0, note="the member is stored as a sparse file")
                elif member.offset_data + member.size > file.size:
                    raise tarfile.ReadError(f"{member_name} says {member.size} bytes, more than the shard has")
                yield entry
    except Exception as error:  # Whatever a header that was tampered with makes the reader trip over
        if place.protocol != "file" and not isinstance(error, _BROKEN):
            raise  # The network's fault, not the shard's
        reason = _first_line(error)
        yield _broken(place, file, f"the tar shard cannot be listed to its end: {reason}")


_BROKEN = (tarfile.TarError, pa.ArrowException, ValueError, ArithmeticError, LookupError, struct.error, RecursionError)
"""What readers raise of contents, and no network does."""


def _list_parquet(source: Source, place: Location, file: StoredFile) -> Iterator[Entry]:
    try:
        with storage.open_for_reading(place) as opened, pq.ParquetFile(opened, buffer_size=_BUFFER_BYTES) as table:
            names = table.schema_arrow.names
            id_column = _column(source.id_column, _ID_COLUMNS, names, place, "--id-column")
            image_column = _column(source.image_column, _IMAGE_COLUMNS, names, place, "--image-column")
            kind = table.schema_arrow.field(id_column).type
        if pa.types.is_nested(kind):
            raise JobError(f"{place.uri}: a column of {kind} cannot identify images: name another with --id-column.")
        with (
            storage.open_for_reading(place) as opened,
            # As a dictionary: a long text that a file repeats in few bytes is held once
            pq.ParquetFile(opened, buffer_size=_BUFFER_BYTES, read_dictionary=[id_column]) as table,
        ):
            row = 0
            for batch in table.iter_batches(batch_size=65_536, columns=[id_column]):
                for value in _identities(batch.column(0), place):
                    image_id = str(value) if value is not None else f"{_readable(file.path)}!/row {row}"
                    yield Entry(
                        image_id,
                        f"{_readable(place.uri)}!/{image_id}",
                        "parquet",
                        encode_path(place.path),
                        row,
                        None,
                        file.version,
                        image_column,
                    )
                    row += 1
    except JobError:
        raise
    except Exception as error:  # Arrow raises nearly everything of a file that was tampered with
        if place.protocol != "file" and not isinstance(error, _BROKEN):
            raise
        yield _broken(place, file, f"the Parquet file cannot be listed: {_first_line(error)}")


def _identities(column: pa.Array, place: Location) -> list[object]:
    """Values of the id column. Raises JobError where one is too long to be an identity."""
    values = column.dictionary if isinstance(column, pa.DictionaryArray) else column
    if pa.types.is_string(values.type) or pa.types.is_binary(values.type):
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


def _column(asked: str | None, usual: tuple[str, ...], names: list[str], place: Location, option: str) -> str:
    if asked is not None and asked in names:
        return asked
    found = next((name for name in usual if name in names), None) if asked is None else None
    if found is None:
        missing = f"has no column {asked!r}" if asked else f"has none of the columns {', '.join(usual)}"
        told = ", ".join(name if name.isprintable() and len(name) < 100 else repr(name[:100]) for name in names[:50])
        raise JobError(f"{place.uri} {missing}; it has {told}. Name the right one with {option}.")
    return found


def _suffix(name: str) -> str:
    """Ending of a file name in lower case with its dot; empty where there is none."""
    last = name.rpartition("/")[2]
    return f".{last.rpartition('.')[2].lower()}" if "." in last else ""


def _read_file(protocol: str, entry: Entry) -> tuple[Entry, bytes | ImageError]:
    if entry.kind == "broken":
        return entry, ImageError(ErrorKind.UNREADABLE, entry.note)
    if entry.size is not None and entry.size > MAX_FILE_BYTES:
        return entry, ImageError(ErrorKind.TOO_LARGE, f"the file has {entry.size} bytes, more than {MAX_FILE_BYTES}")
    place = Location(protocol, _decode_path(entry.path))
    try:
        data, version = storage.read_versioned(place)
    except FileNotFoundError:
        return entry, ImageError(ErrorKind.MISSING, "listed, but not there any more when it was to be read")
    except Exception as error:  # Whatever the storage says of one image is that image's reason
        _require_no_outage(place, error)
        return entry, ImageError(ErrorKind.UNREADABLE, f"the storage did not give the bytes: {_first_line(error)}")
    same = version == entry.version and len(data) == entry.size
    return (entry if same else replace(entry, version=version, size=len(data))), data


def _read_container(protocol: str, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes | ImageError]]:
    place = Location(protocol, _decode_path(entries[0].path))
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
        rest = ImageError(ErrorKind.UNREADABLE, f"the {what} did not give the bytes: {_first_line(error)}")
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
    with storage.open_for_reading(place) as opened, pq.ParquetFile(opened, buffer_size=_BUFFER_BYTES) as table:
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


def _first_line(error: BaseException) -> str:
    line = _readable(str(error).splitlines()[0][:300]) if str(error) else type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in line)


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
