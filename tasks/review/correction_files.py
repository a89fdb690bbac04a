"""Files of corrections: what of them is which image of a run, whether a person has seen it, and its regions."""

import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

import numpy as np

from segcore.annotations import coco, cvat, label_studio
from segcore.annotations.regions import Annotated, Region, regions_of
from segcore.datasets.class_lists import decode_text
from segcore.datasets.label_set import LabelSet, read_classes
from segcore.datasets.pair_check import ADVICE, Level, check_pair
from segcore.images.masks import decode_mask
from segcore.voc import IGNORE_LABEL
from tasks import storage
from tasks.datasets import brushes
from tasks.datasets.class_files import CLASS_FILES
from tasks.datasets.names import Names
from tasks.errors import JobError
from tasks.results.export_formats.folders import NAMES
from tasks.results.export_names import file_names
from tasks.storage import Location

Source = Literal["label-studio", "cvat", "coco", "png"]

_ENDINGS: dict[Source, str] = {"label-studio": ".json", "cvat": ".xml", "coco": ".json", "png": ".png"}
_READERS: dict[str, Callable[[bytes], Iterator[Annotated]]] = {
    "label-studio": label_studio.read_tasks,
    "cvat": lambda data: cvat.read_images([data]),
    "coco": coco.read_images,
}
_MAX_BYTES = 4 << 30
"""A larger file, or member of a zip archive, is not read."""


@dataclass
class Corrections:
    """What was found in the files."""

    images: dict[str, Annotated] = field(default_factory=dict)
    """By identity; of an image that is there several times, the last that a person has seen."""

    unknown: list[str] = field(default_factory=list)
    """Names that are no image of the run."""


class _Identities:
    """Which image of a run a name in another tool means."""

    def __init__(self, image_ids: Sequence[str], others: Mapping[str, str]) -> None:
        """others: more names, with their identities."""
        self._known = set(image_ids)
        self._by_name = dict(others)
        for suffix in (None, ".png", ".txt"):
            for image_id, name in file_names(image_ids, suffix).items():
                self._by_name.setdefault(name, image_id)
        self._tails = Names(image_ids, [(name, image_id) for name, image_id in self._by_name.items()])

    def find(self, image: Annotated) -> str | None:
        """The identity, as the file carries it or as the image's name means it."""
        if image.identity in self._known:
            return image.identity
        path = label_studio.path_of_address(image.name)
        for name in (image.name, path, path.removeprefix("images/")):
            if name in self._known:
                return name
            if name in self._by_name:
                return self._by_name[name]
        folder, _, last = path.rpartition("/")
        plain = "/".join(part for part in (folder, brushes.without_upload_prefix(last)) if part)
        return self._tails.find(path) or self._tails.find(plain)


def read_corrections(
    place: Location, source: Source, image_ids: Sequence[str], class_names: Mapping[int, str]
) -> Corrections:
    """Read a file, a folder or a zip archive of corrections.

    image_ids, class_names: of the run. Raises JobError where nothing of it can be read.
    """
    with storage.explained(place):
        files = dict(_files(place))
        is_png = source == "png"
        found = list(_pngs(files, place, class_names)) if is_png else _documents(files, place, source)
        others = _names_of_export(files)
    identities = _Identities(image_ids, others)
    corrections = Corrections()
    for image in found:
        image_id = identities.find(image)
        if image_id is None:
            corrections.unknown.append(image.name)
        elif image.reviewed or image_id not in corrections.images:
            corrections.images[image_id] = image
    return corrections


