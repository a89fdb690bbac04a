"""What the files of an export are called: short, portable, and one for each image.

A name is the identity without the ending, `dogs/rex.jpg` -> `dogs/rex`. Where two images would share a file, also on a
file system that does not distinguish case or Unicode normalisation, all of them keep their endings; where that is not
enough, they get a digest of their identity. Characters that some file system refuses are written as %XX; what is too
long is cut and gets a digest. Names depend only on the run's identities and on the longest name that the destination
holds, so an export that was ended goes on under the same names.
"""

import collections
import hashlib
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from segcore.images.decoding import EXTENSIONS
from tasks.storage import Location

_NAME_BYTES, _PATH_BYTES = 240, 900
"""Of one part of a path, and of all of it below the destination: file systems hold 255 and 4096, S3 1024."""

_FORBIDDEN = frozenset('<>:"|?*\\\x7f')
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def name_bytes(destination: Location) -> int:
    """Longest name in bytes, without an ending, that a destination holds."""
    if destination.protocol != "file":
        return _NAME_BYTES
    place = Path(destination.path)
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return max(64, min(_NAME_BYTES, os.pathconf(place, "PC_NAME_MAX") - 15))
    except (OSError, ValueError):
        return _NAME_BYTES


def file_names(image_ids: Sequence[str], suffix: str | None, longest: int = _NAME_BYTES) -> dict[str, str]:
    """Relative path of each image's file by its identity, without the suffix.

    suffix: what is appended, ".png"; None: names keep the endings of their identities, and nothing is appended.
    longest: bytes of one part of a path.
    """
    level = dict.fromkeys(image_ids, 0)
    names: dict[str, str] = {}
    asked = list(level)
    for _ in range(4):
        names |= {image_id: _name(image_id, level[image_id], suffix, longest) for image_id in asked}
        keys = {image_id: _key(name + (suffix or "")) for image_id, name in names.items()}
        taken = collections.Counter(keys.values())
        folders = {key[:at] for key in taken for at, character in enumerate(key) if character == "/"}
        asked = [image_id for image_id, key in keys.items() if taken[key] > 1 or key in folders]
        if not asked:
            break
        for image_id in asked:
            level[image_id] += 1
    return names


def _name(image_id: str, level: int, suffix: str | None, longest: int) -> str:
    *folders, last = image_id.split("/")
    parts = []
    for depth, part in enumerate(folders, 1):
        parts.append(_fit(_safe(part), longest, "/".join(folders[:depth])))
    ending = PurePosixPath(last).suffix
    ending = ending if ending.lower() in EXTENSIONS and ending != last else ""
    stem = last[: len(last) - len(ending)]
    if level >= 1 and suffix is not None:
        stem += ending
    tag = f"~{_digest(image_id, 4 * level)}" if level >= 2 else ""
    end = tag + (ending if suffix is None else "")
    name = _fit(_safe(stem), longest - len(end.encode()), image_id) + end
    path = "/".join([*parts, name])
    if len(path.encode()) > _PATH_BYTES:
        path = f"%long/{_fit(_safe(stem), 100, image_id)}~{_digest(image_id, 16)}{ending if suffix is None else ''}"
    return path


def _safe(part: str) -> str:
    """A part of a path with what some file system, or a list of names, cannot hold written as %XX."""
    text = "".join(c if c.isprintable() and c not in _FORBIDDEN else _escaped(c) for c in part)
    if text[:1] in (".", " ", "\N{NO-BREAK SPACE}"):
        text = _escaped(text[0]) + text[1:]
    if text[-1:] in (".", " "):
        text = text[:-1] + _escaped(text[-1])
    if text.partition(".")[0].lower() in _RESERVED:
        text = f"_{text}"
    return text or "%"


def _escaped(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def _fit(part: str, longest: int, of: str) -> str:
    """The part, cut where it is too long, with a digest of what it stands for."""
    if len(part.encode("utf-8", "surrogatepass")) <= longest:
        return part
    digest = f"~{_digest(of, 8)}"
    return part.encode()[: longest - len(digest)].decode(errors="ignore").rstrip(". ") + digest


def _digest(text: str, characters: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:characters]


def _key(name: str) -> str:
    """Equal where some file system takes two names for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
