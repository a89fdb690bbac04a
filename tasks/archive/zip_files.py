"""Zip archives: their image members, and the bytes of each.

A member is read alone, by one range of the file: the listing keeps where it begins, how it is packed and how long that
is. Nothing is unpacked to the disk.
"""

import bz2
import functools
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence

from segcore.images.errors import ErrorKind, ImageError
from tasks import storage
from tasks.archive.entries import (
    BROKEN,
    Entry,
    broken,
    encode_path,
    escape,
    first_line,
    is_image_member,
    readable,
    suffix,
)
from tasks.archive.tar_shards import MAX_FILE_BYTES, MAX_UNPACKED_BYTES
from tasks.storage import Location, StoredFile

_PACKED = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflate", zipfile.ZIP_BZIP2: "bzip2"}
_HEADER_BYTES = 30
"""Of a member in front of its name (APPNOTE.TXT 4.3.7); lengths of name and extra field are its last four bytes."""

_EXTRA_BYTES = 1024
"""Read ahead for the name and the extra field."""


def is_zip(name: str) -> bool:
    """Whether a file name promises a zip archive."""
    return suffix(name) == ".zip"


def list_zip(place: Location, file: StoredFile) -> Iterator[Entry]:
    """Every image of a zip archive; what cannot be read as an entry that says why."""
    archive = escape(readable(file.path))
    try:
        with storage.open_for_reading(place) as raw, zipfile.ZipFile(raw) as opened:
            for member in opened.infolist():
                name = _name(member)
                problem = _problem(member, file)
                if member.is_dir() or not is_image_member(name, functools.partial(_first_bytes, opened, member)):
                    continue
                yield Entry(
                    f"{archive}!/{readable(name)}",
                    f"{readable(place.uri)}!/{readable(name)}",
                    "broken" if problem else "zip",
                    encode_path(place.path),
                    member.header_offset,
                    member.file_size,
                    f"{file.version}/{member.file_size}",
                    problem or f"{_PACKED[member.compress_type]} {member.compress_size}",
                )
    except Exception as error:  # Whatever a directory that was tampered with makes the reader trip over
        if place.protocol != "file" and not isinstance(error, (*BROKEN, zipfile.BadZipFile)):
            raise  # The network's fault, not the archive's
        yield broken(place, file, f"the zip archive cannot be listed: {first_line(error)}; is it whole?")


def read_zip(place: Location, entries: Sequence[Entry]) -> dict[str, bytes | ImageError]:
    """Bytes of the members of one archive, by identity."""
    return {entry.image_id: _read(place, entry) for entry in entries}


def _read(place: Location, entry: Entry) -> bytes | ImageError:
    packed, _, length = entry.note.partition(" ")
    size, packed_size = entry.size or 0, int(length)
    most = MAX_FILE_BYTES if packed == "stored" else MAX_UNPACKED_BYTES
    if max(size, packed_size) > most:
        return ImageError(ErrorKind.TOO_LARGE, f"the member has {size} bytes, more than {most} from a zip archive")
    found = storage.read_range(place, entry.position, _HEADER_BYTES + _EXTRA_BYTES + packed_size)
    start = _HEADER_BYTES + sum(int.from_bytes(found[at : at + 2], "little") for at in (26, 28))
    if not found.startswith(b"PK\3\4"):
        return ImageError(ErrorKind.UNREADABLE, "the zip archive has no member where its directory says")
    data = found[start : start + packed_size]
    if start + packed_size > len(found):
        data = storage.read_range(place, entry.position + start, packed_size)
    try:
        if packed == "deflate":
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1) if size else b""
        elif packed == "bzip2":
            data = bz2.BZ2Decompressor().decompress(data, size + 1)
    except (zlib.error, OSError) as error:
        return ImageError(ErrorKind.UNREADABLE, f"the member's {packed} compression is damaged: {first_line(error)}")
    if len(data) < size:
        return ImageError(ErrorKind.TRUNCATED, "the zip archive ends within this member")
    return data[:size]


def _name(member: zipfile.ZipInfo) -> str:
    """A member's path; archives of macOS hold UTF-8 without its mark, some of Windows its separator."""
    name = member.filename.replace("\\", "/")
    if not member.flag_bits & 0x800:
        try:
            return name.encode("cp437").decode("utf-8")
        except UnicodeError:
            pass
    return name


def _problem(member: zipfile.ZipInfo, file: StoredFile) -> str:
    """Why a member's bytes cannot be had; empty where they can."""
    if not _is_file(member):
        kind = stat.S_IFMT(member.external_attr >> 16)
        return "the member is a symbolic link, and no file" if kind == stat.S_IFLNK else "the member is no file"
    if member.flag_bits & 1:
        return "the member is encrypted; unpack the archive with its password"
    if member.compress_type not in _PACKED:
        return f"the member is packed by method {member.compress_type} of zip, which is not read; unpack the archive"
    if member.header_offset + member.compress_size > file.size:
        return "the member says more bytes than the zip archive has"
    return ""


def _is_file(member: zipfile.ZipInfo) -> bool:
    """Whether it is neither a link nor a device; archives of Windows do not say."""
    return stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)


def _first_bytes(opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes | None:
    if not _is_file(member):
        return b""
    try:
        with opened.open(member) as content:
            return content.read(16)
    except (*BROKEN, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError):  # Encrypted, too
        return None
    except OSError:
        if member.compress_type != zipfile.ZIP_BZIP2:  # Which says so of damaged bytes
            raise
        return None
