"""A dataset as it lies in folders: which images, which masks, which lists. Nothing is read but names, lists, classes.

    JPEGImages/<id>.jpg  SegmentationClass/<id>.png or SegmentationClassAug/<id>.png     VOC, CVAT, labelme
    images/<id>.jpg  masks/<id>.png                                                      two folders, however called
    train/images  train/masks, images/train  labels/train, train  trainannot             folders for each split
    train/<id>.jpg  train/<id>_mask.png                                                  side by side (Roboflow)
    ImageSets/Segmentation/<list>.txt, or train.txt and val.txt beside the folders
and SBD: cls/<id>.mat  train.txt  val.txt

An image and a mask are one pair by the same path without roles, splits and ending; names that differ in capitals, in
the form of their Unicode or by a suffix such as _mask are paired too. What has no partner is a finding.
"""

import contextlib
import hashlib
import json
import re
import unicodedata
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Annotated, NamedTuple

import annotated_types
from pydantic import BaseModel

from segcore.datasets import sbd
from segcore.datasets.label_set import ASSUMED, VOC_LABELS, LabelSet, decode_text, read_classes, with_void
from segcore.datasets.pair_check import Finding, Kind
from segcore.images.decoding import EXTENSIONS
from tasks import storage
from tasks.datasets import brushes
from tasks.errors import JobError
from tasks.storage import Location, StoredFile

IMAGES = "JPEGImages"
LISTS = "ImageSets/Segmentation"
MASK_FOLDERS = ("SegmentationClassAug", "SegmentationClass")
"""The first that is there holds the masks."""

CLASS_FILES = (
    "labelmap.txt",
    "classes.txt",
    "class_names.txt",
    "labels.txt",
    "label_names.txt",
    "names.txt",
    "_classes.csv",
    "classes.csv",
    "class_dict.csv",
    "label_colors.txt",
    "colors.txt",
    "obj_class_to_machine_color.json",
    "dataset_meta.json",
    "meta.json",
    "notes.json",
    "classes.json",
    "labels.json",
    "id2label.json",
    "data.yaml",
    "label_map.pbtxt",
    "data.yml",
    "classes.yaml",
    "names.yaml",
    "metainfo.py",
    "dataset.py",
)
"""Files that name the classes; the first that is there counts."""

BEFORE_FIX = "before-fix"
"""Folder beside the dataset's own in which the first version of every mended file is kept."""

_ROOTS = ("", "VOCdevkit/VOC2012/", "VOC2012/", "VOC2012_train_val/VOC2012_train_val/", "VOC2012_train_val/")
_SBD_ROOTS = ("", "dataset/", "benchmark_RELEASE/dataset/", "benchmark/benchmark_RELEASE/dataset/")
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", *sorted(EXTENSIONS - {".jpg", ".jpeg", ".png"}))
_MASK_ENDINGS = (".png", ".bmp", ".tif", ".tiff", ".gif", ".jpg", ".jpeg", ".webp")

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    "trainval": "trainval",
}
_WHOLE = {"default", "all"}
"""Lists of everything, as CVAT and our own export write them."""

# Names of folders, in small letters without separators
_OF_IMAGES = re.compile("images?|imgs?|(?:image|img)dir|jpegimages|photos?|photographs|inputs?|rgb|leftimg8bit")
_OF_MASKS = re.compile(
    "masks?|(?:mask|ann)dir|labels?|annotations?|annots?|anns?|segmentationclass(?:aug|png)?|gts?|gtfine|groundtruth"
    "|targets?|segs?|segmentations?|masksmachine"
)
_DERIVED = {"masks_human", "masks_instances", "SegmentationObject", "SegmentationClassVisualization", BEFORE_FIX}
"""Folders of pictures of masks, as Supervisely, CVAT and labelme write them beside the masks."""

_MASK_SUFFIX = re.compile(
    r"[._ -](?:masks?|labels?|gt|seg|segmentation|annotation|annot|groundtruth|target|l"
    r"|gtfine_labeltrainids|gtfine_labelids|labeltrainids|labelids)$"
)
_IMAGE_SUFFIX = re.compile(r"[._ -](?:leftimg8bit|image|img|rgb)$")
_LIST_NAME = re.compile(
    rf"({'|'.join(_SPLITS)})(?:[._ -]?(?:list|ids|set|files))?\.(?:txt|csv|lst|jsonl)", re.IGNORECASE
)
_WITHIN = re.compile(rf"(?:{'|'.join(map(re.escape, _IMAGE_ENDINGS))})[\"']?[\s,;]", re.IGNORECASE)
"""An ending of an image that more follows on: the text has several columns."""

_LIST_ENDINGS = (".txt", ".csv", ".lst", ".jsonl")
_HEAD = re.compile(r"(?:images?|img|file|mask|label|annotation|name|id|path|[\s_,;])+", re.IGNORECASE)


