"""Masks that are no pictures: outlines and brushes in the files of labelling tools, painted when they are read.

    *.json   COCO (also Roboflow's _annotations.coco.json), labelme beside each image, Label Studio's export
    *.xml    CVAT for images
    *.txt    YOLO for segmentation, under `labels` as its image is under `images`, or beside it

What no region covers is background. Where regions overlap, COCO's and YOLO's smaller ones lie on top; the other tools
have an order.
"""

import contextlib
import functools
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from PIL import Image

from segcore.annotations import coco, cvat, label_studio, labelme, yolo
from segcore.annotations.regions import BACKGROUND, Annotated, Region, painted, require_size
from segcore.datasets.class_lists import decode_text, spelt
from segcore.datasets.label_set import VOID_NAMES, LabelSet, classes_named
from segcore.datasets.pair_check import Finding, Kind
from segcore.images import decoding
from segcore.images.masks import encode_mask
from tasks import storage
from tasks.ahead import ahead
from tasks.datasets.brushes import without_upload_prefix
from tasks.datasets.class_files import CLASS_FILES
from tasks.datasets.layout import FileRef, Layout, ending_of, relative, split_in
from tasks.datasets.names import NamedFile, folded
from tasks.errors import JobError
from tasks.storage import Location, StoredFile

DOCUMENTS = (".json", ".xml")
"""Endings of files that draw the masks of many images, or of one."""

_MAX_BYTES = 1 << 30
_READERS = 8
_SAMPLE = 20
"""Text files that are looked into to tell whether they are YOLO's."""

_NAMES = {"coco": "COCO", "labelme": "labelme", "studio": "Label Studio", "cvat": "CVAT", "yolo": "YOLO"}


@dataclass(frozen=True)
class _Drawn:
    """The mask of one image, not painted yet."""

    place: Location
    version: str
    """Of that file."""

    name: str
    """Of the image, as the file has it."""

    image: Annotated | None
    """None: the outlines of YOLO, which are read when the mask is."""


@dataclass
class Drawings:
    """What a dataset has in the place of pictures of masks."""

    kind: str
    """A key of `_NAMES`."""

    drawn: list[_Drawn] = field(default_factory=list)
    names: tuple[str, ...] = ()
    """Classes, in the order in which the files have them; none where they are numbers."""

    def label_set(self, named: LabelSet) -> LabelSet:
        """The classes: as they are named beside the files if all that is drawn is among them, otherwise as drawn."""
        known = {name.casefold() for name in named.classes} | VOID_NAMES | {BACKGROUND}
        if all(spelt(name).casefold() in known for name in self.names):
            return named
        return classes_named([BACKGROUND, *_without_background(self.names)], f"names of {_NAMES[self.kind]}")

    def masks(self, found: Sequence[NamedFile], named: LabelSet) -> tuple[list[NamedFile], list[NamedFile]]:
        """The images, with the splits that files of annotations give them, and a mask for each image that is named.

        named: the classes; `with_background` of them are the labels of the masks.
        """
        labels = {name: label for label, name in enumerate(with_background(named).classes)}
        by_number = dict(enumerate(named.classes)) | dict.fromkeys(named.void_values, "void")
        numbered = tuple(by_number.get(k, "") for k in range(1 + max(by_number)))
        photographs = _Photographs(found)
        split_of: dict[tuple[str, str], str] = {}
        masks = []
        for drawn in self.drawn:
            image = photographs.find(drawn.name, drawn.place)
            split = (image.split if image else "") or split_in(drawn.place)
            own = None if image is None else image.file.place
            paint: Callable[[], bytes]
            if drawn.image is not None:
                paint = functools.partial(_painted, self.kind, drawn.image, labels, None if drawn.image.width else own)
            else:
                assert own is not None
                paint = functools.partial(_painted_outlines, drawn.place, numbered, labels, own)
            file = FileRef(drawn.place, 0, drawn.version, paint, drawn.name)
            if image is not None:
                split_of[image.split, image.key] = split
            masks.append(NamedFile(split, image.key if image else PurePosixPath(drawn.name).stem, file))
        images = [image._replace(split=split_of.get((image.split, image.key), image.split)) for image in found]
        return images, masks


