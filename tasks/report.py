"""The gallery of a run: one folder of static files that opens from a disk and from a bucket, without server or network.

    index.html               what a person opens; the page itself is tasks/report_assets/
    contact-sheet.png        a dozen overlays in one picture
    report.json              what the gallery was made of
    data-<version>/          assets, and scripts with data (a page from a disk may load scripts, not JSON):
        summary.js           the run
        index-<chunk>.js     1,000 images each: what filters and orders need
        items/, thumbs/, photos/   an image each, loaded when it is looked at

A gallery that is made again gets another version, so that no browser mixes two of them; index.html changes last.
"""

import base64
import collections
import datetime
import io
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import annotated_types
import numpy as np
from PIL import Image
from pydantic import BaseModel

from segcore.images import ImageError, decode, fit_long_side, resize_labels
from segcore.masks import decode_mask
from segcore.pictures import contact_sheet
from segcore.rle import encode_runs
from segcore.voc import palette
from tasks import query, storage
from tasks.compare import diff_folder, diff_runs
from tasks.errors import JobError
from tasks.photographs import Photographs
from tasks.results import Results, open_results
from tasks.storage import Location

MOST_IMAGES = 10_000
"""Images of one gallery at most: what stays fluid in a browser, in a folder that can still be copied."""

CHUNK_IMAGES = 1000
"""Images of one index script."""

_THUMB_SIDE_PX = 360
_PHOTO_SIDE_PX = 960
_JPEG_QUALITY = 82
_BATCH_IMAGES = 16
_SHEET_IMAGES = 12
_WORKERS = min(16, 2 * len(os.sched_getaffinity(0)))
_ASSETS = Path(__file__).parent / "report_assets"
_OURS = re.compile(r"(index\.html|report\.json|contact-sheet\.png|data-[0-9a-f]{8}/.*)")
_COLUMNS = ["image_id", "uri", "source_size", "width", "height", "mask", "mask_before_crf", "mask_width", "mask_height"]
_COLUMNS += ["classes", "confidence", "entropy", "changed_by_crf", "device", "error_kind", "error"]


