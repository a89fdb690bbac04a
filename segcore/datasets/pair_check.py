"""One photograph with its mask: do they fit, what is wrong, what is safe to mend.

Masks are read by palette index, never through their colours, except where a mask has nothing but colours and every
one of them belongs to a class, or where somebody asks for it (`LabelSet.by_colour`).
"""

import io
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import numpy as np
from PIL import Image, UnidentifiedImageError

from segcore.datasets import sbd
from segcore.datasets.label_set import LabelSet, labels_of_colours
from segcore.datasets.near_duplicates import LOOK_SIDE_PX, fingerprint
from segcore.images import decoding
from segcore.images.errors import ImageError
from segcore.images.masks import encode_mask
from segcore.images.turns import upright
from segcore.voc import IGNORE_LABEL

MAX_MASK_PIXELS = 178_956_970
"""As for photographs."""

_BLACK, _WHITE, _WHITE_16 = (0, 0, 0), (255, 255, 255), 65535
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class Level(IntEnum):
    """How bad a finding is; the worst first."""

    ERROR = 0
    """The pair, or the comparison of train and val, is worth nothing until this is mended."""
    WARNING = 1
    """Probably not what was meant; a person should look."""
    NOTE = 2
    """Good to know."""


class Kind(StrEnum):
    """What can be wrong with a dataset; within a level the worst first."""

    LEAK = "in train and in val"
    SAME_IMAGE = "the same photograph in train and in val"
    MISSING_IMAGE = "listed without an image"
    MISSING_MASK = "listed without a mask"
    IMAGE_UNREADABLE = "image cannot be read"
    MASK_UNREADABLE = "mask cannot be read"
    SIZE_MISMATCH = "image and mask differ in size"
    UNKNOWN_COLOURS = "coloured mask, colours of no class"
    OUT_OF_RANGE = "labels that no class has"
    GREY_VOID = "mask of black and white"
    ALPHA_MASK = "mask is in the alpha channel"
    LIST_BROKEN = "list cannot be used"
    VOC_ASSUMED = "classes are not named, those of VOC are assumed"
    CLASS_FILES_DIFFER = "two files name other classes"
    PALETTE_PERMUTED = "palette has the colours of other labels"
    NUMBERS_UNCERTAIN = "numbers in the mask, but classes listed by colour"
    EXIF_ROTATED = "image is turned by EXIF, its mask is not"
    RGB_MASK = "coloured mask instead of labels"
    GREY_MASK = "grey mask without palette"
    EXIF_UNCERTAIN = "image is turned by EXIF, its mask perhaps"
    LOOKS_SAME = "looks the same in train and in val"
    SAME_NAME = "two files with one name"
    ORPHAN_MASK = "mask without an image"
    ONLY_VOID = "mask is void throughout"
    MOSTLY_VOID = "mask is mostly void"
    CLASS_ABSENT = "class without a pixel"
    EMPTY_MASK = "mask is background alone"
    TWICE_LISTED = "listed twice"
    SAME_WITHIN = "the same photograph twice in one list"
    NAMED_ALIKE = "image and mask are named alike, not equally"
    NO_BACKGROUND = "label 0 is not background"
    UNLISTED = "in no list"
    UNMASKED = "image without a mask"


@dataclass(frozen=True)
class Advice:
    """What a kind of finding means for a person."""

    level: Level
    """How bad it is."""

    remedy: str
    """What to do."""

    mendable: bool = False
    """Whether `--fix` can do it without a guess."""


