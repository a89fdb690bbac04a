"""COCO's object annotations: images, and regions as run lengths or polygons."""

import functools
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segcore.annotations import polygons
from segcore.annotations.regions import Annotated, Region, require_size
from segcore.images.rle import decode_coco, encode_coco


def segmentations_of(labels: np.ndarray, tolerance_px: float | None) -> dict[int, Any]:
    """The `segmentation` of each label of a map (H, W) uint8. tolerance_px: None: compressed run lengths."""
    if tolerance_px is None:
        size = list(labels.shape)
        return {k: {"size": size, "counts": v.decode("ascii")} for k, v in encode_coco(labels).items()}
    return {
        int(label): [points.ravel().tolist() for points in polygons.traced(labels == label, tolerance_px)]
        for label in np.unique(labels)
    }


def read_images(document: bytes) -> Iterator[Annotated]:
    """Each image of a file of annotations. Raises ValueError where it is none.

    An image without annotations counts as reviewed, and empty.
    """
    try:
        content = json.loads(document)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    parts = [content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations", "categories")]
    if not all(isinstance(part, list) and all(isinstance(item, dict) for item in part) for part in parts):
        raise ValueError("it has not the lists images, annotations and categories of COCO")
    images, annotations, categories = parts
    used, above = {a.get("category_id") for a in annotations or ()}, {c.get("supercategory") for c in categories or ()}
    # Roboflow lists the dataset itself as a category that nothing has
    named = [c for c in categories or () if c.get("id") in used or c.get("name") not in above]
    names = {c.get("id"): str(c.get("name")) for c in named}
    of_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in annotations or ():
        of_image[annotation.get("image_id")].append(annotation)
    for image in images or ():
        yield _annotated(image, of_image[image.get("id")], names)


def _annotated(image: dict[str, Any], annotations: Sequence[dict[str, Any]], names: dict[Any, str]) -> Annotated:
    def number(name: str) -> int:
        value = image.get(name)
        return value if isinstance(value, int) else 0

    identity = image.get("identity")
    return Annotated(
        str(image.get("file_name", "")),
        identity if isinstance(identity, str) else None,
        number("width"),
        number("height"),
        functools.partial(_regions, image.get("width"), image.get("height"), annotations, names),
        known_names=tuple(dict.fromkeys(names.values())),
    )


def _regions(
    width: object, height: object, annotations: Sequence[dict[str, Any]], names: Mapping[Any, str]
) -> Iterator[Region]:
    """The largest first: a cup lies on its table."""
    size = require_size(width, height)[::-1]
    for annotation in sorted(annotations, key=lambda annotation: -_area(annotation)):
        if annotation.get("category_id") not in names:
            raise ValueError(f"a region has the category {annotation.get('category_id')}, which is not listed")
        yield Region(names[annotation["category_id"]], mask_of(annotation.get("segmentation"), *size))


def _area(annotation: Mapping[str, Any]) -> float:
    """As the file says, or that of its box."""
    area, box = annotation.get("area"), annotation.get("bbox")
    if isinstance(area, int | float):
        return float(area)
    sides = box[2:4] if isinstance(box, list) else []
    return float(np.prod(sides)) if len(sides) == 2 and all(isinstance(side, int | float) for side in sides) else 0.0


def mask_of(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """(height, width) bool of run lengths, compressed or not, or of polygons. Raises ValueError."""
    if isinstance(segmentation, dict):
        counts, size = segmentation.get("counts"), segmentation.get("size")
        if size != [height, width]:
            raise ValueError(f"a region is of an image of {size}, not of [{height}, {width}]")
        if isinstance(counts, str):
            return decode_coco(counts.encode("ascii", "replace"), height, width)
        numbers = counts if isinstance(counts, list) else []
        if all(isinstance(count, int) and count >= 0 for count in numbers) and sum(numbers) == height * width:
            flat = np.repeat(np.arange(len(numbers)) % 2 == 1, numbers)
            return flat.reshape((height, width), order="F")
        raise ValueError("the run lengths of a region do not fill its image")
    if isinstance(segmentation, list) and segmentation and all(isinstance(part, list) for part in segmentation):
        return polygons.filled([polygons.points_of(part) for part in segmentation], height, width)
    raise ValueError("a region has neither run lengths nor polygons")
