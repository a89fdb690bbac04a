"""Tar shards: their image members, and the bytes of each, plain or compressed (gzip, bzip2, xz, zstd, lz4).

Links lead to the bytes of their target within the shard, and never out of it. A compressed shard is unpacked on the fly
and forwards: a process keeps the stream where it stands, so that units in order cost one pass, not one pass each.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import tarfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

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
    is_image_name,
    readable,
    suffix,
)
from tasks.storage import Location, StoredFile
from tasks.strict_tar import StrictTarInfo

MAX_FILE_BYTES = 2**30
"""A larger file or member is not read at all; no photograph within the pixel bound comes near."""

MAX_UNPACKED_BYTES = 2**28
"""Of a member that is stored smaller than it is (compressed, sparse): few bytes must not become a full memory."""

MAX_LINKS = 1_000_000
"""Of one shard; they are held until its end."""

_MAX_HOPS = 40
"""Links that one path may lead through, as on Linux."""

_MAX_XZ_MEMORY_BYTES = 256 << 20
"""`xz -9` needs 65 MiB."""

_CODECS = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    *((bytes([0x50 + number]) + b"\x2a\x4d\x18", "zstd") for number in range(16)),  # A frame to skip comes first
    (b"\x04\x22\x4d\x18", "lz4"),
)
_OTHERS = ((b"\x1f\x9d", "compress"), (b"LZIP", "lzip"), (b"PK\3\4", "zip"), (b"7z\xbc\xaf", "7z"), (b"Rar!", "rar"))

ENDINGS = frozenset(f".{ending}" for ending in ["tar", "tgz", "tbz", "tbz2", "txz", "tzst", "tlz4"])
"""File names that promise a tar archive, beside `.tar.gz` and its like; its first bytes say how it is compressed."""

_COMPRESSED_ENDINGS = frozenset(f".{ending}" for ending in ["gz", "bz2", "xz", "zst", "lz4", "z", "lz"])

_NO_MEMBERS = frozenset((b"D", b"V", b"N", b"A", b"E"))
"""Types of headers that describe a volume, a folder or another member: GNU's and Solaris'."""


def is_tar(name: str) -> bool:
    """Whether a file name promises a tar archive."""
    ending = suffix(name)
    return ending in ENDINGS or (ending in _COMPRESSED_ENDINGS and suffix(name[: -len(ending)]) == ".tar")


@dataclass(frozen=True, slots=True)
class _Link:
    name: str
    target: str
    hard: bool
    at: int
    """Byte offset of its header."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where the bytes of a regular member lie."""

    position: int
    """Byte offset of its data; of its header where it is sparse."""

    size: int
    sparse: bool


def list_tar(place: Location, file: StoredFile) -> Iterator[Entry]:
    """Every image of a shard, links last; what cannot be read or followed as an entry that says why.

    A shard carries labels and metadata beside its images: names say which is which, and first bytes where a name says
    neither.
    """
    shard = escape(readable(file.path))
    links: list[_Link] = []
    codec = ""

    def entry(name: str, stored: _Stored) -> Entry:
        return Entry(
            f"{shard}!/{readable(name)}",
            f"{readable(place.uri)}!/{readable(name)}",
            "tar",
            encode_path(place.path),
            stored.position,
            stored.size,
            f"{file.version}/{stored.size}",
            f"{codec} sparse".strip() if stored.sparse else codec,
        )

    def without_bytes(name: str, at: int, reason: str) -> Entry:
        return replace(entry(name, _Stored(at, 0, False)), kind="broken", note=reason)

    try:
        with _opened(place) as (opened, codec):
            for member in _members(opened):
                if member.issym() or member.islnk():
                    links.append(_Link(member.name, member.linkname, member.islnk(), member.offset))
                    if len(links) > MAX_LINKS:
                        raise tarfile.ReadError(f"more than {MAX_LINKS} links")
                elif member.isdir() or member.type in _NO_MEMBERS or not _is_image(member, opened):
                    continue
                elif member.isreg():
                    if not codec and not member.issparse() and member.offset_data + member.size > file.size:
                        raise tarfile.ReadError(
                            f"{readable(member.name)} says {member.size} bytes, more than the shard has"
                        )
                    yield entry(member.name, _stored(member))
                else:
                    yield without_bytes(member.name, member.offset, f"the member is {_type(member)}, and no file")
        yield from (
            without_bytes(link.name, link.at, found) if isinstance(found, str) else entry(link.name, found)
            for link, found in _follow(place, links)
        )
    except Exception as error:  # Whatever a header that was tampered with makes the reader trip over
        if place.protocol != "file" and not isinstance(error, BROKEN):
            raise  # The network's fault, not the shard's
        yield broken(place, file, f"the tar shard cannot be listed to its end: {first_line(error)}")