ADVICE = {
    Kind.LEAK: Advice(Level.ERROR, "take it out of the training list, or every score on val is too high", True),
    Kind.SAME_IMAGE: Advice(Level.ERROR, "take it out of the training list, or every score on val is too high"),
    Kind.MISSING_IMAGE: Advice(Level.ERROR, "bring the image, or take the id out of the list"),
    Kind.MISSING_MASK: Advice(Level.ERROR, "bring the mask as palette PNG, or take the id out of the list"),
    Kind.IMAGE_UNREADABLE: Advice(Level.ERROR, "bring the file anew, or take the id out of the list"),
    Kind.MASK_UNREADABLE: Advice(Level.ERROR, "bring the mask anew as palette PNG, or take the id out of the list"),
    Kind.SIZE_MISMATCH: Advice(Level.ERROR, "bring the pair in one size; scale masks by nearest, never smoothly"),
    Kind.UNKNOWN_COLOURS: Advice(
        Level.ERROR, "name every colour in labelmap.txt (name:r,g,b::); blended edges: export again without smoothing"
    ),
    Kind.OUT_OF_RANGE: Advice(
        Level.ERROR,
        "name these labels in classes.txt, where the first line is label 0 (background); those that mean void: a line "
        "`void` in their place, or --void NUMBER",
    ),
    Kind.GREY_VOID: Advice(
        Level.ERROR,
        "255 means void here: write the object as its label, such as 1; or name white in labelmap.txt: "
        "background:0,0,0:: and object:255,255,255::",
    ),
    Kind.ALPHA_MASK: Advice(
        Level.ERROR, "transparency means nothing here: write the object as its label, such as 1, as palette PNG"
    ),
    Kind.LIST_BROKEN: Advice(
        Level.ERROR, "write one image a line: its name or its path, with or without the mask's behind it"
    ),
    Kind.VOC_ASSUMED: Advice(
        Level.WARNING, "name them: --classes background,cat,... or --classes FILE; --classes voc where they are VOC's"
    ),
    Kind.CLASS_FILES_DIFFER: Advice(Level.WARNING, "remove the wrong one, or name the right one with --classes"),
    Kind.PALETTE_PERMUTED: Advice(
        Level.WARNING, "the numbers count; --by-colour reads the colours instead, where a program has reordered them"
    ),
    Kind.NUMBERS_UNCERTAIN: Advice(
        Level.WARNING,
        "look at the gallery; where classes are swapped, number them in classes.txt: `0 cat`, `1 dog`",
    ),
    Kind.EXIF_ROTATED: Advice(Level.WARNING, "--fix turns the mask as EXIF turns the image", True),
    Kind.RGB_MASK: Advice(Level.WARNING, "--fix writes the labels of its colours as palette PNG", True),
    Kind.GREY_MASK: Advice(Level.NOTE, "its values are read as labels; --fix adds the palette", True),
    Kind.EXIF_UNCERTAIN: Advice(Level.WARNING, "look at the pair in the gallery; its sizes cannot tell"),
    Kind.LOOKS_SAME: Advice(
        Level.WARNING, "look at both; if they are one photograph, take it out of the training list"
    ),
    Kind.SAME_NAME: Advice(Level.WARNING, "only the first is used: rename or remove the other"),
    Kind.ORPHAN_MASK: Advice(Level.WARNING, "not used: bring its image, or name the mask as its image is named"),
    Kind.ONLY_VOID: Advice(Level.WARNING, "nothing can be learned or scored here; bring a mask or drop the id"),
    Kind.MOSTLY_VOID: Advice(Level.WARNING, "look whether void was meant; more than half of it is ignored"),
    Kind.CLASS_ABSENT: Advice(Level.WARNING, "it cannot be learned or scored; is the list of classes right?"),
    Kind.EMPTY_MASK: Advice(Level.WARNING, "fine where nothing is to be seen; otherwise bring the mask"),
    Kind.TWICE_LISTED: Advice(Level.NOTE, "it counts once; --fix removes the second line", True),
    Kind.SAME_WITHIN: Advice(Level.NOTE, "it counts twice; keep one if that was not meant"),
    Kind.NAMED_ALIKE: Advice(Level.NOTE, "taken for a pair; give both one name if they are none"),
    Kind.NO_BACKGROUND: Advice(
        Level.NOTE, "fine where every pixel has a class; otherwise put a line `background` before the others"
    ),
    Kind.UNLISTED: Advice(Level.NOTE, "not used; add the id to a list if it should be"),
    Kind.UNMASKED: Advice(Level.NOTE, "not used; bring its mask if there should be one"),
}
"""Level and remedy of every kind."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with one pair or one list."""

    kind: Kind
    """What."""

    detail: str
    """The facts, for a person."""


