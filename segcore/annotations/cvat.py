"""CVAT for images 1.1: one XML file with the masks and polygons of every image."""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import ParseError, TreeBuilder, XMLParser
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from segcore.annotations import polygons
from segcore.annotations.regions import Annotated, Region, hex_colour, require_size

_SHAPES = ("mask", "polygon", "box")
_NO_AREA = ("tag", "points", "polyline", "skeleton")
_CHUNK = 1 << 20
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def header(colours: Mapping[str, tuple[int, int, int]], about: str) -> str:
    """What comes before the images. colours: RGB by class; about: name of the task."""
    labels = "".join(
        f"        <label>\n          <name>{_text(name)}</name>\n          <color>{hex_colour(rgb)}</color>\n"
        "          <type>any</type>\n          <attributes>\n            <attribute>\n"
        "              <name>score</name>\n              <mutable>False</mutable>\n"
        "              <input_type>text</input_type>\n              <default_value></default_value>\n"
        "              <values></values>\n            </attribute>\n          </attributes>\n        </label>\n"
        for name, rgb in colours.items()
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta>\n    <task>\n'
        f"      <name>{_text(about)}</name>\n      <labels>\n{labels}      </labels>\n    </task>\n  </meta>\n"
    )


FOOTER = "</annotations>\n"


def labels_of_project(colours: Mapping[str, tuple[int, int, int]]) -> list[dict[str, Any]]:
    """The labels as CVAT's constructor takes them (Raw), with the score that every region has."""
    score = {"name": "score", "input_type": "text", "mutable": False, "values": [""]}
    return [
        {"name": name, "color": hex_colour(rgb), "attributes": [score], "type": "any"} for name, rgb in colours.items()
    ]


def image_of(
    regions: Sequence[Region], *, number: int, name: str, width: int, height: int, tolerance_px: float | None
) -> str:
    """The element of one image. tolerance_px: None: masks."""
    lines = [f'  <image id="{number}" name={_attribute(name)} width="{width}" height="{height}">\n']
    for region in regions:
        score = "" if region.score is None else f'\n      <attribute name="score">{region.score:.5f}</attribute>\n    '
        head = f'label={_attribute(region.name)} source="auto" occluded="0"'
        if tolerance_px is None:
            runs, left, top, w, h = encode_mask(region.mask)
            place = f'left="{left}" top="{top}" width="{w}" height="{h}" z_order="0"'
            lines.append(f'    <mask {head} rle="{", ".join(map(str, runs))}" {place}>{score}</mask>\n')
            continue
        for points in polygons.traced(region.mask, tolerance_px):
            text = ";".join(f"{x:.2f},{y:.2f}" for x, y in points)
            lines.append(f'    <polygon {head} points="{text}" z_order="0">{score}</polygon>\n')
    return "".join([*lines, "  </image>\n"])


