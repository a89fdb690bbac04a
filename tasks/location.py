"""A place in some storage, and a file of a listing: plain data. What is done with them is in `storage.py`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Location:
    """A place in some storage; plain data, so that it travels to other processes."""

    protocol: str
    """fsspec protocol: "file", "s3", ..."""

    path: str
    """Absolute local path, or bucket/key, without a trailing slash."""

    @property
    def uri(self) -> str:
        """What a person types to name this place."""
        return self.path if self.protocol == "file" else f"{self.protocol}://{self.path}"

    def __truediv__(self, name: str) -> Location:
        return Location(self.protocol, f"{self.path.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """Last component."""
        return self.path.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a listing."""

    path: str
    """Relative to the listed place; surrogates stand for bytes of a local name that are not UTF-8."""

    size: int
    """Bytes."""

    version: str
    """Changes when the file is replaced: the etag, or the modification time in ns where there is none."""

    problem: str = ""
    """Why nothing can be read under this name."""

    mark: str = field(default="", compare=False)
    """Of a local file: eight hexadecimal digits of its inode and change time, for two of one modification time."""
