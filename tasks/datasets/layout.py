"""What a dataset in folders is: its images, masks, lists and classes, and how its owner says where they are.

`folders.py` finds them, `names.py` pairs them, `lists.py` and `class_files.py` read what stands beside them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Annotated

import annotated_types
from pydantic import BaseModel

from segcore.datasets.division import VAL_SHARE
from segcore.datasets.label_set import LabelSet
from segcore.datasets.pair_check import Finding
from segcore.images.decoding import EXTENSIONS
from tasks import storage
from tasks.storage import Location

IMAGES = "JPEGImages"
LISTS = "ImageSets/Segmentation"
MASK_FOLDERS = ("SegmentationClassAug", "SegmentationClass")
"""The first that is there holds the masks."""

BEFORE_FIX = "before-fix"
"""Folder beside the dataset's own in which the first version of every mended file is kept."""

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", *sorted(EXTENSIONS - {".jpg", ".jpeg", ".png"}))
MASK_ENDINGS = (".png", ".bmp", ".tif", ".tiff", ".gif", ".jpg", ".jpeg", ".webp")

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    "trainval": "trainval",
}


@dataclass(frozen=True)
class FileRef:
    """One file."""

    place: Location
    """Where it is."""

    size: int
    """Bytes."""

    version: str
    """Changes when it is replaced."""

    made: Callable[[], bytes] | None = None
    """Makes it where it is no file of its own: a drawn mask, a cell of a table; then `place` is where that lies.
    Raises ValueError where it is damaged."""

    part: str = ""
    """Which part of the file it is, for a person."""

    def read(self) -> bytes:
        """Its bytes."""
        return self.made() if self.made else storage.read_bytes(self.place)


@dataclass(frozen=True)
class Pair:
    """An image and its mask by name; None for what is not there."""

    id: str
    """File name without its ending."""

    image: FileRef | None
    """The photograph."""

    mask: FileRef | None
    """The mask: an image file, or one of SBD's .mat files."""

    source: str
    """Whose mask it is."""


@dataclass
class Layout:
    """A dataset as it lies in folders."""

    name: str
    """For people."""

    root: Location
    """What paths in findings are relative to."""

    label_set: LabelSet
    """Classes and colours."""

    lists: dict[str, list[str]]
    """Ids by list."""

    list_files: dict[str, Location]
    """Where the lists were read; computed ones have none."""

    pairs: dict[str, Pair]
    """Everything that a list names."""

    findings: list[tuple[str, Finding]] = field(default_factory=list)
    """What is wrong with lists, with the file below the root."""


def is_training(name: str) -> bool:
    """Whether a list is one to train on, and not trainval, which holds val by its definition."""
    return name.lower().startswith("train") and not name.lower().startswith("trainval")


def is_validation(name: str) -> bool:
    """Whether a list is one to judge on."""
    return name.lower().startswith(("val", "test"))


class OwnData(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """How the folders of somebody's own dataset are read, where their names do not say it."""

    images: str | None = None
    """Folder of the images, within the dataset or anywhere, where it is not found by its name."""

    masks: str | None = None
    """Folder of the masks, likewise; or a file of annotations: COCO's JSON, CVAT's XML, labelme, Label Studio."""

    lists: dict[str, str] | None = None
    """List files by the split that they make; a path, or a name in ImageSets/Segmentation. By default all that are
    there; without any, the folders of splits; without those, a digest of the ids divides the images."""

    classes: str | None = None
    """Names of the classes: a file, names separated by commas, or "voc". By default the file in the dataset."""

    void: str | None = None
    """Numbers or names of classes that mean void, separated by commas, beside 255."""

    by_colour: bool = False
    """Read masks with a palette by its colours instead of their numbers."""

    val_share: Annotated[float, annotated_types.Interval(ge=0.0, lt=1.0)] = VAL_SHARE
    """Share of the images that becomes val, where nothing else divides them."""


def split_in(place: Location) -> str:
    """Split that the name of a file tells: instances_train2017.json, val.json, test-00000-of-00001.parquet; or none."""
    words = re.findall(r"[a-z]+", PurePosixPath(place.path).stem.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), "")


def relative(root: Location, place: Location) -> str:
    """A file as it is named to a person: below the dataset, or by its URI where it lies elsewhere."""
    return place.path.removeprefix(f"{root.path.rstrip('/')}/") if place.protocol == root.protocol else place.uri


def ending_of(path: str) -> str:
    return PurePosixPath(path).suffix.lower()
