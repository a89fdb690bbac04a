"""The class files of labelling tools: names, with the numbers and colours that they give.

Read are lists of names, numbered lists, tables with colours (CVAT's labelmap.txt, CamVid's label_colors.txt, CSV), JSON
(Supervisely, Datumaro, COCO, Label Studio), `names` in YAML (Ultralytics, Roboflow), TensorFlow's .pbtxt and the
METAINFO of MMSegmentation. What label each class gets is decided in `label_set.py`.
"""

import ast
import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from segcore.voc import IGNORE_LABEL

Colour = tuple[int, int, int]

_BACKGROUND_NAMES = frozenset(("background", "_background_", "__background__", "__bg__", "bg"))
BACKGROUND = "background"
"""The one spelling of it here, whatever a tool writes."""


@dataclass(frozen=True)
class Entry:
    """One class as a file has it."""

    name: str
    number: int | None = None
    colour: Colour | None = None


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


def entries_of(text: str, origin: str) -> list[Entry]:
    """The classes that a file names, in its order. Raises ValueError that names file and line.

    origin: name of the file; .json, .yaml, .py and .pbtxt are read as such, everything else line by line.
    """
    text = text.removeprefix("\ufeff")
    if origin.lower().endswith(".json"):
        return _of_json(text, origin)
    if origin.lower().endswith((".yaml", ".yml")):
        return _of_yaml(text, origin)
    if origin.lower().endswith(".py"):
        return _of_python(text, origin)
    if origin.lower().endswith(".pbtxt"):
        return _of_label_map(text, origin)
    return _of_lines(text, origin)


def spelt(name: str) -> str:
    name = name.strip().strip("\"'").strip()
    return BACKGROUND if name.casefold() in _BACKGROUND_NAMES else name


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


def _of_lines(text: str, origin: str) -> list[Entry]:
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
        return [Entry(name) for name in re.split(r"[,;]", plain[0]) if name.strip()]
    numbered = [match for line in plain if (match := _NUMBERED.fullmatch(line))]
    if len(numbered) * 2 > len(plain) and _taken(numbered) is not None:
        number, line = next(entry for entry in lines if not _NUMBERED.fullmatch(entry[1]))
        raise ValueError(f"{origin}, line {number}: {line!r} has no number, most other lines have: number all or none.")
    return [Entry(line.rstrip(",;")) for line in plain]


def _has_bracketed_colour(line: str) -> bool:
    """Whether a line is of the form `Animal (64, 128, 64)`."""
    return re.search(r"[\[(]\s*\d+\s*[, ]\s*\d+\s*[, ]\s*\d+\s*[\])]", line) is not None


def _of_cvat(origin: str, number: int, line: str) -> Entry:
    match = _CVAT.fullmatch(line)
    colour = None if match is None else _colour(match.groupdict())
    if match is None or colour is None:
        raise ValueError(
            f"{origin}, line {number}: {line!r} is not name:red,green,blue with 0 to 255, nor name:#rrggbb."
        )
    return Entry(match["name"], None, colour)


def _of_table(lines: list[str]) -> list[Entry] | None:
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
        entries.append(Entry(cells["name"], None if number is None else int(number), _colour(cells)))
    return entries


def _taken(matches: list[re.Match[str]]) -> list[Entry] | None:
    """What a form makes of all lines; None where that cannot be meant: twice one number, one name, no colour."""
    entries = []
    for groups in (match.groupdict() for match in matches):
        number = groups.get("number")
        has_colour = groups.get("r") is not None or groups.get("hex") is not None
        colour = _colour(groups)
        if has_colour and colour is None:
            return None
        entries.append(Entry(groups["name"], None if number is None else int(number), colour))
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


