"""Seals: which large files stand for the small mask files of a run.

    compacted/run=<run id>/<segment>-<digest>/000-of-003.parquet   the rows of one segment of the manifest
    compacted/run=<run id>/<segment>-<digest>/seal-003.json        written when those three files are there
    compacted/run=<run id>/<segment>-<digest>/alone                from now on the small files do not count (empty: the
                                                                   seal was taken back, and they always will)

The digest is of the names and sizes of the small files that were sealed. A seal holds where the small files that are
there have its digest, where none of the segment is there, and where it is alone; elsewhere the small files count. So
rows that are committed or changed later are never hidden by a copy of what was there before, and nothing has to be
undone. Of several seals of a segment, the last rewriting of it, `<segment>-<digest>-r<number>`, counts: the one that
follows the longest manifest.

A reader lists the small files first and the seals afterwards: small files are removed only once their seal is alone.
Everything is in names, so that two listings tell what a run is made of. `tasks/results/sealing.py` writes them.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tasks import storage
from tasks.errors import JobError
from tasks.storage import Location, StoredFile

ALONE = "alone"
"""Name of the mark that small files do not count any more, or, where it is empty, never may go for this seal."""

TAKEN_BACK = b""
"""What the mark holds where an archive job has taken a copy back."""

_POINTERS = "pointers"  # Where the version before seals wrote what stands for what
_SEAL = re.compile(r"seal-(\d+)\.json")
_LARGE = re.compile(r"\d+-of-(\d+)\.parquet")


@dataclass(frozen=True)
class Seal:
    """The large files of one segment of the manifest."""

    segment: str
    prefix: str
    """Folder of the files."""

    files: tuple[StoredFile, ...]
    """In order; one that is missing has no size."""

    is_alone: bool
    """Whether the small files of the segment do not count, or are gone."""

    revision: int = 0
    """0 as sealed; of large files that were written again the number of segments of the manifest that they follow."""

    is_old: bool = False
    """Whether it is named by a pointer of the version before seals, not by its own files."""


def file_name(number: int, total: int) -> str:
    """Name of a large file."""
    return f"{number:03d}-of-{total:03d}.parquet"


def seal_name(total: int) -> str:
    """Name of the file that seals this many large ones."""
    return f"seal-{total:03d}.json"


def prefix_of(segment: str, digest: str, revision: int = 0) -> str:
    """Folder of a segment's large files."""
    return f"{segment}-{digest}" + (f"-r{revision}" if revision else "")


def parts_of(prefix: str) -> tuple[str, str, int]:
    """Segment, digest and revision of a folder of large files; empty where it is none."""
    pieces = prefix.split("-")
    if len(pieces) not in (3, 4) or not (len(pieces) == 3 or pieces[3][1:].isdecimal()):
        return "", "", 0
    return "-".join(pieces[:2]), pieces[2], int(pieces[3][1:]) if len(pieces) == 4 else 0


def segment_of(name: str) -> str | None:
    """Segment of the manifest that a small file belongs to: `part-<sequence>-<digest>-<part>...`; None for others."""
    pieces = name.split("-")
    return f"{pieces[1]}-{pieces[2]}" if len(pieces) >= 4 and pieces[0] == "part" else None


def digest_of(small: Iterable[StoredFile]) -> str:
    """What small files are, for a seal that stands for them."""
    return digest(sorted((file.path, file.size) for file in small))


def digest(value: object) -> str:
    """Twelve hexadecimal digits of a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def find(folder: Location, small: Mapping[str, Sequence[StoredFile]]) -> dict[str, Seal]:
    """The seals that hold, by segment. folder: of the run's large files. small: the small files of each segment."""
    while True:
        held = by_prefix(folder)
        try:
            candidates = _old_seals(folder, held.pop(_POINTERS, {}), held)
            break
        except FileNotFoundError:
            continue  # A pointer that another has replaced by now
    candidates += [seal for prefix, files in held.items() if (seal := _seal(prefix, files)) is not None]
    found: dict[str, Seal] = {}
    for seal in sorted(candidates, key=lambda s: (s.is_alone, s.revision, s.prefix)):
        there = small.get(seal.segment)
        whole = all(file.size for file in seal.files)
        if seal.is_alone or (whole and (not there or prefix_of(seal.segment, digest_of(there)) == seal.prefix)):
            found[seal.segment] = seal
    return found


def by_prefix(folder: Location) -> dict[str, dict[str, StoredFile]]:
    """Files below the folder of a run's large files by their prefix, then by their name, which is their path."""
    held: dict[str, dict[str, StoredFile]] = {}
    for file in storage.list_files(folder):
        prefix, slash, name = file.path.rpartition("/")
        if slash:
            held.setdefault(prefix, {})[name] = replace(file, path=name)
    return held


def _seal(prefix: str, files: Mapping[str, StoredFile]) -> Seal | None:
    """What the names of a prefix say; None where it is not sealed."""
    totals = [int(found[1]) for name in files if (found := _SEAL.fullmatch(name))]
    is_alone = ALONE in files and files[ALONE].size > 0
    if is_alone and not totals:  # The seal was lost: what stood under it has no other copy
        totals = [int(found[1]) for name in files if (found := _LARGE.fullmatch(name))]
    segment, _, revision = parts_of(prefix)
    if not totals or not segment:
        return None
    names = [file_name(number, totals[0]) for number in range(totals[0])]
    held = tuple(files.get(name, StoredFile(name, 0, "")) for name in names)
    return Seal(segment, prefix, held, is_alone, revision)


def _old_seals(folder: Location, pointers: Iterable[str], held: Mapping[str, Mapping[str, StoredFile]]) -> list[Seal]:
    """What pointers of the version before seals name: of a segment, what the highest revision of any says."""
    segments: dict[str, dict[str, Any]] = {}
    dropped: dict[str, int] = {}
    for name in sorted(pointers):
        place = folder / _POINTERS / name
        data = storage.read_bytes(place)
        try:
            found = json.loads(data)
            for segment, entry in found["segments"].items():
                if segment not in segments or segments[segment]["revision"] < entry["revision"]:
                    segments[segment] = dict(entry)
            for segment, revision in found["dropped"].items():
                dropped[segment] = max(dropped.get(segment, 0), int(revision))
            seals = [
                Seal(
                    segment, entry["prefix"], _listed(held.get(entry["prefix"], {}), entry["files"]), True, is_old=True
                )
                for segment, entry in segments.items()
                if entry["revision"] > dropped.get(segment, 0)
            ]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            # Going on without it would show a run with holes where small files have been removed
            raise JobError(
                f"{place.uri} is not a pointer of ours ({type(error).__name__}): put back a copy of it, or remove it "
                "and run the archive job again, which does its images anew."
            ) from None
    return seals if segments else []


def _listed(files: Mapping[str, StoredFile], named: Iterable[Mapping[str, Any]]) -> tuple[StoredFile, ...]:
    """The files that a pointer names, as they are listed."""
    return tuple(files.get(file["name"], StoredFile(file["name"], 0, "")) for file in named)
