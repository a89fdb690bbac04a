"""Checkpoints of a training: one file each, which appears whole or not at all, on a disk or in a bucket.

    <output>/checkpoints/step-00002000.pt     everything that the next step needs

The newest file is where a training goes on; the last few and the best are kept. Not Ray Train's own checkpoints:
those are folders, uploaded file by file, and only its controller knows which of them are whole.
"""

import io
import re
from typing import Any

import torch

from tasks import storage
from tasks.errors import JobError
from tasks.storage import Location

FORMAT_VERSION = 1
"""Of the contents; a reader refuses another one."""

_NAME = re.compile(r"step-(\d{8})\.pt")


def checkpoint_steps(output: Location) -> list[int]:
    """Steps that have a checkpoint, in order."""
    found = (_NAME.fullmatch(file.path) for file in storage.list_files(output / "checkpoints"))
    return sorted(int(match[1]) for match in found if match)


def place_of(output: Location, step: int) -> Location:
    """Where the checkpoint of a step stands."""
    return output / "checkpoints" / f"step-{step:08d}.pt"


def write_checkpoint(output: Location, step: int, state: dict[str, Any]) -> None:
    """Write the state as the checkpoint of a step; on a disk it is there after a power cut too."""
    sink = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, **state}, sink)
    storage.write_whole(place_of(output, step), sink.getvalue())


def read_checkpoint(output: Location, step: int) -> dict[str, Any]:
    """State of a step, on the CPU. Raises JobError for a file that is damaged or of another version."""
    place = place_of(output, step)
    with storage.explained(place):
        data = storage.read_bytes(place)
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        version = state.get("format_version")
    except Exception as error:
        raise JobError(
            f"{place.uri} is damaged ({type(error).__name__}): remove it, and the training goes on from the one before."
        ) from None
    if version != FORMAT_VERSION:
        raise JobError(f"{place.uri} has format version {version}, this program reads {FORMAT_VERSION}.")
    return state


def remove_old(output: Location, keep: int, best: int | None) -> None:
    """Remove all checkpoints but the last `keep` and the best one."""
    for step in checkpoint_steps(output)[:-keep]:
        if step != best:
            storage.remove(place_of(output, step))