def with_background(named: LabelSet) -> LabelSet:
    """The same classes behind background, which no region has; as they are where it is among them."""
    return named if BACKGROUND in named.classes else classes_named([BACKGROUND, *named.classes], named.origin)


def find(folder: Location, files: dict[str, StoredFile], found: Sequence[NamedFile], layout: Layout) -> Drawings | None:
    """What is drawn of these images in files of a dataset; None where there is nothing of the kind.

    Raises JobError where all that there is cannot be read, or is boxes.
    """
    reasons: list[str] = []
    photographs = _Photographs(found)
    kinds: dict[str, Drawings] = {}
    paths = [path for path in files if _could_be_a_document(path)]
    documents = ahead(lambda path: _read_document(folder / path, files[path].size), paths, _READERS)
    for path, (kind, images, reason) in zip(paths, documents, strict=True):
        if reason:
            reasons.append(f"{(folder / path).uri}: {reason}")
            layout.findings += [(relative(layout.root, folder / path), Finding(Kind.MASK_UNREADABLE, reason))]
        if not images:
            continue
        held = kinds.setdefault(kind, Drawings(kind))
        held.names = tuple(dict.fromkeys([*held.names, *(name for image in images for name in image.known_names)]))
        for image in images:
            name = image.name
            if kind == "labelme" and photographs.find(name, folder / path) is None:  # A file that was renamed
                name = f"{PurePosixPath(path).stem}{PurePosixPath(name).suffix or '.jpg'}"
            held.drawn.append(_Drawn(folder / path, files[path].version, name, image))
    if kinds:
        return max(kinds.values(), key=lambda held: len(held.drawn))
    if outlines := _outlines(folder, files, found):
        return outlines
    if reasons:
        raise JobError(f"{reasons[0]}.")
    return None


def of_file(place: Location) -> Drawings:
    """What is drawn in one file that somebody has named. Raises JobError where it cannot be read."""
    file = storage.stat(place)
    kind, images, reason = _read_document(place, file.size)
    if not images:
        raise JobError(f"{place.uri}: {reason or 'it holds no annotations of COCO, CVAT, labelme or Label Studio'}.")
    names = tuple(dict.fromkeys(name for image in images for name in image.known_names))
    return Drawings(kind, [_Drawn(place, file.version, image.name, image) for image in images], names)


class _Photographs:
    """Which image a name in a file of annotations means."""

    def __init__(self, found: Iterable[NamedFile]) -> None:
        self._by_name: dict[str, list[NamedFile]] = {}
        for file in found:
            path = PurePosixPath(folded(file.file.place.path))
            for name in dict.fromkeys((path.name, path.stem)):
                self._by_name.setdefault(name, []).append(file)

    def find(self, name: str, annotations: Location) -> NamedFile | None:
        """The one of that name; of several the one with most of the path, or beside the annotations, or in a folder
        that they are called after. None where that leaves none or several."""
        path = PurePosixPath(folded(label_studio.path_of_address(name).replace("\\", "/")))
        last = next((n for n in (path.name, without_upload_prefix(path.name), path.stem) if n in self._by_name), "")
        beside = PurePosixPath(folded(annotations.path))

        def likeness(file: NamedFile) -> tuple[int, bool, bool]:
            own = PurePosixPath(folded(file.file.place.path))
            common = 0
            for a, b in zip(reversed(own.parts[:-1]), reversed(path.parts[:-1]), strict=False):
                if a != b:
                    break
                common += 1
            return common, own.parent == beside.parent, own.parent.name in beside.stem

        ranked = sorted(self._by_name.get(last, ()), key=likeness, reverse=True)
        if len(ranked) > 1 and likeness(ranked[0]) == likeness(ranked[1]):
            return None
        return ranked[0] if ranked else None


def _could_be_a_document(path: str) -> bool:
    return ending_of(path) in DOCUMENTS and path.rpartition("/")[2].lower() not in CLASS_FILES


