"""Random views of a training image: scale, rotation, crop, mirror, blur, colour; the same geometry for its labels.

One affine map takes pixels of the crop to pixels of the photograph. The photograph is sampled with it (bilinear), the
mask (nearest, so that every value is a label that was there), and a teacher's soft labels on the grid of the network.
Where the crop leaves the photograph it holds `fill_rgb` and label 255. Which loss is made of it is told in
`training.py`, where shards are read in `tasks/`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Interval, MinLen
from PIL import Image, ImageFilter

from segcore.voc import IGNORE_LABEL

# Luma of ITU-R 601, as in Pillow's "L"
_LUMA = np.array([0.299, 0.587, 0.114])

# Rows: luma, and the two axes of colour that a turn of hue happens in (YIQ)
_YIQ = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


@dataclass(frozen=True)
class AugmentParams:
    """What a view of a training image may look like. The default is a random crop and mirror: DeepLab v1."""

    crop_px: Annotated[int, Interval(ge=9, le=4097)] = 321
    """Side of the square crop in pixels: a multiple of `stride_px`, plus 1."""

    stride_px: Annotated[int, Interval(ge=1, le=32)] = 8
    """Distance of the network's grid positions in pixels of the crop; the outermost lie on its outermost pixels."""

    scales: Annotated[tuple[Annotated[float, Interval(ge=0.05, le=20.0)], ...], MinLen(1)] = (1.0,)
    """Two numbers: a scale between them, uniform in its logarithm. One, or three and more: one of these."""

    scale_of: Literal["image", "crop"] = "image"
    """"image": scale 1 is the photograph's own size. "crop": scale 1 makes its longer side as long as the crop, so
    that the whole of it is seen."""

    rotation_degrees: Annotated[float, Interval(ge=0.0, le=180.0)] = 0.0
    """Turned by an angle between plus and minus this; PSPNet 10."""

    mirror: bool = True
    """Every second view is mirrored left to right."""

    blur_probability: Annotated[float, Interval(ge=0.0, le=1.0)] = 0.0
    """Share of views that are blurred; PSPNet (semseg) 0.5."""

    blur_sigma_px: Annotated[float, Interval(ge=0.0, le=16.0)] = 1.1
    """Standard deviation of that Gaussian; 1.1 is OpenCV's for the 5 x 5 kernel of semseg."""

    brightness: Annotated[float, Interval(ge=0.0, le=1.0)] = 0.0
    """Pixel values are multiplied by 1 plus or minus this at most."""

    contrast: Annotated[float, Interval(ge=0.0, le=1.0)] = 0.0
    """Differences from the mean grey are multiplied by 1 plus or minus this at most."""

    saturation: Annotated[float, Interval(ge=0.0, le=1.0)] = 0.0
    """Differences of each pixel from its own grey are multiplied by 1 plus or minus this at most."""

    hue_degrees: Annotated[float, Interval(ge=0.0, le=180.0)] = 0.0
    """Colours are turned around the grey axis by plus or minus this at most."""

    grey_probability: Annotated[float, Interval(ge=0.0, le=1.0)] = 0.0
    """Share of views without colour, so that photographs in black and white are no strangers."""

    fill_rgb: tuple[int, int, int] = (123, 117, 104)
    """Colour outside the photograph, 0 to 255; by default the mean that becomes 0 in the network's input."""

    def __post_init__(self) -> None:
        if (self.crop_px - 1) % self.stride_px:
            raise ValueError(
                f"crop_px must be a multiple of stride_px plus 1, so that grid and crop share their corners: "
                f"{self.crop_px} is not, at a stride of {self.stride_px}; "
                f"{(self.crop_px - 1) // self.stride_px * self.stride_px + 1} would be."
            )
        if not self.scales or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise ValueError(f"scales must be one or more numbers above 0, got {self.scales!r}.")


class View(NamedTuple):
    """One random view of a training image."""

    image: np.ndarray
    """(crop, crop, 3) uint8, RGB."""

    mask: np.ndarray
    """(crop, crop) uint8: labels, 255 ignored or outside the photograph. The grid's labels are `mask[::s, ::s]`."""

    soft: np.ndarray | None
    """(C, g, g) float32: the teacher's probabilities at the grid's positions, g = (crop - 1) / stride + 1."""

    inside: np.ndarray
    """(g, g) bool: grid positions within the photograph; elsewhere `soft` means nothing."""


