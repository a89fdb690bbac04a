"""Outputs in the exact layout of the archive job, made without a trained model: from real scores, or of any kind."""

import dataclasses
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from segcore.crf.dense_crf import CrfParams, refine_scores
from segcore.images import masks
from segcore.images.decoding import decode
from segcore.voc import CLASSES
from tasks.archive.schema import empty_row
from tasks.storage import locate
from tasks.stream.rows import write_rows


def mask_row(
    image_id: str,
    uri: str,
    labels: np.ndarray,
    *,
    names: Sequence[str] = CLASSES,
    confidence: np.ndarray | None = None,
    before: np.ndarray | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """A row with a mask (H, W) uint8; what is not given is told from the mask."""
    sure = np.full(256, 0.9) if confidence is None else confidence
    found = masks.summarise(labels, sure)
    height, width = labels.shape
    row = empty_row() | {
        "image_id": image_id,
        "uri": uri,
        "width": width,
        "height": height,
        "model": "test",
        "run_id": "",
    }
    row |= {"mask": masks.encode_mask(labels), "mask_width": width, "mask_height": height, "device": "cpu/fp32"}
    row["mask_before_crf"] = None if before is None else masks.encode_mask(before)
    row["changed_by_crf"] = 0.0 if before is None else float((labels != before).mean())
    row["classes"] = [
        {
            "index": c.index,
            "name": names[c.index],
            "pixels": c.pixels,
            "confidence": c.confidence,
            "box": dict(zip(("x0", "y0", "x1", "y1"), c.box, strict=True)),
        }
        for c in found
    ]
    return row | {"confidence": 0.9, "entropy": 0.1} | facts


def error_row(
    image_id: str, uri: str, kind: str = "truncated", reason: str = "image file is truncated"
) -> dict[str, Any]:
    """A row of an image without a mask."""
    row = empty_row() | {"image_id": image_id, "uri": uri, "model": "test", "run_id": "", "source_size": 12}
    return row | {"error_kind": kind, "error": reason}


def write_run(output: str, run_id: str, rows: list[dict[str, Any]], *, per_file: int = 8, **record: Any) -> None:
    """A run in the layout of `segment-archive run`; record: more for its run record, such as status."""
    place = locate(output)
    rows = [row | {"run_id": run_id} for row in rows]
    for number, start in enumerate(range(0, len(rows), per_file)):
        file = place / "masks" / f"run={run_id}" / f"part-000001-0123abcd-{number:04d}.parquet"
        write_rows(file, rows[start : start + per_file])
    errors: dict[str, int] = {}
    classes: dict[str, dict[str, int]] = {}
    for row in rows:
        if row["error_kind"]:
            errors[row["error_kind"]] = errors.get(row["error_kind"], 0) + 1
        for c in row["classes"] or ():
            count = classes.setdefault(c["name"], {"images": 0, "pixels": 0})
            count["images"] += 1
            count["pixels"] += c["pixels"]
    known = {
        "run_id": run_id,
        "record_version": 1,
        "status": "finished",
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        "model": "test",
        "images": len(rows),
        "segments": ["000001-0123abcd"],
        "masks": len(rows) - sum(errors.values()),
        "errors": errors,
        "classes": classes,
        "job": {"source": "photographs", "crf": dataclasses.asdict(CrfParams()), "inference": {"long_side_px": 513}},
        "sessions": [{"images": len(rows), "seconds": 60.0, "stages": {"read": {"busy_share": 0.1}}, "workers": "2"}],
    }
    text = json.dumps(known | record)
    from tasks import storage

    storage.write_whole(place / "runs" / f"{run_id}.json", text.encode())


def real_rows(
    voc: Path, *, limit: int | None = None, crf: CrfParams | None = None, keep_before: bool = True
) -> list[dict[str, Any]]:
    """Rows of the real photographs from the real scores of a public network: CRF where given, else its argmax.

    voc: the folder of the fixture. The photographs of the validation set have scores in scores_val_have.npz, the others
    soft labels of the same network in small/teacher.npz.
    """
    validation, teacher = np.load(voc / "scores_val_have.npz"), np.load(voc / "small" / "teacher.npz")
    val_number = {str(i): n for n, i in enumerate(validation["ids"])}
    train_number = {str(i): n for n, i in enumerate(teacher["ids"])}
    logits, probabilities = validation["logits"], teacher["probabilities"]
    photographs = sorted((voc / "JPEGImages").glob("*.jpg"))[:limit]

    def row_of(place: Path) -> dict[str, Any]:
        if place.stem in val_number:
            scores = logits[val_number[place.stem]]
        else:
            scores = np.log(np.maximum(probabilities[train_number[place.stem]] / 255, 1e-4)).astype(np.float16)
        data = place.read_bytes()
        refined = refine_scores(decode(data).image, scores, crf)
        return mask_row(
            place.name,
            str(place),
            refined.labels,
            confidence=refined.class_confidence,
            before=refined.labels_before if keep_before else None,
            entropy=refined.entropy,
            changed_by_crf=refined.changed,
            source_size=len(data),
            model="public network",
        ) | {"confidence": refined.confidence}

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(row_of, photographs))


HOSTILE_NAMES = [
    "<img src=x onerror=alert(1)>.jpg",
    "quote\"'&amp;.jpg",
    "a/b c/ünïcode 🐕 \u202egpj.jpg",
    "line\nbreak\ttab.jpg",
    "</script><script>alert(2)</script>.jpg",
    "%2F..%2F..#?x=1.jpg",
]
"""Identities that somebody may give a file."""

HOSTILE_CLASSES = ("background", "<b onmouseover=alert(3)>dog</b>", 'a,b "c"', "cat")
"""Class names that somebody may give a model."""


def small_rows(
    photographs: Path, *, num_images: int = 30, names: Sequence[str] = CLASSES, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows of drawn photographs that are written to a folder: rectangles of two classes on background."""
    from tests.conftest import photograph

    photographs.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    rows = []
    for number in range(num_images):
        width, height = (64, 48) if number % 3 else (48, 65)
        place = photographs / f"{number:03d}.jpg"
        if not place.exists():
            photograph(number, (width, height)).save(place)
        labels = np.zeros((height, width), np.uint8)
        y, x = int(random.integers(0, height - 20)), int(random.integers(0, width - 20))
        labels[y : y + 20, x : x + 20 + number % 8] = 1 + number % (len(names) - 1)
        labels[:5, :4] = len(names) - 1
        before = labels.copy()
        before[y : y + 3, x : x + 9] = 0
        facts = {"entropy": 0.01 * number, "source_size": place.stat().st_size}
        row = mask_row(f"{number:03d}.jpg", str(place), labels, names=names, before=before, **facts)
        rows.append(row | {"confidence": 1 - 0.02 * number})
    return rows
