"""Where photographs come from: folders and prefixes, single files, tar shards, Parquet datasets.

Lists a source as entries with an identity and a way to the bytes, which `entry_bytes.py` reads. What a listed entry
means for the job is `manifest.py`'s business.
"""

import os
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segcore.images import EXTENSIONS
from tasks import storage, storage_faults
from tasks.archive.entries import BUFFER_BYTES, Entry, encode_path, first_line, readable
from tasks.archive.output import OWN
from tasks.errors import JobError
from tasks.storage import Location, StoredFile
from tasks.strict_tar import StrictTarInfo

LITTER = frozenset({"Thumbs.db", "desktop.ini", "Icon\r", "_SUCCESS", "_metadata", "_common_metadata"})
"""Files that systems leave among photographs and tables; like hidden files, no part of an archive."""

MAX_ID_BYTES = 4096
"""Of an identity in a Parquet file: more is no name, and a column of such would not fit into the memory."""

_ID_COLUMNS = ("image_id", "id", "key", "__key__", "name", "path")
_IMAGE_COLUMNS = ("image", "image_bytes", "bytes", "jpg", "content", "data")


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
        own = OWN if leave_out == location else ()
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
        _escape(readable(file.path)),
        readable(place.uri),
        "file",
        encode_path(place.path),
        0,
        file.size,
        file.version,
    )


def _broken(place: Location, file: StoredFile, reason: str) -> Entry:
    return replace(_file_entry(place, file), kind="broken", note=reason)


def _list_tar(place: Location, file: StoredFile) -> Iterator[Entry]:
    shard = _escape(readable(file.path))
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
                member_name = readable(member.name)
                entry = Entry(
                    f"{shard}!/{member_name}",
                    f"{readable(place.uri)}!/{member_name}",
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
        reason = first_line(error)
        yield _broken(place, file, f"the tar shard cannot be listed to its end: {reason}")


_BROKEN = (tarfile.TarError, pa.ArrowException, ValueError, ArithmeticError, LookupError, struct.error, RecursionError)
"""What readers raise of contents, and no network does."""


def _list_parquet(source: Source, place: Location, file: StoredFile) -> Iterator[Entry]:
    try:
        with storage.open_for_reading(place) as opened, pq.ParquetFile(opened, buffer_size=BUFFER_BYTES) as table:
            names = table.schema_arrow.names
            id_column = _column(source.id_column, _ID_COLUMNS, names, place, "--id-column")
            image_column = _column(source.image_column, _IMAGE_COLUMNS, names, place, "--image-column")
            kind = table.schema_arrow.field(id_column).type
        if pa.types.is_nested(kind):
            raise JobError(f"{place.uri}: a column of {kind} cannot identify images: name another with --id-column.")
        with (
            storage.open_for_reading(place) as opened,
            # As a dictionary: a long text that a file repeats in few bytes is held once
            pq.ParquetFile(opened, buffer_size=BUFFER_BYTES, read_dictionary=[id_column]) as table,
        ):
            row = 0
            for batch in table.iter_batches(batch_size=65_536, columns=[id_column]):
                for value in _identities(batch.column(0), place):
                    image_id = str(value) if value is not None else f"{readable(file.path)}!/row {row}"
                    yield Entry(
                        image_id,
                        f"{readable(place.uri)}!/{image_id}",
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
        yield _broken(place, file, f"the Parquet file cannot be listed: {first_line(error)}")


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
