"""The classes of a dataset with their numbers and colours, and the class files of labelling tools.

Read are lists of names, numbered lists, tables with colours (CVAT's labelmap.txt, CamVid's label_colors.txt, CSV), JSON
(Supervisely, Datumaro, COCO, Label Studio), `names` in YAML (Ultralytics, Roboflow) and the METAINFO of MMSegmentation.
A mask's number stays the label of its class: what has no name between others is `unused 7`, what means void becomes
255.
"""

import ast
import csv
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from segcore.voc import CLASSES, IGNORE_LABEL, palette

Colour = tuple[int, int, int]

_UNNUMBERED = "__ignore__"
"""labelme lists void under this name, before label 0 and without a number of its own."""

_VOID_NAMES = frozenset((_UNNUMBERED, "ignore", "ignored", "void", "unlabelled", "unlabeled"))
_BACKGROUND_NAMES = frozenset(("background", "_background_", "__background__", "__bg__", "bg"))
BACKGROUND = "background"
"""The one spelling of it here, whatever a tool writes."""


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
        if not 1 <= len(self.classes) <= IGNORE_LABEL:
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


@dataclass(frozen=True)
class _Entry:
    """One class as a file has it."""

    name: str
    number: int | None = None
    colour: Colour | None = None


def _voc_colours(number: int) -> tuple[Colour, ...]:
    return tuple((int(r), int(g), int(b)) for r, g, b in palette()[:number])


_VOID_COLOUR: Colour = tuple(int(v) for v in palette()[IGNORE_LABEL])  # type: ignore[assignment]

VOC_LABELS = LabelSet(CLASSES, _voc_colours(len(CLASSES)), (_VOID_COLOUR,), "PASCAL VOC")
"""The 21 classes of VOC."""

ASSUMED = replace(VOC_LABELS, origin="PASCAL VOC, assumed", assumed=True)
"""VOC's classes where nobody has named any."""


def decode_text(data: bytes) -> str:
    """A text file in UTF-8 or in UTF-16 as Windows saves it, with or without a byte order mark, without the mark.

    Raises ValueError where it is neither.
    """
    try:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            text = data.decode("utf-16")
        elif data[1:2] == b"\0":
            text = data.decode("utf-16-le")
        else:
            text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("no text in UTF-8") from None
    if "\0" in text:
        raise ValueError("no text in UTF-8")
    return text


def read_classes(text: str, origin: str = "classes.txt") -> LabelSet:
    """The classes that a file names. Raises ValueError that names file and line.

    origin: name of the file; .json, .yaml, .py and .pbtxt are read as such, everything else line by line. Blank lines
    and comments (#) are passed over. Lines without numbers are labels from 0 on; void by its name takes its number, but
    not labelme's `__ignore__`. Where colours are given instead of numbers, background comes first, by its name or as
    black.
    """
    text = text.removeprefix("\ufeff")
    if origin.lower().endswith(".json"):
        entries = _of_json(text, origin)
    elif origin.lower().endswith((".yaml", ".yml")):
        entries = _of_yaml(text, origin)
    elif origin.lower().endswith(".py"):
        entries = _of_python(text, origin)
    elif origin.lower().endswith(".pbtxt"):
        entries = _of_label_map(text, origin)
    else:
        entries = _of_lines(text, origin)
    return _assembled(entries, origin)


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


def _assembled(entries: Sequence[_Entry], origin: str) -> LabelSet:
    entries = [replace(entry, name=_spelt(entry.name)) for entry in entries]
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
        entries = [replace(entry, number=number) for number, entry in enumerate(labelled)] + outside
    void = [e for e in entries if e.name.casefold() in _VOID_NAMES or e.number in (-1, IGNORE_LABEL)]
    classes = [entry for entry in entries if entry not in void]
    by_number: dict[int, _Entry] = {}
    for entry in classes:
        assert entry.number is not None
        if not 0 <= entry.number < IGNORE_LABEL:
            raise ValueError(f"{origin} gives {entry.name} the label {entry.number}; labels are 0 to 254.")
        if entry.number in by_number:
            first = by_number[entry.number].name
            raise ValueError(f"{origin} gives the label {entry.number} to {first} and to {entry.name}.")
        by_number[entry.number] = entry
    unnamed = bool(by_number) and 0 not in by_number and 0 not in {entry.number for entry in void}
    if unnamed and not any(entry.name == BACKGROUND for entry in classes):
        by_number[0] = _Entry(BACKGROUND, 0)
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
    void_values = tuple(sorted({e.number for e in void if e.number is not None and 0 <= e.number < IGNORE_LABEL}))
    return LabelSet(
        names, colours, tuple(void_colours), origin, void_values, unused, has_colours=has_colours, renumbered=renumbered
    )


