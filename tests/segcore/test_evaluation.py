"""Counts written out by hand, and the properties of sums."""

import numpy as np
import pytest

from segcore.evaluation import bootstrap_mean_iou, count_pixels, iou


def test_counts_by_hand() -> None:
    truth = np.array([[0, 0, 1], [1, 255, 2]], np.uint8)
    predicted = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    counts = count_pixels(truth, predicted, 4)
    # hits, truth, prediction; the void pixel is in none of them
    assert counts.tolist() == [[1, 2, 2], [2, 2, 3], [0, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(iou(counts), [1 / 3, 2 / 3, 0, np.nan])


def test_two_halves_add_up() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 5, (2, 8, 10)).astype(np.uint8)
    whole = count_pixels(truth, predicted, 5)
    np.testing.assert_array_equal(
        whole, count_pixels(truth[:3], predicted[:3], 5) + count_pixels(truth[3:], predicted[3:], 5)
    )


def test_labels_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="truth has label 7"):
        count_pixels(np.full((2, 2), 7, np.uint8), np.zeros((2, 2), np.uint8), 3)
    with pytest.raises(ValueError, match="truth is"):
        count_pixels(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), 3)


def test_bootstrap_surrounds_the_mean_and_repeats() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (30, 12, 12)).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.8, truth, (truth + 1) % 3).astype(np.uint8)
    counts = np.stack([count_pixels(t, p, 3) for t, p in zip(truth, predicted, strict=True)])
    classes = np.arange(3)
    samples = bootstrap_mean_iou(counts, classes, seed=4)
    low, high = np.quantile(samples, [0.025, 0.975])
    assert low < iou(counts.sum(axis=0)).mean() < high
    np.testing.assert_array_equal(samples, bootstrap_mean_iou(counts, classes, seed=4))
