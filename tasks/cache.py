"""The one folder of this user that the program keeps things in between runs."""

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import IO

from segcore.user_folder import user_folder

_KEEP_LOGS_S = 14 * 24 * 3600.0


def folder() -> Path:
    """`segment-archive` in the user's cache: weights/ imported or pulled, remote/ copies of models, logs/."""
    return user_folder()


def sizes() -> dict[str, int]:
    """Bytes of each thing in the cache by its name, largest first; nothing where there is no cache."""
    if not folder().is_dir():
        return {}
    found = {entry.name: _bytes(entry) for entry in folder().iterdir()}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def remove(names: list[str]) -> None:
    """Remove these things from the cache; what is not there is no fault."""
    for name in names:
        entry = folder() / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def new_log(what: str) -> IO[bytes]:
    """A new file of logs/, whose name has the number of this process; what runs that have ended left is swept first.

    Where the user's folder cannot be written, it is among the system's temporary files.
    """
    place = folder() / "logs"
    try:
        place.mkdir(parents=True, exist_ok=True)
        _sweep(place)
        return _new_file(what, place)
    except OSError:
        return _new_file(what, Path(tempfile.gettempdir()))


def close_log(log: IO[bytes]) -> None:
    """Close it, and remove it where nothing was written."""
    log.close()
    with contextlib.suppress(OSError):
        if not Path(log.name).stat().st_size:
            Path(log.name).unlink()


def _new_file(what: str, place: Path) -> IO[bytes]:
    prefix = f"segment-archive-{what}-{os.getpid()}-"
    return tempfile.NamedTemporaryFile(prefix=prefix, suffix=".log", dir=place, delete=False)


def _sweep(place: Path) -> None:
    """Remove logs of processes that have ended: empty ones, and those that are old."""
    for log in place.glob("segment-archive-*.log"):
        with contextlib.suppress(OSError):
            status, number = log.stat(), log.stem.split("-")[-2]
            ended = number.isdigit() and not Path(f"/proc/{number}").exists()
            if ended and (not status.st_size or time.time() - status.st_mtime > _KEEP_LOGS_S):
                log.unlink()


def _bytes(entry: Path) -> int:
    files = [entry] if entry.is_file() else [path for path in entry.rglob("*") if path.is_file()]
    return sum(path.lstat().st_size for path in files)
