"""Label Studio's tasks: brushes as its run lengths, polygons, rectangles; predictions out, annotations back.

The run lengths are those of `rle-pack` (thi.ng/umbrella) over the RGBA values of the image, alpha being the mask.
"""

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from segcore.annotations import polygons
from segcore.annotations.regions import Annotated, Region, hex_colour, require_size

_RLE_SIZES = (3, 4, 8, 16)
"""Bits of a run's length, by the two bits before it."""

_PAINTED = 127
"""A pixel belongs to a brush where its alpha is more."""


def encode_brush(mask: NDArray[np.bool_]) -> bytes:
    """Label Studio's run lengths of a mask (H, W) bool."""
    flat = np.ravel(mask)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=flat.size) * 4
    values = flat[starts].astype(np.int64) * 255
    # The longest length is 65536: longer runs are several
    times = -(-lengths // 65536)
    rest = lengths - (times - 1) * 65536
    pieces = np.full(times.sum(), 65536)
    pieces[np.cumsum(times) - 1] = rest
    values = np.repeat(values, times)
    kind = np.searchsorted([8, 16, 256], pieces, side="left")
    bits = np.array(_RLE_SIZES)[kind]
    words = ((4 | kind) << (bits + 8)) | ((pieces - 1) << 8) | values
    head = [(flat.size * 4, 32), (7, 5), *((size - 1, 4) for size in _RLE_SIZES)]
    numbers = np.concatenate([[number for number, _ in head], words])
    widths = np.concatenate([[width for _, width in head], bits + 11])
    place = np.arange(widths.sum()) - np.repeat(np.cumsum(widths) - widths, widths)
    all_bits = (np.repeat(numbers, widths) >> (np.repeat(widths, widths) - 1 - place)) & 1
    return np.packbits(all_bits.astype(np.uint8)).tobytes()


def decode_brush(data: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) bool of Label Studio's run lengths. Raises ValueError where they are not those of this size."""
    count = height * width * 4
    size, position = len(data) * 8, 53

    def read(at: int, bits: int) -> int:
        last = at + bits + 7 >> 3
        return int.from_bytes(data[at >> 3 : last], "big") >> (-(at + bits) % 8) & ((1 << bits) - 1)

    if size < position or read(0, 32) != count:
        raise ValueError(f"the brush is not of an image of {width} x {height} px")
    word = read(32, 5) + 1
    sizes = [read(37 + 4 * k, 4) + 1 for k in range(4)]
    if word != 8:
        raise ValueError(f"the brush has values of {word} bits, not of 8")
    values = np.zeros(count, np.uint8)
    done = 0
    while done < count:
        if position + 3 > size:
            raise ValueError("the brush ends within its runs")
        is_run, bits = read(position, 1), sizes[read(position + 1, 2)]
        length = read(position + 3, bits) + 1
        position += 3 + bits
        literals = 1 if is_run else length
        if done + length > count or position + 8 * literals > size:
            raise ValueError("the brush ends within its runs, or runs beyond its image")
        if is_run:
            values[done : done + length] = read(position, 8)
        else:
            window = np.frombuffer(data, np.uint8)[position >> 3 : (position + 8 * length + 7) >> 3]
            shift = position % 8
            values[done : done + length] = np.packbits(np.unpackbits(window)[shift : shift + 8 * length])
        done += length
        position += 8 * literals
    return values.reshape(height, width, 4)[:, :, 3] > _PAINTED


def task_of(
    regions: Sequence[Region],
    *,
    address: str,
    identity: str,
    width: int,
    height: int,
    model_version: str,
    score: float | None,
    tolerance_px: float | None,
) -> dict[str, Any]:
    """A task with one prediction. address: where Label Studio finds the image. tolerance_px: None: brushes."""
    results: list[dict[str, Any]] = []
    for region in regions:
        values: list[dict[str, Any]]
        if tolerance_px is None:
            values = [{"format": "rle", "rle": list(encode_brush(region.mask)), "brushlabels": [region.name]}]
        else:
            scale = np.array([100 / width, 100 / height])
            values = [
                {"points": (points * scale).tolist(), "closed": True, "polygonlabels": [region.name]}
                for points in polygons.traced(region.mask, tolerance_px)
            ]
        for value in values:
            kind = "brushlabels" if tolerance_px is None else "polygonlabels"
            results.append(
                {
                    "id": f"r{len(results)}",
                    "from_name": "brush" if tolerance_px is None else "polygon",
                    "to_name": "image",
                    "type": kind,
                    "original_width": width,
                    "original_height": height,
                    "image_rotation": 0,
                    "value": value,
                }
                | ({} if region.score is None else {"score": round(region.score, 5)})
            )
    prediction = {"model_version": model_version, "result": results} | ({} if score is None else {"score": score})
    return {"data": {"image": address, "image_id": identity}, "predictions": [prediction]}


def labelling_config(colours: Mapping[str, tuple[int, int, int]]) -> str:
    """The labelling interface of a project for these tasks. colours: RGB by class."""
    labels = "".join(
        f"    <Label value={quoteattr(name)} background={quoteattr(hex_colour(rgb))}/>\n"
        for name, rgb in colours.items()
    )
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="brush" toName="image">\n{labels}  </BrushLabels>\n'
        f'  <PolygonLabels name="polygon" toName="image">\n{labels}  </PolygonLabels>\n</View>\n'
    )


