"""The files of a gallery: one folder that opens from a disk and from a bucket, without server or network.

    index.html               what a person opens; the page itself is tasks/results/report_assets/
    contact-sheet.png        a dozen overlays in one picture
    report.json              what the gallery was made of
    data-<version>/          assets, and scripts with data (a page from a disk may load scripts, not JSON):
        summary.js           the run
        index-<chunk>.js     1,000 images each: what filters and orders need
        items/, thumbs/, photos/   an image each, loaded when it is looked at

A gallery that is made again gets another version, so that no browser mixes two of them; index.html changes last.
"""

import json
import re
from pathlib import Path
from typing import Any

from tasks import storage
from tasks.errors import JobError
from tasks.storage import Location

ASSETS = Path(__file__).parent / "report_assets"
"""The page without data: HTML, CSS, JavaScript."""

_OURS = re.compile(r"(index\.html|report\.json|contact-sheet\.png|data-[0-9a-f]{8}/.*)")


def require_ours(place: Location) -> None:
    """Raise JobError where a folder holds what is no part of a gallery."""
    for file in storage.list_files(place):
        if not _OURS.fullmatch(file.path):
            raise JobError(f"{place.uri} holds {file.path}, which is no part of a gallery: give an empty folder.")


def remove_older(place: Location, version: str) -> None:
    """Remove the data of every other version."""
    older = {f.path.partition("/")[0] for f in storage.list_files(place) if f.path.startswith("data-")} - {version}
    for name in sorted(older):
        storage.remove_folder(place / name)


def write_script(place: Location, call: str, value: Any) -> None:
    """Write a script that hands a JSON value to the page. call: its beginning, "archive.item(7,"."""
    # ASCII: the names of other people's files stay data, whatever they hold
    write_file(place, f"{call}{json.dumps(value, separators=(',', ':'))});\n".encode("ascii"), "text/javascript")


def write_file(place: Location, data: bytes, content_type: str) -> None:
    """Write one file, whole; it can be made again, so nothing waits for the disk."""
    storage.write_whole(place, data, durable=False, content_type=content_type)
