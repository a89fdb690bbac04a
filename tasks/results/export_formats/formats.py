"""What a format of an export is asked for: its files of one image, its lines for a fragment, its files at the end."""

import collections
import contextlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from segcore import voc
from segcore.annotations.regions import BACKGROUND, has_background
from segcore.images.decoding import MAX_PIXELS, decode
from segcore.images.errors import ImageError
from segcore.images.inner import InnerImage
from segcore.images.masks import resize_labels
from tasks import storage
from tasks.archive.stored_content import StoredContent
from tasks.results.reading import Results
from tasks.storage import Location

_COPY_BYTES = 8 << 20

Lines = Callable[[int], Iterator[str]]
"""The lines that all fragments hold in their first (0) or second (1) list, in the order of the run."""


@dataclass(frozen=True)
class Export:
    """What is exported, as a format needs to know it."""

    destination: Location
    run_id: str
    record: dict[str, Any]
    """Of the run."""

    with_photographs: bool
    tolerance_px: float | None
    """How far a polygon may be from its mask; None: masks."""

    images_at: str | None
    """Address before the names of the photographs."""

    @property
    def model_version(self) -> str:
        """Which model made the masks, and with which parameters."""
        return f"{self.record.get('model')} run {self.run_id}"

    @property
    def ids_per_image(self) -> int:
        """More than the largest label."""
        return 256 if len(self.record.get("class_names") or ()) <= voc.MOST_BYTE_CLASSES else 65536


@dataclass(frozen=True)
class Picture:
    """One image that has a mask."""

    number: int
    """Of its row in the run, from 0 on."""

    row: dict[str, Any]
    """Its columns."""

    name: str
    """Path of its file, as the format names it; the identity where it has none."""

    photograph: bytes | InnerImage | StoredContent | ImageError | None
    """Its bytes, where they are if they are many, or why they could not be read; None: not asked for."""

    results: Results

    @property
    def beside(self) -> Location | None:
        """The file of a mask that is too large for its row."""
        return self.results.output.label_file(self.row)

    @property
    def labels(self) -> np.ndarray | None:
        """Label map (H, W) uint8 or uint16; None where it has too many pixels to be held."""
        if self.beside is not None and self.row["mask_width"] * self.row["mask_height"] > MAX_PIXELS:
            return None
        return self.results.labels_of(self.row)

    @property
    def labels_of_photograph(self) -> np.ndarray | None:
        """The same in the size of the photograph, onto which tools lay it; by nearest, where the mask is smaller."""
        labels = self.labels
        if labels is None:
            return None
        return resize_labels(labels, self.row["width"] or labels.shape[1], self.row["height"] or labels.shape[0])

    @property
    def names(self) -> dict[int, str]:
        """Names of the classes in the mask, by label."""
        return {found["index"]: found["name"] for found in self.row["classes"]}

    @property
    def scores(self) -> dict[int, float]:
        """Confidence of the classes in the mask, 0..1, by label."""
        return {found["index"]: found["confidence"] for found in self.row["classes"]}


@dataclass
class Written:
    """What a piece of the run has left: its counts, and lines for the files at the end."""

    tally: collections.Counter[str] = field(default_factory=collections.Counter)
    lines: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))


class Format:
    """One format. Files that are written while the run is read are functions of it, so that a stop is continued."""

    suffix: ClassVar[str | None] = None
    """Ending of the files of masks; None: the names of images keep their own."""

    takes_photographs: ClassVar[bool] = True
    needs_photographs: ClassVar[bool] = False
    names_files: ClassVar[bool] = False
    """Whether each image has a file, with photographs or without."""

    def __init__(self, export: Export) -> None:
        self.export = export
        self.destination = export.destination

    def write(self, pictures: Iterable[Picture], piece: int) -> Written:
        """Write what of the images of a piece is a file of its own. piece: its number."""
        written = Written()
        for picture in pictures:
            self.add(picture, written)
            if picture.photograph is not None:
                self.copy_photograph(picture, written.tally)
        return written

    def add(self, picture: Picture, written: Written) -> None:
        """Write the mask of one image, or leave its lines."""
        raise NotImplementedError

    def finish(self, classes: dict[int, str], lines: Lines) -> None:
        """Write the files of the whole. classes: names of the classes that were found, by label."""
        raise NotImplementedError

    def photograph_place(self, picture: Picture) -> Location:
        """Where the copy of a photograph goes."""
        return self.destination / f"images/{picture.name}"

    def copy_photograph(self, picture: Picture, tally: collections.Counter[str]) -> None:
        """Write the copy of a photograph; one that cannot be read any more is counted."""
        place, data = self.photograph_place(picture), picture.photograph
        if isinstance(data, bytes | InnerImage):
            as_it_is = isinstance(data, bytes) and not self.suffix
            storage.write_whole(place, data[:] if as_it_is else upright_jpeg(data), durable=False)
        elif isinstance(data, StoredContent) and not self.suffix:
            copy(data.place, place)
        else:  # Or it has more pixels than a JPEG
            tally["photographs_missing"] += 1
            return
        tally["photographs"] += 1


def copy(source: Location, destination: Location) -> None:
    """Copy one file of any size."""
    with storage.open_for_reading(source) as opened:
        storage.write_stream(destination, iter(lambda: opened.read(_COPY_BYTES), b""))


def class_names(record: dict[str, Any], found: dict[int, str]) -> dict[int, str]:
    """Every class in the order of labels: those of the model, as the run's record has them.

    found: the classes that are in a mask.
    """
    names = dict(enumerate(record.get("class_names") or ()))
    if any(names.get(label) != name for label, name in found.items()):  # A run of before records named them
        agrees = all(label < len(voc.CLASSES) and voc.CLASSES[label] == name for label, name in found.items())
        others = dict(enumerate(voc.CLASSES)) if agrees else {n: f"class {n}" for n in range(max(found, default=0))}
        names = others | found
    return dict(sorted(names.items()))


def starts_with_background(record: dict[str, Any]) -> bool:
    """Whether label 0 of a run is background: known before its rows are read."""
    names = record.get("class_names")
    return has_background({0: names[0]}) if names else BACKGROUND in (record.get("classes") or {BACKGROUND: None})


def colours(
    record: dict[str, Any], names: dict[int, str], *, background: bool = False
) -> dict[str, tuple[int, int, int]]:
    """RGB by class, of the run's model where it has some, else in the palette of VOC. background: with it."""
    own = record.get("class_colours") or ()
    palette = voc.palette(max([256, len(own), *(label + 1 for label in names)]))
    if own:
        palette[: len(own)] = own
    left_out = BACKGROUND if not background and has_background(names) else None
    return {name: tuple(map(int, palette[label])) for label, name in names.items() if name != left_out}  # type: ignore[misc]


def upright_jpeg(data: bytes | InnerImage) -> bytes:
    """A photograph as JPEG whose pixels lie as its mask does: its own bytes where they do already."""
    if isinstance(data, bytes):
        with contextlib.suppress(UnidentifiedImageError, OSError), Image.open(io.BytesIO(data)) as opened:
            if opened.format == "JPEG" and opened.getexif().get(ExifTags.Base.Orientation, 1) == 1:
                return data
    buffer = io.BytesIO()
    Image.fromarray(decode(data).image).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()