@dataclass(frozen=True)
class FileRef:
    """One file."""

    place: Location
    """Where it is."""

    size: int
    """Bytes."""

    version: str
    """Changes when it is replaced."""

    layers: tuple[brushes.Layer, ...] = ()
    """Files of one label each that a mask is made of; then `place` is the first of them."""

    def read(self) -> bytes:
        """Its bytes, or those of the mask that its layers make."""
        return brushes.combined(self.layers) if self.layers else storage.read_bytes(self.place)


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
    """Folder of the masks, likewise."""

    lists: dict[str, str] | None = None
    """List files by the split that they make; a path, or a name in ImageSets/Segmentation. By default all that are
    there; without any, the folders of splits; without those, a digest of the ids divides the images."""

    classes: str | None = None
    """Names of the classes: a file, names separated by commas, or "voc". By default the file in the dataset."""

    void: str | None = None
    """Numbers or names of classes that mean void, separated by commas, beside 255."""

    by_colour: bool = False
    """Read masks with a palette by its colours instead of their numbers."""

    val_share: Annotated[float, annotated_types.Interval(ge=0.0, lt=1.0)] = 0.1
    """Share of the images that becomes val, where nothing else divides them."""


_AS_FOUND = OwnData()


def read_layout(folder: Location, given: OwnData = _AS_FOUND, *, name: str | None = None) -> Layout:
    """A dataset in one of the layouts above.

    Raises JobError where the folder has no such layout, or nothing names its classes.
    """
    images, masks, lists = given.images, given.masks, given.lists
    with storage.explained(folder):
        files = _listed(folder)
        base, is_voc = "", True
        if images is not None:
            if masks is None:
                raise JobError("--images needs --masks too: the folder of the masks.")
            found = [_File("", key, file) for key, file in _of_folder(folder, files, images, _IMAGE_ENDINGS)]
            drawn = [_File("", key, file) for key, file in _of_folder(folder, files, masks, _MASK_ENDINGS)]
            is_voc = False
        elif (voc_base := _voc_base(folder, files)) is not None:
            base = voc_base
            found = [_File("", *entry) for entry in _below(folder, files, f"{base}{IMAGES}/", _IMAGE_ENDINGS)]
            drawn = [_File("", *entry) for entry in _voc_masks(folder, files, base, masks)]
        else:
            is_voc = False
            base = _common_folder(files)
            found, drawn = _by_roles(folder, files, base)
            if masks is not None:
                drawn = [_File("", *entry) for entry in _of_folder(folder, files, masks, _MASK_ENDINGS)]
        root = folder / base.rstrip("/") if base else folder
        layout = Layout(name or root.name, root, ASSUMED, {}, {}, {})
        found, drawn, brushed = _brushes_taken_out(found, drawn)
        if brushed:
            layout.label_set = _label_set(folder, files, base, given, is_voc, layout, tags=[b.tag for b, _ in brushed])
            drawn += _brush_masks(folder, files, found, brushed, layout)
        pairing = _Pairing(found, drawn, layout)
        pairs = pairing.pairs
        both = sorted(k for k, pair in pairs.items() if pair.image is not None and pair.mask is not None)
        if not both and not is_voc and images is None:
            raise JobError(_nothing_found(folder, files))
        if not brushed:
            layout.label_set = _label_set(folder, files, base, given, is_voc, layout)
        for list_name, place in _list_files(folder, files, base, lists).items():
            layout.list_files[list_name] = place
            layout.lists[list_name] = _read_list(place, list_name, pairing.resolve, layout)
    if lists is None and layout.lists and layout.lists.keys() <= _WHOLE:
        both = sorted(set().union(*layout.lists.values()))
        layout.lists, layout.list_files = {}, {}
    if not layout.lists:
        if not both:
            raise JobError(
                f"No image of {root.uri} has a mask under the same name: {pairing.example()}. Name both alike, or name "
                "the folders with --images and --masks."
            )
        layout.lists = _by_split_folder(both, pairing.split_of) or divide(both, given.val_share)
    listed = set().union(*layout.lists.values())
    for image_id in sorted(listed):
        layout.pairs[image_id] = pairs.get(image_id) or Pair(image_id, None, None, layout.name)
    for image_id in sorted(pairs.keys() - listed) if lists is None else ():  # A chosen list leaves out what it likes
        pair = pairs[image_id]
        if pair.image is not None and pair.mask is not None:
            layout.findings.append((relative(root, pair.image.place), Finding(Kind.UNLISTED, "")))
        elif pair.image is not None:
            layout.findings.append((relative(root, pair.image.place), Finding(Kind.UNMASKED, "")))
        elif pair.mask is not None:
            layout.findings.append((relative(root, pair.mask.place), Finding(Kind.ORPHAN_MASK, "")))
    return layout


