"""A dataset as it lies in folders: which images, which masks, which lists. Nothing is read but names and lists.

    JPEGImages/<id>.jpg  SegmentationClass/<id>.png or SegmentationClassAug/<id>.png
    ImageSets/Segmentation/<list>.txt   classes.txt or labelmap.txt
and SBD: cls/<id>.mat  train.txt  val.txt
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from segcore import sbd
from segcore.images import EXTENSIONS
from segcore.label_set import VOC_LABELS, LabelSet, read_classes, read_labelmap
from segcore.pair_check import Finding, Kind
from tasks import storage
from tasks.errors import JobError
from tasks.storage import Location

IMAGES = "JPEGImages"
LISTS = "ImageSets/Segmentation"
MASK_FOLDERS = ("SegmentationClassAug", "SegmentationClass")
"""The first that is there holds the masks."""

MAX_LIST_BYTES = 1 << 30

_ROOTS = ("", "VOCdevkit/VOC2012", "VOC2012", "VOC2012_train_val/VOC2012_train_val", "VOC2012_train_val")
_SBD_ROOTS = ("", "dataset", "benchmark_RELEASE/dataset", "benchmark/benchmark_RELEASE/dataset")
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", *sorted(EXTENSIONS - {".jpg", ".jpeg", ".png"}))
_MASK_ENDINGS = (".png", ".bmp", ".tif", ".tiff", ".gif", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class FileRef:
    """One file."""

    place: Location
    """Where it is."""

    size: int
    """Bytes."""

    version: str
    """Changes when it is replaced."""


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
    return name.startswith("train") and not name.startswith("trainval")


def is_validation(name: str) -> bool:
    """Whether a list is one to judge on."""
    return name.startswith(("val", "test"))


def read_layout(
    folder: Location,
    *,
    lists: dict[str, str] | None = None,
    masks: str | None = None,
    val_share: float = 0.1,
    name: str | None = None,
) -> Layout:
    """A dataset in VOC layout.

    lists: list files by the name that they get, as a path or as the name of one in ImageSets/Segmentation; None: all
        that are there; where there are none, images with masks are divided by a digest of their ids.
    masks: folder of the masks, where it is neither SegmentationClassAug nor SegmentationClass.
    val_share: of the images, where there are no lists.
    Raises JobError where the folder has no such layout.
    """
    with storage.explained(folder):
        root = _root(folder)
        images = _by_id(root / IMAGES, _IMAGE_ENDINGS)
        mask_folder, mask_files = _masks(root, masks)
        layout = Layout(name or root.name, root, read_label_set(root), {}, {}, {})
        for list_name, place in _list_files(root, lists).items():
            layout.list_files[list_name] = place
            layout.lists[list_name] = _read_list(place, list_name, images.keys() | mask_files.keys(), layout)
    if not layout.lists:
        both = sorted(images.keys() & mask_files.keys())
        if not both:
            raise JobError(f"No image of {(root / IMAGES).uri} has a mask in {mask_folder.uri} under the same name.")
        layout.lists = divide(both, val_share)
    listed = set().union(*layout.lists.values())
    for image_id in sorted(listed):
        layout.pairs[image_id] = Pair(image_id, images.get(image_id), mask_files.get(image_id), layout.name)
    if lists is None:  # Images without a mask are common and no fault, nor is a pair that a chosen list leaves out
        for image_id in sorted((images.keys() & mask_files.keys()) - listed):
            layout.findings.append((f"{IMAGES}/{image_id}", Finding(Kind.UNLISTED, "")))
    return layout


def read_voc_with_sbd(voc: Location, sbd_folder: Location | None, *, prefer_sbd: bool = False) -> Layout:
    """VOC 2012 with the annotations of SBD, lists computed; sbd_folder: None: VOC alone.

    prefer_sbd: SBD's mask where a training image has two. Images of VOC's val always keep VOC's mask.
    """
    with storage.explained(voc):
        root = _root(voc)
        images = _by_id(root / IMAGES, _IMAGE_ENDINGS)
        voc_masks = _by_id(root / "SegmentationClass", (".png",))
        layout = Layout("voc2012", root, VOC_LABELS, {}, {}, {})
        known = images.keys() | voc_masks.keys()
        voc_lists = {name: _read_list(root / LISTS / f"{name}.txt", name, known, layout) for name in ("train", "val")}
    sbd_masks: dict[str, FileRef] = {}
    sbd_lists: dict[str, list[str]] = {"train": [], "val": []}
    if sbd_folder is not None:
        with storage.explained(sbd_folder):
            base = next((b for part in _SBD_ROOTS if _has(b := _below(sbd_folder, part), "cls")), None)
            if base is None:
                raise JobError(
                    f"{sbd_folder.uri} holds no annotations of SBD: dataset/cls, train.txt and val.txt are looked for."
                )
            sbd_masks = _by_id(base / "cls", (".mat",))
            known = known | sbd_masks.keys()
            sbd_lists = {name: _read_list(base / f"{name}.txt", f"SBD {name}", known, layout) for name in sbd_lists}
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


def read_label_set(root: Location) -> LabelSet:
    """Classes of a dataset: its labelmap.txt, its classes.txt, or VOC's where it has neither."""
    for name, read in (("labelmap.txt", read_labelmap), ("classes.txt", read_classes), ("labels.txt", read_classes)):
        place = root / name
        if storage.is_file(place):
            try:
                return read(storage.read_bytes(place).decode("utf-8"), name)
            except UnicodeDecodeError:
                raise JobError(f"{place.uri} is no text in UTF-8: save it as such.") from None
            except ValueError as error:
                raise JobError(f"{root.uri}: {error}") from None
    return VOC_LABELS