def encode_mask(mask: NDArray[np.bool_]) -> tuple[list[int], int, int, int, int]:
    """Lengths of runs along the rows of the box around a mask, background first; left, top, width, height of the box.

    mask: (H, W) bool with at least one pixel.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    box = mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
    flat = box.ravel()
    runs = np.diff(np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])).tolist()
    return ([0, *runs] if flat[0] else runs), left, top, box.shape[1], box.shape[0]


def decode_mask(
    runs: Sequence[int], left: int, top: int, box_width: int, box_height: int, height: int, width: int
) -> NDArray[np.bool_]:
    """(height, width) bool. Raises ValueError where the runs do not fill the box, or it lies outside the image."""
    if not (0 <= left < left + box_width <= width and 0 <= top < top + box_height <= height):
        raise ValueError(f"a mask lies outside its image of {width} x {height} px")
    lengths = np.asarray(runs, np.int64)
    if (lengths < 0).any() or lengths.sum() != box_width * box_height:
        raise ValueError("the runs of a mask do not fill its box")
    mask = np.zeros((height, width), bool)
    filled = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(box_height, box_width)
    mask[top : top + box_height, left : left + box_width] = filled
    return mask


def read_images(chunks: Iterable[bytes]) -> Iterator[Annotated]:
    """Each image of a file that is given in pieces. Raises ValueError where it is no file of CVAT's images.

    Every image of the file counts as reviewed: CVAT does not say which of them a person has looked at.
    """
    target = _Target()
    parser = XMLParser(target=target)
    try:
        for chunk in chunks:
            for start in range(0, len(chunk), _CHUNK):
                parser.feed(chunk[start : start + _CHUNK])
                yield from target.taken()
        parser.close()
    except ParseError as error:
        raise ValueError(f"it is no sound XML ({error})") from None
    yield from target.taken()


class _Target(TreeBuilder):
    """Gathers images as they are parsed; nothing else is held."""

    def __init__(self) -> None:
        super().__init__()
        self._images: list[Annotated] = []
        self._image: dict[str, str] | None = None
        self._shapes: list[tuple[str, dict[str, str]]] = []
        self._depth = 0
        self._names: dict[str, None] = {}
        self._text: list[str] = []
        self._path: list[str] = []

    def taken(self) -> list[Annotated]:
        images, self._images = self._images, []
        return images

    def doctype(self, name: str, pubid: str, system: str) -> None:
        raise ValueError("it declares a document type, which CVAT never does, and is not read")

    def start(self, tag: str, attributes: dict[str, str]) -> Any:
        if not self._path and tag != "annotations":
            raise ValueError(f"it is no file of CVAT for images: its root is {tag}")
        if self._path == ["annotations"] and tag == "track":
            raise ValueError("it is of CVAT for video: export the task as CVAT for images 1.1")
        self._path.append(tag)
        self._text = []
        if tag == "image":
            self._image, self._shapes = dict(attributes), []
        elif self._image is not None and len(self._path) == 3:
            self._shapes.append((tag, dict(attributes)))

    def data(self, data: str) -> None:
        self._text.append(data)

    def end(self, tag: str) -> Any:
        if self._path[-3:] == ["labels", "label", "name"]:
            self._names["".join(self._text).strip()] = None
        self._path.pop()
        if tag == "image" and self._image is not None:
            self._images.append(_annotated(self._image, self._shapes, tuple(self._names)))
            self._image = None

    def close(self) -> Any:
        return None


def _annotated(
    image: dict[str, str], shapes: list[tuple[str, dict[str, str]]], known_names: tuple[str, ...]
) -> Annotated:
    def number(name: str) -> int:
        return int(image[name]) if image.get(name, "").isdecimal() else 0

    regions = functools.partial(_regions, image, shapes)
    return Annotated(image.get("name", ""), None, number("width"), number("height"), regions, True, known_names)


def _regions(image: dict[str, str], shapes: list[tuple[str, dict[str, str]]]) -> Iterator[Region]:
    width, height = require_size(image.get("width"), image.get("height"))
    drawn = [(tag, shape) for tag, shape in shapes if tag not in _NO_AREA]
    try:
        drawn.sort(key=lambda pair: int(pair[1].get("z_order", "0")))
        for tag, shape in drawn:
            yield Region(shape["label"], _mask_of(tag, shape, width, height))
    except KeyError as error:
        raise ValueError(f"a region has no {error.args[0]}") from None


def _mask_of(tag: str, shape: dict[str, str], width: int, height: int) -> NDArray[np.bool_]:
    if tag == "mask":
        runs = [int(part) for part in shape["rle"].split(",")]
        left, top, box_width, box_height = (int(float(shape[n])) for n in ("left", "top", "width", "height"))
        return decode_mask(runs, left, top, box_width, box_height, height, width)
    if tag == "polygon":
        numbers = [float(part) for part in shape["points"].replace(";", ",").split(",")]
        return polygons.filled([polygons.points_of(numbers)], height, width)
    if tag == "box" and float(shape.get("rotation", "0")) == 0:
        x0, y0, x1, y1 = (float(shape[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
        return polygons.filled([polygons.points_of([x0, y0, x1, y0, x1, y1, x0, y1])], height, width)
    raise ValueError(f"a region is a {tag}{' that is turned' if tag == 'box' else ''}, which is not read")


def _attribute(text: str) -> str:
    """A quoted attribute; what XML cannot hold becomes U+FFFD."""
    return quoteattr(_NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text), {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})


def _text(text: str) -> str:
    return escape(_NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text))