def read_voc_with_sbd(voc: Location, sbd_folder: Location | None, *, prefer_sbd: bool = False) -> Layout:
    """VOC 2012 with the annotations of SBD, lists computed; sbd_folder: None: VOC alone.

    prefer_sbd: SBD's mask where a training image has two. Images of VOC's val always keep VOC's mask.
    """
    with storage.explained(voc):
        files = _listed(voc)
        base = _voc_base(voc, files)
        if base is None:
            raise JobError(f"{voc.uri} is not in VOC layout: it has no folder {IMAGES}.")
        root = voc / base.rstrip("/") if base else voc
        images = dict(_below(voc, files, f"{base}{IMAGES}/", _IMAGE_ENDINGS))
        voc_masks = dict(_below(voc, files, f"{base}SegmentationClass/", (".png",)))
        layout = Layout("voc2012", root, VOC_LABELS, {}, {}, {})
        resolve = _Names([*images, *voc_masks]).id_of
        voc_lists = {name: _read_list(root / LISTS / f"{name}.txt", name, resolve, layout) for name in ("train", "val")}
    sbd_masks: dict[str, FileRef] = {}
    sbd_lists: dict[str, list[str]] = {"train": [], "val": []}
    if sbd_folder is not None:
        with storage.explained(sbd_folder):
            files = _listed(sbd_folder)
            base = next((part for part in _SBD_ROOTS if any(path.startswith(f"{part}cls/") for path in files)), None)
            if base is None:
                raise JobError(
                    f"{sbd_folder.uri} holds no annotations of SBD: dataset/cls, train.txt and val.txt are looked for."
                )
            sbd_masks = dict(_below(sbd_folder, files, f"{base}cls/", (".mat",)))
            resolve = _Names([*images, *voc_masks, *sbd_masks]).id_of
            sbd_lists = {
                name: _read_list(sbd_folder / f"{base}{name}.txt", f"SBD {name}", resolve, layout) for name in sbd_lists
            }
    layout.lists = sbd.merged_lists(voc_lists["train"], voc_lists["val"], sbd_lists["train"], sbd_lists["val"])
    if sbd_folder is None:
        layout.lists = {name: layout.lists[name] for name in ("train", "val", "trainval")}
    val = set(layout.lists["val"])
    for image_id in sorted(set().union(*layout.lists.values())):
        sources = [("VOC2012", voc_masks.get(image_id)), ("SBD", sbd_masks.get(image_id))]
        if prefer_sbd and image_id not in val:
            sources.reverse()
        source, mask = next((entry for entry in sources if entry[1] is not None), sources[0])
        layout.pairs[image_id] = Pair(image_id, images.get(image_id), mask, source)
    return layout


def divide(ids: Iterable[str], val_share: float) -> dict[str, list[str]]:
    """Lists train and val, by a digest of each id: an image that is added later moves no other one.

    Of so few that none would come to val, the one that is nearest to it does.
    """
    digests = {image_id: hashlib.sha256(b"split " + image_id.encode()).digest() for image_id in sorted(ids)}
    shares = {image_id: int.from_bytes(digest[:8], "big") / 2**64 for image_id, digest in digests.items()}
    val = {image_id for image_id, share in shares.items() if share < val_share}
    if not val and val_share > 0 and len(shares) > 1:
        val = {min(shares, key=lambda image_id: shares[image_id])}
    lists = {"train": [i for i in shares if i not in val], "val": [i for i in shares if i in val]}
    return {name: members for name, members in lists.items() if members}


def relative(root: Location, place: Location) -> str:
    """A file as it is named to a person: below the dataset, or by its URI where it lies elsewhere."""
    return place.path.removeprefix(f"{root.path.rstrip('/')}/") if place.protocol == root.protocol else place.uri


# Files and their roles


class _File(NamedTuple):
    """An image or a mask by its name."""

    split: str
    """Folder of a split that it lies in; empty where there is none."""

    key: str
    """Path without ending, roles and splits."""

    file: FileRef
    """Where it is."""


def _listed(folder: Location) -> dict[str, StoredFile]:
    """Files by their path below a folder, without what programs leave beside the data."""
    files = {file.path: file for file in storage.list_files(folder)}
    if not files:
        raise JobError(f"{folder.uri} does not exist, or is an empty folder.")
    return {path: file for path, file in files.items() if not _is_aside(path)}


def _is_aside(path: str) -> bool:
    parts = path.split("/")
    return parts[0] == "__MACOSX" or not _DERIVED.isdisjoint(parts[:-1])


def _below(
    folder: Location, files: dict[str, StoredFile], prefix: str, endings: tuple[str, ...]
) -> Iterator[tuple[str, FileRef]]:
    """Files below a prefix by their path without ending; where two differ in it alone, the first ending comes last."""
    chosen = [path for path in files if path.startswith(prefix) and _ending(path) in endings]
    for path in sorted(chosen, key=lambda path: (-endings.index(_ending(path)), path)):
        key = str(PurePosixPath(path.removeprefix(prefix)).with_suffix(""))
        yield key, FileRef(folder / path, files[path].size, files[path].version)


def _of_folder(
    folder: Location, files: dict[str, StoredFile], given: str, endings: tuple[str, ...]
) -> list[tuple[str, FileRef]]:
    """Files of a folder that somebody has named: below the dataset, or anywhere."""
    inside = f"{given.strip('/')}/"
    if any(path.startswith(inside) for path in files):
        found = list(_below(folder, files, inside, endings))
    else:
        place = storage.locate(given)
        found = list(_below(place, {file.path: file for file in storage.list_files(place)}, "", endings))
    if not found:
        raise JobError(f"{given} holds no files that end in {', '.join(endings[:5])}: is it the right folder?")
    return found


