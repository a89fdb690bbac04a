"""Where photographs come from: folders and prefixes, single files, tar shards, zip archives, Parquet datasets.

Lists a source as entries with an identity and a way to the bytes, which `entry_bytes.py` reads. What a listed entry
means for the job is `manifest.py`'s business.
"""

import collections
import contextlib
import os
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from segcore.images import raw
from segcore.images.decoding import EXTENSIONS
from tasks import storage, storage_faults
from tasks.archive.entries import (
    DIGEST_BYTES,
    SIDECARS,
    Entry,
    broken,
    escape,
    file_entry,
    readable,
    suffix,
    with_digest,
)
from tasks.archive.output import OWN
from tasks.archive.parquet_rows import Table, list_rows, survey, twin_of_a_file, with_identities
from tasks.archive.tar_shards import is_tar, list_tar
from tasks.archive.zip_files import is_zip, list_zip
from tasks.errors import JobError
from tasks.storage import Location, StoredFile
from tasks.words import counted

LITTER = frozenset({"Thumbs.db", "desktop.ini", "Icon\r", "_SUCCESS", "_metadata", "_common_metadata"})
"""Files that systems leave among photographs and tables; like hidden files, no part of an archive."""

YOUNG_NS = 2_000_000_000
"""Of a file that is younger when it is listed the bytes are looked at: clocks of NFS, SMB and FAT are that coarse."""

CONTAINERS = {
    ".arrow": "an Arrow file is not read; write it as Parquet: datasets.load_from_disk(FOLDER).to_parquet(FILE)",
    ".tfrecord": "a TFRecord file is not read; write its images into tar shards or Parquet",
    ".7z": "a 7z archive is not read; unpack it",
    ".rar": "a RAR archive is not read; unpack it",
    ".h5": "an HDF5 file is not read; write its images into tar shards or Parquet",
    ".hdf5": "an HDF5 file is not read; write its images into tar shards or Parquet",
    ".mdb": "an LMDB file is not read; write its images into tar shards or Parquet",
}
"""Files that may hold images and are not read, with the remedy."""


DEVELOPED = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".heic", ".heif", ".hif"))
"""What cameras write beside a RAW file of the same shot."""


@dataclass(frozen=True, slots=True)
class Source:
    """A source with everything that decides what its entries are."""

    location: Location
    """The folder, prefix or file."""

    id_column: str | None = None
    """Parquet: column with the identity; None: the first of the usual names that tells all rows apart, or their
    number."""

    image_column: str | None = None
    """Parquet: column with the image bytes, nested fields with dots; None: the first of the usual names."""

    pairs: bool = False
    """Whether a RAW file and the JPEG or HEIC of the same shot (same folder, same name) are one picture: the latter."""

    pages: Literal["first", "all"] = "first"
    """Of a TIFF, an animated GIF or WebP: the first page or frame, or each as an image of its own."""

    frames: float | Literal["scenes"] | None = None
    """Of a video: a frame every so many seconds, or of each scene, as images; None: none."""

    @property
    def deciding(self) -> list[str | None]:
        """What of this decides the entries, beside the location; what nobody asked for is not in it."""
        asked = ["pairs"] if self.pairs else []
        asked += [] if self.pages == "first" else [f"pages={self.pages}"]
        asked += [] if self.frames is None else [f"frames={self.frames}"]
        return [self.id_column, self.image_column, *asked]


@dataclass
class LeftAside:
    """Files beside the images of a source that hold none themselves."""

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    """By what they are."""

    examples: dict[str, str] = field(default_factory=dict)
    """The first of each kind."""

    remarks: list[str] = field(default_factory=list)
    """What else a person should know about the listing."""

    plurals: dict[str, str] = field(default_factory=dict)
    """What several of a kind are called."""

    def note(self, what: str, several: str, name: str) -> None:
        self.counts[what] += 1
        self.plurals[what] = several
        self.examples.setdefault(what, name)

    def sentences(self) -> str:
        """For a person; empty where there is nothing to say."""
        kinds = [
            f"{counted(number, what, self.plurals[what])} ({self.examples[what]}{', ...' if number > 1 else ''})"
            for what, number in sorted(self.counts.items())
        ]
        return " ".join([*([f"Left aside: {', '.join(kinds)}."] if kinds else []), *self.remarks])