def read_tar(place: Location, entries: Sequence[Entry]) -> dict[str, bytes | ImageError]:
    """Bytes of the members of one shard, by identity."""
    found: dict[str, bytes | ImageError] = {}
    plain = [entry for entry in entries if not entry.note]
    for entry in plain:
        size = entry.size or 0
        if size > MAX_FILE_BYTES:
            found[entry.image_id] = ImageError(ErrorKind.TOO_LARGE, f"the member has {size} bytes")
            continue
        data = storage.read_range(place, entry.position, size) if size else b""
        found[entry.image_id] = data if len(data) == size else _cut()
    if len(plain) < len(entries):
        # Forwards, since a compressed shard goes no other way
        packed = sorted((entry for entry in entries if entry.note), key=lambda entry: entry.position)
        with _stream(place, packed[0]) as opened:
            for entry in packed:
                found[entry.image_id] = _unpacked(opened, entry)
    return found


def _unpacked(opened: Any, entry: Entry) -> bytes | ImageError:
    size = entry.size or 0
    if size > MAX_UNPACKED_BYTES:
        return ImageError(
            ErrorKind.TOO_LARGE, f"the member has {size} bytes, more than {MAX_UNPACKED_BYTES} from a compressed shard"
        )
    try:
        opened.seek(entry.position)
        if entry.note.endswith("sparse"):
            with tarfile.open(fileobj=opened, mode="r:", tarinfo=StrictTarInfo) as tar:
                member = tar.next()
                content = tar.extractfile(member) if member is not None else None
                data = content.read(size) if content is not None else b""
        else:
            data = opened.read(size)
    except tarfile.TarError as error:
        return ImageError(ErrorKind.UNREADABLE, f"the tar shard did not give the bytes: {first_line(error)}")
    return data if len(data) == size else _cut()


def _cut() -> ImageError:
    return ImageError(ErrorKind.TRUNCATED, "the tar shard ends within this member")


def _members(opened: Any) -> Iterator[tarfile.TarInfo]:
    with tarfile.open(fileobj=opened, mode="r:", tarinfo=StrictTarInfo) as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # It would remember every member
            yield member


def _is_image(member: tarfile.TarInfo, opened: Any) -> bool:
    return is_image_member(member.name, lambda: _first_bytes(member, opened))


def _first_bytes(member: tarfile.TarInfo, opened: Any) -> bytes:
    if not member.isreg():
        return b""
    pieces: Any = member.sparse if member.issparse() else [(0, member.size)]
    if not pieces or pieces[0][0]:
        return b""  # It begins with a hole
    opened.seek(member.offset_data)
    return bytes(opened.read(min(member.size, 16)))


def _stored(member: tarfile.TarInfo) -> _Stored:
    sparse = member.issparse()
    return _Stored(member.offset if sparse else member.offset_data, member.size, sparse)


def _type(member: tarfile.TarInfo) -> str:
    if member.isfifo():
        return "a pipe"
    if member.isdev():
        return "a device"
    if member.type == tarfile.GNUTYPE_SPARSE:
        return "a sparse file"
    if member.type == b"M":
        return "the rest of a file that begins in another volume"
    return f"of type {member.type.decode('latin-1')!r}"


