"""One photograph with its mask: do they fit, what is wrong, what is safe to mend.

Masks are read by palette index, never through their colours, except where a mask has nothing but colours and every
one of them belongs to a class.
"""

import io
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import numpy as np
from PIL import Image, UnidentifiedImageError

from segcore import images, sbd
from segcore.images import ImageError
from segcore.label_set import LabelSet, labels_of_colours
from segcore.masks import encode_mask
from segcore.near_duplicates import LOOK_SIDE_PX, fingerprint
from segcore.voc import IGNORE_LABEL

MAX_MASK_PIXELS = 178_956_970
"""As for photographs."""

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
    GREY_VOID = "grey mask of 0 and 255"
    LIST_BROKEN = "list cannot be used"
    EXIF_ROTATED = "image is turned by EXIF, its mask is not"
    RGB_MASK = "coloured mask instead of labels"
    GREY_MASK = "grey mask without palette"
    EXIF_UNCERTAIN = "image is turned by EXIF, its mask perhaps"
    LOOKS_SAME = "looks the same in train and in val"
    ONLY_VOID = "mask is void throughout"
    MOSTLY_VOID = "mask is mostly void"
    CLASS_ABSENT = "class without a pixel"
    EMPTY_MASK = "mask is background alone"
    TWICE_LISTED = "listed twice"
    SAME_WITHIN = "the same photograph twice in one list"
    UNLISTED = "in no list"


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
        Level.ERROR, "name these labels in classes.txt, the first line is label 0; or write them as 255, void"
    ),
    Kind.GREY_VOID: Advice(Level.ERROR, "255 means void here: write the object as its label, such as 1"),
    Kind.LIST_BROKEN: Advice(Level.ERROR, "write one id a line, as the file name without its ending"),
    Kind.EXIF_ROTATED: Advice(Level.WARNING, "--fix turns the mask as EXIF turns the image", True),
    Kind.RGB_MASK: Advice(Level.WARNING, "--fix writes the labels of its colours as palette PNG", True),
    Kind.GREY_MASK: Advice(Level.NOTE, "its values are read as labels; --fix adds the palette", True),
    Kind.EXIF_UNCERTAIN: Advice(Level.WARNING, "look at the pair in the gallery; its sizes cannot tell"),
    Kind.LOOKS_SAME: Advice(
        Level.WARNING, "look at both; if they are one photograph, take it out of the training list"
    ),
    Kind.ONLY_VOID: Advice(Level.WARNING, "nothing can be learned or scored here; bring a mask or drop the id"),
    Kind.MOSTLY_VOID: Advice(Level.WARNING, "look whether void was meant; more than half of it is ignored"),
    Kind.CLASS_ABSENT: Advice(Level.WARNING, "it cannot be learned or scored; is the list of classes right?"),
    Kind.EMPTY_MASK: Advice(Level.WARNING, "fine where nothing is to be seen; otherwise bring the mask"),
    Kind.TWICE_LISTED: Advice(Level.NOTE, "it counts once; --fix removes the second line", True),
    Kind.SAME_WITHIN: Advice(Level.NOTE, "it counts twice; keep one if that was not meant"),
    Kind.UNLISTED: Advice(Level.NOTE, "not used; add the id to a list if it should be"),
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
            seen = images.decode(image, LOOK_SIDE_PX)
            turned = images.orientation(image)
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
            is_palette_png = opened.mode == "P" and opened.format == "PNG"
            labels = _labels_of(opened, label_set, check)
    except UnidentifiedImageError:
        reason = "it is a JPEG, which blurs labels" if data[:3] == b"\xff\xd8\xff" else "no image format recognises it"
        check.say(Kind.MASK_UNREADABLE, reason if data else "it is empty")
        return None
    except Exception as error:  # Parsers raise whatever they trip over; each is this one mask's fault
        check.say(Kind.MASK_UNREADABLE, (str(error) or type(error).__name__).splitlines()[0])
        return None
    check.mask = data if is_palette_png else encode_mask(labels)
    return labels


def _labels_of(opened: Image.Image, label_set: LabelSet, check: PairCheck) -> np.ndarray:
    if opened.mode == "P":
        return np.asarray(opened)
    if opened.mode in ("RGB", "RGBA"):
        rgb = np.asarray(opened)[..., :3]
        labels, strange = labels_of_colours(rgb, label_set)
        grey = all(r == g == b and (r < len(label_set.classes) or r == IGNORE_LABEL) for r, g, b in strange)
        if strange and grey and np.ptp(rgb, axis=2).max() == 0:
            check.say(Kind.GREY_MASK, "three equal channels")
            labels = np.ascontiguousarray(rgb[..., 0])
        elif strange:
            named = ", ".join(str(colour) for colour in strange[:3])
            more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
            check.say(Kind.UNKNOWN_COLOURS, f"{named}{more}; known are those of {label_set.origin}")
        else:
            check.say(Kind.RGB_MASK, f"every colour is one of {label_set.origin}")
        return labels
    if opened.mode in ("L", "1", *_DEEP_GREY):
        values = np.asarray(opened)
        largest, least = int(values.max()), int(values.min())
        if largest > IGNORE_LABEL or least < 0:
            raise ValueError(f"it holds values from {least} to {largest}; labels are 0 to {IGNORE_LABEL}")
        labels = values.astype(np.uint8)
        if largest == IGNORE_LABEL and set(np.unique(labels)) == {0, IGNORE_LABEL}:
            check.say(Kind.GREY_VOID, "its object would count as void")
        else:
            check.say(Kind.GREY_MASK, f"mode {opened.mode}")
        return labels
    raise ValueError(f"it has mode {opened.mode}; a mask is a palette PNG whose indices are labels")


def _turned(labels: np.ndarray, orientation: int, check: PairCheck) -> np.ndarray | None:
    """The labels turned as EXIF turns their image, where that makes them fit; None where they do not fit."""
    upright = images.upright(labels, orientation)
    if upright.shape == (check.height, check.width):
        check.say(Kind.EXIF_ROTATED, f"orientation {orientation}")
        check.mask = encode_mask(upright)
        return upright
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