def list_source(
    source: Source,
    leave_out: Location | None = None,
    aside: LeftAside | None = None,
    listed: Callable[[], Mapping[bytes, bool]] = dict,
    within: Callable[[Iterator[Entry]], Iterator[Entry]] = iter,
) -> Iterator[Entry]:
    """Every image of a source, streamed.

    Each regular file is an entry, whatever its name: a file that is no image becomes an error row, never a gap. So do
    links to nowhere, folders that cannot be opened, and pipes under an image's name. Hidden files and system litter are
    left out. Of tar shards and zip archives the image members are listed, of Parquet files with a column of images the
    rows, also beside loose images; files that describe them (`SIDECARS`, Parquet without images) are left aside where
    there are such containers.
    leave_out: a folder inside the source that is not part of it (the output).
    aside: is told what was left aside.
    listed: gives `Manifest.parquet_files`; asked where there are Parquet files.
    within: puts the images of files that hold several in their place, `tasks/stream/survey.py`.
    Raises JobError where the source does not exist, cannot be listed, or holds nothing but Parquet without images.
    """
    location = source.location
    aside = LeftAside() if aside is None else aside
    try:
        if storage.is_file(location):
            files = iter([storage.stat(location)])
            found = _list_files(source, files, aside, listed, single=True)
            yield from _paired(source, _unique(within(found)), aside)
            return
        if location.protocol == "file" and not storage.exists(location):
            raise FileNotFoundError(location.path)
        files = storage.list_files(location, problems=True)
        if leave_out is not None:
            files = _without(files, location, leave_out)
        found = _list_files(source, files, aside, listed, single=False)
        yield from _paired(source, _unique(within(found)), aside)
    except (OSError, ValueError) as error:
        if isinstance(error, JobError):
            raise
        raise JobError(f"Cannot read the source. {storage_faults.explain(error, location)}") from None
    except Exception as error:  # botocore's own kinds derive from Exception alone
        raise JobError(f"Cannot read the source. {storage_faults.explain(error, location)}") from None


def _paired(source: Source, entries: Iterator[Entry], aside: LeftAside) -> Iterator[Entry]:
    """The entries without RAW files that lie beside the developed picture of the same shot, which come at the end.

    Of the pictures only hashes of their names are remembered.
    """
    if not source.pairs:
        yield from entries
        return
    pictures: set[int] = set()
    alone: list[tuple[int, Entry]] = []
    for entry in entries:
        ending = suffix(entry.image_id)
        stem = entry.image_id[: len(entry.image_id) - len(ending)]
        shot = hash(unicodedata.normalize("NFC", stem).casefold())
        if ending in raw.EXTENSIONS and entry.kind != "broken":
            alone.append((shot, entry))
            continue
        if ending in DEVELOPED and entry.kind != "broken" and entry.size != 0:
            pictures.add(shot)
        yield entry
    for shot, entry in alone:
        if shot in pictures:
            aside.note("RAW file beside its JPEG", "RAW files beside their JPEG", entry.image_id)
        else:
            yield entry


def _unique(entries: Iterator[Entry]) -> Iterator[Entry]:
    """Give the second and later entry of one identity its place in the container: nothing shares a row or is lost.

    The place never depends on the rest of the source, so an identity means the same image in every listing. For the
    same reason one identity in two Parquet files is refused: which of them came first could change.
    Photographs in files of their own cannot repeat; only the other identities are remembered, as hashes.
    """
    seen: dict[int, int] = {}  # Hash of the identity: hash of the container
    for entry in entries:
        if entry.kind == "file" and "\\x" not in entry.image_id and suffix(entry.image_id) in EXTENSIONS:
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


