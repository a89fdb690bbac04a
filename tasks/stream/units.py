"""What is done as one piece: units of images, their records, and what became of them.

Plain data without Ray, so that a process apart (`tasks/stream/isolation.py`) has it quickly.
"""

import collections
from dataclasses import dataclass, field
from typing import Any

from segcore.images.errors import ImageError
from segcore.predictor import PredictParams
from tasks.archive.entries import Entry
from tasks.archive.schema import SCHEMA_VERSION
from tasks.storage import Location
from tasks.stream.isolation import ImageLimits

STAGES = ("read", "score", "refine")


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

    skip_duplicates: bool = False
    """Whether rows may be copies, and say so."""

    schema_version: int = SCHEMA_VERSION
    """Of the rows, `tasks/archive/schema.py`."""

    limits: ImageLimits = field(default_factory=ImageLimits)
    """What one image may take; decides no mask."""


@dataclass(frozen=True)
class Copy:
    """An image that is a copy of one that has its mask."""

    entry: Entry
    width: int
    height: int
    """Own size in px, upright."""

    original: dict[str, Any]
    """The row of the other."""


@dataclass(frozen=True)
class Unit:
    """What flows through as one piece and is committed as one file."""

    name: str
    """Of its mask file, without ending: a function of the manifest part."""

    entries: tuple[Entry, ...]
    """What is read and scored."""

    copies: tuple[Copy, ...] = ()


@dataclass(frozen=True)
class Destination:
    """Where the rows of a run go."""

    masks: Location
    """Folder of the run's mask files."""

    run_id: str
    source: Location
    """What the entries are of."""

    output: Location | None = None
    """What `mask_file` of a row is relative to; None where no mask lies beside its row."""

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

    def count(self, record: "Record") -> None:
        """One image more."""
        self.images += 1
        if record.error is not None:
            self.errors[record.error.kind.value] += 1


@dataclass
class Record:
    """One image on its way: pixels and scores travel beside it."""

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
