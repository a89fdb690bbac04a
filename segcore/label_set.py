"""The classes of a dataset with their colours: VOC's own, or read from a user's `classes.txt` or `labelmap.txt`."""

from dataclasses import dataclass

import numpy as np

from segcore.voc import CLASSES, IGNORE_LABEL, palette

_NO_CLASS = ("__ignore__", "ignore", "void")
"""Names under which labelling tools list what is no class; never counted as one."""


@dataclass(frozen=True)
class LabelSet:
    """What the labels of a dataset are called, and which colour stands for each in a coloured mask."""

    classes: tuple[str, ...]
    """Names by label; label 255 is void in every dataset."""

    colours: tuple[tuple[int, int, int], ...]
    """RGB of each label, as many as classes."""

    void_colours: tuple[tuple[int, int, int], ...]
    """RGB of void."""

    origin: str
    """Where the names were read, for a person."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= IGNORE_LABEL:
            raise ValueError(f"{self.origin} names {len(self.classes)} classes; 1 to {IGNORE_LABEL} can be told apart.")
        for kind, values in (("class", self.classes), ("colour", self.colours)):
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ValueError(f"{self.origin} gives the {kind} {twice} to two labels.")


def _voc_colours(number: int) -> tuple[tuple[int, int, int], ...]:
    return tuple((int(r), int(g), int(b)) for r, g, b in palette()[:number])


_VOID_COLOUR: tuple[int, int, int] = tuple(int(v) for v in palette()[IGNORE_LABEL])  # type: ignore[assignment]

VOC_LABELS = LabelSet(CLASSES, _voc_colours(len(CLASSES)), (_VOID_COLOUR,), "PASCAL VOC")
"""The 21 classes of VOC."""


def read_classes(text: str, origin: str = "classes.txt") -> LabelSet:
    """A list of names, one a line, in the order of their labels; label 0 first. Colours are those of VOC's palette.

    Blank lines and comments (#) are passed over, and so is `__ignore__`, which labelme writes for void.
    """
    names = [line.strip() for line in text.lstrip("\ufeff").splitlines()]
    classes = tuple(name for name in names if name and not name.startswith("#") and name.lower() not in _NO_CLASS)
    return LabelSet(classes, _voc_colours(len(classes)), (_VOID_COLOUR,), origin)


def read_labelmap(text: str, origin: str = "labelmap.txt") -> LabelSet:
    """Lines `name:r,g,b:parts:actions`, as CVAT and Datumaro write beside VOC exports; labels in the order of lines."""
    classes: list[str] = []
    colours: list[tuple[int, int, int]] = []
    void: list[tuple[int, int, int]] = []
    for number, line in enumerate(text.lstrip("\ufeff").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, rest = line.strip().partition(":")
        parts = rest.partition(":")[0].split(",")
        if not name or len(parts) != 3 or not all(p.strip().isdigit() and int(p) < 256 for p in parts):
            raise ValueError(f"{origin}, line {number}: {line.strip()!r} is not name:red,green,blue with 0 to 255.")
        colour = (int(parts[0]), int(parts[1]), int(parts[2]))
        if name.lower() in _NO_CLASS:
            void.append(colour)
        else:
            classes.append(name)
            colours.append(colour)
    if _VOID_COLOUR not in colours and _VOID_COLOUR not in void:
        void.append(_VOID_COLOUR)
    return LabelSet(tuple(classes), tuple(colours), tuple(void), origin)


def labels_of_colours(rgb: np.ndarray, label_set: LabelSet) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Label map (H, W) uint8 of a coloured mask (H, W, 3) uint8, and the colours that stand for nothing.

    Pixels of unknown colours become void.
    """
    packed = rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)  # (H, W)
    found, inverse = np.unique(packed, return_inverse=True)
    known = {_packed(colour): label for label, colour in enumerate(label_set.colours)}
    known |= {_packed(colour): IGNORE_LABEL for colour in label_set.void_colours}
    labels = np.array([known.get(int(colour), IGNORE_LABEL) for colour in found], np.uint8)
    strange = [(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in found if int(c) not in known]
    return labels[inverse].reshape(packed.shape), strange


def _packed(colour: tuple[int, int, int]) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]