def _files(place: Location) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Path and reader of each file: of the folder, of the archive, or the one that was named."""
    if storage.is_file(place):
        if not place.path.lower().endswith(".zip"):
            yield place.name, lambda: _within_bounds(place)
            return
        try:
            archive = zipfile.ZipFile(io.BytesIO(_within_bounds(place)))  # Its members are read later, one by one
        except zipfile.BadZipFile as error:
            raise JobError(f"{place.uri} is no sound zip archive: {error}.") from None
        for info in archive.infolist():
            if not info.is_dir():
                yield info.filename, _member(archive, info)
        return
    found = False
    for file in storage.list_files(place):
        found = True
        yield file.path, _reader(place / file.path)
    if not found:
        raise JobError(f"{place.uri} does not exist, or is an empty folder.")


def _reader(place: Location) -> Callable[[], bytes]:
    return lambda: _within_bounds(place)


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        if info.file_size > _MAX_BYTES:
            raise ValueError(f"{info.filename} has {info.file_size} bytes, more than {_MAX_BYTES}")
        try:
            with archive.open(info) as opened:
                return opened.read(info.file_size)
        except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"{info.filename} cannot be unpacked ({error})") from None

    return read


def _within_bounds(place: Location) -> bytes:
    if (size := storage.stat(place).size) > _MAX_BYTES:
        raise JobError(f"{place.uri} has {size} bytes, more than {_MAX_BYTES}: export fewer images at a time.")
    return storage.read_bytes(place)


def _documents(files: Mapping[str, Callable[[], bytes]], place: Location, source: Source) -> list[Annotated]:
    """The images of every file of that format; other files beside them are passed over."""
    wanted = [path for path in files if path.lower().endswith(_ENDINGS[source])]
    found: list[Annotated] = []
    reasons: list[str] = []
    for path in wanted:
        try:
            found += _READERS[source](files[path]())
        except ValueError as error:
            reasons.append(f"{path}: {error}")
    if not found:
        reason = reasons[0] if reasons else f"it holds no file that ends in {_ENDINGS[source]}"
        raise JobError(f"{place.uri} holds no images of {source}: {reason}.")
    return found


def _names_of_export(files: Mapping[str, Callable[[], bytes]]) -> dict[str, str]:
    """The list of names that our own export left beside its files."""
    names: dict[str, str] = {}
    for path in files:
        if path.rpartition("/")[2] != NAMES:
            continue
        for line in files[path]().decode("utf-8", "replace").splitlines():
            try:
                entry = json.loads(line)
                names[str(entry["name"])] = str(entry["image_id"])
            except (ValueError, KeyError, TypeError):
                continue
    return names


# Masks as pictures

_MASK_FOLDERS = re.compile(r"^(?:.*/)?(?:SegmentationClass(?:Aug|PNG)?|masks?)/")
_ASIDE = re.compile(r"(?:^|/)(?:SegmentationObject|JPEGImages|images)/")


def _pngs(
    files: Mapping[str, Callable[[], bytes]], place: Location, class_names: Mapping[int, str]
) -> Iterator[Annotated]:
    """Each PNG as an image; the classes are those of a file beside them, or the run's."""
    label_set = _label_set(files, class_names)
    found = False
    for path, read in files.items():
        if not path.lower().endswith(".png") or _ASIDE.search(path):
            continue
        if brushes.brush_of(path[: -len(".png")]) is not None:
            raise JobError(
                f"{path} of {place.uri} is one label of one task: take Label Studio's JSON export instead, with "
                "--from label-studio."
            )
        found = True
        yield _annotated(_MASK_FOLDERS.sub("", path)[: -len(".png")], read, label_set)
    if not found:
        raise JobError(f"{place.uri} holds no masks that end in .png.")


def _annotated(name: str, read: Callable[[], bytes], label_set: LabelSet) -> Annotated:
    def regions() -> list[Region]:
        check = check_pair(None, read(), label_set)
        wrong = next((f for f in check.findings if ADVICE[f.kind].level is Level.ERROR), None)
        if wrong is not None or check.mask is None:
            raise ValueError("it cannot be read" if wrong is None else f"{wrong.kind}: {wrong.detail}".rstrip(": "))
        labels = decode_mask(check.mask)
        found = regions_of(labels, dict(enumerate(label_set.classes)))
        void = labels == IGNORE_LABEL
        size = np.zeros(labels.shape, bool)
        return [Region("background", size), *found, *([Region("void", void)] if void.any() else [])]

    return Annotated(name, None, 0, 0, regions)


def _label_set(files: Mapping[str, Callable[[], bytes]], class_names: Mapping[int, str]) -> LabelSet:
    order = {name: number for number, name in enumerate(CLASS_FILES)}
    there = [path for path in files if PurePosixPath(path).name.lower() in order]
    there.sort(key=lambda path: (path.count("/"), order[PurePosixPath(path).name.lower()]))
    try:
        if there:
            return read_classes(decode_text(files[there[0]]()), PurePosixPath(there[0]).name)
        return read_classes(json.dumps(class_names), "classes.json")
    except ValueError as error:
        raise JobError(f"The classes of the masks cannot be read: {error}") from None