@dataclass
class PairCheck:
    """What is known of one photograph with its mask."""

    findings: list[Finding] = field(default_factory=list)
    """What is wrong, in the order in which it was found."""

    width: int = 0
    """px, upright; 0 where neither image nor mask could be read."""

    height: int = 0
    """px, upright."""

    label_pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    """(256,) int64: pixels of each label."""

    fingerprint: int | None = None
    """`near_duplicates.fingerprint` of the image."""

    mask: bytes | None = None
    """The mask as palette PNG that fits the upright image: the given bytes where they are that already."""

    def say(self, kind: Kind, detail: str = "") -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, detail))

    @property
    def usable(self) -> bool:
        """Whether image and mask can be trained on and scored."""
        return self.mask is not None and not any(ADVICE[f.kind].level is Level.ERROR for f in self.findings)


def check_pair(image: bytes | None, mask: bytes | None, label_set: LabelSet, *, sbd_mask: bool = False) -> PairCheck:
    """Look at a photograph and its mask, given as files.

    image: None where there is none; the mask is looked at nevertheless. mask: None where there is none.
    sbd_mask: the mask is one of SBD's .mat files.
    """
    check = PairCheck()
    labels = None if mask is None else _read_labels(mask, label_set, sbd_mask, check)
    turned = 1
    if image is not None:
        try:
            seen = decoding.decode(image, LOOK_SIDE_PX)
            turned = decoding.orientation(image)
        except ImageError as error:
            check.say(Kind.IMAGE_UNREADABLE, f"{error.kind}: {error}")
        else:
            check.width, check.height = seen.width, seen.height
            check.fingerprint = fingerprint(seen.image)
    if labels is not None:
        if check.width and labels.shape != (check.height, check.width):
            labels = _turned(labels, turned, check)
        elif turned != 1 and check.width and (turned < 5 or check.width == check.height):
            check.say(Kind.EXIF_UNCERTAIN, f"orientation {turned}")
        if labels is not None:
            if not check.width:
                check.height, check.width = labels.shape
            _count(labels, label_set, check)
    return check


def _read_labels(data: bytes, label_set: LabelSet, sbd_mask: bool, check: PairCheck) -> np.ndarray | None:
    """Labels (H, W) uint8 of a mask file; sets `check.mask` to it as palette PNG. None where it cannot be read."""
    try:
        if sbd_mask:
            labels = sbd.decode_annotation(data)
            check.mask = encode_mask(labels)
            return labels
        with Image.open(io.BytesIO(data), formats=("PNG", "BMP", "TIFF", "GIF", "WEBP")) as opened:
            if opened.width * opened.height > MAX_MASK_PIXELS:
                raise ValueError(f"it has {opened.width} x {opened.height} px, more than the bound")
            if opened.format == "WEBP":
                raise ValueError("WebP changes labels when it is lossy")
            opened.load()
            labels = _labels_of(opened, data, label_set, check)
            # Its numbers are labels already, so that the very file can be kept
            kept = opened.mode == "P" and opened.format == "PNG" and np.array_equal(labels, np.asarray(opened))
    except UnidentifiedImageError:
        reason = "it is a JPEG, which blurs labels" if data[:3] == b"\xff\xd8\xff" else "no image format recognises it"
        check.say(Kind.MASK_UNREADABLE, reason if data else "it is empty")
        return None
    except Exception as error:  # Parsers raise whatever they trip over; each is this one mask's fault
        check.say(Kind.MASK_UNREADABLE, (str(error) or type(error).__name__).splitlines()[0])
        return None
    check.mask = data if kept else encode_mask(labels)
    return labels


