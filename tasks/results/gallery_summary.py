"""What a gallery says of its run as a whole."""

import collections
from typing import Any

from segcore.images.pictures import Colours, clear_palette
from segcore.voc import palette
from tasks.results.reading import Results

CLASS_FLOOR = 0.01
"""Least share of a mask at which an image counts as one of a class when a person filters by it."""


def about_run(results: Results) -> dict[str, Any]:
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
        ("CRF", _crf_words(job.get("crf")) if "crf" in job else None),
        ("Throughput", f"{images / seconds:.2f} images/s over {len(sessions)} session(s)" if seconds else None),
        ("Workers", sessions[-1].get("workers") if sessions else None),
    ]
    counts, errors = record.get("classes"), record.get("errors")
    if counts is None or errors is None:  # Not finished: counted now
        from tasks.results import query

        sql = "SELECT class, count(*), sum(pixels)::BIGINT FROM objects GROUP BY ALL"
        rows = query.ask(results.output.uri, sql, results.run_id).rows()
        counts = {name: {"images": images, "pixels": pixels} for name, images, pixels in rows}
        sql = "SELECT error_kind, count(*) FROM errors GROUP BY 1"
        errors = dict(query.ask(results.output.uri, sql, results.run_id).rows())
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


def title_of(results: Results) -> str:
    """What a person calls the archive: the last part of its source."""
    source = str((results.record.get("job") or {}).get("source") or "")
    return source.rstrip("/").rpartition("/")[2] or f"Run {results.run_id}"


def classes_of(
    names: dict[int, str], counts: dict[str, Any], entries: list[list[Any]], own: Colours
) -> list[dict[str, Any]]:
    """The classes of the run, in most images first. Labels are known of those that are shown.

    own: colours of the run's model, where it has some.
    """
    most = max([256, len(own), *(label + 1 for label in names)])
    colours, clear = palette(most), clear_palette(most, own)
    shown = collections.Counter(label for entry in entries for label, _, _ in entry[6])
    total_pixels = max(1, sum(count["pixels"] for count in counts.values()))
    listed = [
        {
            "label": label,
            "name": name,
            "colour": "#{:02x}{:02x}{:02x}".format(*colours[label]),
            "clear": "#{:02x}{:02x}{:02x}".format(*clear[label]),
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


def _working_size(inference: Any) -> str | None:
    if not isinstance(inference, dict):
        return None
    scales = ", ".join(f"{scale:g}" for scale in inference.get("scales") or (1,))
    mirror = ", mirrored too" if inference.get("mirror") else ""
    return f"{inference.get('long_side_px')} px, scales {scales}{mirror}"


def _crf_words(params: Any) -> str:
    if not isinstance(params, dict):
        return "none"
    names = ("bilateral_weight", "bilateral_xy_std_px", "bilateral_rgb_std", "gaussian_weight", "gaussian_xy_std_px")
    values = " / ".join(f"{params.get(name, 0):g}" for name in names)
    return f"{values} (w1, xy, rgb, w2, xy2), {params.get('iterations')} iterations"
