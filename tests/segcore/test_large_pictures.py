"""Pictures through windows: the labels of one pass, however many windows and stripes there are."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from segcore import large_pictures
from segcore.crf.dense_crf import CrfParams, Refined, refine_scores
from segcore.images.regions import ArrayRegions
from segcore.large_pictures import LargeSummary, needs_windows, num_windows, tiles, window_starts
from segcore.scoring.inference import InferenceParams, ScoreMap, padded_px, score_map

CLASSES = 5
REACH = 32


def near_sighted(full_size: bool = False, shift: float = 0.0) -> Callable[[np.ndarray], ScoreMap]:
    """A network that sees 32 px around each position: of the mean colour there, on a grid of 8 px or at full size.

    shift: added to all scores of a window, another for each, which changes no label.
    """
    weight = np.random.default_rng(1).normal(size=(CLASSES, 3)).astype(np.float32) * 0.08
    calls = [0]

    def score(pixels: np.ndarray) -> ScoreMap:
        calls[0] += 1
        height, width = pixels.shape[:2]
        extent = (height, width) if full_size else (padded_px(height), padded_px(width))
        canvas = np.zeros((*extent, 3))
        canvas[:height, :width] = pixels - 128.0
        sums = np.pad(canvas, ((REACH + 1, REACH), (REACH + 1, REACH), (0, 0))).cumsum(0).cumsum(1)
        size, step = 2 * REACH + 1, 1 if full_size else 8
        y, x = np.arange(0, extent[0], step)[:, None], np.arange(0, extent[1], step)
        mean = (sums[y + size, x + size] - sums[y, x + size] - sums[y + size, x] + sums[y, x]) / size**2
        scores = np.einsum("ck,hwk->chw", weight, mean.astype(np.float32)) + shift * calls[0]
        return score_map(scores, extent, "near-sighted")

    return score


def picture(height: int = 1210, width: int = 1500) -> np.ndarray:
    dice = np.random.default_rng(0)
    small = Image.fromarray(dice.integers(0, 255, (16, 20, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + dice.normal(0, 6, smooth.shape).astype(int), 0, 255).astype(np.uint8)


def through_windows(
    image: np.ndarray, crop_px: int, crf: CrfParams | None = None, full_size: bool = False, **options: object
) -> tuple[np.ndarray, LargeSummary]:
    params = InferenceParams(long_side_px=None, crop_px=crop_px, **options)
    labels, summary = np.full(image.shape[:2], 255, np.uint8), LargeSummary(CLASSES)

    def refine(pixels: np.ndarray, scores: ScoreMap) -> Refined:
        return refine_scores(pixels, scores.scores, crf, extent_px=scores.extent_px)

    score = near_sighted(full_size, shift=3.0)
    for tile in tiles(ArrayRegions(image), score, refine, params, crf, CLASSES):
        place = np.s_[tile.top : tile.top + tile.labels.shape[0], tile.left : tile.left + tile.labels.shape[1]]
        assert (labels[place] == 255).all(), "every pixel has its label once"
        labels[place] = tile.labels
        summary.add(tile)
    return labels, summary


def in_one_pass(image: np.ndarray, crf: CrfParams | None = None) -> Refined:
    scores = near_sighted()(image)
    return refine_scores(image, scores.scores, crf, extent_px=scores.extent_px)


@pytest.mark.parametrize(("crop_px", "windows"), [(1601, 1), (1025, 4), (513, 16), (257, 63)])
@pytest.mark.parametrize("fusion", ["max", "mean"])
def test_labels_are_those_of_one_pass(crop_px: int, windows: int, fusion: str) -> None:
    image = picture()
    whole = in_one_pass(image)
    labels, summary = through_windows(image, crop_px, fusion=fusion)
    assert num_windows(1500, 1210, InferenceParams(long_side_px=None, crop_px=crop_px)) == windows
    assert np.mean(labels != whole.labels) < 1e-3
    assert summary.pixels.sum() == labels.size
    assert np.array_equal(summary.pixels, np.bincount(labels.ravel(), minlength=CLASSES))
    assert summary.confidence == pytest.approx(whole.confidence, abs=1e-3)
    assert summary.entropy == pytest.approx(whole.entropy, abs=1e-3)
    for found in summary.classes:
        y, x = np.nonzero(labels == found.index)
        assert found.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)


def test_scores_at_full_size_are_blended_too() -> None:
    image = picture(700, 900)
    one, _ = through_windows(image, 1025, full_size=True)
    four, _ = through_windows(image, 513, full_size=True)
    assert np.mean(one != four) < 1e-3
    assert np.mean(one != in_one_pass(image).labels) < 0.01  # Of a grid of 8 px


def test_the_crf_of_tiles_is_that_of_the_whole() -> None:
    image = picture(1100, 1300)
    crf = CrfParams(bilateral_xy_std_px=20, bilateral_rgb_std=10)
    whole = in_one_pass(image, crf)
    one, _ = through_windows(image, 1601, crf)
    labels, summary = through_windows(image, 513, crf)
    assert np.mean(labels != one) < 1e-3  # Nothing but the windows differs
    assert np.mean(labels != whole.labels) < 3e-3  # The engine's lattice lies elsewhere in each tile
    assert summary.changed == pytest.approx(whole.changed, abs=1e-3)


def test_stripes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(700, 2500)
    before, _ = through_windows(image, 257)
    monkeypatch.setattr(large_pictures, "_STRIPE_BYTES", 1)
    after, _ = through_windows(image, 257)
    assert np.array_equal(before, after)


@pytest.mark.parametrize("stride", [0.25, 2 / 3, 1.0])
@pytest.mark.parametrize("size", [(33, 2000), (1025, 1025), (1026, 1031), (1023, 66), (1, 1100)])
def test_any_size_and_stride(size: tuple[int, int], stride: float) -> None:
    image = picture(*size)
    labels, _ = through_windows(image, 257, crop_stride=stride)
    different = np.mean(labels != in_one_pass(image).labels)
    assert different < (1e-3 if stride < 1 else 0.1)  # Without overlap a window's edge is seen


def test_windows_cover_the_picture_and_end_with_it() -> None:
    for length in (33, 256, 257, 258, 600, 1000, 30_000):
        starts = window_starts(length, 257, 2 / 3)
        assert starts[0] == 0 and all(start % 8 == 0 for start in starts) and starts == sorted(set(starts))
        assert all(b - a <= 257 for a, b in itertools.pairwise(starts))
        assert length <= starts[-1] + 257 and (len(starts) == 1 or starts[-1] + 257 < length + 8)


def test_who_needs_windows() -> None:
    own = InferenceParams(long_side_px=None)
    assert needs_windows(1026, 20, own) and not needs_windows(1025, 1025, own)
    assert needs_windows(514, 20, InferenceParams(long_side_px=None, crop_px=513))
    assert not needs_windows(5000, 4000, InferenceParams(long_side_px=4096))
