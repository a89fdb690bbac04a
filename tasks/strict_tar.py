"""Tar archives of strangers: headers that do not make sense end the reading with an error, never in silence.

Python's own reader takes a broken header behind the first member for the end of the archive, walks in circles where a
size is negative, and believes any length of a name.
"""

import re
import tarfile
from typing import Any, Self

MAX_HEADER_BYTES = 256 << 10
"""Of one extended header: names and attributes of one member."""

_LONG_DIGITS = re.compile(rb"\d{200}")  # A search in Python's reader takes time by the square of their number


class StrictTarInfo(tarfile.TarInfo):
    """A member, for `tarfile.open(..., tarinfo=StrictTarInfo)`. What does not make sense is a `tarfile.ReadError`."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        at, file = tar.offset, _file_of(tar)
        try:
            return super().fromtarfile(tar)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error} at byte {at}") from None
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"one block of zeros in place of a header at byte {at}") from None
            raise
        except RecursionError:
            raise tarfile.ReadError(f"header upon header at byte {at}") from None

    def _block(self, count: int) -> int:
        if count < 0:
            raise tarfile.ReadError(f"a size of {count} bytes")
        return -(-count // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

    def _proc_gnulong(self, tar: tarfile.TarFile) -> Any:
        self._require_small()
        return super()._proc_gnulong(tar)  # type: ignore[misc]

    def _proc_pax(self, tar: tarfile.TarFile) -> Any:
        self._require_small()
        file = _file_of(tar)
        at = file.tell()
        if _LONG_DIGITS.search(file.read(self.size)):
            raise tarfile.ReadError(f"an extended header of digits at byte {at}")
        file.seek(at)
        return super()._proc_pax(tar)  # type: ignore[misc]

    def _require_small(self) -> None:
        if not 0 <= self.size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"an extended header of {self.size} bytes")


def _file_of(tar: tarfile.TarFile) -> Any:
    return tar.fileobj
