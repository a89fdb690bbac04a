"""The classes of a dataset with their labels and colours. `class_lists.py` reads the files that name them.

A mask's number stays the label of its class: what has no name between others is `unused 7`, what means void becomes
255.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from segcore.datasets.class_lists import BACKGROUND, Colour, Entry, entries_of, spelt
from segcore.voc import CLASSES, IGNORE_LABEL, MOST_BYTE_CLASSES, MOST_CLASSES, palette

_UNNUMBERED = "__ignore__"
"""labelme lists void under this name, before label 0 and without a number of its own."""

VOID_NAMES = frozenset((_UNNUMBERED, "ignore", "ignored", "void", "unlabelled", "unlabeled"))


@dataclass(frozen=True)
class LabelSet:
    """What the labels of a dataset are called, and which colour stands for each in a coloured mask."""

    classes: tuple[str, ...]
    """Names by label; label 255 is void in every dataset."""

    colours: tuple[Colour, ...]
    """RGB of each label, as many as classes."""

    void_colours: tuple[Colour, ...]
    """RGB of void."""

    origin: str
    """Where the names were read, for a person."""

    void_values: tuple[int, ...] = ()
    """Numbers in masks, beside 255, that mean void."""

    unused: tuple[int, ...] = ()
    """Labels between others that no class has."""

    has_colours: bool = False
    """Whether the colours were read too; otherwise they are those of VOC's palette."""

    renumbered: str = ""
    """Where the order of lines is not the order of labels: how, for a person."""

    by_colour: bool = False
    """Whether masks with a palette are read by its colours instead of their numbers."""

    assumed: bool = False
    """Whether nobody has named the classes, and VOC's are taken."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= MOST_CLASSES:  # Of masks of 8 bits, `_assembled` has seen the numbers
            raise ValueError(f"{self.origin} names {len(self.classes)} classes; 1 to {IGNORE_LABEL} can be told apart.")
        for kind, values in (("class", self.classes), ("colour", self.colours)):
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ValueError(f"{self.origin} gives the {kind} {twice} to two labels.")

    @property
    def known_colours(self) -> dict[Colour, int]:
        """Label of each colour; void's are 255."""
        known = {colour: label for label, colour in enumerate(self.colours) if label not in self.unused}
        return known | dict.fromkeys(self.void_colours, IGNORE_LABEL)


def _voc_colours(number: int) -> tuple[Colour, ...]:
    return tuple((int(r), int(g), int(b)) for r, g, b in palette(max(256, number))[:number])


_VOID_COLOUR: Colour = tuple(int(v) for v in palette()[IGNORE_LABEL])  # type: ignore[assignment]

VOC_LABELS = LabelSet(CLASSES, _voc_colours(len(CLASSES)), (_VOID_COLOUR,), "PASCAL VOC")
"""The 21 classes of VOC."""

ASSUMED = replace(VOC_LABELS, origin="PASCAL VOC, assumed", assumed=True)
"""VOC's classes where nobody has named any."""


def read_classes(text: str, origin: str = "classes.txt", *, wide: bool = False) -> LabelSet:
    """The classes that a file names. Raises ValueError that names file and line.

    origin: name of the file; .json, .yaml, .py and .pbtxt are read as such, everything else line by line. Blank lines
    and comments (#) are passed over. Lines without numbers are labels from 0 on; void by its name takes its number, but
    not labelme's `__ignore__`. Where colours are given instead of numbers, background comes first, by its name or as
    black.
    wide: labels have 16 bits: there may be 65,535 of them, and 255 is one.
    """
    return _assembled(entries_of(text, origin), origin, MOST_CLASSES if wide else MOST_BYTE_CLASSES)


def classes_named(names: Iterable[str], origin: str) -> LabelSet:
    """The classes of these names, labels from 0 on. Raises ValueError. origin: where they were read, for a person."""
    return _assembled([Entry(name) for name in names], origin, MOST_BYTE_CLASSES)


def with_void(label_set: LabelSet, void: str) -> LabelSet:
    """The same with more that means void; void: numbers or names, separated by commas. ValueError: no such name."""
    numbers = []
    for part in filter(None, (part.strip() for part in void.split(","))):
        names = [name.casefold() for name in label_set.classes]
        if part.isdecimal() and int(part) <= IGNORE_LABEL:
            numbers.append(int(part))
        elif part.casefold() in names:
            numbers.append(names.index(part.casefold()))
        else:
            raise ValueError(f"{label_set.origin} has no class {part!r} that could be void: {_listed(label_set)}.")
    return _void_taken_out(label_set, numbers)