def _spelt(name: str) -> str:
    name = name.strip().strip("\"'").strip()
    return BACKGROUND if name.casefold() in _BACKGROUND_NAMES else name


def _background_first(entries: list[_Entry]) -> tuple[list[_Entry], str]:
    """Classes in the order of their labels: background, the others as they stand, void at its place if that is last."""
    void = [entry for entry in entries if entry.name.casefold() in _VOID_NAMES]
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
    standard = _voc_colours(IGNORE_LABEL)
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


_GAP = r"(?:\s*[,;\t|:=]\s*|\s+)"
_RGB = rf"(?P<r>\d{{1,3}}){_GAP}(?P<g>\d{{1,3}}){_GAP}(?P<b>\d{{1,3}})"
_HEX = r"#(?P<hex>[0-9a-fA-F]{6})"
_NAME = r"(?P<name>[^\d\s#].*?|\d*[^\W\d].*?)"
_NUMBER = r"(?P<number>-?\d{1,3})"
_BETWEEN = r"(?:\s*[,;]\s*|\s+)"
_CVAT = re.compile(
    rf"(?P<name>[^:]+):\s*(?:(?P<r>\d+){_BETWEEN}(?P<g>\d+){_BETWEEN}(?P<b>\d+)|#(?P<hex>[0-9a-fA-F]{{3}}|[0-9a-fA-F]{{6}}))"
    r"\s*(?::.*)?"
)
_FORMS = tuple(
    re.compile(form)
    for form in (
        _CVAT.pattern,
        rf"(?:{_NUMBER}{_GAP})?{_NAME}{_GAP}(?:{_RGB}(?:{_GAP}\d{{1,3}})?|{_HEX})",
        rf"{_NUMBER}{_GAP}{_RGB}(?:{_GAP}\d{{1,3}}){{0,3}}{_GAP}{_NAME}",
        rf"(?:{_RGB}|{_HEX}){_GAP}{_NAME}",
        rf"[\[(]?{_NUMBER}[\])]?(?:\s*[:;,=|).\t-]\s*|\s+)(?P<name>\S.*)",
        rf"(?P<name>.*\S)\s*[:;,=|\t]\s*{_NUMBER}",
        rf"(?P<name>.*\S)\s+{_NUMBER}",
    )
)
"""Forms of a line, the most particular first; a file has one of them throughout, or is a list of names."""

_NUMBERED = _FORMS[4]
_MAX_LINE, _MAX_LINES = 4_000, 10_000
_HEADS = {"name", "names", "class", "classes", "class_name", "class name", "label_name"}
_COLUMNS = {
    "number": {"pixel value", "value", "id", "index", "idx", "class id", "classid", "label id", "labelid", "number"},
    "name": {"class", "name", "class name", "classname", "label name", "labelname", "category", "title"},
    "r": {"r", "red"},
    "g": {"g", "green"},
    "b": {"b", "blue"},
    "hex": {"color", "colour", "hex"},
}


_REMARK = re.compile(r"(?:^|\s+)(?://|#(?=\s)).*$")
"""What programmers write behind a class; a colour in hexadecimal has no blank after its hash."""