def _labels_of(opened: Image.Image, data: bytes, label_set: LabelSet, check: PairCheck) -> np.ndarray:
    mode, values = opened.mode, np.asarray(opened)
    if mode not in ("P", "PA", "RGB", "RGBA", "LA", "L", "1", *_DEEP_GREY):
        raise ValueError(f"it has mode {mode}; a mask is a palette PNG whose indices are labels")
    if _is_in_alpha(opened, values):
        check.say(Kind.ALPHA_MASK, f"mode {mode}: one colour throughout, in transparent and in opaque pixels")
        return np.zeros(values.shape[:2], np.uint8)
    if mode in ("PA", "LA"):
        values = values[..., 0]
    if mode in ("P", "PA"):
        return _of_palette(opened, values, label_set, check)
    if mode in ("RGB", "RGBA"):
        return _of_colours(values[..., :3], data, label_set, check)
    largest, least = int(values.max()), int(values.min())
    if largest == _WHITE_16 and set(np.unique(values).tolist()) == {0, _WHITE_16}:
        values, largest = np.where(values > 0, IGNORE_LABEL, 0), IGNORE_LABEL
    if largest > IGNORE_LABEL or least < 0:
        raise ValueError(f"it holds values from {least} to {largest}; labels are 0 to {IGNORE_LABEL}")
    values = values.astype(np.uint8)
    if _is_black_and_white(values):
        return _of_white(values, f"mode {mode}", label_set, check)
    check.say(Kind.GREY_MASK, "mode 1, white is label 1" if mode == "1" else f"mode {mode}")
    return _of_numbers(values, label_set, check)


def _of_numbers(values: np.ndarray, label_set: LabelSet, check: PairCheck) -> np.ndarray:
    """Labels of the numbers in a mask: themselves, except those that mean void."""
    if label_set.renumbered:
        check.say(Kind.NUMBERS_UNCERTAIN, f"in {label_set.origin} {label_set.renumbered}")
    if not label_set.void_values:
        return values
    labels: np.ndarray = np.where(np.isin(values, label_set.void_values), IGNORE_LABEL, values).astype(np.uint8)
    return labels


def _of_palette(opened: Image.Image, values: np.ndarray, label_set: LabelSet, check: PairCheck) -> np.ndarray:
    flat = opened.getpalette("RGB") or []
    palette = [(flat[k], flat[k + 1], flat[k + 2]) for k in range(0, len(flat) - 2, 3)]
    used = [int(index) for index in np.flatnonzero(np.bincount(values.ravel(), minlength=256))]
    colours = {index: palette[index] for index in used if index < len(palette)}
    if label_set.by_colour:
        table = np.zeros((256, 3), np.uint8)
        table[: len(palette)] = palette
        return _of_colours(table[values], b"", label_set, check)
    white = colours.get(IGNORE_LABEL)
    if _is_black_and_white(values) and white not in label_set.void_colours:
        if (colours.get(0), white) == (_BLACK, _WHITE):
            return _of_white(values, "palette of greys", label_set, check)
        check.say(Kind.GREY_VOID, f"numbers 0 and 255, the colour of 255 is {white}; its object would count as void")
        return values
    known = label_set.known_colours
    own = {index: IGNORE_LABEL if index in label_set.void_values else index for index in used}
    others = {i: known[c] for i, c in colours.items() if c in known and known[c] != own[i]}
    background_moved = any(colours[index] == _BLACK and label == 0 for index, label in others.items())
    if others and (background_moved or all(colour in known for colour in colours.values())):
        pairs = ", ".join(f"{_named(i, label_set)} has that of {_named(j, label_set)}" for i, j in others.items())
        check.say(Kind.PALETTE_PERMUTED, pairs)
    elif label_set.renumbered and all(colour in known for colour in colours.values()):
        return values  # Colours and numbers agree
    return _of_numbers(values, label_set, check)


def _named(label: int, label_set: LabelSet) -> str:
    if label < len(label_set.classes):
        return f"{label} {label_set.classes[label]}"
    return "void" if label == IGNORE_LABEL else f"{label} (no class)"