def divide(ids: Iterable[str], val_share: float) -> dict[str, list[str]]:
    """Lists train and val, by a digest of each id: an image that is added later moves no other one."""
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for image_id in sorted(ids):
        share = int.from_bytes(hashlib.sha256(b"split " + image_id.encode()).digest()[:8], "big") / 2**64
        lists["val" if share < val_share else "train"].append(image_id)
    return {name: members for name, members in lists.items() if members}


def _root(folder: Location) -> Location:
    for part in _ROOTS:
        if _has(root := _below(folder, part), IMAGES):
            return root
    # An unpacked archive often is one folder in a folder
    inner = {file.path.partition(f"/{IMAGES}/")[0] for file in _some(folder) if f"/{IMAGES}/" in file.path}
    if len(inner) == 1:
        return folder / inner.pop()
    if next(storage.list_files(folder), None) is None:
        raise JobError(f"{folder.uri} does not exist, or is an empty folder.")
    raise JobError(
        f"{folder.uri} is not in VOC layout: it has no folder {IMAGES}. Put the photographs into {IMAGES}, the masks "
        f"into {MASK_FOLDERS[1]}, under the same names."
    )


def _some(folder: Location) -> Iterable[storage.StoredFile]:
    for number, file in enumerate(storage.list_files(folder)):
        if number == 10_000:
            return
        yield file


def _below(folder: Location, part: str) -> Location:
    return folder / part if part else folder


def _has(folder: Location, name: str) -> bool:
    return next(storage.list_files(folder / name), None) is not None


def _masks(root: Location, masks: str | None) -> tuple[Location, dict[str, FileRef]]:
    for name in [masks] if masks else MASK_FOLDERS:
        place = storage.locate(name) if "/" in name and not _has(root, name) else root / name
        if files := _by_id(place, _MASK_ENDINGS):
            return place, files
    looked = masks or " nor ".join(MASK_FOLDERS)
    raise JobError(f"{root.uri} has no masks: neither {looked} holds any; name their folder with --masks.")


def _by_id(folder: Location, endings: tuple[str, ...]) -> dict[str, FileRef]:
    """Files by their path without ending; of two that differ in it, the one whose ending comes first."""
    found: dict[str, tuple[int, FileRef]] = {}
    for file in storage.list_files(folder):
        path = PurePosixPath(file.path)
        if path.suffix.lower() not in endings:
            continue
        rank = endings.index(path.suffix.lower())
        image_id = str(path.with_suffix(""))
        if image_id not in found or rank < found[image_id][0]:
            found[image_id] = (rank, FileRef(folder / file.path, file.size, file.version))
    return {image_id: reference for image_id, (_, reference) in found.items()}


def _list_files(root: Location, lists: dict[str, str] | None) -> dict[str, Location]:
    if lists is None:
        files = [file.path for file in storage.list_files(root / LISTS) if "/" not in file.path]
        return {_split_name(path): root / LISTS / path for path in files if path.endswith(".txt")}
    chosen = {}
    for name, given in lists.items():
        if not name or not all(letter.isalnum() or letter in "_-" for letter in name):
            raise JobError(f"{name!r} cannot name a split: use letters, digits, '-' and '_'.")
        place = root / LISTS / f"{given}.txt"
        if "/" in given or not storage.is_file(place):
            place = storage.locate(given)
        if not storage.is_file(place):
            raise JobError(f"There is no list {given}, neither as a file nor in {(root / LISTS).uri}.")
        chosen[name] = place
    return chosen


def _split_name(path: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_-" else "-" for letter in path.removesuffix(".txt"))


def _read_list(place: Location, name: str, known: Iterable[str], layout: Layout) -> list[str]:
    try:
        data = storage.read_bytes(place)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise JobError(f"{place.uri} is missing: it should list the ids of {name}, one a line.") from None
    except UnicodeDecodeError:
        layout.findings.append((f"{LISTS}/{place.name}", Finding(Kind.LIST_BROKEN, "no text in UTF-8")))
        return []
    known = known if isinstance(known, set) else set(known)
    ids: dict[str, None] = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        image_id = _id_of(line.strip(), known)
        if image_id in ids:
            layout.findings.append((f"{LISTS}/{place.name}", Finding(Kind.TWICE_LISTED, image_id)))
        ids[image_id] = None
    if not ids:
        layout.findings.append((f"{LISTS}/{place.name}", Finding(Kind.LIST_BROKEN, "it names nothing")))
    return list(ids)


def _id_of(line: str, known: set[str]) -> str:
    """What a line means: an id, or as some tools write, paths of image and mask."""
    if line in known:
        return line
    first = PurePosixPath(line.split()[0])
    for candidate in (str(first), str(first.with_suffix("")) if first.name else "", first.stem):
        if candidate in known:
            return candidate
    return line