def _of_lines(text: str, origin: str) -> list[_Entry]:
    lines = [(number, _REMARK.sub("", line).strip()) for number, line in enumerate(text.splitlines(), 1)]
    if lines and all(not line or (line[0] == line[-1] == "|" and len(line) > 1) for _, line in lines):  # Markdown's
        cells = ((n, ",".join(cell.strip() for cell in line[1:-1].split("|"))) for n, line in lines if line)
        lines = [(n, line) for n, line in cells if not re.fullmatch(r"[,:-]+", line)]
    lines = [(n, re.sub(r"\s*(?:->|=>|\u2192)\s*", "=", line)) for n, line in lines]
    lines = [(n, line) for n, line in lines if line and (line[0] != "#" or re.match(rf"{_HEX}{_GAP}\S", line))]
    whole = " ".join(line for _, line in lines)
    if (whole[:1], whole[-1:]) in (("[", "]"), ("{", "}")) or re.match(
        r"(?:names|classes|labels)\s*[:=]\s*[\[{]", whole
    ):
        return _of_yaml(text, origin)  # A list as programs print it
    if any("::" in line for _, line in lines):
        return [_of_cvat(origin, number, line) for number, line in lines]
    long = next((number for number, line in lines if len(line) > _MAX_LINE), None)
    if long is not None or len(lines) > _MAX_LINES:
        raise ValueError(f"{origin} is no list of classes: it has {len(lines)} lines, or long ones.")
    plain = [line for _, line in lines]
    if len(plain) > 1 and all(re.match(r"[-*\u2022]\s+\S", line) for line in plain):
        plain = [line[1:].strip() for line in plain]
    if len(plain) > 1 and all(line.endswith(",") for line in plain[:-1]):
        plain = [line.rstrip(",").strip() for line in plain]
    if plain and plain[0].lower() in _HEADS:
        plain = plain[1:]
    if len(plain) > 1 and (entries := _of_table(plain)) is not None:
        return entries
    bare = [
        re.sub(r"(?:\brgba?\s*)?[\[\]()]", " ", line).strip() if _has_bracketed_colour(line) else line for line in plain
    ]
    for form in _FORMS:
        matches = [form.fullmatch(line) for line in bare]
        if all(matches) and (entries := _taken([match for match in matches if match])) is not None:
            return entries
    if len(plain) == 1 and ("," in plain[0] or ";" in plain[0]):
        return [_Entry(name) for name in re.split(r"[,;]", plain[0]) if name.strip()]
    numbered = [match for line in plain if (match := _NUMBERED.fullmatch(line))]
    if len(numbered) * 2 > len(plain) and _taken(numbered) is not None:
        number, line = next(entry for entry in lines if not _NUMBERED.fullmatch(entry[1]))
        raise ValueError(f"{origin}, line {number}: {line!r} has no number, most other lines have: number all or none.")
    return [_Entry(line.rstrip(",;")) for line in plain]


def _has_bracketed_colour(line: str) -> bool:
    """Whether a line is of the form `Animal (64, 128, 64)`."""
    return re.search(r"[\[(]\s*\d+\s*[, ]\s*\d+\s*[, ]\s*\d+\s*[\])]", line) is not None


def _of_cvat(origin: str, number: int, line: str) -> _Entry:
    match = _CVAT.fullmatch(line)
    colour = None if match is None else _colour(match.groupdict())
    if match is None or colour is None:
        raise ValueError(
            f"{origin}, line {number}: {line!r} is not name:red,green,blue with 0 to 255, nor name:#rrggbb."
        )
    return _Entry(match["name"], None, colour)


def _of_table(lines: list[str]) -> list[_Entry] | None:
    """Entries of a table whose first line names its columns; None where it does not."""
    separator = max(",;\t", key=lines[0].count)
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator, skipinitialspace=True)]
    except csv.Error:
        return None
    head = [cell.strip("\"'").lower().replace("_", " ") for cell in rows[0]]
    column = {what: next((k for k, cell in enumerate(head) if cell in names), None) for what, names in _COLUMNS.items()}
    if "label" in head:  # A name or a number, as the other column has it
        column["name" if column["name"] is None else "number"] = head.index("label")
    if column["name"] is None or len(head) < 2:
        return None
    if any(len(row) <= max(k for k in column.values() if k is not None) for row in rows[1:]):
        return None
    entries = []
    for row in rows[1:]:
        cells = {what: row[k].removeprefix("#") for what, k in column.items() if k is not None}
        if (number := cells.get("number")) is not None and not re.fullmatch(r"-?\d{1,3}", number):
            return None
        entries.append(_Entry(cells["name"], None if number is None else int(number), _colour(cells)))
    return entries


def _taken(matches: list[re.Match[str]]) -> list[_Entry] | None:
    """What a form makes of all lines; None where that cannot be meant: twice one number, one name, no colour."""
    entries = []
    for groups in (match.groupdict() for match in matches):
        number = groups.get("number")
        has_colour = groups.get("r") is not None or groups.get("hex") is not None
        colour = _colour(groups)
        if has_colour and colour is None:
            return None
        entries.append(_Entry(groups["name"], None if number is None else int(number), colour))
    numbers = [entry.number for entry in entries if entry.number is not None]
    names = {entry.name for entry in entries}
    if numbers and not len(set(numbers)) == len(entries) == len(names):
        return None
    return entries


