"""One image of a source: its identity and the way to its bytes; encoding of paths that are not UTF-8."""

import hashlib
import re
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace

import pyarrow as pa

from segcore.images.decoding import EXTENSIONS
from tasks.storage import Location, StoredFile

BUFFER_BYTES = 2**20
"""To read Parquet page by page with: a column chunk of photographs may be larger than the memory."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source: its identity and the way to its bytes."""

    image_id: str
    """Path relative to the source, shard!/member, file!/row of a Parquet file, or the value of its id column; unique
    in its source."""

    uri: str
    """What a person would open."""

    kind: str
    """"file", "tar", "zip", "parquet", or "broken": something that has no bytes to read, `note` says why."""

    path: bytes
    """Of the file or container, as Location.path; bytes, since a local name need not be UTF-8."""

    position: int
    """Byte offset of the member in its unpacked shard, or of its header in a zip archive; row in its Parquet file; 0
    for a file of its own."""

    size: int | None
    """Bytes of the image, where the listing tells."""

    version: str
    """Changes when the bytes are replaced: etag or modification time of the file or container. Of a local file of its
    own `<modification time in ns>-<mark>`, with `#<digest of the bytes>` where it was young when it was listed."""

    note: str = ""
    """Parquet: the image column. Tar: how it is compressed, and "sparse". Zip: how, and into how many
    bytes. Broken: the reason."""

    fragment: str = ""
    """Which image of its bytes, `segcore/images/inner.py`; empty: the one that is shown first."""


_MARKED = re.compile(r"\d+-[0-9a-f]{8}(#[0-9a-f]{16})?")

BROKEN = (tarfile.TarError, pa.ArrowException, ValueError, ArithmeticError, LookupError, struct.error, RecursionError)
"""What readers of containers raise of contents, and no network does."""


def file_entry(place: Location, file: StoredFile) -> Entry:
    """The entry of a file of its own."""
    path = escape(readable(file.path))
    version = f"{file.version}-{file.mark}" if file.mark else file.version
    return Entry(path, readable(place.uri), "file", encode_path(place.path), 0, file.size, version)


DIGEST_BYTES = 64 * 2**20
"""Larger files are told by their times alone."""


def with_digest(entry: Entry, data: bytes) -> Entry:
    """The entry of a file whose bytes are these: two writes within one tick of a clock have equal times."""
    digest = hashlib.blake2b(data, digest_size=8).hexdigest()
    return replace(entry, version=f"{entry.version.partition('#')[0]}#{digest}")


def is_listed_as(listed: str, read: str, data: bytes) -> bool:
    """Whether bytes that were read with a version are of the version that was listed, maybe by an earlier program."""
    base, _, digest = listed.partition("#")
    if digest and hashlib.blake2b(data, digest_size=8).hexdigest() != digest:
        return False
    return base == read or base == without_mark(read)


def without_mark(version: str) -> str:
    """The version of a local file as programs before marks listed it; any other as it is."""
    return version.partition("-")[0] if _MARKED.fullmatch(version) else version


def broken(place: Location, file: StoredFile, reason: str) -> Entry:
    """The entry of a file that cannot be read."""
    path = escape(readable(file.path))
    return Entry(path, readable(place.uri), "broken", encode_path(place.path), 0, file.size, file.version, reason)


def escape(path: str) -> str:
    """Keep "!/" free as the mark between a container and its member."""
    return path.replace("!/", "!!/")


def suffix(name: str) -> str:
    """Ending of a file name in lower case with its dot; empty where there is none."""
    last = name.rpartition("/")[2]
    return f".{last.rpartition('.')[2].lower()}" if "." in last else ""


_SIDECARS = "json jsonl txt csv tsv md rst html xml yaml yml toml cls npy npz pt pth pkl index idx lock log sh py"
SIDECARS = frozenset(f".{ending}" for ending in _SIDECARS.split())
"""Endings of files that describe images in containers, in them or beside them."""

_READ_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# JPEG 2000, JPEG XL, Photoshop, RAW: formats that are not read become error rows, which beats silence
_OTHER_STARTS = (b"\0\0\0\x0cjP", b"\xff\x0a", b"\0\0\0\x0cJXL", b"8BPS", b"FUJIFILM", b"IIRO", b"IIU\0")
_IMAGE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heif", b"mif1", b"msf1", b"crx ")


def is_image_name(name: str) -> bool:
    """Whether a member of an archive is an image by its name; hidden ones are none."""
    return suffix(name) in EXTENSIONS and not name.rpartition("/")[2].startswith(".")


def is_image_member(name: str, first: Callable[[], bytes | None]) -> bool:
    """Whether a member of an archive is an image: by its name, and where that says neither, by its first bytes.

    first: reads 16 of them; None where they cannot be had. Such a member is listed, since it may be an image: its row
    says why there are no bytes, and nothing vanishes.
    """
    last = name.rpartition("/")[2]
    if not last or last.startswith(".") or suffix(last) in SIDECARS:
        return False
    if suffix(last) in EXTENSIONS:
        return True
    start = first()
    return start is None or looks_like_image(start)


def looks_like_image(first: bytes) -> bool:
    """Whether a file that begins so is an image, whatever its name; a BMP's two letters would say too little."""
    if first.startswith(_READ_STARTS + _OTHER_STARTS):
        return True
    return (first[:4] == b"RIFF" and first[8:12] == b"WEBP") or (first[4:8] == b"ftyp" and first[8:12] in _IMAGE_BRANDS)


def encode_path(path: str) -> bytes:
    """A path of a listing as bytes, with what was not UTF-8 as it was."""
    return path.encode("utf-8", "surrogateescape")


def decode_path(path: bytes) -> str:
    """What `encode_path` was given."""
    return path.decode("utf-8", "surrogateescape")


def readable(path: str) -> str:
    """Any path as valid Unicode: bytes that are not UTF-8 shown as \\xff."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def first_line(error: BaseException) -> str:
    """What an error says, printable and short."""
    line = readable(str(error).splitlines()[0][:300]) if str(error) else type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in line)
