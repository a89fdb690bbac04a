"""Brings the published archives: from mirrors in turn, from a file or folder at hand, from a bucket; proven before use.

What stays after a stop is continued; what was fetched is not fetched again. How one file comes over HTTP is in
`download.py`.
"""

import hashlib
import shutil
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tasks import progress, storage
from tasks.download import BrokenOffError, Expected, download
from tasks.errors import JobError
from tasks.storage import Location

MIRRORS = Path(__file__).with_name("mirrors.toml")

_STALLS = 3
_FIRST_WAIT_S = 1.0
_PIECE_BYTES = 32 << 20
_SPARE_BYTES = 200_000_000


class Published(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """One archive of the configuration file."""

    name: str
    """For people."""

    file: str
    """File name of the archive."""

    md5: str
    """Published checksum, in hexadecimal digits."""

    bytes: int | None = None
    """Exact size where it is published."""

    about_bytes: int = 0
    """Size for the check of the disk space, where the exact one is not published."""

    unpacked_bytes: int = 0
    """Size of what is taken out of it, for the check of the disk space."""

    terms: str = ""
    """Under what terms it may be used."""

    mirrors: list[str]
    """URLs, tried in turn."""


@dataclass(frozen=True)
class Fetched:
    """An archive or a folder at hand."""

    archive: Path | None
    """A local archive whose checksum is right."""

    folder: Location | None
    """A folder that somebody has unpacked; its contents are not proven."""

    origin: dict[str, str]
    """For the provenance: what it is and its checksum."""


def read_mirrors(path: Path = MIRRORS) -> dict[str, Published]:
    """Archives by short name. Raises JobError that names file and culprit."""
    published = {}
    try:
        for name, values in tomllib.loads(path.read_text(encoding="utf-8")).items():
            published[name] = Published.model_validate(values)
    except FileNotFoundError:
        raise JobError(f"{path} does not exist; it should list the mirrors, as {MIRRORS.name} does.") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise JobError(f"{path.name}: {'.'.join(map(str, (name, *first['loc'])))}: {first['msg']}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise JobError(f"{path.name} is no TOML file: {error}.") from None
    if missing := {"voc", "sbd"} - published.keys():
        raise JobError(f"{path.name} has no entry {' and '.join(sorted(missing))}.")
    return published


def fetch(published: Published, given: str | None, work: Path, *, room_for: int = 0) -> Fetched:
    """The archive at hand, or the folder that is given instead.

    given: None: mirrors; else a URL, a local archive or folder, or an object or prefix in a bucket.
    work: where downloads are kept. room_for: bytes that are needed on its disk besides the archive.
    Raises JobError in one sentence that tells what every mirror said.
    """
    proven = {"archive": published.file, "md5": published.md5}
    if given is None or given.startswith(("http://", "https://")):
        urls = published.mirrors if given is None else [given]
        return Fetched(_from_mirrors(published, urls, work, room_for), None, proven)
    place = storage.locate(given)
    with storage.explained(place):
        if storage.is_file(place):
            archive = Path(place.path) if place.protocol == "file" else _from_bucket(published, place, work, room_for)
            _prove(archive, published, work)
            return Fetched(archive, None, proven)
        if next(storage.list_files(place), None) is None:
            raise JobError(f"{place.uri} does not exist, or is an empty folder: give the archive {published.file}.")
    return Fetched(None, place, {"folder": place.name})


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise JobError where the disk of a folder has less than this many bytes free, with some to spare."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < needed + _SPARE_BYTES:
        raise JobError(
            f"{purpose} needs {_size(needed + _SPARE_BYTES)}, the disk of {existing} has {_size(free)} free: "
            "make room, or name another disk with --work."
        )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def _from_mirrors(published: Published, urls: list[str], work: Path, room_for: int) -> Path:
    target = work / published.file
    if target.is_file():
        _prove(target, published, work)
        return target
    partial = target.with_name(f"{target.name}.part")
    size = published.bytes or published.about_bytes
    have = partial.stat().st_size if partial.exists() else 0
    require_space(work, max(0, size - have) + room_for, f"{published.name} and its contents")
    said = []
    for url in urls:
        progress.say(f"{published.name}: fetching {url}" + (f", {have / 1e6:,.0f} MB are here" if have else ""))
        try:
            _persistently(url, target, published)
            (work / f"{published.file}.proven").write_text(_stamp(target, published.md5))
            return target
        except (ValueError, OSError) as error:
            said.append(str(error).removesuffix("."))
            progress.say(f"{published.name}: {error}")
    raise JobError(
        f"{published.name}: {'; '.join(said)}. The official hosts are often down: bring {published.file} (md5 "
        f"{published.md5}) and name it with --voc or --sbd, or run the same command later: it continues."
    )


def _persistently(url: str, target: Path, published: Published) -> None:
    """Fetch from one server, again where it breaks off, as long as something comes."""
    expected = Expected(published.md5, published.bytes)
    partial = target.with_name(f"{target.name}.part")
    stalls, begun_elsewhere = 0, partial.exists()
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            with progress.measured(published.file, published.bytes or published.about_bytes or None, "bytes") as tell:
                download(url, target, progress=lambda done, _: tell(done), expected=expected, otherwise="")
            return
        except BrokenOffError as error:
            after = partial.stat().st_size if partial.exists() else 0
            stalls = 0 if after > before else stalls + 1
            if stalls >= _STALLS or (stalls and not after and "refused" in str(error).lower()):
                raise
            time.sleep(_FIRST_WAIT_S * stalls)
        except ValueError:
            # A beginning of another session or server may be what was wrong: once more from the start
            if not begun_elsewhere or partial.exists():
                raise
            begun_elsewhere = False


def _from_bucket(published: Published, place: Location, work: Path, room_for: int) -> Path:
    """Copy an object piece by piece; goes on where it stopped while the object is the same."""
    target = work / published.file
    if target.is_file():
        return target
    work.mkdir(parents=True, exist_ok=True)
    partial, tag = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.tag")
    listed = storage.stat(place)
    name = f"{place.uri}\n{listed.version} {listed.size}"
    have = partial.stat().st_size if partial.exists() and tag.exists() and tag.read_text() == name else 0
    require_space(work, listed.size - have + room_for, f"{published.name} and its contents")
    tag.write_text(name)
    with (
        progress.measured(published.file, listed.size, "bytes") as tell,
        partial.open("r+b" if have else "wb") as file,
    ):
        file.seek(have)
        while have < listed.size:
            piece = storage.read_range(place, have, _PIECE_BYTES)
            if not piece:
                raise JobError(f"{place.uri} ends after {have} of {listed.size} bytes: it was replaced; run again.")
            file.write(piece)
            have += len(piece)
            tell(have)
    partial.rename(target)
    tag.unlink()
    return target


def _prove(archive: Path, published: Published, work: Path) -> None:
    """Raise JobError unless the archive is the published one; remembered until the file changes."""
    proven = work / f"{published.file}.proven"
    stamp = _stamp(archive, published.md5)
    if proven.is_file() and proven.read_text() == stamp:
        return
    progress.say(f"{published.name}: checking {archive}")
    with archive.open("rb") as content:
        found = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != published.md5:
        ours = archive.parent == work
        if ours:
            archive.unlink()
        remedy = (
            "it was removed; run again" if ours else "bring it anew, or unpack it and give the folder if you trust it"
        )
        raise JobError(
            f"{archive} has md5 {found}, {published.md5} was published: it is cut, damaged or another file; {remedy}."
        )
    work.mkdir(parents=True, exist_ok=True)
    proven.write_text(stamp)


def _stamp(archive: Path, md5: str) -> str:
    status = archive.stat()
    return f"{archive} {status.st_size} {status.st_mtime_ns} {md5}"


def describe(origin: dict[str, Any]) -> str:
    """Where something came from, in a few words."""
    return origin.get("archive") or f"folder {origin.get('folder')}"
