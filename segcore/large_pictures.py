"""A picture of any size through overlapping windows, in memory that does not grow with its height.

Scores of windows are blended on one grid; labels are made tile by tile, each refined with a margin around it. The
picture is gone through in stripes of tiles from the top to the bottom, and of the grid only the rows are held that a
window or a tile still needs. How a window is scored and a tile refined is given by `predictor.py`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from segcore.crf.dense_crf import CrfParams, Refined
from segcore.images.masks import ClassSummary
from segcore.images.regions import Regions
from segcore.scoring.inference import LOWEST, InferenceParams, ScoreMap, window_px

TILE_PX = 768
"""Side of what is refined at once, without its margin."""

_STRIPE_BYTES = 256 << 20
"""Scores that are held; wider pictures are gone through in several stripes, whose windows overlap."""

_MOST_MARGIN_PX = 512
_REACH = 3.0  # Standard deviations of the widest kernel in a margin: beyond it a weight is below 2 %
_SAMPLED_PX = 4  # Cells of the grid where scores are at the size of the image


@dataclass(frozen=True)
class Tile:
    """Labels of one tile of a picture."""

    top: int
    left: int
    labels: np.ndarray
    """(h, w) uint8 or uint16."""

    labels_before: np.ndarray
    """(h, w), before the CRF."""

    refined: Refined
    """Of the tile with its margin."""


@dataclass
class LargeSummary:
    """What a picture's tiles say together.

    Confidence and entropy are means over the tiles by their pixels, each measured with its margin.
    """

    num_classes: int
    pixels: np.ndarray = field(init=False)
    """(C,) int64."""

    _confidence_sums: np.ndarray = field(init=False)
    _boxes: np.ndarray = field(init=False)
    _sums: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.pixels = np.zeros(self.num_classes, np.int64)
        self._confidence_sums = np.zeros(self.num_classes)
        self._boxes = np.tile(np.array([2**31 - 1, 2**31 - 1, 0, 0]), (self.num_classes, 1))
        self._sums = np.zeros(3)

    def add(self, tile: Tile) -> None:
        """Count one tile."""
        counts = np.bincount(tile.labels.ravel(), minlength=self.num_classes)
        self.pixels += counts
        self._confidence_sums += counts * tile.refined.class_confidence
        size, changed = tile.labels.size, int((tile.labels != tile.labels_before).sum())
        self._sums += [tile.refined.confidence * size, tile.refined.entropy * size, changed]
        for index in np.flatnonzero(counts):
            here = tile.labels == index
            rows, columns = np.flatnonzero(here.any(axis=1)), np.flatnonzero(here.any(axis=0))
            box = self._boxes[index]
            box[:2] = np.minimum(box[:2], [tile.left + columns[0], tile.top + rows[0]])
            box[2:] = np.maximum(box[2:], [tile.left + columns[-1] + 1, tile.top + rows[-1] + 1])

    @property
    def class_confidence(self) -> np.ndarray:
        """(C,) float64, 0 to 1."""
        return np.asarray(self._confidence_sums / np.maximum(self.pixels, 1))

    @property
    def confidence(self) -> float:
        return float(self._sums[0] / max(1, self.pixels.sum()))

    @property
    def entropy(self) -> float:
        """In nats."""
        return float(self._sums[1] / max(1, self.pixels.sum()))

    @property
    def changed(self) -> float:
        """Share of the pixels whose label the CRF changed, exact."""
        return float(self._sums[2] / max(1, self.pixels.sum()))

    @property
    def classes(self) -> list[ClassSummary]:
        """Every class that is present, most pixels first."""
        found = []
        for index in map(int, np.flatnonzero(self.pixels)):
            x0, y0, x1, y1 = map(int, self._boxes[index])
            confidence = float(self.class_confidence[index])
            found.append(ClassSummary(index, int(self.pixels[index]), confidence, (x0, y0, x1, y1)))
        return sorted(found, key=lambda s: (-s.pixels, s.index))


def needs_windows(width: int, height: int, params: InferenceParams) -> bool:
    """Whether a picture is scored through windows rather than in one pass: at its own size, and larger than one."""
    return params.long_side_px is None and max(width, height) > window_px(params)


def num_windows(width: int, height: int, params: InferenceParams) -> int:
    """How many windows a picture has."""
    side = window_px(params)
    return math.prod(len(window_starts(length, side, params.crop_stride)) for length in (width, height))


def window_starts(length_px: int, side_px: int, stride: float) -> list[int]:
    """First pixels of the windows along one side, multiples of 8; the last one ends within 8 px behind the picture."""
    if length_px <= side_px:
        return [0]
    step = max(8, int(side_px * stride) // 8 * 8)
    last = -(-(length_px - side_px) // 8) * 8
    return [*range(0, last, step), last]


def tiles(
    picture: Regions,
    score: Callable[[np.ndarray], ScoreMap],
    refine: Callable[[np.ndarray, ScoreMap], Refined],
    params: InferenceParams,
    crf: CrfParams | None,
    num_classes: int,
) -> Iterator[Tile]:
    """The labels of a picture in tiles of `TILE_PX`, stripe by stripe, each from the top to the bottom.

    score: (h, w, 3) uint8 RGB to scores, of one window. refine: labels of a region and its scores.
    Raises what they and the picture raise.
    """
    margin = 0 if crf is None else _margin_px(crf)
    stripe = _stripe_px(picture.width, num_classes, window_px(params), margin)
    for left in range(0, picture.width, stripe):
        right = min(picture.width, left + stripe)
        blend = _Blend(picture, score, params, max(0, left - margin), min(picture.width, right + margin))
        for top in range(0, picture.height, TILE_PX):
            bottom = min(picture.height, top + TILE_PX)
            above, below = max(0, top - margin), min(picture.height, bottom + margin)
            blend.advance(above, below)
            for start in range(left, right, TILE_PX):
                end = min(right, start + TILE_PX)
                before, behind = max(0, start - margin), min(picture.width, end + margin)
                pixels = picture.read(above, before, below - above, behind - before)
                refined = refine(pixels, blend.scores(above, before, below, behind))
                inside = (slice(top - above, bottom - above), slice(start - before, end - before))
                yield Tile(top, start, refined.labels[inside], refined.labels_before[inside], refined)


def _margin_px(crf: CrfParams) -> int:
    reach = max(
        crf.bilateral_xy_std_px if crf.bilateral_weight else 0, crf.gaussian_xy_std_px if crf.gaussian_weight else 0
    )
    return min(_MOST_MARGIN_PX, -(-math.ceil(_REACH * reach) // 8) * 8)


def _stripe_px(width: int, num_classes: int, side: int, margin: int) -> int:
    """Width of a stripe whose scores keep within `_STRIPE_BYTES`, a multiple of `TILE_PX`."""
    rows = (side + TILE_PX + 2 * margin) // _SAMPLED_PX  # By the finer of the two grids
    columns = _STRIPE_BYTES // (4 * num_classes * rows) * _SAMPLED_PX - 2 * margin
    return min(-(-width // TILE_PX), max(1, columns // TILE_PX)) * TILE_PX


class _Blend:
    """Blended scores of a stripe of a picture: of each position the weighted mean over the windows that see it.

    A weight is 0 in the outer quarter of an overlap, where a network sees the edge of its window, and rises smoothly to
    1 over the half in its middle. Logits are averaged, or probabilities where `fusion` is "mean".
    """

    def __init__(
        self,
        picture: Regions,
        score: Callable[[np.ndarray], ScoreMap],
        params: InferenceParams,
        left: int,
        right: int,
    ) -> None:
        self.picture, self.score, self.in_probabilities = picture, score, params.fusion == "mean"
        self.side = window_px(params)
        self.tops = window_starts(picture.height, self.side, params.crop_stride)
        self.lefts = window_starts(picture.width, self.side, params.crop_stride)
        self.right = right
        seen = [number for number, start in enumerate(self.lefts) if start < right and start + self.side > left]
        self.seen = range(seen[0], seen[-1] + 1)
        self.origin = self.lefts[seen[0]]
        self.cell = 0  # px between positions of the grid: known with the first scores
        self.first = 0  # Row of the grid that is the first of those held
        self.sums = np.empty(0)
        self.weights = np.empty(0)
        self.next = 0  # Of the rows of windows

    def advance(self, above: int, below: int) -> None:
        """Hold what pixels above to below need, and let go of what is above them."""
        if self.cell and (gone := above // self.cell - self.first) > 0:
            self.sums, self.weights = self.sums[:, gone:].copy(), self.weights[gone:].copy()
            self.first += gone
        while self.next < len(self.tops) and self.tops[self.next] <= below:
            self._add_row(self.next)
            self.next += 1

    def scores(self, top: int, left: int, bottom: int, right: int) -> ScoreMap:
        """Scores of a region whose top and left are multiples of 8."""
        cell = self.cell
        rows, columns = -(-(bottom - top - 1) // cell) + 1, -(-(right - left - 1) // cell) + 1
        y, x = top // cell - self.first, (left - self.origin) // cell
        place = (slice(y, y + rows), slice(x, x + columns))
        found = self.sums[:, place[0], place[1]] / self.weights[place]
        if self.in_probabilities:
            found = np.log(np.maximum(found, 1e-30))
        found = np.maximum(found - found.max(axis=0), LOWEST).astype(np.float16)
        return ScoreMap(found, ((rows - 1) * cell + 1, (columns - 1) * cell + 1))

    def _add_row(self, number: int) -> None:
        top = self.tops[number]
        height = min(self.side, self.picture.height - top)
        for along in self.seen:
            left = self.lefts[along]
            width = min(self.side, self.picture.width - left)
            found = self.score(np.ascontiguousarray(self.picture.read(top, left, height, width)))
            self.cell = self.cell or (_SAMPLED_PX if found.scores.shape[1:] == (height, width) else 8)
            scores = _sampled(found, (height, width), self.cell)
            if self.in_probabilities:
                scores = np.exp(scores)
                scores /= scores.sum(axis=0)
            if along == self.seen[0]:
                last = min(self.picture.width, self.lefts[self.seen[-1]] + self.side)
                columns = -(-(last - self.origin - 1) // self.cell) + 1
                self._make_room(len(scores), top // self.cell + scores.shape[1], columns)
            weight = np.outer(
                self._ramps(self.tops, number, scores.shape[1]), self._ramps(self.lefts, along, scores.shape[2])
            )
            y, x = top // self.cell - self.first, (left - self.origin) // self.cell
            place = (slice(y, y + len(weight)), slice(x, x + weight.shape[1]))
            self.sums[:, place[0], place[1]] += scores * weight
            self.weights[place] += weight

    def _make_room(self, num_classes: int, rows: int, columns: int) -> None:
        held = self.weights.shape[0]
        if held == 0:
            self.sums, self.weights = np.zeros((num_classes, 0, columns), np.float32), np.zeros((0, columns))
        more = rows - self.first - held
        if more > 0:
            self.sums = np.concatenate([self.sums, np.zeros((num_classes, more, columns), np.float32)], axis=1)
            self.weights = np.concatenate([self.weights, np.zeros((more, columns), np.float32)])

    def _ramps(self, starts: list[int], number: int, cells: int) -> np.ndarray:
        """(cells,) float32: weights along one side of a window."""
        weight = np.ones(cells, np.float32)
        at = np.arange(cells, dtype=np.float32) * self.cell
        if number > 0 and (overlap := starts[number - 1] + self.side - 1 - starts[number]) > 0:
            weight *= _smooth((at - overlap / 4) / (overlap / 2))
        if number + 1 < len(starts) and (overlap := starts[number] + self.side - 1 - starts[number + 1]) > 0:
            weight *= _smooth((self.side - 1 - at - overlap / 4) / (overlap / 2))
        return weight


def _sampled(found: ScoreMap, size: tuple[int, int], cell: int) -> np.ndarray:
    """(C, rows, columns) float32: scores at every `cell` px from the corner of a window on, bilinear."""
    scores: np.ndarray = found.scores
    for axis, (length, extent) in enumerate(zip(size, found.extent_px, strict=True), start=1):
        given = scores.shape[axis]
        places = np.minimum(np.arange(-(-(length - 1) // cell) + 1) * cell, extent - 1)
        at = places * ((given - 1) / max(1, extent - 1))
        low = np.minimum(np.floor(at + 1e-6).astype(int), given - 1)
        share = (at - low).clip(0, 1).astype(np.float32)
        near = scores.take(low, axis).astype(np.float32)
        if share.max() > 1e-4:
            share = share.reshape((1, -1, 1) if axis == 1 else (1, 1, -1))
            near += (scores.take(np.minimum(low + 1, given - 1), axis).astype(np.float32) - near) * share
        scores = near
    return scores


def _smooth(share: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, between them without a kink."""
    share = share.clip(0, 1)
    return np.asarray(share * share * (3 - 2 * share), dtype=np.float32)
