"""The order of the images: a function of seed and iteration, whoever asks."""

import pytest

from segcore.sampling import batch_samples, share_of


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