def _colour(groups: dict[str, str] | dict[str, str | Any]) -> Colour | None:
    if (code := groups.get("hex")) is not None:
        code = code.removeprefix("#")
        return _of_hex(code) if re.fullmatch(r"[0-9a-fA-F]{6}|[0-9a-fA-F]{3}", code) else None
    values = [groups.get(channel) for channel in "rgb"]
    if any(value is None or not value.isdecimal() or int(value) > 255 for value in values):
        return None
    return int(values[0]), int(values[1]), int(values[2])  # type: ignore[arg-type]


def _of_hex(code: str) -> Colour:
    if len(code) == 3:
        code = "".join(2 * digit for digit in code)
    return int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16)


def _of_yaml(text: str, origin: str) -> list[_Entry]:
    """`names` of a YAML file: a list or numbered names, in brackets or line by line; the rest of it does not matter."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("#", "---"))]
    heads = [re.match(r"[\"']?(?:names|classes|labels)[\"']?\s*[:=]\s*(.*)", line, re.IGNORECASE) for line in lines]
    start = next((k for k, head in enumerate(heads) if head), None)
    head = heads[start] if start is not None else None
    if head is not None and start is not None:
        within = lines[start + 1 :]
        end = next((k for k, line in enumerate(within) if not re.match(r"\s|-|\]|\}", line)), len(within))
        lines = [head[1], *within[:end]]
    body = "\n".join(re.sub(r"\s#.*", "", line) for line in lines).strip()
    if body[:1] in ("[", "{"):
        items = re.findall(r"""(?:"[^"]*"|'[^']*'|[^,"'\[\]{}])+""", body.replace("\n", " "))
        items = [item.strip() for item in items if item.strip()]
    else:
        items = [re.sub(r"^-\s*", "", line.strip()) for line in body.splitlines()]
    numbered = [re.fullmatch(r"""["']?(\d{1,3})["']?\s*:\s*(\S.*)""", item) for item in items]
    entries = [
        _Entry(match[2], int(match[1])) if match else _Entry(item) for match, item in zip(numbered, items, strict=True)
    ]
    if not entries or (head is None and body[:1] not in ("[", "{")):
        raise ValueError(f"{origin} has no `names`: give the names of the classes with --classes.")
    if any(match is None and re.match(r"[\w\"' ]+:\s", item) for match, item in zip(numbered, items, strict=True)):
        raise ValueError(f"{origin} has `names` in a form that is not known: give them with --classes.")
    return entries


def _of_json(text: str, origin: str) -> list[_Entry]:
    try:
        entries = _of_value(json.loads(text, object_pairs_hook=_known_keys_in_small_letters))
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration, RecursionError):
        entries = []
    if not entries:
        raise ValueError(f"{origin} names no classes in a form that is known: give a list of names with --classes.")
    return entries


_KEYS = {"classes", "categories", "names", "id2label", "label2id", "metainfo", "labels", "palette", "colors",
         "label_map", "segmentation_colors", "title", "name", "label", "id", "index", "color", "colour"}  # fmt: skip


