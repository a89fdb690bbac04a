"""The one folder of this user that the program keeps things in between runs."""

import shutil
from pathlib import Path

from segcore.models import checkpoint


def folder() -> Path:
    """`segment-archive` in the user's cache: weights/ imported or pulled, remote/ copies of models."""
    return checkpoint.cache_directory().parent


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


def _bytes(entry: Path) -> int:
    files = [entry] if entry.is_file() else [path for path in entry.rglob("*") if path.is_file()]
    return sum(path.lstat().st_size for path in files)
