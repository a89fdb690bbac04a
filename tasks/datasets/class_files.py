"""The classes of a dataset in folders: the file that names them, or what its owner says."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from segcore.datasets.class_lists import decode_text
from segcore.datasets.label_set import ASSUMED, VOC_LABELS, LabelSet, classes_named, read_classes, with_void
from segcore.datasets.pair_check import Finding, Kind
from tasks import storage
from tasks.datasets.layout import Layout, OwnData, relative
from tasks.errors import JobError
from tasks.storage import Location, StoredFile

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


def label_set_of(
    folder: Location,
    files: dict[str, StoredFile],
    base: str,
    given: OwnData,
    is_voc: bool,
    layout: Layout,
    tags: Sequence[str] = (),
) -> LabelSet:
    """The classes. tags: labels that are drawn, which count where nothing else names the classes."""
    classes = given.classes
    try:
        label_set: LabelSet | None
        if classes is not None:
            label_set = _named_classes(classes)
        else:
            beside = [] if given.images is None else _class_files_beside(given)
            label_set = _class_file([folder / path for path in _class_files(files, base)] or beside, layout)
        if label_set is None and tags:
            label_set = classes_named(["background", *tags], "names of the masks")
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
    if storage.is_file(place):
        return read_classes(_text_of(place), place.name)
    if "," not in given and ("/" in given or "." in given):
        raise JobError(f"There is no file {given}: --classes is a file, names separated by commas, or voc.")
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