def read_tasks(document: bytes) -> Iterator[Annotated]:
    """Each image of an export as JSON or JSON-MIN. Raises ValueError where it is neither.

    Of several annotations of a task the newest counts; those that were cancelled, and predictions, are no review.
    """
    try:
        tasks = json.loads(document)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    tasks = [tasks] if isinstance(tasks, dict) and isinstance(tasks.get("data"), dict) else tasks
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise ValueError("it is no list of Label Studio's tasks")
    for task in tasks:
        if isinstance(task.get("data"), dict):
            yield _of_task(task)
        else:
            yield _of_short_form(task)


def path_of_address(address: str) -> str:
    """Path of an image from what a task says of it: a path, an address, or where Label Studio serves local files."""
    local = address.partition("?d=")[2]
    parts = urlsplit(local or address) if "://" in (local or address) else None
    return unquote(parts.path if parts else local or address.partition("?")[0])


def _of_task(task: dict[str, Any]) -> Annotated:
    data = task["data"]
    given = [a for a in task.get("annotations") or task.get("completions") or () if isinstance(a, dict)]
    made = [a for a in given if not a.get("was_cancelled")]
    made.sort(key=lambda a: (str(a.get("updated_at") or a.get("created_at") or ""), str(a.get("id", "")).zfill(20)))
    results = [r for r in (made[-1].get("result") if made else None) or () if isinstance(r, dict)]
    return _annotated(_address(data), data.get("image_id"), results, reviewed=bool(made))


def _of_short_form(task: dict[str, Any]) -> Annotated:
    """Of JSON-MIN, where each control of the interface is a key, and an item is one annotation."""
    lists = [value for value in task.values() if isinstance(value, list)]
    results = [
        {"value": part, **{k: part.get(k) for k in ("original_width", "original_height", "image_rotation")}}
        for part in (part for value in lists for part in value)
        if isinstance(part, dict) and any(key.endswith("labels") for key in part)
    ]
    return _annotated(_address(task), task.get("image_id"), results, reviewed=True)


def _annotated(address: str, identity: Any, results: list[dict[str, Any]], *, reviewed: bool) -> Annotated:
    sizes = {(r["original_width"], r["original_height"]) for r in results if r.get("original_width")}
    width, height = next(iter(sizes), (0, 0))

    known = identity if isinstance(identity, str) else None
    whole = (int(width), int(height)) if isinstance(width, int) and isinstance(height, int) else (0, 0)
    names = tuple(sorted({name for result in results for name in _labels_in(result.get("value"))}))
    return Annotated(address, known, *whole, functools.partial(_listed, results), reviewed, names)


def _listed(results: list[dict[str, Any]]) -> list[Region]:
    if not results:
        return []
    sizes = {(r["original_width"], r["original_height"]) for r in results if r.get("original_width")}
    width, height = require_size(*next(iter(sizes), (0, 0)))
    if any(r.get("image_rotation") for r in results):
        raise ValueError("its image was turned in Label Studio, and its regions with it: turn it back")
    if len(sizes) > 1:
        raise ValueError(f"its regions are of images of {len(sizes)} sizes")
    try:
        return _regions(results, width, height)
    except (TypeError, KeyError, OverflowError):
        raise ValueError("a region is not as Label Studio writes it") from None


def _labels_in(value: Any) -> list[str]:
    """The labels that a value of a result gives its region."""
    given = [v for k, v in value.items() if k.endswith("labels")] if isinstance(value, dict) else []
    return [str(names[0]) for names in given if isinstance(names, list) and names]


def _regions(results: list[dict[str, Any]], width: int, height: int) -> list[Region]:
    """Regions in their order; what one control drew and another named has one id."""
    joined: dict[Any, dict[str, Any]] = {}
    for number, result in enumerate(results):
        if isinstance(result.get("value"), dict):
            joined.setdefault(result.get("id") or number, {}).update(result["value"])
    found = []
    for value in joined.values():
        mask = _mask_of(value, width, height)
        if mask is None:
            if {"choices", "text", "rating", "number", "taxonomy"} & value.keys():
                continue  # Of the whole image
            raise ValueError(f"a region has a shape that is not read: {', '.join(sorted(value))}")
        if not (names := _labels_in(value)):
            raise ValueError("a region has no label")
        found.append(Region(names[0], mask))
    return found


def _mask_of(value: dict[str, Any], width: int, height: int) -> NDArray[np.bool_] | None:
    if isinstance(value.get("rle"), list):
        try:
            data = bytes(value["rle"])
        except (ValueError, TypeError):
            raise ValueError("a brush is no list of bytes") from None
        return decode_brush(data, height, width)
    scale = np.array([width / 100, height / 100])
    if isinstance(value.get("points"), list):
        flat = [number for point in value["points"] for number in (point if isinstance(point, list) else [point])]
        return polygons.filled([polygons.points_of(flat) * scale], height, width)
    if {"x", "y", "width", "height"} <= value.keys():
        turn = math.radians(float(value.get("rotation") or 0))
        sides = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * [float(value["width"]), float(value["height"])] * scale
        turned = sides @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        box = turned + np.array([float(value["x"]), float(value["y"])]) * scale
        return polygons.filled([polygons.points_of(box.ravel())], height, width)
    return None


def _address(data: dict[str, Any]) -> str:
    texts = [value for value in (data.get("image"), *data.values()) if isinstance(value, str)]
    return next(iter(texts), "")
