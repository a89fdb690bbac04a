"""Which code this is, for whoever wants to repeat something."""

import functools
import subprocess
from pathlib import Path


@functools.cache
def commit() -> str:
    """Commit that is checked out, 40 hex digits; empty where this runs from no clone."""
    root = Path(__file__).resolve().parent.parent
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()