def view_rng(seed: int, epoch: int, image_id: str) -> np.random.Generator:
    """Random numbers of one image in one epoch: they depend on nothing else, such as who asks or in which order."""
    name = hashlib.blake2b(image_id.encode(), digest_size=16).digest()
    return np.random.default_rng([seed, epoch, int.from_bytes(name[:8], "little"), int.from_bytes(name[8:], "little")])


def augment(
    image: np.ndarray,
    mask: np.ndarray,
    params: AugmentParams,
    rng: np.random.Generator,
    soft: np.ndarray | None = None,
) -> View:
    """One random view of a photograph with its labels.

    image: (H, W, 3) uint8, RGB. mask: (H, W) uint8, 255 ignored.
    soft: (C, h, w) probabilities of the whole photograph, uint8 (255 is 1) or float in [0, 1], whose corner positions
        lie on the photograph's corner pixels (`align_corners=True`).
    ValueError: shapes or types that do not fit each other.
    """
    _check(image, mask, soft)
    matrix = _draw_geometry((image.shape[0], image.shape[1]), params, rng)
    size = (params.crop_px, params.crop_px)
    colours = _draw_colours(params, rng)
    blurred = rng.random() < params.blur_probability

    labels = _picture(mask).transform(
        size, Image.Transform.AFFINE, tuple(matrix.ravel()), Image.Resampling.NEAREST, fillcolor=IGNORE_LABEL
    )
    picture = _sample(image, matrix, size, params.fill_rgb)
    if colours is not None:
        picture = picture.convert("RGB", tuple(_colour_matrix(np.asarray(picture), *colours).ravel()))
    if blurred:
        picture = picture.filter(ImageFilter.GaussianBlur(params.blur_sigma_px))
    pixels = np.array(picture)
    if (colours is not None or blurred) and not _covered(matrix, image.shape, params.crop_px):
        # Neither colour nor blur may touch what lies outside
        whole = Image.new("L", (image.shape[1], image.shape[0]), 1)
        outside = whole.transform(size, Image.Transform.AFFINE, tuple(matrix.ravel()), Image.Resampling.NEAREST)
        pixels[np.asarray(outside) == 0] = params.fill_rgb

    x, y = _grid_in_image(matrix, params)
    height, width = image.shape[:2]
    inside = (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
    sampled = None if soft is None else _sample_soft(soft, x / max(1, width - 1), y / max(1, height - 1))
    return View(pixels, np.array(labels), sampled, inside)


def _check(image: np.ndarray, mask: np.ndarray, soft: np.ndarray | None) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"The image is {image.dtype} {image.shape}; expected (H, W, 3) uint8 RGB.")
    if mask.dtype != np.uint8 or mask.shape != image.shape[:2]:
        raise ValueError(f"The mask is {mask.dtype} {mask.shape}; expected uint8 {image.shape[:2]}, like its image.")
    if soft is not None and (soft.ndim != 3 or 0 in soft.shape):
        raise ValueError(f"The soft labels are {soft.shape}; expected (C, h, w).")


def _picture(array: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(array))


def _draw_geometry(size: tuple[int, int], params: AugmentParams, rng: np.random.Generator) -> np.ndarray:
    """The affine map from crop to photograph: (2, 3) float64.

    In Pillow's terms: the centre of the crop's pixel (x, y), which is (x + 0.5, y + 0.5), goes to
    matrix @ (x + 0.5, y + 0.5, 1) in the photograph, whose pixel (i, j) covers [i, i + 1) x [j, j + 1).
    """
    height, width = size
    if len(params.scales) == 2:
        low, high = sorted(math.log(scale) for scale in params.scales)
        scale = math.exp(rng.uniform(low, high))
    else:
        scale = params.scales[int(rng.integers(len(params.scales)))]
    if params.scale_of == "crop":
        scale *= params.crop_px / max(height, width)
    mirrored = params.mirror and bool(rng.integers(2))
    angle = math.radians(rng.uniform(-params.rotation_degrees, params.rotation_degrees))
    # Whole pixels, so that at scale 1 the crop is a copy. A smaller image lies anywhere within the crop.
    spare_x, spare_y = round(width * scale) - params.crop_px, round(height * scale) - params.crop_px
    left = int(rng.integers(min(0, spare_x), max(0, spare_x) + 1))
    top = int(rng.integers(min(0, spare_y), max(0, spare_y) + 1))

    place = np.array([[1.0, 0.0, left], [0.0, 1.0, top], [0.0, 0.0, 1.0]])
    shrink = np.diag([1 / scale, 1 / scale, 1.0])
    matrix = shrink @ place
    if angle:
        cosine, sine = math.cos(angle), math.sin(angle)
        centre = np.array([[1.0, 0.0, width / 2], [0.0, 1.0, height / 2], [0.0, 0.0, 1.0]])
        turn = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
        matrix = centre @ turn @ np.linalg.inv(centre) @ matrix
    if mirrored:
        matrix = np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]) @ matrix
    return np.asarray(matrix[:2])


