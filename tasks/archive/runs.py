"""Run records: `runs/<run id>.json`, what a run is, how it stands, and what its sessions measured.

For people and reports. Nothing depends on a record to resume: the mask files alone say what is done.
"""

import contextlib
import datetime
import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tasks import storage
from tasks.storage import Location

RUNNING, FINISHED, FAILED, STOPPED = "running", "finished", "failed", "stopped"

RECORD_VERSION = 1

BEAT_S = 60.0
"""How often a session notes that it is at work."""

ALIVE_S = 900.0
"""A session of another host that has noted nothing for so long has ended; it may take minutes for a unit."""


def record_of(output: Location, run_id: str) -> Location:
    """Where the record of a run stands."""
    return output / "runs" / f"{run_id}.json"


def read(output: Location, run_id: str) -> dict[str, Any]:
    """The record of a run; empty where there is none, or one that cannot be read."""
    with contextlib.suppress(FileNotFoundError, ValueError, RecursionError):
        record = json.loads(storage.read_bytes(record_of(output, run_id)))
        if isinstance(record, dict):
            return record
    return {}


def status(output: Location, run_id: str) -> str | None:
    """RUNNING (perhaps killed), FINISHED, FAILED, STOPPED (cancelled), or None where the run has never begun."""
    return read(output, run_id).get("status")


def begin(output: Location, run_id: str, facts: dict[str, Any]) -> tuple[int, list[str]]:
    """Note that a session of the run is at work. facts: what the run is. Returns what `beat` does."""
    record = read(output, run_id)
    record |= {"run_id": run_id, "record_version": RECORD_VERSION, **facts, "status": RUNNING}
    record.setdefault("started", _now())
    record.setdefault("sessions", [])
    record["versions"] = versions()
    return _enter(output, run_id, record)


def beat(output: Location, run_id: str) -> tuple[int, list[str]]:
    """Note that this session of the run is still at work, and look who else is.

    Returns its turn, 0 for the session that has been at work the longest, and where the others are: "this machine,
    process 12", or the name of a host. A session of another host that has not been heard of for ALIVE_S has ended.
    """
    return _enter(output, run_id, read(output, run_id))


def end(output: Location, run_id: str, status: str, session: dict[str, Any] | None, **facts: Any) -> dict[str, Any]:
    """Note how the run stands after a session; returns the record."""
    record = read(output, run_id) | facts | {"run_id": run_id, "status": status}
    record["at_work"] = [session for session in _at_work(record) if not _is_mine(session)]
    if session is not None:
        record.setdefault("sessions", []).append({"ended": _now(), "host": platform.node(), **session})
    if status == FINISHED:
        record["finished"] = _now()
    _write(output, run_id, record)
    return record


def versions() -> dict[str, str]:
    """Of what makes the masks."""
    found = {"python": platform.python_version()}
    for package in ("segment-archive", "torch", "ray", "prefect", "pyarrow", "pillow", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _enter(output: Location, run_id: str, record: dict[str, Any]) -> tuple[int, list[str]]:
    sessions = _at_work(record)
    others = [session for session in sessions if not _is_mine(session)]
    turn = next((number for number, session in enumerate(sessions) if _is_mine(session)), len(sessions))
    mine = {"host": platform.node(), "pid": os.getpid(), "born": _born(os.getpid()), "seen": time.time()}
    record["at_work"] = [*others[:turn], mine, *others[turn:]]
    _write(output, run_id, record)
    here = platform.node()
    return turn, [f"this machine, process {s['pid']}" if s["host"] == here else str(s["host"]) for s in others]


def _at_work(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Sessions that are alive, as far as the record and this machine tell, in the order in which they began."""
    known = record.get("at_work")
    sessions = known if isinstance(known, list) else [known]  # Earlier records had the last one alone
    return [session for session in sessions if isinstance(session, dict) and _is_alive(session)]


def _is_alive(session: dict[str, Any]) -> bool:
    host, pid, seen = session.get("host"), session.get("pid"), session.get("seen")
    if host != platform.node():
        return isinstance(seen, int | float) and abs(time.time() - seen) < ALIVE_S
    return isinstance(pid, int) and _born(pid) != "" and _born(pid) == session.get("born")


def _is_mine(session: dict[str, Any]) -> bool:
    return session.get("host") == platform.node() and session.get("pid") == os.getpid()


def _born(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty where there is none: numbers of processes come again."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _write(output: Location, run_id: str, record: dict[str, Any]) -> None:
    text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False)
    storage.write_whole(record_of(output, run_id), f"{text}\n".encode())