def _follow(place: Location, links: list[_Link]) -> Iterator[tuple[_Link, _Stored | str]]:
    """Each link to an image, and where the bytes lie that it leads to, or why there are none.

    A link to nothing is one by its name alone.
    """
    asked = [link for link in links if is_image_member(link.name, lambda: None)]
    if not asked:
        return
    symbolic = {_normal(link.name): link.target for link in links if not link.hard}
    hard = {_normal(link.name): link.target for link in links if link.hard}
    ways = [_way(link, symbolic, hard) for link in asked]
    wanted = {path for way, _ in ways for path in way}
    files: dict[str, list[_Stored]] = {}
    starts: dict[int, bytes] = {}
    with _opened(place) as (opened, _):
        # A second pass over the headers, of shards with links alone: what they lead to is known only now
        for member in _members(opened):
            if member.isreg() and (name := _normal(member.name)) in wanted:
                files.setdefault(name, []).append(stored := _stored(member))
                starts[stored.position] = _first_bytes(member, opened)
    for link, (way, reason) in zip(asked, ways, strict=True):
        there = next((files[path] for path in way if path in files), [])
        # A hard link is another name of what came before it; a name may stand for several files of one archive
        before = [stored for stored in there if stored.position < link.at] if link.hard else there
        if there:
            stored = (before or there)[-1]
            if is_image_member(link.name, lambda found=starts[stored.position]: found):  # type: ignore[misc]
                yield link, stored
        elif is_image_name(link.name):
            yield link, f"the link leads to {readable(link.target)[:200]!r}, {reason}"


def _way(link: _Link, symbolic: dict[str, str], hard: dict[str, str]) -> tuple[list[str], str]:
    """The paths within the archive that a link leads to, one after another, and why the last may be none of a file."""
    nothing, outside = "which is no file of the archive", "which lies outside the archive"
    if link.target.startswith("/") and not link.hard:
        return [], outside
    start = [] if link.hard else link.name.split("/")[:-1]
    rest = [*start, *link.target.split("/")][::-1]
    done: list[str] = []
    way: list[str] = []
    for _ in range(_MAX_HOPS):
        further: str | None = None
        while rest and further is None:
            part = rest.pop()
            if part == "..":
                if not done:
                    return way, outside
                done.pop()
            elif part not in ("", "."):
                done.append(part)
                path = "/".join(done)
                if not rest:
                    way.append(path)
                further = symbolic.get(path)
                if further is None and not rest and path in hard:
                    further, done = hard[path], []
                elif further is not None:
                    if further.startswith("/"):
                        return way, outside
                    done.pop()
        if further is None:
            return way, nothing
        rest += further.split("/")[::-1]
    return way, "which leads in a circle"