def labels_of_colours(rgb: np.ndarray, label_set: LabelSet) -> tuple[np.ndarray, list[Colour]]:
    """Label map (H, W) uint8 of a coloured mask (H, W, 3) uint8, and the colours that stand for nothing.

    Pixels of unknown colours become void.
    """
    packed = rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)  # (H, W)
    found, inverse = np.unique(packed, return_inverse=True)
    known = {r << 16 | g << 8 | b: label for (r, g, b), label in label_set.known_colours.items()}
    labels = np.array([known.get(int(colour), IGNORE_LABEL) for colour in found], np.uint8)
    strange = [(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in found if int(c) not in known]
    return labels[inverse].reshape(packed.shape), strange


def _assembled(entries: Sequence[Entry], origin: str, most: int) -> LabelSet:
    """most: classes; the label behind the last of them is void."""
    entries = [replace(entry, name=spelt(entry.name)) for entry in entries]
    if any(not entry.name for entry in entries):
        raise ValueError(f"{origin} has a class without a name.")
    has_colours = any(entry.colour is not None for entry in entries)
    numbered = any(entry.number is not None for entry in entries)
    if numbered and (bare := next((entry.name for entry in entries if entry.number is None), None)):
        raise ValueError(f"{origin} gives {bare} no number, but others have one: number all or none.")
    renumbered = ""
    if not numbered:
        if has_colours:
            entries, renumbered = _background_first(entries)
        outside = [replace(entry, number=-1) for entry in entries if entry.name.casefold() == _UNNUMBERED]
        labelled = [entry for entry in entries if entry.name.casefold() != _UNNUMBERED]
        count = sum(entry.name.casefold() not in VOID_NAMES for entry in labelled)
        if count > most:
            bits = 8 if most == MOST_BYTE_CLASSES else 16
            raise ValueError(f"{origin}: {count} classes, and masks of {bits} bits tell {most} apart.")
        entries = [replace(entry, number=number) for number, entry in enumerate(labelled)] + outside
    void = [e for e in entries if e.name.casefold() in VOID_NAMES or e.number in (-1, most)]
    classes = [entry for entry in entries if entry not in void]
    by_number: dict[int, Entry] = {}
    for entry in classes:
        assert entry.number is not None
        if not 0 <= entry.number < most:
            raise ValueError(f"{origin} gives {entry.name} the label {entry.number}; labels are 0 to {most - 1}.")
        if entry.number in by_number:
            first = by_number[entry.number].name
            raise ValueError(f"{origin} gives the label {entry.number} to {first} and to {entry.name}.")
        by_number[entry.number] = entry
    unnamed = bool(by_number) and 0 not in by_number and 0 not in {entry.number for entry in void}
    if unnamed and not any(entry.name == BACKGROUND for entry in classes):
        by_number[0] = Entry(BACKGROUND, 0)
    if not has_colours and all(k < len(CLASSES) and e.name == CLASSES[k] for k, e in by_number.items()):
        missing = set(range(len(CLASSES))) - by_number.keys()
        if numbered and missing and not void:  # What our own export of a few photographs names
            return replace(VOC_LABELS, origin=f"{origin}, numbers and names of PASCAL VOC")
    size = 1 + max(by_number, default=-1)
    unused = tuple(k for k in range(size) if k not in by_number)
    names = tuple(by_number[k].name if k in by_number else f"unused {k}" for k in range(size))
    void_colours = [entry.colour for entry in void if entry.colour is not None]
    colours = _colours([by_number[k].colour if k in by_number else None for k in range(size)], void_colours)
    if _VOID_COLOUR not in colours and _VOID_COLOUR not in void_colours:
        void_colours.append(_VOID_COLOUR)
    void_values = tuple(sorted({e.number for e in void if e.number is not None and 0 <= e.number < most}))
    return LabelSet(
        names, colours, tuple(void_colours), origin, void_values, unused, has_colours=has_colours, renumbered=renumbered
    )


def _background_first(entries: list[Entry]) -> tuple[list[Entry], str]:
    """Classes in the order of their labels: background, the others as they stand, void at its place if that is last."""
    void = [entry for entry in entries if entry.name.casefold() in VOID_NAMES]
    classes = [entry for entry in entries if entry not in void]
    first = next((e for e in classes if e.name == BACKGROUND), None)
    first = first or next((e for e in classes if e.colour == (0, 0, 0)), None)
    ordered = ([first] if first else []) + [entry for entry in classes if entry is not first] + void
    moved = next((k for k, (a, b) in enumerate(zip(entries, ordered, strict=True)) if a is not b), None)
    if moved is None:
        return ordered, ""
    return ordered, f"{entries[moved].name} is listed as number {moved}, which is read as {ordered[moved].name}"


def _colours(given: list[Colour | None], void: list[Colour]) -> tuple[Colour, ...]:
    """A colour for each label: its own, that of VOC's palette where it has none, or the first that is free."""
    taken = {colour for colour in given if colour is not None} | set(void)
    standard = _voc_colours(max(IGNORE_LABEL, len(given)))
    colours = []
    for label, own in enumerate(given):
        if own is None:
            own = next(colour for colour in (standard[label], *standard) if colour not in taken)
            taken.add(own)
        colours.append(own)
    return tuple(colours)


def _void_taken_out(label_set: LabelSet, numbers: Iterable[int]) -> LabelSet:
    void = sorted({*label_set.void_values, *(number for number in numbers if number != IGNORE_LABEL)})
    gone = [k for k in void if k < len(label_set.classes)]
    names, colours = list(label_set.classes), list(label_set.colours)
    own = [colours[k] for k in gone if k not in label_set.unused and label_set.has_colours]
    for k in gone:
        names[k] = f"unused {k}"
    unused = {*label_set.unused, *gone}
    while names and len(names) - 1 in unused:
        unused.remove(len(names) - 1)
        names.pop()
        colours.pop()
    return replace(
        label_set,
        classes=tuple(names),
        colours=tuple(colours),
        void_colours=(*label_set.void_colours, *own),
        void_values=tuple(void),
        unused=tuple(sorted(unused)),
    )


def _listed(label_set: LabelSet) -> str:
    return ", ".join(f"{k} {name}" for k, name in enumerate(label_set.classes))[:300]
