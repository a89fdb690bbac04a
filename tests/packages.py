"""Packages of others that one slow test needs, in a folder of their own, so that they change nothing here."""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


def installed(*requirements: str) -> str:
    """Folder for PYTHONPATH with these packages alone, without what they depend on; skips where they cannot be had.

    It stays for other tests of this user.
    """
    name = hashlib.sha256(" ".join([sys.version, *requirements]).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / "segment-archive-test-packages" / name
    if (folder / ".whole").is_file():
        return str(folder)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--upgrade", "--quiet"]
    told = subprocess.run(
        [*command, "--target", str(folder), *requirements], capture_output=True, text=True, timeout=300
    )
    if told.returncode:
        reason = next((line for line in reversed(told.stderr.splitlines()) if "ERROR" in line), "pip failed")
        pytest.skip(f"{', '.join(requirements)} cannot be had: {reason}")
    (folder / ".whole").touch()
    return str(folder)
