"""Lists of images: files of ids, names or paths, in the forms in which other tools write them."""

import contextlib
import json
import re
import urllib.parse
from collections.abc import Callable

from segcore.datasets.class_lists import decode_text
from segcore.datasets.pair_check import Finding, Kind
from tasks import storage
from tasks.datasets.layout import LISTS, SPLITS, Layout, ending_of, relative
from tasks.datasets.names import COUNT_COLUMN
from tasks.errors import JobError
from tasks.storage import Location, StoredFile

_LIST_NAME = re.compile(
    rf"({'|'.join(SPLITS)})(?:[._ -]?(?:list|ids|set|files))?\.(?:txt|csv|lst|jsonl)", re.IGNORECASE
)
_LIST_ENDINGS = (".txt", ".csv", ".lst", ".jsonl")
_HEAD = re.compile(r"(?:images?|img|file|mask|label|annotation|name|id|path|[\s_,;])+", re.IGNORECASE)


def list_files(
    folder: Location, files: dict[str, StoredFile], base: str, lists: dict[str, str] | None
) -> dict[str, Location]:
    if lists is None:
        official = [p for p in files if p.lower().startswith(f"{base}{LISTS}/".lower())]
        official = [p for p in official if p.count("/") == base.count("/") + 2 and ending_of(p) in _LIST_ENDINGS]
        beside = [p for p in files if p.startswith(base) and _LIST_NAME.fullmatch(p.removeprefix(base))]
        found: dict[str, Location] = {}
        for path in sorted(official) or sorted(beside):
            name = path.rpartition("/")[2]
            match = None if official else _LIST_NAME.fullmatch(name)
            plain = match[1] if match else name.rpartition(".")[0]
            split = SPLITS.get(plain.lower(), plain)
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


def read_list(place: Location, name: str, resolve: Callable[[str], str | None], layout: Layout) -> list[str]:
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


def _without_index(lines: list[str], resolve: Callable[[str], str | None]) -> list[str]:
    """Lines of a table without the column that counts them, where there is one; images may be named by numbers too."""
    matches = [COUNT_COLUMN.match(line) for line in lines]
    start = 0 if matches and matches[0] else 1  # Behind a line that names the columns
    numbers = [int(re.sub(r"\D", "", match[0])) for match in matches[start:] if match]
    counted = len(numbers) == len(lines) - start > 0 and numbers in (
        [*range(len(numbers))],
        [*range(1, len(numbers) + 1)],
    )
    rest = [line[match.end() :] if match else line for line, match in zip(lines, matches, strict=True)]
    return rest[start:] if counted and all(resolve(line) is not None for line in rest[start:]) else lines
