"""labelme: one JSON file an image, with the shapes that somebody has drawn on it."""

import base64
import binascii
import functools
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segcore.annotations import polygons
from segcore.annotations.regions import Annotated, Region, require_size

_NO_AREA = ("point", "points", "line", "linestrip")


def read_image(document: bytes) -> Annotated:
    """The image of a file; shapes in the order in which they were drawn. Raises ValueError where it is no such file."""
    try:
        content = json.loads(document)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise ValueError("it has no list of shapes as labelme writes it")
    width, height = content.get("imageWidth"), content.get("imageHeight")
    drawn = [shape for shape in shapes if shape.get("shape_type") not in _NO_AREA]
    sizes = [side if isinstance(side, int) else 0 for side in (width, height)]
    names = tuple(sorted({str(shape.get("label")) for shape in drawn}))
    regions = functools.partial(_regions, drawn, width, height)
    return Annotated(str(content.get("imagePath") or ""), None, sizes[0], sizes[1], regions, known_names=names)


def _regions(shapes: list[dict[str, Any]], width: object, height: object) -> Iterator[Region]:
    size = require_size(width, height)[::-1]
    for shape in shapes:
        try:
            yield Region(str(shape["label"]), _mask_of(shape, *size))
        except (KeyError, TypeError, IndexError):
            raise ValueError("a shape is not as labelme writes it") from None


def _mask_of(shape: Mapping[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    """(height, width) bool."""
    points, kind = np.array(shape["points"], np.float64), shape.get("shape_type") or "polygon"
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError("the points of a shape are no list of x and y")
    if kind == "mask":
        return _pasted(shape["mask"], points[0], height, width)
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        points = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    elif kind == "circle":
        (x, y), radius = points[0], float(np.hypot(*(points[1] - points[0])))
        turns = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        points = np.stack([x + radius * np.cos(turns), y + radius * np.sin(turns)], axis=1)
    elif kind not in ("polygon", "rectangle"):
        raise ValueError(f"a shape is a {kind}, which is not read")
    return polygons.filled([polygons.points_of(points.ravel())], height, width)


def _pasted(text: str, corner: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """A mask that is a PNG of its box. corner: x and y of the box's upper left pixel."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text)), formats=("PNG",)) as opened:
            require_size(*opened.size)
            drawn = np.asarray(opened.convert("L")) > 0
    except (binascii.Error, OSError, TypeError):
        raise ValueError("a mask of it is no PNG in base64") from None
    mask = np.zeros((height, width), bool)
    left, top = (round(float(number)) for number in corner)
    if left < 0 or top < 0 or top + drawn.shape[0] > height or left + drawn.shape[1] > width:
        raise ValueError(f"a mask lies outside its image of {width} x {height} px")
    mask[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    return mask
