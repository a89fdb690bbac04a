"""`training.json`: what is trained at a place, and how it stands. Its identity decides whether a session may go on."""

import json
from typing import Any

from tasks import storage
from tasks.errors import JobError
from tasks.storage import Location
from tasks.training.resolved import ResolvedTraining

RECORD_VERSION = 1

_RECORD = "training.json"


def begin_record(resolved: ResolvedTraining) -> dict[str, Any]:
    """The record of this training, written where there is none. Raises JobError where that of another one stands."""
    record = read_record(resolved.output)
    check_identity(resolved, record)
    if record:
        return record
    record = {
        "record_version": RECORD_VERSION,
        "status": "running",
        "identity": resolved.identity,
        "dataset": {"uri": resolved.job.dataset, "name": resolved.manifest.name, "digest": resolved.manifest.digest},
        "split": resolved.job.split,
        "validation_split": resolved.job.validation_split,
        "commit": resolved.card.commit,
        # Filled in with the first session's
        "num_threads": 0,
    }
    write_record(resolved.output, record)
    return record


def read_record(output: Location) -> dict[str, Any]:
    """What stands in an output; empty where nothing does. Raises JobError for what is damaged or of another version."""
    try:
        record = json.loads(storage.read_bytes(output / _RECORD))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise JobError(f"{(output / _RECORD).uri} is not readable: choose another output, or remove it.") from None
    if not isinstance(record, dict) or record.get("record_version") != RECORD_VERSION:
        raise JobError(f"{(output / _RECORD).uri} was written by another version: choose another output.")
    return record


def write_record(output: Location, record: dict[str, Any]) -> None:
    """Replace the record of an output, whole."""
    storage.write_whole(output / _RECORD, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())


def check_identity(resolved: ResolvedTraining, record: dict[str, Any]) -> None:
    """Raises JobError with the names of what differs, where the record is of another training; an empty one fits."""
    if not record:
        return
    differing = _differences(record["identity"], resolved.identity)
    if differing:
        raise JobError(
            f"{resolved.output.uri} holds another training, which differs in {', '.join(differing[:5])}: "
            "choose another output, or ask for the same."
        )


def _differences(one: Any, other: Any, name: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        found = []
        for key in sorted(one.keys() | other.keys()):
            found += _differences(one.get(key), other.get(key), f"{name}.{key}" if name else key)
        return found
    return [] if one == other else [name]