def _known_keys_in_small_letters(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose known keys may be written in capitals; others may be names of classes."""
    found = dict(pairs)
    return {key.lower() if key.lower() in _KEYS and key.lower() not in found else key: v for key, v in found.items()}


def _on_black(entries: list[_Entry]) -> list[_Entry]:
    """Supervisely paints its classes on black, which it does not list, and counts them from 1."""
    if any(entry.number is None for entry in entries):
        entries = [replace(entry, number=None) for entry in entries]
    if any(_spelt(entry.name) == BACKGROUND or entry.colour == (0, 0, 0) for entry in entries):
        return entries
    return [_Entry(BACKGROUND, None if entries[0].number is None else 0, (0, 0, 0)), *entries]


def _of_value(content: Any) -> list[_Entry]:
    if isinstance(content, list):
        entries = [_of_item(item) for item in content]
        return _on_black(entries) if entries and isinstance(content[0], dict) and "title" in content[0] else entries
    for key in ("classes", "categories", "names", "id2label", "label2id", "metainfo", "labels"):
        if isinstance(content.get(key), (list, dict)):
            entries = _of_value(content[key])
            colours = content.get("palette", content.get("colors"))
            return _painted(entries, colours) if key in ("classes", "names") else entries
    if isinstance(content.get("label_map"), dict):  # Datumaro's dataset_meta.json
        return _painted(_of_value(content["label_map"]), content.get("segmentation_colors"))
    if all(re.fullmatch(r"-?\d{1,3}", key) for key in content):
        return [_Entry(str(name), int(number)) for number, name in content.items()]
    entries = [_of_named(name, value) for name, value in content.items()]
    return _on_black(entries) if entries and entries[0].colour is not None else entries


def _of_item(item: Any) -> _Entry:
    if isinstance(item, str):
        return _Entry(item)
    name = next(item[key] for key in ("title", "name", "label") if isinstance(item.get(key), str))
    number = next((item[key] for key in ("id", "index") if type(item.get(key)) is int), None)
    if "title" in item:  # Supervisely's ids are those of its database
        number = None
    colour = item.get("color", item.get("colour"))
    return _Entry(name, number, None if colour is None else _of_named(name, colour).colour)


def _of_named(name: str, value: Any) -> _Entry:
    if type(value) is int:
        return _Entry(name, value)
    if isinstance(value, str):
        return _Entry(name, None, _of_hex(value.removeprefix("#")))
    r, g, b = (int(channel) for channel in value)
    if not all(0 <= channel <= 255 for channel in (r, g, b)):
        raise ValueError
    # Supervisely's machine masks: the label in three equal channels
    return _Entry(name, r if r == g == b and r < IGNORE_LABEL else None, (r, g, b))


def _painted(entries: list[_Entry], colours: Any) -> list[_Entry]:
    if not isinstance(colours, (list, tuple)) or len(colours) != len(entries):
        return entries
    numbers = [k if entry.number is None else entry.number for k, entry in enumerate(entries)]
    return [
        replace(entry, number=number, colour=_of_named("", colour).colour)
        for entry, number, colour in zip(entries, numbers, colours, strict=True)
    ]


def _of_label_map(text: str, origin: str) -> list[_Entry]:
    """A label map of TensorFlow's object detection: items with an id, a name, and often one for display."""
    entries = []
    for item in re.findall(r"\bitem\s*:?\s*\{([^{}]*)\}", re.sub(r"(?m)#.*$", "", text)):
        named = re.findall(r"""\b(id|name|display_name)\s*:\s*(?:"([^"]*)"|'([^']*)'|(-?\d+))""", item)
        given = {key: double or single or number for key, double, single, number in named}
        if not given.get("id") or not (name := given.get("display_name") or given.get("name")):
            raise ValueError(f"{origin} has an item without id or name: {' '.join(item.split())!r}.")
        entries.append(_Entry(name, int(given["id"])))
    if not entries:
        raise ValueError(f"{origin} is no label map: it has no `item {{ id: 1 name: 'cat' }}`.")
    return entries


def _of_python(text: str, origin: str) -> list[_Entry]:
    """METAINFO, CLASSES and PALETTE of an MMSegmentation dataset; nothing is executed."""
    found: dict[str, Any] = {}
    shifted = False
    try:
        for node in ast.walk(ast.parse(text)):
            for name, value in _assignments(node):
                if name.lower() in ("classes", "palette"):
                    found.setdefault(name.lower(), ast.literal_eval(value))
                elif name == "reduce_zero_label":
                    shifted = shifted or ast.literal_eval(value) is True
        entries = [_Entry(str(name)) for name in found["classes"]]
    except (KeyError, TypeError, ValueError, SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"{origin} has no tuple `classes` of names: give the names with --classes.") from None
    entries = _painted(entries, found.get("palette"))
    if shifted:  # There 0 means void, and class k has the number k + 1
        entries = [replace(entry, number=number) for number, entry in enumerate(entries, 1)]
        entries.append(_Entry("void", 0))
    return entries


def _assignments(node: ast.AST) -> Iterable[tuple[str, ast.expr]]:
    if isinstance(node, ast.Assign):
        yield from ((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.Call):
        yield from ((keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg)
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value, value