def _read_document(place: Location, size: int) -> tuple[str, list[Annotated], str]:
    """Kind and images of a file, none where it is another kind of file; and why it cannot be used, if it cannot."""
    if size > _MAX_BYTES:
        return "", [], f"it has {size} bytes, more than {_MAX_BYTES}"
    data, ending = storage.read_bytes(place), ending_of(place.path)
    start = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    kind, read = "", None
    if ending == ".xml":
        if b"<annotations" in start:
            kind, read = "cvat", lambda: list(cvat.read_images([data]))
    elif b'"shapes"' in data and b'"imagePath"' in data:
        kind, read = "labelme", lambda: [labelme.read_image(data)]
    elif all(key in data for key in (b'"images"', b'"annotations"', b'"categories"')) and b'"keypoints"' not in data:
        if b'"segmentation"' not in data:
            return "", [], "it has boxes, no outlines"
        kind, read = "coco", lambda: list(coco.read_images(data))
    elif start[:1] == b"[" and b'"data"' in data and b'"result"' in data:
        kind, read = "studio", lambda: [image for image in label_studio.read_tasks(data) if image.reviewed]
    if read is None:
        return "", [], ""
    try:
        with _told(kind):
            return kind, read(), ""
    except ValueError as error:
        return kind, [], str(error)


@contextlib.contextmanager
def _told(kind: str) -> Iterator[None]:
    """Within, what readers trip over where a file has another structure than they know becomes a ValueError."""
    try:
        yield
    except (TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"it is not as {_NAMES[kind]} writes it ({type(error).__name__})") from None


def _outlines(folder: Location, files: dict[str, StoredFile], found: Sequence[NamedFile]) -> Drawings | None:
    """YOLO's text files, one for each image."""
    texts = {path.removesuffix(".txt").casefold(): path for path in files if path.endswith(".txt")}
    drawn = []
    for image in found:
        own = relative(folder, image.file.place)
        key = str(PurePosixPath(own).with_suffix("")).casefold()
        path = texts.get(key) or texts.get(re.sub(r"(^|.*/)images(?=/)", r"\1labels", key))
        if path is not None:
            drawn.append(_Drawn(folder / path, files[path].version, own, None))
    for sample in drawn[:_SAMPLE]:
        try:
            yolo.read_outlines(decode_text(storage.read_bytes(sample.place)))
        except ValueError as error:
            raise JobError(
                f"{sample.place.uri} lies where YOLO's labels of {sample.name} would: {error}. Masks are made of "
                "outlines, a line for each: a class and at least three points."
            ) from None
    return Drawings("yolo", drawn) if drawn else None


def _without_background(names: Iterable[str]) -> Iterator[str]:
    return (name for name in names if spelt(name) != BACKGROUND and name.casefold() not in VOID_NAMES)


def _painted(kind: str, image: Annotated, labels: dict[str, int], photograph: Location | None) -> bytes:
    """The mask of an image as palette PNG. photograph: where its size is to be seen, if nothing else says it."""
    width, height = (image.width, image.height) if photograph is None else _size_of(photograph)
    with _told(kind):
        return _png(image.regions(), labels, *require_size(width, height))


def _painted_outlines(place: Location, names: Sequence[str], labels: dict[str, int], photograph: Location) -> bytes:
    outlines = yolo.read_outlines(decode_text(storage.read_bytes(place)))
    width, height = require_size(*_size_of(photograph))
    return _png(yolo.regions(outlines, names, width, height), labels, width, height)


def _png(regions: Iterable[Region], labels: dict[str, int], width: int, height: int) -> bytes:
    named = (replace(region, name=spelt(region.name)) for region in regions)
    return encode_mask(painted(named, labels, height, width, labels[BACKGROUND]))


def _size_of(photograph: Location) -> tuple[int, int]:
    """Width and height of a photograph, upright."""
    data = storage.read_bytes(photograph)
    try:
        with Image.open(io.BytesIO(data), formats=decoding.FORMATS) as opened:
            width, height = opened.size
        return (height, width) if decoding.orientation(data) > 4 else (width, height)
    except Exception as error:  # Whatever a parser trips over, which is told of the image itself too
        raise ValueError(f"the size of its image cannot be read ({error})") from None