def _ending(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _voc_base(folder: Location, files: dict[str, StoredFile]) -> str | None:
    """Path of the folder that holds JPEGImages, with a slash; None where there is none."""
    heads = (f"/{path}".partition(f"/{IMAGES}/") for path in files)
    bases = {f"{head}/".lstrip("/") for head, found, _ in heads if found}
    for part in _ROOTS:
        if part in bases:
            return part
    if len(bases) > 1:
        named = ", ".join(sorted(bases)[:4])
        raise JobError(f"{folder.uri} holds {len(bases)} datasets: {named}. Name one of them.")
    return bases.pop() if bases else None


def _voc_masks(
    folder: Location, files: dict[str, StoredFile], base: str, masks: str | None
) -> list[tuple[str, FileRef]]:
    tops = sorted({path.removeprefix(base).split("/")[0] for path in files if path.startswith(base)})
    others = [name for name in tops if name not in MASK_FOLDERS and _role(name) == ("", "mask")]
    for name in [masks] if masks else [*MASK_FOLDERS, *others]:
        if found := list(_below(folder, files, f"{base}{name.strip('/')}/", _MASK_ENDINGS)):
            return found
        if masks and "/" in masks:
            return _of_folder(folder, files, masks, _MASK_ENDINGS)
    looked = masks or " nor ".join(MASK_FOLDERS)
    where = folder / base.rstrip("/") if base else folder
    raise JobError(f"{where.uri} has no masks: neither {looked} holds any; name their folder with --masks.")


def _common_folder(files: dict[str, StoredFile]) -> str:
    """The folder within folders that holds everything, with a slash, unless its name says what it holds."""
    parts = [path.split("/")[:-1] for path in files if _ending(path) in _IMAGE_ENDINGS]
    common = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1 or _role(names[0]) != ("", ""):
            break
        common.append(names[0])
    return "".join(f"{name}/" for name in common)


def _role(name: str) -> tuple[str, str]:
    """Split and role ("image" or "mask") that a folder's name tells; empty where it tells none."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    for rest, split in ((plain, ""), *((r, s) for word, s in _SPLITS.items() for r in _without(plain, word))):
        if _OF_IMAGES.fullmatch(rest):
            return split, "image"
        if _OF_MASKS.fullmatch(rest):
            return split, "mask"
        if not rest and split:
            return split, ""
    return "", ""


def _without(name: str, word: str) -> Iterator[str]:
    if name.startswith(word):
        yield name.removeprefix(word)
    if name.endswith(word):
        yield name.removesuffix(word)


def _by_roles(folder: Location, files: dict[str, StoredFile], base: str) -> tuple[list[_File], list[_File]]:
    """Images and masks by what their folders are called, or by their names where they lie side by side."""
    by_role: dict[str, list[tuple[str, str, str]]] = {"image": [], "mask": [], "": []}  # Split, key, path
    for path in sorted(files):
        if _ending(path) not in _IMAGE_ENDINGS or not path.startswith(base):
            continue
        *folders, file = path.removeprefix(base).split("/")
        roles = [_role(name) for name in folders]
        others = [name for name, role in zip(folders, roles, strict=True) if role == ("", "")]
        split = next((split for split, _ in roles if split), "")
        role = next((role for wanted in ("mask", "image") for _, role in roles if role == wanted), "")
        by_role[role].append((split, "/".join([*others, PurePosixPath(file).stem]), path))
    images = by_role["image"] or by_role[""]
    masks = by_role["mask"]
    if not masks:
        images, masks = _side_by_side(images)

    def files_of(entries: list[tuple[str, str, str]], endings: tuple[str, ...]) -> list[_File]:
        entries = [entry for entry in entries if _ending(entry[2]) in endings]
        entries.sort(key=lambda entry: (-endings.index(_ending(entry[2])), entry))
        return [_File(s, key, FileRef(folder / p, files[p].size, files[p].version)) for s, key, p in entries]

    return files_of(images, _IMAGE_ENDINGS), files_of(masks, _MASK_ENDINGS)


Entries = list[tuple[str, str, str]]


def _side_by_side(entries: Entries) -> tuple[Entries, Entries]:
    """Images and masks of one folder: a.jpg with a_mask.png, or where there are none such, a.jpg with a.png."""
    keys = {(split, key.casefold()) for split, key, _ in entries}
    masks = [
        entry
        for entry in entries
        if (stem := _MASK_SUFFIX.sub("", entry[1].casefold())) != entry[1].casefold() and (entry[0], stem) in keys
    ]
    if not masks:
        photographs = {(split, key) for split, key, path in entries if _ending(path) in (".jpg", ".jpeg")}
        masks = [e for e in entries if _ending(e[2]) == ".png" and (e[0], e[1]) in photographs]
    drawn = set(masks)
    return [entry for entry in entries if entry not in drawn], masks


# Label Studio's brushes

_Brushed = list[tuple[brushes.Brush, _File]]


def _brushes_taken_out(found: list[_File], drawn: list[_File]) -> tuple[list[_File], list[_File], _Brushed]:
    """Images and masks without the files that are one label of a task each, and those; of such alone are they masks."""
    taken = [(brush, file) for file in [*found, *drawn] if (brush := brushes.brush_of(file.key)) is not None]
    gone = {file for _, file in taken}
    if not gone.issuperset(drawn):
        return found, drawn, []
    return [file for file in found if file not in gone], [], taken


def _brush_masks(
    folder: Location, files: dict[str, StoredFile], found: list[_File], brushed: _Brushed, layout: Layout
) -> list[_File]:
    """A mask for each task, under the name of its photograph.

    Raises JobError where nothing says which photograph a task is of, or a label is no class.
    """
    notes = [folder / path for path in files if _ending(path) == ".json"]
    names = brushes.photographs_of_tasks(notes)
    stems = {_folded(file.key.rpartition("/")[2]): file.key for file in found}
    labels = {_folded(name): label for label, name in enumerate(layout.label_set.classes)}
    tasks: dict[int, _Brushed] = {}
    for brush, file in sorted(brushed, key=lambda pair: (pair[0].annotation, pair[0].part, pair[0].key)):
        tasks.setdefault(brush.task, []).append((brush, file))
    masks = []
    for task, parts in sorted(tasks.items()):
        stem = names.get(task, str(task))
        key = stems.get(_folded(stem)) or stems.get(_folded(brushes.without_upload_prefix(stem)))
        if key is None and task not in names:
            raise JobError(
                f"{parts[0][1].file.place.name} names a task of Label Studio, and nothing says which photograph that "
                "is: put its JSON export (Export, JSON) beside the masks."
            )
        last = parts[-1][0].annotation
        for brush, file in parts:
            if brush.annotation != last:
                detail = f"annotation {last} of task {task} is used"
                layout.findings.append((relative(layout.root, file.file.place), Finding(Kind.SAME_NAME, detail)))
            elif _folded(brush.tag) not in labels:
                known = ", ".join(layout.label_set.classes)
                raise JobError(f"{file.file.place.name} has the label {brush.tag}, and the classes are {known}.")
        parts = [(brush, file) for brush, file in parts if brush.annotation == last]
        layers = tuple(brushes.Layer(labels[_folded(brush.tag)], file.file.place) for brush, file in parts)
        first, all_files = parts[0][1], [file.file for _, file in parts]
        version = brushes.version_of(file.version for file in all_files)
        whole = FileRef(first.file.place, sum(file.size for file in all_files), version, layers)
        masks.append(_File(next((f.split for f in found if f.key == key), first.split), key or stem, whole))
    return masks


# Pairs


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _image_stem(key: str) -> str:
    return _IMAGE_SUFFIX.sub("", _folded(key))


def _mask_stem(key: str) -> str:
    stem = _MASK_SUFFIX.sub("", _folded(key))
    ending = PurePosixPath(stem).suffix
    return _image_stem(stem.removesuffix(ending) if ending in _IMAGE_ENDINGS else stem)


def _unique(entries: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Ids by name, of those names alone that mean one id."""
    found: dict[str, set[str]] = {}
    for name, image_id in entries:
        found.setdefault(name, set()).add(image_id)
    return {name: ids.pop() for name, ids in found.items() if len(ids) == 1}


class _Names:
    """Looks up what lines of lists mean."""

    def __init__(self, ids: Iterable[str], also: Iterable[tuple[str, str]] = ()) -> None:
        """ids: known ones. also: other names with the ids that they mean, such as paths of files."""
        named = [(i, i) for i in ids]
        self._exact = {unicodedata.normalize("NFC", name): image_id for name, image_id in named}
        self._folded = _unique((_folded(name), image_id) for name, image_id in named)
        self._tails = _unique(
            ("/".join(parts[start:]), image_id)
            for parts, image_id in ((_folded(name).split("/"), i) for name, i in [*named, *also])
            for start in range(len(parts))
        )

    def find(self, text: str) -> str | None:
        """The id that a name or a path means, in whatever form; None where it means none."""
        path = unicodedata.normalize("NFC", text.strip().strip("\"'").strip().replace("\\", "/"))
        path = re.sub(r"^(?:[A-Za-z]:)?(?:\.?/)*", "", path)
        parts = [part for part in path.split("/") if part]
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            for name in (tail, re.sub(r"\.\w{1,5}$", "", tail)):
                folded = name.casefold()
                found = self._exact.get(name) or self._folded.get(folded) or self._tails.get(folded)
                if found is not None:
                    return found
        return None

    def id_of(self, line: str) -> str | None:
        """The id that a line of a list means."""
        return self.resolve(line)[0]

    def resolve(self, line: str) -> tuple[str | None, str]:
        """The id that a line means, as a name, a path, or the first of several columns; and the other columns."""
        columns = [(line, ""), *((head, rest) for head, _, rest in map(line.partition, "\t,;"))]
        words = line.split()
        columns += [(" ".join(words[:k]), " ".join(words[k:])) for k in range(len(words) - 1, 0, -1)]
        columns = [(head, rest) for head, rest in columns if not _WITHIN.search(head)]
        for head, rest in columns:
            if (found := self.find(head)) is not None:
                return found, rest
        counted = _INDEX.match(line)
        return (None, "") if counted is None else self.resolve(line[counted.end() :])


class _Pairing:
    """Images with their masks by id, and what has no partner."""

    def __init__(self, images: Sequence[_File], masks: Sequence[_File], layout: Layout) -> None:
        """Findings about names go to the layout."""
        self._layout = layout
        by_image, by_mask = self._named(images), self._named(masks)
        joined = {name: name for name in by_image.keys() & by_mask.keys()}
        for stems in ((_folded, _folded), (_image_stem, _mask_stem)):
            joined |= self._alike(by_image.keys() - joined.keys(), by_mask.keys() - set(joined.values()), *stems)
        times = Counter(key for _, key in by_image)
        self.pairs: dict[str, Pair] = {}
        self.split_of: dict[str, str] = {}
        paths: list[tuple[str, str]] = []
        exact = any(name == other for name, other in joined.items())
        for name, image in by_image.items():
            split, key = name
            image_id = f"{split}/{key}" if times[key] > 1 and split else key
            mask = by_mask[joined[name]].file if name in joined else None
            self.pairs[image_id] = Pair(image_id, image.file, mask, layout.name)
            self.split_of[image_id] = split
            paths.append((_path_of(image.file), image_id))
            if mask is not None and exact and joined[name] != name:
                detail = f"its mask is {mask.place.name}"
                layout.findings.append((relative(layout.root, image.file.place), Finding(Kind.NAMED_ALIKE, detail)))
        for name in by_mask.keys() - set(joined.values()):
            split, key = name
            lone = next(i for i in (key, f"{split}/{key}", f"mask {split}/{key}") if i not in self.pairs)
            self.pairs[lone] = Pair(lone, None, by_mask[name].file, layout.name)
        self._names = _Names(self.pairs, paths)
        self._masks = {_path_of(mask.file): mask.file for mask in by_mask.values()}
        self._mask_names = _Names((), [(path, path) for path in self._masks])

    def resolve(self, line: str) -> str | None:
        """The id that a line of a list means; where the line names a mask too, that one is the image's."""
        image_id, rest = self._names.resolve(line)
        if image_id is not None and _ending(rest.strip("\"' ")) in _MASK_ENDINGS:
            path = self._mask_names.find(rest)
            pair = self.pairs[image_id]
            if path is not None and pair.mask != self._masks[path]:
                for other in [k for k, p in self.pairs.items() if p.image is None and p.mask == self._masks[path]]:
                    del self.pairs[other]
                self.pairs[image_id] = replace(pair, mask=self._masks[path])
        return image_id

    def example(self) -> str:
        """An image and a mask that found no partner, for a person."""
        files = [pair.image or pair.mask for pair in self.pairs.values()]
        image = next((pair.image.place.name for pair in self.pairs.values() if pair.image is not None), "no image")
        mask = next((pair.mask.place.name for pair in self.pairs.values() if pair.mask is not None), "no mask")
        return f"{image} and {mask}, of {len(files)} files"

    def _named(self, files: Sequence[_File]) -> dict[tuple[str, str], _File]:
        """Files by split and key; of several under one name the last, and a finding for each other."""
        found: dict[tuple[str, str], _File] = {}
        for file in files:
            name = (file.split, unicodedata.normalize("NFC", file.key))
            if name in found:
                unused, used = found[name].file.place, file.file.place
                together = PurePosixPath(unused.path).parent == PurePosixPath(used.path).parent
                detail = f"{used.name if together else relative(self._layout.root, used)} is used"
                self._layout.findings.append((relative(self._layout.root, unused), Finding(Kind.SAME_NAME, detail)))
            found[name] = file
        return found

    @staticmethod
    def _alike(
        images: Iterable[tuple[str, str]],
        masks: Iterable[tuple[str, str]],
        image_stem: Callable[[str], str],
        mask_stem: Callable[[str], str],
    ) -> dict[tuple[str, str], tuple[str, str]]:
        """Images and masks that only one of each is named so alike."""
        by_stem: dict[tuple[str, str], tuple[list[tuple[str, str]], list[tuple[str, str]]]] = {}
        for name in images:
            by_stem.setdefault((name[0], image_stem(name[1])), ([], []))[0].append(name)
        for name in masks:
            by_stem.setdefault((name[0], mask_stem(name[1])), ([], []))[1].append(name)
        return {left[0]: right[0] for left, right in by_stem.values() if len(left) == len(right) == 1}


def _path_of(file: FileRef) -> str:
    return str(PurePosixPath(file.place.path).with_suffix("")).lstrip("/")


# Classes


def _label_set(
    folder: Location,
    files: dict[str, StoredFile],
    base: str,
    given: OwnData,
    is_voc: bool,
    layout: Layout,
    tags: Sequence[str] = (),
) -> LabelSet:
    """The classes. tags: labels in the names of files, which count where nothing else names the classes."""
    classes = given.classes
    try:
        label_set: LabelSet | None
        if classes is not None:
            label_set = _named_classes(classes)
        else:
            beside = [] if given.images is None else _class_files_beside(given)
            label_set = _class_file([folder / path for path in _class_files(files, base)] or beside, layout)
        if label_set is None and tags:
            label_set = read_classes("\n".join(["background", *sorted({*tags} - {"background"})]), "names of the masks")
        if label_set is None and not is_voc:
            raise JobError(
                f"Nothing in {folder.uri} names the classes: put a classes.txt there, one name a line, label 0 first, "
                "or give them with --classes, as a file or as background,cat,dog. VOC's 21 are --classes voc."
            )
        chosen = with_void(label_set or ASSUMED, given.void or "")
    except JobError:
        raise
    except ValueError as error:
        raise JobError(f"{folder.uri}: {error}") from None
    if chosen.assumed:
        layout.findings.append((chosen.origin, Finding(Kind.VOC_ASSUMED, "no file names them")))
    elif chosen.unused[:1] != (0,) and chosen.classes[0] != VOC_LABELS.classes[0]:
        layout.findings.append((chosen.origin, Finding(Kind.NO_BACKGROUND, f"it is {chosen.classes[0]}")))
    return replace(chosen, by_colour=given.by_colour)


def _named_classes(given: str) -> LabelSet:
    """Classes that somebody has named: voc, a file, or names separated by commas."""
    if given.lower() == "voc":
        return VOC_LABELS
    place = storage.locate(given)
    if "," not in given or storage.is_file(place):
        if not storage.is_file(place):
            raise JobError(f"There is no file {given}: --classes is a file, names separated by commas, or voc.")
        return read_classes(_text_of(place), place.name)
    return read_classes("\n".join(name for part in given.split(",") if (name := part.strip())), "--classes")


def _class_file(places: list[Location], layout: Layout) -> LabelSet | None:
    """What the first class file says; others that say something else are a finding."""
    found: list[tuple[Location, LabelSet]] = []
    for place in places:
        try:
            found.append((place, read_classes(_text_of(place), place.name)))
        except ValueError:
            if not found:
                raise
    for place, label_set in found[1:]:
        if label_set.classes != found[0][1].classes:
            detail = f"{found[0][1].origin} is used"
            layout.findings.append((relative(layout.root, place), Finding(Kind.CLASS_FILES_DIFFER, detail)))
    return found[0][1] if found else None


def _class_files_beside(given: OwnData) -> list[Location]:
    """Class files in the folders that somebody has named, or where those lie."""
    folders = [storage.locate(named) for named in (given.masks, given.images) if named]
    around = [f for place in folders for f in (place, replace(place, path=str(PurePosixPath(place.path).parent)))]
    places = [folder / name for folder in dict.fromkeys(around) for name in CLASS_FILES]
    return [place for place in places if storage.is_file(place)]


def _class_files(files: dict[str, StoredFile], base: str) -> list[str]:
    """Class files in the dataset's folder, in those that it lies in, or else in one within."""
    order = {name: number for number, name in enumerate(CLASS_FILES)}
    known = [path for path in files if path.rpartition("/")[2].lower() in order]
    known.sort(key=lambda path: (order[path.rpartition("/")[2].lower()], path))
    around = [path for path in known if base.startswith(path.rpartition("/")[0]) and path.count("/") <= base.count("/")]
    return around or [path for path in known if path.startswith(base) and path.count("/") == base.count("/") + 1]


def _text_of(place: Location) -> str:
    try:
        return decode_text(storage.read_bytes(place))
    except ValueError as error:
        raise JobError(f"{place.uri} is {error}: save it as such.") from None


# Lists


def _list_files(
    folder: Location, files: dict[str, StoredFile], base: str, lists: dict[str, str] | None
) -> dict[str, Location]:
    if lists is None:
        official = [p for p in files if p.lower().startswith(f"{base}{LISTS}/".lower())]
        official = [p for p in official if p.count("/") == base.count("/") + 2 and _ending(p) in _LIST_ENDINGS]
        beside = [p for p in files if p.startswith(base) and _LIST_NAME.fullmatch(p.removeprefix(base))]
        found: dict[str, Location] = {}
        for path in sorted(official) or sorted(beside):
            name = path.rpartition("/")[2]
            match = None if official else _LIST_NAME.fullmatch(name)
            plain = match[1] if match else name.rpartition(".")[0]
            split = _SPLITS.get(plain.lower(), plain)
            split = plain if split in found else split
            found["".join(letter if letter.isalnum() or letter in "_-" else "-" for letter in split)] = folder / path
        return found
    chosen = {}
    for name, given in lists.items():
        if not name or not all(letter.isalnum() or letter in "_-" for letter in name):
            raise JobError(f"{name!r} cannot name a split: use letters, digits, '-' and '_'.")
        where = folder / f"{base}{LISTS}"
        inside = f"{base}{LISTS}/{given}.txt"
        place = folder / inside if inside in files else storage.locate(given)
        if not storage.is_file(place):
            raise JobError(f"There is no list {given}, neither as a file nor in {where.uri}.")
        chosen[name] = place
    return chosen


def _read_list(place: Location, name: str, resolve: Callable[[str], str | None], layout: Layout) -> list[str]:
    """Ids that a list names; what cannot be used of it goes to the findings."""
    file = relative(layout.root, place)
    try:
        text = decode_text(storage.read_bytes(place))
    except FileNotFoundError:
        raise JobError(f"{place.uri} is missing: it should list the ids of {name}, one a line.") from None
    except ValueError as error:
        layout.findings.append((file, Finding(Kind.LIST_BROKEN, str(error))))
        return []
    lines = _without_index([line.strip() for line in _lines_of(text) if line.strip()], resolve)
    found = [resolve(line) or resolve(urllib.parse.unquote(line.removeprefix("- "))) for line in lines]
    pairs = zip(lines, found, strict=True)
    kept = [(line, meant) for line, meant in pairs if meant is not None or not line.startswith(("# ", "//"))]
    lines, found = [line for line, _ in kept], [meant for _, meant in kept]
    if lines and not any(found):
        detail = f"no line names an image that is there; the first is {lines[0][:100]!r}"
        layout.findings.append((file, Finding(Kind.LIST_BROKEN, detail)))
        return []
    if lines and found[0] is None and _HEAD.fullmatch(lines[0]):
        lines, found = lines[1:], found[1:]
    ids: dict[str, None] = {}
    for line, meant in zip(lines, found, strict=True):
        image_id = line if meant is None else meant
        if image_id in ids:
            layout.findings.append((file, Finding(Kind.TWICE_LISTED, image_id)))
        ids[image_id] = None
    if not ids:
        layout.findings.append((file, Finding(Kind.LIST_BROKEN, "it names nothing")))
    return list(ids)


def _lines_of(text: str) -> list[str]:
    """Lines of a list, or what a JSON list has in their place; without the end that DOS puts behind a text."""
    with contextlib.suppress(ValueError, RecursionError):
        listed = json.loads(text)
        listed = listed.get("images") if isinstance(listed, dict) else listed
        if isinstance(listed, list) and listed and all(_columns_of(item) for item in listed):
            return [_columns_of(item) for item in listed]
    lines = text.rstrip("\x1a").splitlines()
    with contextlib.suppress(ValueError, RecursionError):
        items = [_columns_of(json.loads(line)) for line in lines if line.strip()]
        if items and all(items):
            return items
    return lines


def _columns_of(item: object) -> str:
    """What an entry of JSON names, as columns: the image, then its mask; empty where it names none."""
    if isinstance(item, str):
        return item
    if isinstance(item, dict):
        lowered = {key.lower(): value for key, value in item.items()}
        image = next((lowered[key] for key in _IMAGE_KEYS if isinstance(lowered.get(key), str)), None)
        mask = next((lowered[key] for key in _MASK_KEYS if isinstance(lowered.get(key), str)), None)
        item = [] if image is None else [image, mask]
    texts = [text for text in item if isinstance(text, str)] if isinstance(item, list) else []
    return "\t".join(texts)


_IMAGE_KEYS = (
    *("image", "file_name", "filename", "image_path", "img_path", "img", "file", "path"),
    *("image_id", "id", "name", "key"),
)
_MASK_KEYS = ("mask", "label", "annotation", "segmentation", "seg_map", "mask_path", "label_path", "seg_map_path")
_INDEX = re.compile(r"[\"']?\d+[\"']?\s*[,;|\t]\s*")
"""The number of a line in front of its other columns, as Pandas writes it."""


def _without_index(lines: list[str], resolve: Callable[[str], str | None]) -> list[str]:
    """Lines of a table without the column that counts them, where there is one; images may be named by numbers too."""
    matches = [_INDEX.match(line) for line in lines]
    start = 0 if matches and matches[0] else 1  # Behind a line that names the columns
    numbers = [int(re.sub(r"\D", "", match[0])) for match in matches[start:] if match]
    counted = len(numbers) == len(lines) - start > 0 and numbers in (
        [*range(len(numbers))],
        [*range(1, len(numbers) + 1)],
    )
    rest = [line[match.end() :] if match else line for line, match in zip(lines, matches, strict=True)]
    return rest[start:] if counted and all(resolve(line) is not None for line in rest[start:]) else lines


def _by_split_folder(ids: Iterable[str], split_of: dict[str, str]) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    for image_id in ids:
        if split := split_of.get(image_id):
            lists.setdefault(split, []).append(image_id)
    return lists


def _nothing_found(folder: Location, files: dict[str, StoredFile]) -> str:
    pictures = sum(_ending(path) in _IMAGE_ENDINGS for path in files)
    return (
        f"{folder.uri} is not in VOC layout, nor in another that is known, though it holds {pictures:,} image files: "
        f"put photographs into {IMAGES} and masks into {MASK_FOLDERS[1]} under the same names, or name the folders "
        "with --images and --masks; docs/datasets.md lists the layouts."
    )
