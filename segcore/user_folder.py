"""The one folder of this user that the program keeps things in: imported weights, copies of models, logs."""

import os
from pathlib import Path


def user_folder() -> Path:
    """`segment-archive` below `$XDG_CACHE_HOME`, or below `~/.cache`."""
    # The one place where segcore reads the environment: the folder belongs to the user, not to a job.
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "segment-archive"