def _of_yaml(text: str, origin: str) -> list[Entry]:
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
        Entry(match[2], int(match[1])) if match else Entry(item) for match, item in zip(numbered, items, strict=True)
    ]
    if not entries or (head is None and body[:1] not in ("[", "{")):
        raise ValueError(f"{origin} has no `names`: give the names of the classes with --classes.")
    if any(match is None and re.match(r"[\w\"' ]+:\s", item) for match, item in zip(numbered, items, strict=True)):
        raise ValueError(f"{origin} has `names` in a form that is not known: give them with --classes.")
    return entries


def _of_json(text: str, origin: str) -> list[Entry]:
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


def _on_black(entries: list[Entry]) -> list[Entry]:
    """Supervisely paints its classes on black, which it does not list, and counts them from 1."""
    if any(entry.number is None for entry in entries):
        entries = [replace(entry, number=None) for entry in entries]
    if any(spelt(entry.name) == BACKGROUND or entry.colour == (0, 0, 0) for entry in entries):
        return entries
    return [Entry(BACKGROUND, None if entries[0].number is None else 0, (0, 0, 0)), *entries]


def _of_value(content: Any) -> list[Entry]:
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
        return [Entry(str(name), int(number)) for number, name in content.items()]
    entries = [_of_named(name, value) for name, value in content.items()]
    return _on_black(entries) if entries and entries[0].colour is not None else entries


def _of_item(item: Any) -> Entry:
    if isinstance(item, str):
        return Entry(item)
    name = next(item[key] for key in ("title", "name", "label") if isinstance(item.get(key), str))
    number = next((item[key] for key in ("id", "index") if type(item.get(key)) is int), None)
    if "title" in item:  # Supervisely's ids are those of its database
        number = None
    colour = item.get("color", item.get("colour"))
    return Entry(name, number, None if colour is None else _of_named(name, colour).colour)


def _of_named(name: str, value: Any) -> Entry:
    if type(value) is int:
        return Entry(name, value)
    if isinstance(value, str):
        return Entry(name, None, _of_hex(value.removeprefix("#")))
    r, g, b = (int(channel) for channel in value)
    if not all(0 <= channel <= 255 for channel in (r, g, b)):
        raise ValueError
    # Supervisely's machine masks: the label in three equal channels
    return Entry(name, r if r == g == b and r < IGNORE_LABEL else None, (r, g, b))


def _painted(entries: list[Entry], colours: Any) -> list[Entry]:
    if not isinstance(colours, (list, tuple)) or len(colours) != len(entries):
        return entries
    numbers = [k if entry.number is None else entry.number for k, entry in enumerate(entries)]
    return [
        replace(entry, number=number, colour=_of_named("", colour).colour)
        for entry, number, colour in zip(entries, numbers, colours, strict=True)
    ]


def _of_label_map(text: str, origin: str) -> list[Entry]:
    """A label map of TensorFlow's object detection: items with an id, a name, and often one for display."""
    entries = []
    for item in re.findall(r"\bitem\s*:?\s*\{([^{}]*)\}", re.sub(r"(?m)#.*$", "", text)):
        named = re.findall(r"""\b(id|name|display_name)\s*:\s*(?:"([^"]*)"|'([^']*)'|(-?\d+))""", item)
        given = {key: double or single or number for key, double, single, number in named}
        if not given.get("id") or not (name := given.get("display_name") or given.get("name")):
            raise ValueError(f"{origin} has an item without id or name: {' '.join(item.split())!r}.")
        entries.append(Entry(name, int(given["id"])))
    if not entries:
        raise ValueError(f"{origin} is no label map: it has no `item {{ id: 1 name: 'cat' }}`.")
    return entries


def _of_python(text: str, origin: str) -> list[Entry]:
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
        entries = [Entry(str(name)) for name in found["classes"]]
    except (KeyError, TypeError, ValueError, SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"{origin} has no tuple `classes` of names: give the names with --classes.") from None
    entries = _painted(entries, found.get("palette"))
    if shifted:  # There 0 means void, and class k has the number k + 1
        entries = [replace(entry, number=number) for number, entry in enumerate(entries, 1)]
        entries.append(Entry("void", 0))
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
