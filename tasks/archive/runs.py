"""Run records: `runs/<run id>.json`, what a run is, how it stands, and what its sessions measured.

For people and reports. Nothing depends on a record to resume: the mask files alone say what is done.
"""

import contextlib
import datetime
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tasks import storage
from tasks.storage import Location

RUNNING, FINISHED, FAILED, STOPPED = "running", "finished", "failed", "stopped"

RECORD_VERSION = 1


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


def begin(output: Location, run_id: str, facts: dict[str, Any]) -> str | None:
    """Note that a session of the run is at work. facts: what the run is.

    Returns where another session of it is at work, "this machine, process 12" or a host's name; None where none is,
    as far as the record tells: a session that was killed on another host counts as one at work.
    """
    record = read(output, run_id)
    other = _at_work(record)
    record["at_work"] = {"host": platform.node(), "pid": os.getpid(), "born": _born(os.getpid())}
    record |= {"run_id": run_id, "record_version": RECORD_VERSION, **facts, "status": RUNNING}
    record.setdefault("started", _now())
    record.setdefault("sessions", [])
    record["versions"] = versions()
    _write(output, run_id, record)
    return other


def end(output: Location, run_id: str, status: str, session: dict[str, Any] | None, **facts: Any) -> dict[str, Any]:
    """Note how the run stands after a session; returns the record."""
    record = read(output, run_id) | facts | {"run_id": run_id, "status": status}
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


def _at_work(record: dict[str, Any]) -> str | None:
    at_work = record.get("at_work")
    if record.get("status") != RUNNING or not isinstance(at_work, dict):
        return None
    host, pid = at_work.get("host"), at_work.get("pid")
    if host != platform.node():
        return str(host)
    if not isinstance(pid, int) or pid == os.getpid() or _born(pid) != at_work.get("born") or not _born(pid):
        return None
    return f"this machine, process {pid}"


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
