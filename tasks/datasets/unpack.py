"""Takes the wanted files out of a tar or zip archive of others, and lets nothing out of the target folder.

Each file appears whole; a marker is written last, so that an archive is unpacked once, and a stop is continued.
"""

import contextlib
import errno
import functools
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tasks import progress, storage
from tasks.datasets.fetch import require_space
from tasks.errors import JobError
from tasks.storage import TEMPORARY_PREFIX, Location
from tasks.strict_tar import StrictTarInfo

MAX_FILE_BYTES = 256 << 20
"""A photograph or mask is smaller; a larger member is refused."""

MAX_TOTAL_BYTES = 64 << 30
"""All members together, wanted or not: a bomb is refused before it is unpacked."""

MAX_FILES = 5_000_000
"""Members of one archive."""

_MARKER = ".unpacked"

Wanted = Callable[[str], str | None]
"""Path in the target of a member's path; None where it is not wanted."""


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    is_file: bool
    is_folder: bool
    read: Callable[[], IO[bytes] | None]


def unpack(archive: Path, target: Path, wanted: Wanted, *, key: str, title: str) -> int:
    """Unpack what is wanted of an archive into a folder; returns the number of files.

    key: what the marker must say for the folder to count as finished, such as the checksum of the archive.
    Raises JobError where the archive is no tar or zip, is cut or damaged, or holds what is dangerous: paths that lead
    out, links or devices among the wanted, more or larger files than any dataset has; and where the disk has no room
    for what comes out, before the first file where the archive tells it, at the file that does not fit otherwise.
    """
    marker = target / _MARKER
    if marker.is_file() and marker.read_text().startswith(f"{key}\n"):
        return int(marker.read_text().splitlines()[1])
    target.mkdir(parents=True, exist_ok=True)
    storage.sweep_temporary(Location("file", str(target)))
    purpose = f"Unpacking {archive.name}"
    tells_sizes = _tells_sizes(archive)
    if tells_sizes:
        require_space(target, _bytes_to_come(archive, target, wanted), purpose)
    files, total = 0, 0
    with _opened(archive) as members, progress.measured(title, None, "files") as tell:
        for number, member in enumerate(members):
            total += member.size
            if number >= MAX_FILES or total > MAX_TOTAL_BYTES:
                bound = f"{MAX_TOTAL_BYTES >> 30} GiB or {MAX_FILES} files"
                raise JobError(f"{archive} unpacks to more than {bound}: it is no dataset.")
            _require_inside(archive, member.name)
            place = wanted(str(PurePosixPath(member.name)))
            if place is None or member.is_folder:
                continue
            if not member.is_file:
                raise JobError(
                    f"{archive} holds {_shown(member.name)}, a link or a device: nothing of the kind is unpacked."
                )
            if member.size > MAX_FILE_BYTES:
                raise JobError(
                    f"{archive} holds {_shown(member.name)} of {member.size} bytes, more than {MAX_FILE_BYTES}."
                )
            _require_inside(archive, place)
            if not tells_sizes:
                require_space(target, member.size, purpose)
            _write(archive, member, target / place)
            files += 1
            tell(files)
    if not files:
        raise JobError(f"{archive} holds nothing of what was looked for: is it the right archive?")
    os.sync()  # Once, instead of at each of thousands of files; before the marker says that they are there
    marker.write_text(f"{key}\n{files}\n")
    return files


def _tells_sizes(archive: Path) -> bool:
    """Whether the sizes of all members can be had without unpacking everything."""
    try:
        return zipfile.is_zipfile(archive) or archive.open("rb").read(262)[257:] == b"ustar"
    except OSError:
        return False


def _bytes_to_come(archive: Path, target: Path, wanted: Wanted) -> int:
    """Bytes of what is wanted and not there yet, as far as the archive is sound and within the bounds."""
    needed = 0
    with contextlib.suppress(JobError), _opened(archive) as members:  # What is wrong is said when it is reached
        for number, member in enumerate(members):
            if number >= MAX_FILES or needed > MAX_TOTAL_BYTES:
                break
            place = wanted(str(PurePosixPath(member.name))) if member.is_file and "\0" not in member.name else None
            if place is not None and member.size <= MAX_FILE_BYTES and not _is_there(target / place, member.size):
                needed += member.size
    return needed


def _is_there(place: Path, size: int) -> bool:
    """Whether it was unpacked before a stop: files get their names only when they are whole."""
    try:
        return place.is_file() and place.stat().st_size == size
    except (OSError, ValueError):
        return False


def _shown(name: str) -> str:
    """A name that an archive chose, as it may stand on a terminal."""
    return name if name.isprintable() and len(name) < 300 else repr(name[:300])


def _require_inside(archive: Path, name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or (name[1:2] == ":"):
        raise JobError(
            f"{archive} holds {name[:300]!r}, a path that leads out of its folder: it was not unpacked further."
        )


def _write(archive: Path, member: _Member, place: Path) -> None:
    if _is_there(place, member.size):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f"{TEMPORARY_PREFIX}{os.getpid():032x}")
    source = member.read()
    assert source is not None
    left = member.size
    try:
        with source, temporary.open("wb") as out:
            while left and (piece := source.read(min(left, 1 << 20))):
                out.write(piece)
                left -= len(piece)
        if left:
            raise JobError(f"{archive} ends within {_shown(member.name)}: it is cut; fetch it again.")
        temporary.replace(place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _opened(archive: Path) -> Iterator[Iterator[_Member]]:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                yield _zip_members(opened)
        else:
            with tarfile.open(archive, tarinfo=StrictTarInfo) as tar:
                yield _tar_members(tar)
    except JobError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
            remedy = "make room or give rights, and run again"
        else:  # gzip's own complaints carry no number; names that no disk takes, files where folders should be
            remedy = "it is cut or damaged"
        raise JobError(f"{archive} cannot be unpacked ({error.strerror or error}): {remedy}.") from None
    except Exception as error:  # Readers of archives raise whatever a damaged one makes them trip over
        reason = _shown(" ".join(str(error).split()).partition(": - method")[0]) or type(error).__name__
        raise JobError(f"{archive} cannot be unpacked ({reason}): it is cut, damaged or no archive.") from None


def _tar_members(tar: tarfile.TarFile) -> Iterator[_Member]:
    for member in tar:
        read = functools.partial(tar.extractfile, member)
        yield _Member(_portable(member.name), member.size, member.isreg(), member.isdir(), read)


def _zip_members(opened: zipfile.ZipFile) -> Iterator[_Member]:
    for member in opened.infolist():
        kind = stat.S_IFMT(member.external_attr >> 16)
        name = _portable(member.filename)
        is_folder = name.endswith("/")
        is_file = not is_folder and kind in (0, stat.S_IFREG)
        read = functools.partial(opened.open, member)
        yield _Member(name, member.file_size, is_file, is_folder, read)


def _portable(name: str) -> str:
    """A member's path with the separator of ZIP and tar; some programs of Windows write their own."""
    return name.replace("\\", "/")
