"""A dataset as it lies in folders: which images, which masks, which lists. Nothing is read but names, lists, classes.

    JPEGImages/<id>.jpg  SegmentationClass/<id>.png or SegmentationClassAug/<id>.png     VOC, CVAT, labelme
    images/<id>.jpg  masks/<id>.png                                                      two folders, however called
    train/images  train/masks, images/train  labels/train, train  trainannot             folders for each split
    train/<id>.jpg  train/<id>_mask.png                                                  side by side (Roboflow)
    data/train-00000-of-00003.parquet                                                    rows (parquet_pairs.py)
    *.json of COCO, labelme or Label Studio, *.xml of CVAT, labels/*.txt of YOLO         drawn (drawings.py)
    ImageSets/Segmentation/<list>.txt, or train.txt and val.txt beside the folders
and SBD: cls/<id>.mat  train.txt  val.txt

An image and a mask are one pair by the same path without roles, splits and ending; names that differ in capitals, in
the form of their Unicode or by a suffix such as _mask are paired too. What has no partner is a finding.
"""

import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from segcore.datasets import sbd
from segcore.datasets.division import divide
from segcore.datasets.label_set import ASSUMED, VOC_LABELS
from segcore.datasets.pair_check import Finding, Kind
from tasks import storage
from tasks.datasets import brushes, drawings, parquet_pairs
from tasks.datasets.class_files import label_set_of
from tasks.datasets.layout import (
    BEFORE_FIX,
    IMAGE_ENDINGS,
    IMAGES,
    LISTS,
    MASK_ENDINGS,
    MASK_FOLDERS,
    SPLITS,
    FileRef,
    Layout,
    OwnData,
    Pair,
    ending_of,
    relative,
)
from tasks.datasets.lists import list_files, read_list
from tasks.datasets.names import MASK_SUFFIX, NamedFile, Names, Pairing, folded
from tasks.errors import JobError
from tasks.storage import Location, StoredFile

_ROOTS = ("", "VOCdevkit/VOC2012/", "VOC2012/", "VOC2012_train_val/VOC2012_train_val/", "VOC2012_train_val/")
_SBD_ROOTS = ("", "dataset/", "benchmark_RELEASE/dataset/", "benchmark/benchmark_RELEASE/dataset/")
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


_AS_FOUND = OwnData()


