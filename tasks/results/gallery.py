"""Making a gallery: its images, then the data about them, then the page that shows both."""

import base64
import contextlib
import datetime
import io
import json
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from segcore.images.pictures import contact_sheet
from tasks import storage
from tasks.results.gallery_files import ASSETS, remove_older, require_ours, write_file, write_script
from tasks.results.gallery_images import Gallery, write_images
from tasks.results.gallery_summary import CLASS_FLOOR, classes_of
from tasks.results.photographs import Photographs
from tasks.results.reading import Results
from tasks.results.truth import Truth
from tasks.storage import Location

CHUNK_IMAGES = 1000
"""Images of one index script."""

SHEET_IMAGES = 12
"""Images of the contact sheet at most."""

SHEET = "contact-sheet.png"
"""A dozen overlays in one picture, beside the page."""

_SHOWN_SHEET_PX = 900


@dataclass
class GalleryReport:
    """What was made."""

    run_id: str
    index: str
    """The page to open."""

    address: str
    """The same for a browser."""

    sheet: str | None
    """The picture for a terminal's user; None where no mask is shown."""

    shown: int
    matching: int
    """Images that the condition selects."""

    query: str
    """Selects the images that are shown."""

    photographs_missing: int = 0
    seconds: float = 0.0


def markdown(index: str, masks: int) -> str:
    """A gallery for a place that shows Markdown and runs no page: its contact sheet inside, and where the gallery is.

    index: its page. A web page may not link to files, so a gallery on a disk is named by its path, to be copied.
    """
    address = storage.web_address(storage.locate(index))
    at_hand = f"[{index}]({address})" if address.startswith("http") else f"`{index}`"
    lines = [f"# Gallery of {masks:,} masks", "", f"Open in a browser: {at_hand}", ""]
    with contextlib.suppress(FileNotFoundError):
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(storage.read_bytes(storage.locate(index.rpartition("/")[0]) / SHEET))) as sheet:
            sheet.thumbnail((_SHOWN_SHEET_PX, 2 * _SHOWN_SHEET_PX))
            sheet.convert("RGB").save(buffer, format="JPEG", quality=80)
        lines.append(f"![Contact sheet](data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()})")
    return "\n".join(lines) + "\n"


def write_gallery(
    results: Results,
    rows: Iterable[dict[str, Any]],
    num_images: int,
    place: Location,
    summary: dict[str, Any],
    advance: Callable[[int, int], None] | None,
    truth: Truth | None = None,
) -> GalleryReport:
    """Write a gallery, in the place of one that is there.

    rows: of the images to show, num_images of them, with their masks. summary: what the page says of them, with what
    `about_run` says; the classes and counts of what is shown are added. advance: told how many images are done.
    truth: masks to show beside those of the rows.
    Raises JobError where the folder holds something else.
    """
    start = time.monotonic()
    with storage.explained(place):
        require_ours(place)
        storage.require_writable(place)
        version = f"data-{uuid.uuid4().hex[:8]}"
        folder = place / version
        sheet = frozenset(np.linspace(0, num_images - 1, 2 * SHEET_IMAGES).astype(int).tolist())
        gallery = Gallery(results, Photographs(results), sheet, folder, truth)
        done = write_images(gallery, rows, num_images, advance)
        classes: dict[int, str] = {}
        for image in done:
            classes |= image.classes
        entries = [image.entry for image in done]
        own = results.record.get("class_colours") or ()
        chunks = [entries[first : first + CHUNK_IMAGES] for first in range(0, len(entries), CHUNK_IMAGES)]
        for number, chunk in enumerate(chunks):
            write_script(folder / f"index-{number:03d}.js", f"archive.index({number},", chunk)
        summary |= {
            "shown": len(entries),
            "chunks": len(chunks),
            "chunk_images": CHUNK_IMAGES,
            "floor": CLASS_FLOOR,
            "truths": sum(image.has_truth for image in done),
            "before_available": any(image.has_before for image in done),
            "classes": classes_of(classes, summary.pop("class_counts"), entries, own),
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        }
        write_script(folder / "summary.js", "archive.summary(", summary)
        for name, kind in (("report.css", "text/css"), ("report.js", "text/javascript")):
            write_file(folder / name, (ASSETS / name).read_bytes(), kind)
        pictures = [image.picture for image in done if image.picture is not None]
        pictures = pictures[:: max(1, round(len(pictures) / SHEET_IMAGES))][:SHEET_IMAGES]
        if pictures:
            buffer = io.BytesIO()
            contact_sheet(pictures, own).save(buffer, format="PNG", compress_level=1)
            write_file(place / SHEET, buffer.getvalue(), "image/png")
        facts = {"run_id": results.run_id, "shown": len(entries), "query": summary["query"], "folder": version}
        write_file(place / "report.json", f"{json.dumps(facts, indent=1)}\n".encode(), "application/json")
        page = (ASSETS / "index.html").read_text("utf-8").replace("DATA_FOLDER", version)
        write_file(place / "index.html", page.encode(), "text/html; charset=utf-8")
        remove_older(place, version)
    index = place / "index.html"
    return GalleryReport(
        run_id=results.run_id,
        index=index.uri,
        address=storage.web_address(index),
        sheet=(place / SHEET).uri if pictures else None,
        shown=len(entries),
        matching=len(entries),
        query=summary["query"],
        photographs_missing=sum(image.missing for image in done),
        seconds=time.monotonic() - start,
    )