def _of_colours(rgb: np.ndarray, data: bytes, label_set: LabelSet, check: PairCheck) -> np.ndarray:
    deep = data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10"
    if (deep and not np.isin(rgb, (0, IGNORE_LABEL)).all()) or (deep and not rgb.any()):
        raise ValueError("it has 16 bits in each of several channels, of which only the upper 8 are read: write 8")
    labels, strange = labels_of_colours(rgb, label_set)
    if not strange:
        check.say(Kind.RGB_MASK, f"every colour is one of {label_set.origin}")
        return labels
    grey = np.ascontiguousarray(rgb[..., 0])
    if np.ptp(rgb, axis=2).max() == 0:
        if _is_black_and_white(grey):
            return _of_white(grey, "three equal channels", label_set, check)
        values = {*range(len(label_set.classes)), *label_set.void_values, IGNORE_LABEL}
        if all(r in values for r, _, _ in strange):
            check.say(Kind.GREY_MASK, "three equal channels")
            return _of_numbers(grey, label_set, check)
    named = ", ".join(str(colour) for colour in strange[:3])
    more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
    check.say(Kind.UNKNOWN_COLOURS, f"{named}{more}; known are those of {label_set.origin}")
    return labels


def _of_white(values: np.ndarray, form: str, label_set: LabelSet, check: PairCheck) -> np.ndarray:
    """Labels of a mask of 0 and 255: those of black and white where a class is white, otherwise a mistake."""
    if label_set.known_colours.get(_WHITE, IGNORE_LABEL) != IGNORE_LABEL:
        labels, _ = labels_of_colours(np.repeat(values[..., None], 3, 2), label_set)
        check.say(Kind.RGB_MASK, f"black and white are colours of {label_set.origin}")
        return labels
    check.say(Kind.GREY_VOID, f"{form}; its object would count as void")
    return values


def _is_black_and_white(values: np.ndarray) -> bool:
    return int(values.max()) == IGNORE_LABEL and set(np.unique(values).tolist()) == {0, IGNORE_LABEL}


def _is_in_alpha(opened: Image.Image, values: np.ndarray) -> bool:
    """Whether only transparency tells the pixels of a mask apart."""
    if opened.mode in ("LA", "RGBA", "PA"):
        alpha, rest = values[..., -1], values[..., :-1]
        return bool(np.ptp(alpha) > 0 and np.ptp(rest.reshape(-1, rest.shape[-1]), axis=0).max() == 0)
    return False


def _turned(labels: np.ndarray, orientation: int, check: PairCheck) -> np.ndarray | None:
    """The labels turned as EXIF turns their image, where that makes them fit; None where they do not fit."""
    turned = upright(labels, orientation)
    if turned.shape == (check.height, check.width):
        check.say(Kind.EXIF_ROTATED, f"orientation {orientation}")
        check.mask = encode_mask(turned)
        return turned
    size = f"image {check.width} x {check.height}, mask {labels.shape[1]} x {labels.shape[0]} px"
    check.say(Kind.SIZE_MISMATCH, size)
    check.mask = None
    return labels


def _count(labels: np.ndarray, label_set: LabelSet, check: PairCheck) -> None:
    check.label_pixels = np.bincount(labels.ravel(), minlength=256)
    num_classes, total = len(label_set.classes), labels.size
    strange = np.flatnonzero(check.label_pixels[num_classes:IGNORE_LABEL]) + num_classes
    if len(strange):
        named = ", ".join(str(label) for label in strange[:5]) + (" ..." if len(strange) > 5 else "")
        check.say(Kind.OUT_OF_RANGE, f"{named}; {label_set.origin} names 0 to {num_classes - 1}")
    void = int(check.label_pixels[IGNORE_LABEL])
    if void == total:
        check.say(Kind.ONLY_VOID)
    elif void > total / 2:
        check.say(Kind.MOSTLY_VOID, f"{void / total:.0%} void")
    if void < total and not check.label_pixels[1:IGNORE_LABEL].any():
        check.say(Kind.EMPTY_MASK)