def read_layout(folder: Location, given: OwnData = _AS_FOUND, *, name: str | None = None) -> Layout:
    """A dataset in one of the layouts above.

    Raises JobError where the folder has no such layout, or nothing names its classes.
    """
    images, lists = given.images, given.lists
    is_document = given.masks is not None and ending_of(given.masks) in drawings.DOCUMENTS
    masks = None if is_document else given.masks
    with storage.explained(folder):
        files = _listed(folder)
        base, is_voc = "", True
        if images is not None:
            if given.masks is None:
                raise JobError("--images needs --masks too: the folder of the masks, or a file of annotations.")
            found = [NamedFile("", key, file) for key, file in _of_folder(folder, files, images, IMAGE_ENDINGS)]
            drawn = [NamedFile("", *entry) for entry in _of_folder(folder, files, masks, MASK_ENDINGS)] if masks else []
            is_voc = False
        elif (voc_base := _voc_base(folder, files)) is not None:
            base = voc_base
            found = [NamedFile("", *entry) for entry in _below(folder, files, f"{base}{IMAGES}/", IMAGE_ENDINGS)]
            drawn = [] if is_document else [NamedFile("", *entry) for entry in _voc_masks(folder, files, base, masks)]
        else:
            is_voc = False
            base = _common_folder(files)
            found, drawn = _by_roles(folder, files, base)
            if not found and not drawn:
                found, drawn = parquet_pairs.find(folder, files)
            if given.masks is not None:
                drawn = (
                    [NamedFile("", *entry) for entry in _of_folder(folder, files, masks, MASK_ENDINGS)] if masks else []
                )
        root = folder / base.rstrip("/") if base else folder
        layout = Layout(name or root.name, root, ASSUMED, {}, {}, {})
        found, drawn, brushed = _brushes_taken_out(found, drawn)
        shapes = drawings.of_file(_named_file(folder, files, given.masks)) if is_document and given.masks else None
        if not drawn and not brushed and given.masks is None:
            shapes = drawings.find(folder, files, found, layout)
        if brushed or shapes is not None:
            tags = shapes.names if shapes is not None else sorted({brush.tag for brush, _ in brushed} - {"background"})
            layout.label_set = label_set_of(folder, files, base, given, is_voc, layout, tags=tags)
        if shapes is not None:
            named = layout.label_set if given.classes is not None else shapes.label_set(layout.label_set)
            found, drawn = shapes.masks(found, named)
            layout.label_set = drawings.with_background(named)
            layout.findings = [(file, f) for file, f in layout.findings if f.kind is not Kind.NO_BACKGROUND]
        drawn += _brush_masks(folder, files, found, brushed, layout) if brushed else []
        pairing = Pairing(found, drawn, layout)
        pairs = pairing.pairs
        both = sorted(k for k, pair in pairs.items() if pair.image is not None and pair.mask is not None)
        if not both and not is_voc and images is None:
            raise JobError(_nothing_found(folder, files))
        if not brushed and shapes is None:
            layout.label_set = label_set_of(folder, files, base, given, is_voc, layout)
        for list_name, place in list_files(folder, files, base, lists).items():
            layout.list_files[list_name] = place
            layout.lists[list_name] = read_list(place, list_name, pairing.resolve, layout)
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
            layout.findings.append((relative(root, pair.mask.place), Finding(Kind.ORPHAN_MASK, pair.mask.part)))
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
        images = dict(_below(voc, files, f"{base}{IMAGES}/", IMAGE_ENDINGS))
        voc_masks = dict(_below(voc, files, f"{base}SegmentationClass/", (".png",)))
        layout = Layout("voc2012", root, VOC_LABELS, {}, {}, {})
        resolve = Names([*images, *voc_masks]).id_of
        voc_lists = {name: read_list(root / LISTS / f"{name}.txt", name, resolve, layout) for name in ("train", "val")}
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
            resolve = Names([*images, *voc_masks, *sbd_masks]).id_of
            sbd_lists = {
                name: read_list(sbd_folder / f"{base}{name}.txt", f"SBD {name}", resolve, layout) for name in sbd_lists
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


# Files and their roles


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
    chosen = [path for path in files if path.startswith(prefix) and ending_of(path) in endings]
    for path in sorted(chosen, key=lambda path: (-endings.index(ending_of(path)), path)):
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


def _named_file(folder: Location, files: dict[str, StoredFile], given: str) -> Location:
    """A file that somebody has named: below the dataset, or anywhere."""
    place = folder / given if given in files else storage.locate(given)
    if not storage.is_file(place):
        raise JobError(f"There is no file {place.uri}: --masks is a folder of masks, or a file of annotations.")
    return place


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
        if found := list(_below(folder, files, f"{base}{name.strip('/')}/", MASK_ENDINGS)):
            return found
        if masks and "/" in masks:
            return _of_folder(folder, files, masks, MASK_ENDINGS)
    looked = masks or " nor ".join(MASK_FOLDERS)
    where = folder / base.rstrip("/") if base else folder
    raise JobError(f"{where.uri} has no masks: neither {looked} holds any; name their folder with --masks.")


def _common_folder(files: dict[str, StoredFile]) -> str:
    """The folder within folders that holds everything, with a slash, unless its name says what it holds."""
    parts = [path.split("/")[:-1] for path in files if ending_of(path) in IMAGE_ENDINGS]
    common = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1 or _role(names[0]) != ("", ""):
            break
        common.append(names[0])
    return "".join(f"{name}/" for name in common)


def _role(name: str) -> tuple[str, str]:
    """Split and role ("image" or "mask") that a folder's name tells; empty where it tells none."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    for rest, split in ((plain, ""), *((r, s) for word, s in SPLITS.items() for r in _without(plain, word))):
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


def _by_roles(folder: Location, files: dict[str, StoredFile], base: str) -> tuple[list[NamedFile], list[NamedFile]]:
    """Images and masks by what their folders are called, or by their names where they lie side by side."""
    by_role: dict[str, list[tuple[str, str, str]]] = {"image": [], "mask": [], "": []}  # Split, key, path
    for path in sorted(files):
        if ending_of(path) not in IMAGE_ENDINGS or not path.startswith(base):
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

    def files_of(entries: list[tuple[str, str, str]], endings: tuple[str, ...]) -> list[NamedFile]:
        entries = [entry for entry in entries if ending_of(entry[2]) in endings]
        entries.sort(key=lambda entry: (-endings.index(ending_of(entry[2])), entry))
        return [NamedFile(s, key, FileRef(folder / p, files[p].size, files[p].version)) for s, key, p in entries]

    return files_of(images, IMAGE_ENDINGS), files_of(masks, MASK_ENDINGS)


Entries = list[tuple[str, str, str]]


def _side_by_side(entries: Entries) -> tuple[Entries, Entries]:
    """Images and masks of one folder: a.jpg with a_mask.png, or where there are none such, a.jpg with a.png."""
    keys = {(split, key.casefold()) for split, key, _ in entries}
    masks = [
        entry
        for entry in entries
        if (stem := MASK_SUFFIX.sub("", entry[1].casefold())) != entry[1].casefold() and (entry[0], stem) in keys
    ]
    if not masks:
        photographs = {(split, key) for split, key, path in entries if ending_of(path) in (".jpg", ".jpeg")}
        masks = [e for e in entries if ending_of(e[2]) == ".png" and (e[0], e[1]) in photographs]
    drawn = set(masks)
    return [entry for entry in entries if entry not in drawn], masks


# Label Studio's brushes

_Brushed = list[tuple[brushes.Brush, NamedFile]]


def _brushes_taken_out(
    found: list[NamedFile], drawn: list[NamedFile]
) -> tuple[list[NamedFile], list[NamedFile], _Brushed]:
    """Images and masks without the files that are one label of a task each, and those; of such alone are they masks."""
    taken = [(brush, file) for file in [*found, *drawn] if (brush := brushes.brush_of(file.key)) is not None]
    gone = {file for _, file in taken}
    if not gone.issuperset(drawn):
        return found, drawn, []
    return [file for file in found if file not in gone], [], taken


def _brush_masks(
    folder: Location, files: dict[str, StoredFile], found: list[NamedFile], brushed: _Brushed, layout: Layout
) -> list[NamedFile]:
    """A mask for each task, under the name of its photograph.

    Raises JobError where nothing says which photograph a task is of, or a label is no class.
    """
    notes = [folder / path for path in files if ending_of(path) == ".json"]
    names = brushes.photographs_of_tasks(notes)
    stems = {folded(file.key.rpartition("/")[2]): file.key for file in found}
    labels = {folded(name): label for label, name in enumerate(layout.label_set.classes)}
    tasks: dict[int, _Brushed] = {}
    for brush, file in sorted(brushed, key=lambda pair: (pair[0].annotation, pair[0].part, pair[0].key)):
        tasks.setdefault(brush.task, []).append((brush, file))
    masks = []
    for task, parts in sorted(tasks.items()):
        stem = names.get(task, str(task))
        key = stems.get(folded(stem)) or stems.get(folded(brushes.without_upload_prefix(stem)))
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
            elif folded(brush.tag) not in labels:
                known = ", ".join(layout.label_set.classes)
                raise JobError(f"{file.file.place.name} has the label {brush.tag}, and the classes are {known}.")
        parts = [(brush, file) for brush, file in parts if brush.annotation == last]
        layers = tuple(brushes.Layer(labels[folded(brush.tag)], file.file.place) for brush, file in parts)
        first, all_files = parts[0][1], [file.file for _, file in parts]
        version = brushes.version_of(file.version for file in all_files)
        size, paint = sum(file.size for file in all_files), functools.partial(brushes.combined, layers)
        whole = FileRef(first.file.place, size, version, paint)
        masks.append(NamedFile(next((f.split for f in found if f.key == key), first.split), key or stem, whole))
    return masks


# Without lists


def _by_split_folder(ids: Iterable[str], split_of: dict[str, str]) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    for image_id in ids:
        if split := split_of.get(image_id):
            lists.setdefault(split, []).append(image_id)
    return lists


def _nothing_found(folder: Location, files: dict[str, StoredFile]) -> str:
    pictures = sum(ending_of(path) in IMAGE_ENDINGS for path in files)
    return (
        f"{folder.uri} is not in VOC layout, nor in another that is known, though it holds {pictures:,} image files: "
        f"put photographs into {IMAGES} and masks into {MASK_FOLDERS[1]} under the same names, or name the folders "
        "with --images and --masks, which may also be a file of annotations; docs/datasets.md lists the layouts."
    )
