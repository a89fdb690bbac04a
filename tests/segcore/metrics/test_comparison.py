"""The rule of the alarm: silent where nothing changed, loud where something did, whatever the number of figures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segcore.crf.dense_crf import refine_scores
from segcore.metrics import evaluation
from segcore.metrics.comparison import AlarmParams, compare

FEW = AlarmParams(num_samples=1000)


def some_counts(num_images: int = 60, seed: int = 0) -> np.ndarray:
    """(N, 3, 3) counts of images of three classes, about 80 % of the pixels right."""
    random = np.random.default_rng(seed)
    counts = []
    for _ in range(num_images):
        truth = random.integers(0, 3, (20, 20)).astype(np.uint8)
        predicted = np.where(random.random(truth.shape) < random.uniform(0.7, 0.9), truth, (truth + 1) % 3)
        counts.append(evaluation.count_pixels(truth, predicted.astype(np.uint8), 3))
    return np.stack(counts)


def taken_away(counts: np.ndarray, label: int, share: float) -> np.ndarray:
    """The same images with a share of the hits of a class lost to class 0."""
    worse = counts.copy()
    lost = np.round(worse[:, label, 0] * share).astype(int)
    worse[:, label, 0] -= lost
    worse[:, label, 2] -= lost
    worse[:, 0, 2] += lost
    return worse


def test_equal_results_have_no_difference() -> None:
    counts = some_counts()
    (differences,) = compare([(counts, counts)], FEW)
    assert [d.name for d in differences] == ["mean_iou", "pixel_accuracy", "iou", "iou", "iou"]
    for d in differences:
        assert d.before == d.now and d.low == d.high == 0 and not d.worse


def test_a_class_that_lost_pixels_is_worse_and_named() -> None:
    counts = some_counts()
    (differences,) = compare([(counts, taken_away(counts, 1, 0.1))], FEW)
    by_label = {d.label: d for d in differences if d.name == "iou"}
    assert by_label[1].worse and not by_label[2].worse
    assert by_label[1].low < by_label[1].now - by_label[1].before < by_label[1].high < 0
    # The other way round it became better, which wakes nobody
    (differences,) = compare([(taken_away(counts, 1, 0.1), counts)], FEW)
    assert not any(d.worse for d in differences)


def test_a_fall_within_the_tolerance_is_no_alarm() -> None:
    counts = some_counts()
    pair = [(counts, taken_away(counts, 1, 0.1))]
    assert not any(d.worse for d in compare(pair, AlarmParams(num_samples=1000, tolerance_points=20))[0])


def test_a_rare_class_is_not_tested_alone() -> None:
    counts = some_counts()
    counts[10:, 2] = 0
    (differences,) = compare([(counts, counts)], FEW)
    assert [d.label for d in differences if d.name == "iou"] == [0, 1]


def test_more_models_widen_the_intervals() -> None:
    first, second = some_counts(seed=1), some_counts(seed=2)
    alone = compare([(first, second)], FEW)[0]
    among = compare([(first, second), *((some_counts(seed=k), some_counts(seed=k + 1)) for k in range(3, 9))], FEW)[0]
    assert all(a.high <= b.high for a, b in zip(alone, among, strict=True))


def test_few_resamplings_find_the_tail_of_many() -> None:
    """A month of quiet nights is one draw in 1,500: of 1,000 draws it is read from a tail that is no longer seen."""
    pair = [(some_counts(seed=1), some_counts(seed=2))]
    (few,), (many,) = (compare(pair, AlarmParams(num_samples=number)) for number in (1000, 60_000))
    for a, b in zip(few, many, strict=True):
        assert a.high - a.low == pytest.approx(b.high - b.low, rel=0.15)
    (nightly,) = compare(pair, AlarmParams(num_samples=60_000, false_alarms=0.26))  # One night in a hundred
    assert all(a.high - a.low < 0.95 * (b.high - b.low) for a, b in zip(nightly, many, strict=True))


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="same images"):
        compare([(some_counts(60), some_counts(50))], FEW)


@pytest.mark.slow
def test_the_alarm_is_calibrated_on_the_real_images(voc: Path) -> None:
    """Figures of more nights, noises and drops: `python -m benchmarks.evaluation calibration`."""
    stored = np.load(voc / "scores_val_have.npz")
    truths = [np.array(Image.open(voc / "SegmentationClassAug" / f"{name}.png")) for name in stored["ids"]]

    def noisy(seed: int) -> np.ndarray:
        random = np.random.default_rng(seed)
        counted = []
        for scores, truth in zip(stored["logits"], truths, strict=True):
            moved = scores + random.normal(0, 0.5, scores.shape) + random.normal(0, 0.3, (21, 1, 1))
            blank = np.zeros((*truth.shape, 3), np.uint8)
            counted.append(
                evaluation.count_pixels(truth, refine_scores(blank, moved.astype(np.float16), None).labels, 21)
            )
        return np.stack(counted)

    replicas = np.stack([noisy(seed) for seed in range(3)])
    random = np.random.default_rng(0)
    false_alarms = found = 0
    dog = 12
    for night in range(100):
        params = AlarmParams(num_samples=1000, seed=night)
        images = random.integers(0, 300, 300)
        before = random.integers(0, 3, 300)
        after = (before + random.integers(1, 3, 300)) % 3
        pair = (replicas[before, images], replicas[after, images])
        false_alarms += any(d.worse for d in compare([pair], params)[0])
        worse = (replicas[0][images], taken_away(replicas[0][images], dog, 0.05))
        falls = compare([worse], params)[0]
        drop = next(d.before - d.now for d in falls if d.label == dog)
        assert 0.02 < drop < 0.05
        found += any(d.worse for d in falls if d.label == dog)
    assert false_alarms <= 2 and found >= 95
