"""Counts written out by hand, and the properties of sums."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from segcore.crf.dense_crf import CrfParams, refine_scores
from segcore.metrics import evaluation
from segcore.metrics.evaluation import (
    border_distance,
    class_accuracy,
    compared_classes,
    confusion_matrix,
    confusions,
    count_pixels,
    counts_of,
    interval,
    iou,
    mean_iou,
    pixel_accuracy,
    resampled_sums,
    resampling,
    trimap_counts,
)

FREQUENT = np.array([0, 8, 10, 12, 13, 15, 17])  # background, cat, cow, dog, horse, person, sheep


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
    with pytest.raises(ValueError, match="truth has label 256"):  # Of a mask of 16 bits
        count_pixels(np.full((2, 2), 256, np.uint16), np.zeros((2, 2), np.uint8), 3)


def test_confusion_by_hand() -> None:
    truth = np.array([[0, 0, 1], [1, 255, 2]], np.uint8)
    predicted = np.array([[0, 1, 1], [1, 3, 0]], np.uint8)
    confusion = confusion_matrix(truth, predicted, 4)
    assert confusion.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    counts = counts_of(confusion)
    # The class that is in neither is absent from every mean; the one that was never found counts as zero
    assert mean_iou(counts) == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)
    assert pixel_accuracy(counts) == pytest.approx(3 / 5)
    assert class_accuracy(counts) == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert confusions(confusion) == [(2, 0, 1.0, 1), (0, 1, 0.5, 1)]


def test_a_prediction_out_of_range_is_named_unless_it_is_void() -> None:
    truth = np.array([[0, 255]], np.uint8)
    assert confusion_matrix(truth, np.array([[0, 9]], np.uint8), 2).sum() == 1
    with pytest.raises(ValueError, match="prediction has label 9"):
        confusion_matrix(truth, np.array([[9, 0]], np.uint8), 2)


def dilated(mask: np.ndarray, width: int) -> np.ndarray:
    """The definition: a square of side 2 width + 1 around every pixel of the mask."""
    found = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        found[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1] = True
    return found


def test_the_trimap_equals_forty_explicit_dilations(voc: Path) -> None:
    stored = np.load(voc / "scores_val_have.npz")
    random = np.random.default_rng(0)
    for image_id in stored["ids"][:2]:
        truth = np.array(Image.open(voc / "SegmentationClassAug" / f"{image_id}.png"))[::2, ::2]
        predicted = np.where(truth == 255, 3, truth).astype(np.uint8)
        wrong = random.random(truth.shape) < 0.2
        predicted[wrong] = random.integers(0, 21, truth.shape)[wrong]
        counted = np.cumsum(trimap_counts(truth, predicted, 21, "void"), axis=0)
        for width in range(1, 41):
            band = dilated(truth == 255, width) & (truth != 255)
            inside = np.where(band, truth, 255).astype(np.uint8)
            np.testing.assert_array_equal(counted[width - 1], count_pixels(inside, predicted, 21))


def test_without_void_the_trimap_is_around_the_borders_of_classes() -> None:
    truth = np.zeros((5, 9), np.uint8)
    truth[:, 4:] = 1
    assert border_distance(truth, "borders")[0].tolist() == [4, 3, 2, 1, 1, 2, 3, 4, 5]
    assert trimap_counts(truth, truth, 2, "borders").sum(axis=(1, 2)).tolist()[:6] == [30, 30, 30, 30, 15, 0]
    one_class = np.zeros((4, 4), np.uint8)
    assert trimap_counts(one_class, one_class, 2, "borders").sum() == 0
    assert (border_distance(one_class, "void") == 41).all()


def test_the_distance_equals_brute_force_on_random_maps() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        truth = np.where(random.random((13, 17)) < 0.03, 255, 0).astype(np.uint8)
        y, x = np.mgrid[:13, :17]
        expected = np.full(truth.shape, 8, np.uint8)
        for v, u in np.argwhere(truth == 255):
            np.minimum(expected, np.maximum(abs(y - v), abs(x - u)).astype(np.uint8), out=expected)
        np.testing.assert_array_equal(border_distance(truth, "void", limit_px=7), expected)


def test_resampled_sums_are_weighted_sums_that_leave_no_image_out() -> None:
    counts = np.random.default_rng(0).integers(0, 50, (6, 4, 3))
    weights = resampling(6, 1000, seed=1)
    assert weights.min() > 0
    np.testing.assert_allclose(weights.sum(axis=1), 6)
    # Mean and spread of draws with replacement, up to 1/N: variance (N - 1) / (N + 1) against (N - 1) / N
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.1)
    np.testing.assert_allclose(weights.var(axis=0), 5 / 7, atol=0.15)
    np.testing.assert_allclose(resampled_sums(counts, weights)[3], (weights[3, :, None, None] * counts).sum(axis=0))
    np.testing.assert_array_equal(weights, resampling(6, 1000, seed=1))
    low, high = interval(np.array([[np.nan, 1.0], [np.nan, 3.0]]), np.full(2, 1e9), level=0.5)
    assert np.isnan(low[0]) and (low[1], high[1]) == pytest.approx((1.5, 2.5))


def test_a_class_that_one_result_alone_predicts_counts_in_both() -> None:
    truth = np.array([[0, 0, 0, 0, 1, 1, 1, 1]], np.uint8)
    before = count_pixels(truth, np.array([[0, 0, 0, 2, 1, 1, 1, 1]], np.uint8), 4)  # Takes a pixel for 2, in no image
    after = count_pixels(truth, truth, 4)
    over = compared_classes(before, after)
    assert over.tolist() == [True, True, True, False]
    # Alone, the second result would be 100 % over two classes: a gain of 41.67 points of which most is another set
    assert mean_iou(before) == pytest.approx((3 / 4 + 1 + 0) / 3) and mean_iou(after) == 1
    assert mean_iou(after, over) == pytest.approx((1 + 1 + 0) / 3)
    assert mean_iou(before, over) == mean_iou(before)
    # Whatever rows are averaged at once have one set
    np.testing.assert_allclose(mean_iou(np.stack([before, after])), [7 / 12, 2 / 3])
    assert np.isnan(mean_iou(np.zeros((4, 3), np.int64)))


def test_a_class_that_smoothing_forgets_on_real_photographs_raises_no_mean(voc: Path) -> None:
    """Twenty photographs of VOC val, scores of a real network, on its grid of 33 x 33 points."""
    stored = np.load(voc / "scores_val_have.npz")
    before, after = np.zeros((2, 21, 21), np.int64)
    for image_id, logits in zip(stored["ids"][:20], stored["logits"][:20].astype(np.float32), strict=True):
        truth = np.asarray(Image.open(voc / "SegmentationClassAug" / f"{image_id}.png"))
        rows, columns = (np.linspace(0, side - 1, 33).round().astype(int) for side in truth.shape)
        truth = truth[np.ix_(rows, columns)]
        padded = np.pad(logits, ((0, 0), (2, 2), (2, 2)), mode="edge")
        smooth = sum(padded[:, y : y + 33, x : x + 33] for y in range(5) for x in range(5))
        before += confusion_matrix(truth, logits.argmax(axis=0).astype(np.uint8), 21)
        after += confusion_matrix(truth, smooth.argmax(axis=0).astype(np.uint8), 21)
    first, second = counts_of(before), counts_of(after)
    assert (compared_classes(first).sum(), compared_classes(second).sum()) == (15, 14)
    over = compared_classes(first, second)
    # Each over its own classes, 51.80 and 52.26 are a gain of 0.45 points. Over the same fifteen, of which the one that
    # is forgotten counts as 0, the second is 14/15 of 52.255 = 48.772: a loss of 3.03
    assert 100 * mean_iou(first) == pytest.approx(51.802, abs=1e-3)
    assert 100 * mean_iou(second) == pytest.approx(52.255, abs=1e-3)
    assert 100 * mean_iou(first, over) == pytest.approx(51.802, abs=1e-3)
    assert 100 * mean_iou(second, over) == pytest.approx(48.772, abs=1e-3)
    # By hand: sum of hits / (truth + predicted - hits) of each class, over fifteen
    hits, union = np.diag(after), after.sum(axis=0) + after.sum(axis=1) - np.diag(after)
    assert 100 * (hits[union > 0] / union[union > 0]).sum() / 15 == pytest.approx(48.772, abs=1e-3)


def test_every_resampling_has_the_classes_of_all_images() -> None:
    counts = np.zeros((30, 3, 3), np.int64)
    counts[:, 0] = [90, 100, 110]
    counts[0, 1] = [5, 10, 10]  # One image alone holds class 1; plain draws lack it every third time
    samples = mean_iou(resampled_sums(counts, resampling(30, 500, seed=0)))
    apart = [90 / 120, 5 / 15]
    assert abs(samples.mean() - np.mean(apart)) < 0.01 and samples.std() < 0.03


def test_intervals_of_few_images_hold_the_truth_as_often_as_they_say() -> None:
    """A class in large and small objects, as in photographs, on 40 of them."""
    random = np.random.default_rng(0)
    size = random.lognormal(6, 1.2, 4000)
    found = size * random.beta(6, 2, size.shape)
    images = np.stack([found, size, found + 0.1 * size], axis=-1)[:, None]  # (N, 1, 3)
    truth = float(iou(images.sum(axis=0))[0])
    weights = resampling(40, 1000, seed=0)
    held, plain = 0, 0
    for _ in range(400):
        sample = images[random.integers(0, len(images), 40)]
        _, low, high = evaluation.with_interval(iou, weights, sample)
        held += bool(low[0] <= truth <= high[0])
        low, high = np.quantile(iou(resampled_sums(sample, weights)), [0.025, 0.975], axis=0)
        plain += bool(low[0] <= truth <= high[0])
    assert plain < 0.94 * 400 <= held


def test_effective_images_and_the_t_distribution() -> None:
    assert evaluation.effective_images(np.array([[1.0, 1, 0], [-1, 0, 0], [1, 0, 0], [1, 0, 0]])).tolist() == [
        4,
        3,
        1e9,
    ]
    samples = np.linspace(0, 1, 10_001)[:, None]
    for images in (3.0, 5.0, 30.0, 1e6):
        low, high = interval(samples, np.array([images]))
        tail = stats.norm.cdf(-np.sqrt(images / (images - 1)) * stats.t.ppf(0.975, images - 1))
        assert low[0] == pytest.approx(tail, rel=0.25 if images == 3 else 0.01, abs=2e-4)
        assert low[0] + high[0] == pytest.approx(1)


def test_a_paired_difference_is_surer_than_two_intervals() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, (40, 12, 12)).astype(np.uint8)
    # Images differ much in how hard they are, the two results little
    hard = random.uniform(0, 0.6, (40, 1, 1))
    results = [np.where(random.random(truth.shape) < hard + more, (truth + 1) % 3, truth) for more in (0, 0.05)]
    first, second = (
        np.stack([count_pixels(t, p.astype(np.uint8), 3) for t, p in zip(truth, result, strict=True)])
        for result in results
    )
    weights = resampling(40, 1000, seed=0)
    paired = evaluation.paired_difference(first, second, pixel_accuracy, weights)
    _, *alone = evaluation.with_interval(pixel_accuracy, weights, first)
    assert paired.low < paired.value < paired.high < 0
    assert paired.high - paired.low < 0.5 * float(alone[1] - alone[0])
    with pytest.raises(ValueError, match="same images"):
        evaluation.paired_difference(first, second[1:], pixel_accuracy, weights)


def plain_counts(truth: np.ndarray, predicted: np.ndarray) -> list[list[int]]:
    """The definition, pixel by pixel."""
    counts = [[0, 0, 0] for _ in range(21)]
    for true, said in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
        if true != 255:
            counts[true][1] += 1
            counts[said][2] += 1
            counts[true][0] += true == said
    return counts


def real_counts(voc: Path, crf: CrfParams | None, num_plain: int) -> np.ndarray:
    stored = np.load(voc / "scores_val_have.npz")
    counted = []
    for number, (image_id, scores) in enumerate(zip(stored["ids"], stored["logits"], strict=True)):
        image = np.array(Image.open(voc / "JPEGImages" / f"{image_id}.jpg").convert("RGB"))
        truth = np.array(Image.open(voc / "SegmentationClassAug" / f"{image_id}.png"))
        predicted = refine_scores(image, scores, crf).labels
        counted.append(count_pixels(truth, predicted, 21))
        if number < num_plain:
            assert counted[-1].tolist() == plain_counts(truth, predicted)
    assert len(counted) == 300
    return np.stack(counted)


def test_the_real_scores_without_crf(voc: Path) -> None:
    counts = real_counts(voc, None, 3)
    whole = counts.sum(axis=0)
    assert round(100 * float(mean_iou(whole, FREQUENT)), 2) == 69.41
    assert round(100 * float(pixel_accuracy(whole)), 2) == 90.33
    np.testing.assert_array_equal(whole, counts[:100].sum(axis=0) + counts[100:].sum(axis=0))  # Parts add up


@pytest.mark.slow
def test_the_real_scores_with_crf(voc: Path) -> None:
    whole = real_counts(voc, CrfParams(4, 67, 3, 3, 1), 1).sum(axis=0)
    assert round(100 * float(mean_iou(whole, FREQUENT)), 2) == 71.21
    assert round(100 * float(pixel_accuracy(whole)), 2) == 91.04