class ReportJob(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Which images to show, and where."""

    output: str
    """URI of the results."""

    run: str | None = None
    """Run to show; by default the one that finished last."""

    to: str | None = None
    """Folder of the gallery; by default report/run=<run id> of the output."""

    images: Annotated[int, annotated_types.Ge(1)] = 1000
    """Images to show; 10,000 at most."""

    where: str | None = None
    """Condition on the view images, in SQL; by default all."""

    order: str | None = None
    """Which images come first where there are more, in SQL; by default a sample by their identities."""


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


@dataclass
class _Gallery:
    """What the images of a gallery have in common."""

    results: Results
    photographs: Photographs
    sheet: frozenset[int]
    """Numbers of the images on the contact sheet."""

    folder: Location
    """The versioned folder."""


@dataclass
class _Done:
    """One image after its files are written."""

    number: int
    entry: list[Any]
    """Its row of the index."""

    missing: bool
    has_before: bool
    """Whether there is a second mask to compare with."""

    picture: tuple[np.ndarray, np.ndarray, str] | None = None
    classes: dict[int, str] = field(default_factory=dict)


def gallery_folder(output: Location, run_id: str) -> Location:
    """Where the gallery of a run is by default."""
    return output / "report" / f"run={run_id}"


def build_report(job: ReportJob, advance: Callable[[int, int], None] | None = None) -> GalleryReport:
    """Make the gallery of a run, or make it anew. advance: told how many images are done, of how many.

    Raises JobError where the run has no such images, or the folder holds something else.
    """
    output = storage.locate(job.output)
    with storage.explained(output):
        results = open_results(job.output, job.run)
        asked, selecting = min(job.images, MOST_IMAGES), f" WHERE {job.where}" if job.where else ""
        sql = f"SELECT image_id FROM images{selecting} ORDER BY {job.order or 'md5(image_id)'} LIMIT {asked}"
        ids = [row[0] for row in query.ask(job.output, sql, results.run_id).rows()]
        [(matching,)] = query.ask(job.output, f"SELECT count(*) FROM images{selecting}", results.run_id).rows()
    if not ids:
        raise JobError(f"No image of run {results.run_id} fits the condition {job.where!r}.")
    notice = ""
    if matching > len(ids):
        capped = f" A gallery holds {MOST_IMAGES:,} at most." if job.images > MOST_IMAGES else ""
        how = "those that come first" if job.order else "a sample of all"
        notice = f"{len(ids):,} of {matching:,} images are shown: {how}.{capped} This query selects them:"
    summary = {
        "kind": "run",
        "title": _title(results),
        "layers": {"mask": "After the CRF", "before": "Before the CRF", "changes": "Changed by the CRF"},
        "changed": "Changed by CRF",
        "notice": notice,
        "query": sql,
        "again": _command(job),
        "matching": matching,
        **_about(results),
    }
    place = storage.locate(job.to) if job.to else gallery_folder(output, results.run_id)
    rows = results.rows_of(ids, _COLUMNS)
    report = _build(results, rows, len(ids), place, summary, advance)
    report.matching, report.query = matching, sql
    return report


def build_diff_report(
    output: str, run_a: str, run_b: str, *, images: int = 200, advance: Callable[[int, int], None] | None = None
) -> tuple[Any, GalleryReport | None]:
    """Compare two runs and make a gallery of the images that changed most.

    Returns the `tasks.compare.DiffReport`, and the gallery; None where nothing differs.
    """
    report = diff_runs(output, run_a, run_b, most=min(images, MOST_IMAGES), advance=advance)
    if not report.changed_most:
        return report, None
    first, second = open_results(output, report.run_a), open_results(output, report.run_b)
    rank = {image_id: number for number, (image_id, _) in enumerate(report.changed_most)}
    before = {row["image_id"]: row["mask"] for row in first.rows_of(list(rank), ["image_id", "mask"])}

    def rows() -> Iterator[dict[str, Any]]:
        found = {row["image_id"]: row for row in second.rows_of(list(rank), _COLUMNS)}
        for image_id, share in report.changed_most:
            yield found[image_id] | {"mask_before_crf": before[image_id], "changed_by_crf": share}

    about = _about(second)
    about["facts"] = [
        ["Run A", f"{report.run_a}, {first.record.get('model')}"],
        ["Run B", f"{report.run_b}, {second.record.get('model')}"],
        ["Images with a mask in both", f"{report.images:,}"],
        ["Equal in every pixel", f"{report.equal:,}"],
        ["Pixels with the same label", f"{report.agreement:.2%}"],
    ]
    about["agreement"] = [[name, agreement.agreement] for name, agreement in report.classes.items()]
    summary = {
        "kind": "diff",
        "title": f"{report.run_a} against {report.run_b}",
        "layers": {"mask": "Run B", "before": "Run A", "changes": "Where they differ"},
        "changed": "Differs",
        "notice": f"The {len(rank):,} images that changed most between run A ({report.run_a}) and B ({report.run_b}).",
        "query": f"SELECT * FROM '{report.folder}/images.parquet' ORDER BY disagreement DESC LIMIT {len(rank)}",
        "again": f"segment-archive diff {output} {report.run_a} {report.run_b}",
        "matching": report.images - report.equal,
        **about,
    }
    folder = diff_folder(storage.locate(output), report.run_a, report.run_b) / "gallery"
    with storage.explained(folder):
        return report, _build(second, rows(), len(rank), folder, summary, None)


def _build(
    results: Results,
    rows: Iterable[dict[str, Any]],
    num_images: int,
    place: Location,
    summary: dict[str, Any],
    advance: Callable[[int, int], None] | None,
) -> GalleryReport:
    start = time.monotonic()
    with storage.explained(place):
        _require_ours(place)
        storage.require_writable(place)
        version = f"data-{uuid.uuid4().hex[:8]}"
        folder = place / version
        sheet = frozenset(np.linspace(0, num_images - 1, 2 * _SHEET_IMAGES).astype(int).tolist())
        gallery = _Gallery(results, Photographs(results), sheet, folder)
        done = _write_images(gallery, rows, num_images, advance)
        classes: dict[int, str] = {}
        for image in done:
            classes |= image.classes
        entries = [image.entry for image in done]
        chunks = [entries[first : first + CHUNK_IMAGES] for first in range(0, len(entries), CHUNK_IMAGES)]
        for number, chunk in enumerate(chunks):
            _write_script(folder / f"index-{number:03d}.js", f"archive.index({number},", chunk)
        summary |= {
            "shown": len(entries),
            "chunks": len(chunks),
            "chunk_images": CHUNK_IMAGES,
            "before_available": any(image.has_before for image in done),
            "classes": _classes(classes, summary.pop("class_counts"), entries),
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        }
        _write_script(folder / "summary.js", "archive.summary(", summary)
        for name, kind in (("report.css", "text/css"), ("report.js", "text/javascript")):
            _write(folder / name, (_ASSETS / name).read_bytes(), kind)
        pictures = [image.picture for image in done if image.picture is not None]
        pictures = pictures[:: max(1, round(len(pictures) / _SHEET_IMAGES))][:_SHEET_IMAGES]
        if pictures:
            buffer = io.BytesIO()
            contact_sheet(pictures).save(buffer, format="PNG")
            _write(place / "contact-sheet.png", buffer.getvalue(), "image/png")
        facts = {"run_id": results.run_id, "shown": len(entries), "query": summary["query"], "folder": version}
        _write(place / "report.json", f"{json.dumps(facts, indent=1)}\n".encode(), "application/json")
        page = (_ASSETS / "index.html").read_text("utf-8").replace("DATA_FOLDER", version)
        _write(place / "index.html", page.encode(), "text/html; charset=utf-8")
        _remove_older(place, version)
    index = place / "index.html"
    return GalleryReport(
        run_id=results.run_id,
        index=index.uri,
        address=storage.web_address(index),
        sheet=(place / "contact-sheet.png").uri if pictures else None,
        shown=len(entries),
        matching=len(entries),
        query=summary["query"],
        photographs_missing=sum(image.missing for image in done),
        seconds=time.monotonic() - start,
    )


def _write_images(
    gallery: _Gallery, rows: Iterable[dict[str, Any]], num_images: int, advance: Callable[[int, int], None] | None
) -> list[_Done]:
    done: list[_Done] = []
    with ThreadPoolExecutor(_WORKERS) as pool:
        waiting: collections.deque[Future[list[_Done]]] = collections.deque()

        def finish_one() -> None:
            done.extend(waiting.popleft().result())
            if advance is not None:
                advance(len(done), num_images)

        batch: list[tuple[int, dict[str, Any]]] = []
        for number, row in enumerate(rows):
            batch.append((number, row))
            if len(batch) == _BATCH_IMAGES:
                waiting.append(pool.submit(_write_batch, gallery, batch))
                batch = []
            if len(waiting) > _WORKERS + 2:
                finish_one()
        if batch:
            waiting.append(pool.submit(_write_batch, gallery, batch))
        while waiting:
            finish_one()
    return done


def _write_batch(gallery: _Gallery, batch: Sequence[tuple[int, dict[str, Any]]]) -> list[_Done]:
    photographs = gallery.photographs.read([row for _, row in batch])
    return [_write_image(gallery, n, row, data) for (n, row), (_, data) in zip(batch, photographs, strict=True)]


def _write_image(gallery: _Gallery, number: int, row: dict[str, Any], data: bytes | ImageError) -> _Done:
    name = f"{number // 1000:03d}/{number:06d}"
    image, why = _decode(data)
    labels = None if row["mask"] is None else decode_mask(row["mask"])
    if image is not None:
        _write_jpeg(gallery.folder / f"photos/{name}.jpg", image)
        _write_jpeg(gallery.folder / f"thumbs/{name}.jpg", _smaller(image, _THUMB_SIDE_PX))
        height, width = image.shape[:2]
    elif labels is not None:
        width, height = fit_long_side(labels.shape[1], labels.shape[0], _PHOTO_SIDE_PX)
    else:
        width, height = 4, 3
    item: dict[str, Any] = {
        "uri": row["uri"],
        "bytes": row["source_size"],
        "size": [row["width"], row["height"]],
        "mask_size": [row["mask_width"], row["mask_height"]],
        "shown": [width, height],
        "device": row["device"],
        "photo": why,
        "error": row["error"],
        "classes": [
            [c["index"], c["pixels"], _rounded(c["confidence"]), [c["box"][side] for side in ("x0", "y0", "x1", "y1")]]
            for c in row["classes"] or ()
        ],
    }
    if labels is not None:
        shown = resize_labels(labels, width, height)
        item["mask"] = _runs(shown)
        if row["mask_before_crf"] is not None:
            item["before"] = _runs(resize_labels(decode_mask(row["mask_before_crf"]), width, height))
    _write_script(gallery.folder / f"items/{name}.js", f"archive.item({number},", item)
    area = max(1, (row["mask_width"] or 0) * (row["mask_height"] or 0))
    entry = [
        row["image_id"],
        round(width / height, 3),
        *(_rounded(row[column]) for column in ("confidence", "entropy", "changed_by_crf")),
        row["error_kind"],
        [[c["index"], round(c["pixels"] / area, 4), _rounded(c["confidence"])] for c in row["classes"] or ()],
        int(image is not None),
    ]
    done = _Done(number, entry, image is None and row["error_kind"] is None, "before" in item)
    done.classes = {c["index"]: c["name"] for c in row["classes"] or ()}
    if number in gallery.sheet and labels is not None and image is not None:
        small = _smaller(image, _THUMB_SIDE_PX)
        told = [f"{c['name']} {_percent(c['pixels'] / area)}" for c in row["classes"] if c["index"] != 0][:3]
        caption = f"{row['image_id'].rpartition('/')[2]}: {', '.join(told) or row['classes'][0]['name']}"
        done.picture = (small, resize_labels(shown, small.shape[1], small.shape[0]), caption)
    return done


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "<1%"


def _decode(data: bytes | ImageError) -> tuple[np.ndarray | None, str | None]:
    """The photograph (h, w, 3) uint8 as it is shown, or the reason why there is none."""
    if isinstance(data, ImageError):
        return None, str(data)
    try:
        return decode(data, _PHOTO_SIDE_PX).image, None
    except ImageError as error:
        return None, str(error)


def _smaller(image: np.ndarray, side_px: int) -> np.ndarray:
    width, height = fit_long_side(image.shape[1], image.shape[0], side_px)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0))


def _runs(labels: np.ndarray) -> str:
    return base64.b64encode(encode_runs(labels)).decode("ascii")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _write_jpeg(place: Location, image: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    _write(place, buffer.getvalue(), "image/jpeg")


def _write_script(place: Location, call: str, value: Any) -> None:
    # ASCII: the names of other people's files stay data, whatever they hold
    _write(place, f"{call}{json.dumps(value, separators=(',', ':'))});\n".encode("ascii"), "text/javascript")


def _write(place: Location, data: bytes, content_type: str) -> None:
    storage.write_whole(place, data, durable=False, content_type=content_type)


def _about(results: Results) -> dict[str, Any]:
    """What the summary says of a run."""
    record = results.record
    job = record.get("job") or {}
    sessions = [s for s in record.get("sessions", []) if isinstance(s, dict)]
    images, seconds = sum(s.get("images", 0) for s in sessions), sum(s.get("seconds", 0) for s in sessions)
    facts: list[tuple[str, Any]] = [
        ("Run", results.run_id),
        ("Status", record.get("status")),
        ("Model", record.get("model")),
        ("Source", job.get("source")),
        ("Output", results.output.uri),
        ("Started", record.get("started")),
        ("Finished", record.get("finished")),
        ("Scored at", _working_size(job.get("inference"))),
        ("CRF", _crf(job.get("crf")) if "crf" in job else None),
        ("Throughput", f"{images / seconds:.2f} images/s over {len(sessions)} session(s)" if seconds else None),
        ("Workers", sessions[-1].get("workers") if sessions else None),
    ]
    counts = record.get("classes")
    if counts is None:  # Not finished: counted now
        sql = "SELECT class, count(*), sum(pixels)::BIGINT FROM objects GROUP BY ALL"
        rows = query.ask(results.output.uri, sql, results.run_id).rows()
        counts = {name: {"images": images, "pixels": pixels} for name, images, pixels in rows}
    errors = record.get("errors")
    if errors is None:
        rows = query.ask(
            results.output.uri, "SELECT error_kind, count(*) FROM errors GROUP BY 1", results.run_id
        ).rows()
        errors = dict(rows)
    num_rows = results.num_rows
    return {
        "run_id": results.run_id,
        "output": results.output.uri,
        "model": record.get("model"),
        "finished": results.is_finished,
        "images": num_rows,
        "masks": num_rows - sum(errors.values()),
        "errors": errors,
        "class_counts": counts,
        "facts": [[name, str(value)] for name, value in facts if value],
    }


def _title(results: Results) -> str:
    """What a person calls the archive: the last part of its source."""
    source = str((results.record.get("job") or {}).get("source") or "")
    return source.rstrip("/").rpartition("/")[2] or f"Run {results.run_id}"


def _working_size(inference: Any) -> str | None:
    if not isinstance(inference, dict):
        return None
    scales = ", ".join(f"{scale:g}" for scale in inference.get("scales") or (1,))
    mirror = ", mirrored too" if inference.get("mirror") else ""
    return f"{inference.get('long_side_px')} px, scales {scales}{mirror}"


def _crf(params: Any) -> str:
    if not isinstance(params, dict):
        return "none"
    names = ("bilateral_weight", "bilateral_xy_std_px", "bilateral_rgb_std", "gaussian_weight", "gaussian_xy_std_px")
    values = " / ".join(f"{params.get(name, 0):g}" for name in names)
    return f"{values} (w1, xy, rgb, w2, xy2), {params.get('iterations')} iterations"


def _classes(names: dict[int, str], counts: dict[str, Any], entries: list[list[Any]]) -> list[dict[str, Any]]:
    """The classes of the run, in most images first. Labels are known of those that are shown."""
    colours = palette()
    shown = collections.Counter(label for entry in entries for label, _, _ in entry[6])
    total_pixels = max(1, sum(count["pixels"] for count in counts.values()))
    listed = [
        {
            "label": label,
            "name": name,
            "colour": "#{:02x}{:02x}{:02x}".format(*colours[label]),
            "images": counts.get(name, {}).get("images", shown[label]),
            "pixel_share": round(counts.get(name, {}).get("pixels", 0) / total_pixels, 5),
            "shown": shown[label],
        }
        for label, name in names.items()
    ]
    for name in counts.keys() - names.values():
        share = round(counts[name]["pixels"] / total_pixels, 5)
        listed.append({"label": None, "name": name, "images": counts[name]["images"], "pixel_share": share, "shown": 0})
    return sorted(listed, key=lambda c: (-c["images"], c["name"]))


def _command(job: ReportJob) -> str:
    """What makes a gallery of other images."""
    return f'segment-archive report {job.output} --where "confidence < 0.6" --images {MOST_IMAGES}'


def _require_ours(place: Location) -> None:
    for file in storage.list_files(place):
        if not _OURS.fullmatch(file.path):
            raise JobError(f"{place.uri} holds {file.path}, which is no part of a gallery: give an empty folder.")


def _remove_older(place: Location, version: str) -> None:
    older = {f.path.partition("/")[0] for f in storage.list_files(place) if f.path.startswith("data-")} - {version}
    for name in sorted(older):
        storage.remove_folder(place / name)
