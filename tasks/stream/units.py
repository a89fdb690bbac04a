"""What flows through the stages of the pipeline: units of images, their records, and the rows that they travel in.

Plain data without Ray, so that a process apart (`tasks/stream/apart.py`) has it quickly.
"""

import collections
import pickle
import time
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from segcore.images import ImageError
from segcore.predictor import PredictParams
from tasks.archive.entries import Entry
from tasks.storage import Location
from tasks.stream.apart import ImageLimits

STAGES = ("read", "score", "refine")

HANDED_ON = "handed on at"
WAITED = "waited for "
"""Beside the busy times of the stages, on the way with a unit."""


@dataclass(frozen=True)
class MaskParams:
    """Everything that the stages need to turn an image into a row."""

    model: str
    """Name, or path or URI of a model directory."""

    untrained: bool
    seed: int

    model_name: str
    """What the rows say of the model."""

    model_digest: str
    """What every scorer must have loaded."""

    classes: tuple[str, ...]
    """Names by label."""

    predict: PredictParams
    """What decides a mask."""

    keep_mask_before_crf: bool

    limits: ImageLimits = field(default_factory=ImageLimits)
    """What one image may take; decides no mask."""


@dataclass(frozen=True)
class Unit:
    """What flows through as one piece and is committed as one file."""

    name: str
    """Of its mask file, without ending: a function of the manifest part."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Destination:
    """Where the rows of a run go."""

    masks: Location
    """Folder of the run's mask files."""

    run_id: str
    source: Location
    """What the entries are of."""

    png: Location | None = None
    """Folder for the masks as PNG files of their own."""

    def file_of(self, unit: str) -> Location:
        """The one file that a unit is committed as."""
        return self.masks / mask_file(unit)


@dataclass
class UnitReport:
    """What became of one unit."""

    unit: str
    images: int = 0
    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    """Error rows by kind."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Busy time of each stage."""

    waits: dict[str, float] = field(default_factory=dict)
    """Time that the unit has waited before each stage, in s; between machines only as good as their clocks."""

    node: str = ""
    """Where it was refined: name and Ray's number of the node."""

    done_elsewhere: bool = False
    """Whether another run of the same job had committed it already."""


@dataclass
class Record:
    """One image on its way: pixels and scores travel beside it, in one buffer for the unit."""

    entry: Entry
    size: int | None = None
    width: int = 0
    height: int = 0
    shape: tuple[int, int] = (0, 0)
    scores_shape: tuple[int, int, int] = (0, 0, 0)
    extent_px: tuple[int, int] = (0, 0)
    error: ImageError | None = None
    note: str = ""
    """What was damaged or ignored though there is a picture."""


def mask_file(unit: str) -> str:
    """File name of a unit's rows."""
    return f"part-{unit}.parquet"


def unit_table(unit: Unit) -> pa.Table:
    """What the first stage is handed."""
    return pa.Table.from_pylist([unit_columns(unit)])


def unit_columns(unit: Unit) -> dict[str, Any]:
    """The same as a row of Ray Data's."""
    return {"unit": unit.name, "entries": zlib.compress(pickle.dumps(unit.entries))}


def unit_row(
    name: str,
    records: list[Record] | None,
    seconds: float | dict[str, float],
    pixels: list[np.ndarray],
    scores: list[np.ndarray],
    device: str = "",
) -> pa.Table:
    """A unit between two stages. seconds: busy times until now; records None: it is committed already."""
    if isinstance(seconds, float):
        seconds = {"read": seconds, HANDED_ON: time.time()}
    return pa.table(
        {
            "unit": [name],
            "records": pa.array([pickle.dumps((records, seconds))], pa.large_binary()),
            "pixels": _join(pixels),
            "scores": _join(scores),
            "device": [device],
        }
    )


def open_row(table: pa.Table) -> tuple[str, list[Record] | None, dict[str, float], np.ndarray, np.ndarray]:
    """Name, records, busy times, pixels and scores of a unit; the last two as (bytes,) uint8."""
    records, seconds = pickle.loads(table["records"][0].as_py())
    buffers = [np.frombuffer(table[c][0].as_buffer(), dtype=np.uint8) for c in ("pixels", "scores")]
    return table["unit"][0].as_py(), records, seconds, buffers[0], buffers[1]


def wait(stage: str, seconds: dict[str, float]) -> dict[str, float]:
    """How long the unit has waited since the stage before handed it on; clocks of two machines may differ."""
    return {WAITED + stage: max(0.0, time.time() - seconds.get(HANDED_ON, time.time()))}


def _join(arrays: list[np.ndarray]) -> pa.Array:
    """One binary value of all the bytes. Made from buffers: `pa.array` of a memoryview never lets go of it (26.0)."""
    joined = np.concatenate([a.reshape(-1).view(np.uint8) for a in arrays]) if arrays else np.empty(0, np.uint8)
    offsets = pa.py_buffer(np.array([0, joined.size], np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(joined)])


def split(flat: np.ndarray, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """The arrays of these shapes that lie one behind the other."""
    arrays, start = [], 0
    for shape in shapes:
        end = start + int(np.prod(shape))
        arrays.append(flat[start:end].reshape(shape))
        start = end
    return arrays