def _normal(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", "."))


@contextlib.contextmanager
def _opened(place: Location) -> Iterator[tuple[Any, str]]:
    """The tar archive of a file as a stream that seeks, and how it is compressed ("" where it is not)."""
    with storage.open_for_reading(place) as raw:
        first = raw.read(6)
        raw.seek(0)
        for magic, name in _OTHERS:
            if first.startswith(magic):
                raise tarfile.ReadError(f"it is packed by {name}, which is not read; unpack it first")
        codec = next((codec for magic, codec in _CODECS if first.startswith(magic)), "")
        yield (_Unpacked(raw, codec) if codec else raw), codec


class _Unpacked:
    """The bytes of a compressed file, forwards; the last of them are kept, so that a header can be read twice."""

    _KEPT_BYTES = 1 << 20
    _CHUNK_BYTES = 1 << 18

    def __init__(self, raw: Any, codec: str) -> None:
        self.raw = _Noting(raw)
        self._codec = codec
        self._stream: Any
        if codec == "gzip":
            self._stream = gzip.GzipFile(fileobj=self.raw, mode="rb")
        elif codec == "bz2":
            self._stream = bz2.BZ2File(self.raw)
        elif codec == "xz":
            self._stream = _Xz(self.raw)
        else:
            self._stream = pa.CompressedInputStream(pa.PythonFile(self.raw, mode="r"), codec)
        self._kept = bytearray()
        self._end = 0  # Of what was unpacked
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET or offset < self._end - len(self._kept):
            raise io.UnsupportedOperation("a compressed shard is read forwards")
        self._position = offset
        return offset

    def reaches(self, offset: int) -> bool:
        """Whether `seek` would do it."""
        return offset >= self._end - len(self._kept)

    def read(self, count: int) -> bytes:
        while self._end < self._position and self._more(self._position - self._end):
            pass
        start = self._position - self._end + len(self._kept)
        if start > len(self._kept):
            return b""
        parts = [bytes(self._kept[start : start + count])]
        missing = count - len(parts[0])
        while missing and (chunk := self._more(missing)):
            parts.append(chunk)
            missing -= len(chunk)
        self._position += count - missing
        return b"".join(parts)

    def _more(self, count: int) -> bytes:
        try:
            chunk = bytes(self._stream.read(min(count, self._CHUNK_BYTES)))
        except Exception as error:
            if self.raw.failed:
                raise
            raise tarfile.ReadError(f"its {self._codec} compression is damaged: {first_line(error)}") from None
        self._end += len(chunk)
        self._kept += chunk
        if len(self._kept) > 2 * self._KEPT_BYTES:
            del self._kept[: -self._KEPT_BYTES]
        return chunk


class _Noting:
    """A file that notes whether it was the storage that failed, and not what reads it."""

    closed = False

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.failed = False

    def read(self, count: int = -1) -> bytes:
        try:
            return bytes(self._raw.read(count))
        except BaseException:
            self.failed = True
            raise

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._raw.seek(offset, whence))

    def tell(self) -> int:
        return int(self._raw.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()

    def flush(self) -> None:
        pass


class _Xz:
    """Streams of xz behind each other, within a bound on memory that `lzma.LZMAFile` does not have."""

    def __init__(self, raw: _Noting) -> None:
        self._raw = raw
        self._decoder = self._new()
        self._began = False

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_XZ_MEMORY_BYTES)

    def read(self, count: int) -> bytes:
        while True:
            if self._decoder.eof:
                left = self._decoder.unused_data.lstrip(b"\0") or self._raw.read(1 << 16).lstrip(b"\0")
                if not left:
                    return b""
                self._decoder = self._new()
            elif self._decoder.needs_input:
                left = self._raw.read(1 << 16)
                if not left:
                    raise EOFError("it ends within a stream")
            else:
                left = b""
            if data := self._decoder.decompress(left, count):
                return data


_IDLE_STREAMS = 2
_idle: list[tuple[tuple[Any, ...], _Unpacked]] = []
_idle_lock = threading.Lock()


@contextlib.contextmanager
def _stream(place: Location, first: Entry) -> Iterator[Any]:
    """A shard from which an entry and those behind it can be read."""
    if first.note.partition(" ")[0] not in {codec for _, codec in _CODECS}:
        with storage.open_for_reading(place) as raw:
            yield raw
        return
    # Of this process and of this version of the file: a stream that was opened before a fork is shared
    key = (os.getpid(), place, first.version.rpartition("/")[0])
    stream: _Unpacked | None = None
    with _idle_lock:
        for number, (kept, idle) in enumerate(_idle):
            if kept == key and idle.reaches(first.position):
                stream = _idle.pop(number)[1]
                break
    if stream is None:
        stream = _Unpacked(storage.open_for_reading(place), first.note.partition(" ")[0])
    try:
        yield stream
    except BaseException:
        stream.raw.close()
        raise
    with _idle_lock:
        _idle.append((key, stream))
        out = _idle.pop(0)[1] if len(_idle) > _IDLE_STREAMS else None
    if out is not None:
        out.raw.close()