def _sample(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], fill: tuple[int, int, int]) -> Image.Image:
    """The photograph through the map, bilinear; averaged first where it shrinks by 2 or more, against aliasing."""
    picture = _picture(image)
    shrinks = math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))
    factor = min(int(shrinks + 1e-6), *picture.size)
    if factor >= 2:
        # The last block of a side may be cut; the scale of all the others stays exact
        picture = picture.reduce(factor)
        matrix = matrix / factor
    return picture.transform(
        size, Image.Transform.AFFINE, tuple(matrix.ravel()), Image.Resampling.BILINEAR, fillcolor=fill
    )


def _covered(matrix: np.ndarray, shape: tuple[int, ...], crop_px: int) -> bool:
    """Whether the crop lies within the photograph."""
    ends = (0.5, crop_px - 0.5)
    x, y = matrix @ np.array([[a, b, 1.0] for a in ends for b in ends]).T
    return bool(x.min() >= 0 and y.min() >= 0 and x.max() < shape[1] and y.max() < shape[0])


def _draw_colours(params: AugmentParams, rng: np.random.Generator) -> tuple[float, float, float, float] | None:
    """Factors of brightness, contrast and saturation, and the angle of hue in radians; None for no change."""
    most = (params.brightness, params.contrast, params.saturation, math.radians(params.hue_degrees))
    if not any(most) and not params.grey_probability:
        return None
    brightness, contrast, saturation, hue = (float(rng.uniform(-bound, bound)) for bound in most)
    if params.grey_probability and rng.random() < params.grey_probability:
        saturation = -1.0
    return 1 + brightness, 1 + contrast, 1 + saturation, hue


def _colour_matrix(pixels: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float) -> np.ndarray:
    """All four changes as one: (3, 4) float64, RGB and 1 to RGB."""
    cosine, sine = math.cos(hue), math.sin(hue)
    turn = np.array([[1.0, 0.0, 0.0], [0.0, saturation * cosine, -saturation * sine],
                     [0.0, saturation * sine, saturation * cosine]])  # fmt: skip
    linear = brightness * contrast * (np.linalg.inv(_YIQ) @ turn @ _YIQ)
    # Every fourth pixel is enough for a mean
    grey = brightness * float(pixels[::4, ::4].reshape(-1, 3).mean(axis=0) @ _LUMA)
    return np.concatenate([linear, np.full((3, 1), (1 - contrast) * grey)], axis=1)


def _grid_in_image(matrix: np.ndarray, params: AugmentParams) -> tuple[np.ndarray, np.ndarray]:
    """Where the grid's positions lie in the photograph: x and y, (g, g) float64, 0 at the centre of the first pixel."""
    side = np.arange(0, params.crop_px, params.stride_px) + 0.5
    x, y = (row[0] * side[None, :] + row[1] * side[:, None] + row[2] - 0.5 for row in matrix)
    return x, y


def _sample_soft(soft: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear: (C, g, g) float32. x, y: (g, g), 0 and 1 at the corner positions; beyond them the nearest counts."""
    height, width = soft.shape[1:]
    column = np.clip(x, 0, 1) * (width - 1)
    row = np.clip(y, 0, 1) * (height - 1)
    left, top = (
        np.minimum(column.astype(np.intp), max(0, width - 2)),
        np.minimum(row.astype(np.intp), max(0, height - 2)),
    )
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    along, down = (column - left).astype(np.float32), (row - top).astype(np.float32)
    upper = soft[:, top, left] * (1 - along) + soft[:, top, right] * along
    lower = soft[:, bottom, left] * (1 - along) + soft[:, bottom, right] * along
    sampled = upper * (1 - down) + lower * down
    return np.asarray(sampled / 255 if soft.dtype == np.uint8 else sampled, np.float32)