def _list_files(
    source: Source,
    files: Iterator[StoredFile],
    aside: LeftAside,
    listed: Callable[[], Mapping[bytes, bool]],
    *,
    single: bool,
) -> Iterator[Entry]:
    location = source.location
    tables: list[StoredFile] = []  # Parquet files; whether their identities are unique is known at the end alone
    sidecars: list[StoredFile] = []
    has_archives = has_images = has_files = False
    for file in files:
        name = file.path.rpartition("/")[2]
        ending = suffix(name)
        place = location if single else location / file.path
        if name in LITTER:
            continue
        if file.problem:
            yield broken(place, file, file.problem)
        elif is_tar(name) or is_zip(name):
            held = False
            for entry in (list_tar if is_tar(name) else list_zip)(place, file):
                held = has_archives = has_images = True
                yield entry
            if not held:
                aside.note("archive without an image", "archives without an image", readable(file.path))
        elif ending in (".parquet", ".pq"):
            tables.append(file)
        elif ending in SIDECARS and not single:
            sidecars.append(file)
        elif ending in CONTAINERS:
            yield broken(place, file, CONTAINERS[ending])
        else:
            has_files, has_images = True, has_images or ending in EXTENSIONS
            yield _own_file(place, file)
    rows = 0

    def others() -> Iterator[str]:
        """Identities of the files; asked seldom, so listed again rather than kept."""
        if has_files:
            yield from (escape(readable(file.path)) for file in storage.list_files(location))

    for entry in _list_tables(source, tables, aside, listed, others, single=single, alone=not has_images):
        rows += entry.kind == "parquet"
        yield entry
    for file in sidecars:
        if has_archives or rows:
            aside.note(f"{suffix(file.path)} file", f"{suffix(file.path)} files", readable(file.path))
        else:
            yield _own_file(location if single else location / file.path, file)


def _own_file(place: Location, file: StoredFile) -> Entry:
    """A file of its own; a young one with the digest of its bytes, since its time may be that of a later write too."""
    entry = file_entry(place, file)
    if file.mark and 0 < file.size <= DIGEST_BYTES and abs(time.time_ns() - int(file.version)) < YOUNG_NS:
        with contextlib.suppress(OSError):  # Reading it will say what is wrong
            return with_digest(entry, storage.read_bytes(place))
    return entry


def _list_tables(
    source: Source,
    files: list[StoredFile],
    aside: LeftAside,
    listed: Callable[[], Mapping[bytes, bool]],
    others: Callable[[], Iterator[str]],
    *,
    single: bool,
    alone: bool,
) -> Iterator[Entry]:
    """Rows of those Parquet files that have images. alone: there are no other images."""
    location = source.location
    tables: list[Table] = []
    without: list[tuple[StoredFile, str]] = []
    found = False
    for file in files:
        place = location if single else location / file.path
        held = survey(place, file, source.id_column, source.image_column)
        if isinstance(held, Table):
            tables.append(held)
        elif isinstance(held, Entry):
            found = True
            yield held
        else:
            without.append((file, held))
    if not alone or any(table.holds_bytes for table in tables):
        # Of paths and addresses there are no bytes: what they name is elsewhere, or lies beside them
        without += [(table.file, "") for table in tables if not table.holds_bytes]
        tables = [table for table in tables if table.holds_bytes]
    if without and alone and not found and not tables:
        raise JobError(without[0][1])
    for file, _ in without:
        aside.note("Parquet file without images", "Parquet files without images", readable(file.path))
    if source.id_column is None:
        tables, remark = with_identities(tables, listed() if tables else {}, others)
        aside.remarks += [remark] if remark else []
    if twin := twin_of_a_file(tables, others):
        raise JobError(
            f"{twin!r} is the identity of a row in a Parquet file of {location.uri} and the name of a file there: name "
            "another column with --id-column, or move one of them."
        )
    for table in tables:
        yield from list_rows(table)
