"""The bytes of one large file of a source, read in slices from where they are."""

import collections
import contextlib
from dataclasses import dataclass, field
from typing import Any

from segcore.images.errors import ErrorKind, ImageError
from tasks import storage
from tasks.archive.tar_shards import MAX_FILE_BYTES
from tasks.storage import Location

WHOLE_BYTES = 64 << 20
"""Smaller files are read whole."""

_BLOCK_BYTES = 1 << 20
_BLOCKS = 32


@dataclass
class StoredContent:
    """`segcore.images.tiff.Content` of a stored file; picklable, since it opens the file where it is read.

    Slices raise ImageError where the file is gone, or another by now, and JobError where the storage is.
    """

    place: Location
    size: int
    """Bytes."""

    version: str
    """Of the storage: another file under this name has another."""

    _file: Any = field(default=None, repr=False)
    _blocks: "collections.OrderedDict[int, bytes]" = field(default_factory=collections.OrderedDict, repr=False)

    @classmethod
    def of(cls, place: Location) -> "StoredContent":
        """What is at a place now. Raises FileNotFoundError."""
        now = storage.stat(place)
        return cls(place, now.size, now.version)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, wanted: slice, /) -> bytes:
        start, end, _ = wanted.indices(self.size)
        if end - start > MAX_FILE_BYTES:
            raise ImageError(ErrorKind.TOO_LARGE, f"the file has {self.size} bytes, more than {MAX_FILE_BYTES}")
        first, last = start // _BLOCK_BYTES, -(-end // _BLOCK_BYTES)
        if last - first > _BLOCKS:
            return self._read(start, end - start)
        content = b"".join(self._block(number) for number in range(first, last))
        return content[start - first * _BLOCK_BYTES : end - first * _BLOCK_BYTES]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_blocks": collections.OrderedDict()}

    def __del__(self) -> None:
        if self._file is not None:
            with contextlib.suppress(Exception):
                self._file.close()

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * _BLOCK_BYTES
            self._blocks[number] = self._read(start, min(_BLOCK_BYTES, self.size - start))
            if len(self._blocks) > _BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _read(self, start: int, length: int) -> bytes:
        with storage.explained(self.place):
            try:
                if self._file is None:
                    self._file = storage.open_for_reading(self.place, sparse=True, version=self.version)
                self._file.seek(start)
                return bytes(self._file.read(length))
            except storage.ReplacedError:
                raise ImageError(ErrorKind.CHANGED, "it was replaced while it was read") from None
            except FileNotFoundError:
                raise ImageError(ErrorKind.MISSING, "listed, but not there any more when it was to be read") from None
            except OSError as error:
                if self.place.protocol != "file":
                    raise
                raise ImageError(ErrorKind.UNREADABLE, f"the storage did not give the bytes: {error}") from None
