"""Tar archives of strangers: headers that do not make sense end the reading with an error, never in silence.

Python's own reader takes a broken header behind the first member for the end of the archive, stops where one archive
ends and another is written behind it (`cat a.tar b.tar`), walks in circles where a size is negative, and believes any
length of a name.
"""

import re
import tarfile
from typing import Any, Self

MAX_HEADER_BYTES = 256 << 10
"""Of one extended header: names and attributes of one member."""

_SKIPPED_BYTES = 64 << 10  # At a time; whole blocks

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
            _skip_zeros(file)
            return cls._behind_the_end(tar, file.tell())
        except RecursionError:
            raise tarfile.ReadError(f"header upon header at byte {at}") from None

    @classmethod
    def _behind_the_end(cls, tar: tarfile.TarFile, at: int) -> Self:
        """The next member of archives that are written behind each other. Padding and a short tail hold none."""
        try:
            return super().fromtarfile(tar)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]
            raise tarfile.EOFHeaderError("end of the archive") from None  # type: ignore[attr-defined]
        except tarfile.InvalidHeaderError:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"something that is no header, behind zeros, at byte {at}") from None
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


def _skip_zeros(file: Any) -> None:
    """Leave the file at its next block that is not all zeros, or at its end."""
    while chunk := file.read(_SKIPPED_BYTES):
        if rest := chunk.lstrip(b"\0"):
            file.seek(file.tell() - len(chunk) + (len(chunk) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE)
            return


def _file_of(tar: tarfile.TarFile) -> Any:
    return tar.fileobj
