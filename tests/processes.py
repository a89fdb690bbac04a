"""Processes that a test has started: known by a mark in their environment, ended and seen to be gone."""

import contextlib
import os
import signal
import socket
import time
from pathlib import Path


def marked(name: str, value: str) -> list[int]:
    """Living processes with this variable in their environment: also those whose parent has died."""
    wanted, found = f"{name}={value}".encode(), []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (place / "environ").read_bytes().split(b"\0"):
                found.append(int(place.name))
    return [pid for pid in found if not has_ended(pid)]


def end_all(name: str, value: str, *, gently: bool = True) -> None:
    """End them all, and wait until they are gone. gently: SIGTERM first."""
    for number in (signal.SIGTERM, signal.SIGKILL) if gently else (signal.SIGKILL,):
        for pid in marked(name, value):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + 15
        while marked(name, value) and time.monotonic() < deadline:
            time.sleep(0.1)


def has_ended(pid: int) -> bool:
    """Whether there is no such process any more, or only what its parent has not taken note of yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
