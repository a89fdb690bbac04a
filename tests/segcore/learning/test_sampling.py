"""The order of the images: a function of seed and iteration, whoever asks."""

import numpy as np
import pytest

from segcore.learning.sampling import MAX_DRAW_RATIO, batch_samples, drawing_weights, drawn_samples, share_of


def test_every_epoch_has_every_image_once():
    samples = [sample for iteration in range(9) for sample in batch_samples(iteration, 4, 12, seed=7)]
    for epoch in range(3):
        seen = [sample.index for sample in samples[12 * epoch : 12 * epoch + 12]]
        assert sorted(seen) == list(range(12))
        assert {sample.epoch for sample in samples[12 * epoch : 12 * epoch + 12]} == {epoch}
    assert samples[:12] != [*samples[12:24]]


def test_a_batch_may_span_two_epochs():
    assert [sample.epoch for sample in batch_samples(1, 4, 6, seed=0)] == [0, 0, 1, 1]
    assert len(batch_samples(0, 10, 3, seed=0)) == 10  # More than there are images


def test_another_seed_is_another_order():
    assert batch_samples(0, 8, 100, seed=0) != batch_samples(0, 8, 100, seed=1)
    assert batch_samples(5, 8, 100, seed=1) == batch_samples(5, 8, 100, seed=1)


def test_workers_share_what_one_would_do():
    samples = batch_samples(3, 8, 100, seed=0)
    assert share_of(samples, 0, 2) + share_of(samples, 1, 2) == samples
    uneven = [share_of(samples, rank, 3) for rank in range(3)]
    assert [len(share) for share in uneven] == [3, 3, 2]
    assert [sample for share in uneven for sample in share] == samples
    with pytest.raises(ValueError, match="cannot be shared by 9 workers"):
        share_of(samples, 0, 9)


def test_no_images():
    with pytest.raises(ValueError, match="no images"):
        batch_samples(0, 8, 0, seed=0)


def test_images_of_rare_classes_are_drawn_more_often():
    # Labels 0, 1, 2: eight images hold 1, one holds 2, one holds both, one holds 0.5 % of 2, one nothing
    pixels = np.array([[50, 50, 0]] * 8 + [[50, 0, 50]] + [[40, 30, 30]] + [[199, 0, 1]] + [[100, 0, 0]])
    weights = drawing_weights(pixels, 1.0)
    assert weights.sum() == pytest.approx(1)
    assert weights[8] == pytest.approx(weights[0] * 9 / 2), "held by two images and by nine"
    assert weights[9] == weights[8], "an image counts as its rarest class"
    assert weights[10] == weights[11] < weights[0]
    assert np.allclose(drawing_weights(pixels, 0.0), 1 / 12)


def test_no_image_is_drawn_without_bound():
    pixels = np.array([[50, 50, 0]] * 2000 + [[50, 0, 50]])
    weights = drawing_weights(pixels, 1.0)
    assert weights[-1] / weights[0] <= MAX_DRAW_RATIO / 0.5


def test_drawn_batches_follow_from_seed_and_iteration():
    weights = np.array([0.7, 0.1, 0.1, 0.1])
    first = drawn_samples(5, 3, weights, seed=1)
    assert first == drawn_samples(5, 3, weights, seed=1) != drawn_samples(6, 3, weights, seed=1)
    assert len({sample.index for sample in first}) == 3 and {sample.epoch for sample in first} == {5}
    counted = np.bincount([drawn_samples(n, 1, weights, seed=1)[0].index for n in range(400)], minlength=4)
    assert 240 < counted[0] < 320
    assert len(drawn_samples(0, 6, weights, seed=1)) == 6, "fewer images than a batch has"
