"""Label Studio's export of brushes as PNG: one black and white file for each task and label, and a JSON of the tasks.

    task-17-annotation-4-by-1-tag-cat-0.png        of task 17 what is cat
    project-3-at-2024-05-01.json, result.json      which photograph a task is of

The files of a task become one mask, in the order of the labels: a later one lies over an earlier one.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from segcore.annotations.label_studio import path_of_address
from segcore.images.masks import encode_mask
from tasks import storage
from tasks.storage import Location

_NAME = re.compile(r"task-(?P<task>\d+)-annotation-(?P<annotation>\d+)(?:-by-.*?)?-tag-(?P<tag>.+?)(?:-(?P<part>\d+))?")
_UPLOADED = re.compile(r"[0-9a-f]{8}-")
"""What Label Studio puts before the name of a photograph that was uploaded."""

_MAX_TASKS_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Brush:
    """One file: what of a task has one label."""

    task: int
    annotation: int
    tag: str
    """The label, as the file's name has it."""

    part: int
    """Number of the brush in its annotation."""

    key: str
    """The file, as its layout names it."""


@dataclass(frozen=True)
class Layer:
    """A black and white file that is one label of a mask."""

    label: int
    place: Location


def brush_of(key: str) -> Brush | None:
    """What a file's name without ending says; None where it is no brush."""
    found = _NAME.fullmatch(key.rpartition("/")[2])
    if found is None:
        return None
    return Brush(int(found["task"]), int(found["annotation"]), found["tag"], int(found["part"] or 0), key)


def photographs_of_tasks(places: Iterable[Location]) -> dict[int, str]:
    """Name of each task's photograph, without its ending, from those JSON files that list tasks."""
    names: dict[int, str] = {}
    for place in places:
        if storage.stat(place).size > _MAX_TASKS_BYTES:
            continue
        try:
            content = json.loads(storage.read_bytes(place).decode("utf-8-sig"))
        except (ValueError, RecursionError):
            continue
        for item in content if isinstance(content, list) else []:
            if isinstance(item, dict) and type(item.get("id")) is int and (path := _image_path(item)):
                names[item["id"]] = PurePosixPath(path).stem
    return names


def without_upload_prefix(stem: str) -> str:
    """The name that a photograph had before it was uploaded to Label Studio."""
    return _UPLOADED.sub("", stem, count=1) if _UPLOADED.match(stem) else stem


def combined(layers: Sequence[Layer]) -> bytes:
    """The mask of one task as palette PNG; where a layer cannot be read or fits no other, that layer as it is.

    Whoever checks the mask then finds in it what is wrong.
    """
    labels: np.ndarray | None = None
    for layer in sorted(layers, key=lambda layer: layer.label):
        data = storage.read_bytes(layer.place)
        try:
            with Image.open(io.BytesIO(data)) as opened:
                painted = np.asarray(opened.convert("L")) > 127
        except (OSError, ValueError, Image.DecompressionBombError):
            return data
        labels = np.zeros(painted.shape, np.uint8) if labels is None else labels
        if painted.shape != labels.shape:
            return data
        labels[painted] = layer.label
    assert labels is not None
    return encode_mask(labels)


def version_of(versions: Iterable[str]) -> str:
    """Changes when any layer is replaced."""
    return hashlib.sha256("\n".join(versions).encode()).hexdigest()[:16]


def _image_path(item: dict[str, Any]) -> str:
    """Path or address of a task's photograph: in `data`, or beside it in the short form of the export."""
    data = item.get("data") if isinstance(item.get("data"), dict) else item
    values = [data.get("image"), *data.values()] if isinstance(data, dict) else []
    found = next((v for v in values if isinstance(v, str) and re.search(r"\.[A-Za-z0-9]{3,5}(?:$|\?)", v)), "")
    return path_of_address(found)
