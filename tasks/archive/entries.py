"""One image of a source: its identity and the way to its bytes; and how paths of any bytes are told."""

from dataclasses import dataclass

BUFFER_BYTES = 2**20
"""To read Parquet page by page with: a column chunk of photographs may be larger than the memory."""


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
