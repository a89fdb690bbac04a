"""Which label belongs to which position, and what is summed over them: small maps written out."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from segcore.learning import losses
from segcore.learning.recipes import LossParams


def one_hot_logits(labels: torch.Tensor, num_classes: int = 21) -> torch.Tensor:
    """Scores that are certain of these labels."""
    return 50.0 * F.one_hot(labels.long(), num_classes).permute(0, 3, 1, 2).float()


def test_a_position_is_held_against_the_pixel_under_it():
    """Each eighth pixel has a label of its own amid 255: every one of them must be found, and nothing else."""
    labels = torch.full((1, 33, 33), 255, dtype=torch.uint8)
    answer = torch.arange(25).reshape(1, 5, 5) % 21
    labels[:, ::8, ::8] = answer.to(torch.uint8)
    assert torch.equal(losses.align_labels(labels), answer.to(torch.uint8))
    target = losses.label_targets(labels, LossParams())["main"]
    assert losses.divisor(target) == 25
    assert losses.cross_entropy_sum(one_hot_logits(answer), target) < 1e-6
    # One position to the side, every one of the 25 is wrong
    wrong = losses.cross_entropy_sum(one_hot_logits((answer + 1) % 21), target)
    assert wrong == pytest.approx(25 * 50, rel=1e-3)


def test_an_edge_in_the_image_is_an_edge_in_the_labels():
    """Left half 1, right half 2, edge between pixels 16 and 17: positions 0 to 2 lie left of it."""
    labels = torch.ones(1, 33, 33, dtype=torch.uint8)
    labels[..., 17:] = 2
    assert losses.align_labels(labels)[0, 0].tolist() == [1, 1, 1, 2, 2]


def test_full_size_labels_meet_upsampled_scores():
    labels = torch.zeros(1, 17, 17, dtype=torch.uint8)
    labels[..., 9:] = 1
    params = LossParams(label_resolution="full")
    target = losses.label_targets(labels, params)["main"]
    assert target.shape == (1, 17, 17)
    logits = torch.zeros(1, 2, 3, 3)
    logits[:, 1] = torch.tensor([-80.0, 0.0, 80.0])  # Corners on corners: 0 at pixel 8, 10 at pixel 9
    total = losses.cross_entropy_sum(logits, target)
    # Only the column on the edge is undecided: 17 pixels at log 2
    assert total == pytest.approx(17 * math.log(2), rel=1e-3)


def test_scores_and_labels_of_different_grids_are_refused():
    with pytest.raises(ValueError, match="8k \\+ 1"):
        losses.cross_entropy_sum(torch.zeros(1, 2, 6, 6), torch.zeros(1, 5, 5))


def test_ignored_positions_count_nowhere():
    target = torch.tensor([[[0, 255], [255, 1]]])
    logits = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    total = losses.cross_entropy_sum(logits, target) / losses.divisor(target)
    assert total == pytest.approx(F.cross_entropy(logits, target, ignore_index=255).item(), rel=1e-6)


def test_four_losses_of_three_scales():
    """Scale 0.5 has every sixteenth label at its own resolution; 0.75, whose grid falls between pixels, scale 1's."""
    labels = torch.arange(65 * 65).reshape(1, 65, 65) % 21
    targets = losses.label_targets(labels, LossParams(scales=(0.75, 0.5)))
    assert {name: tuple(target.shape[1:]) for name, target in targets.items()} == {
        "main": (9, 9),
        "scale 0.75": (9, 9),
        "scale 0.5": (5, 5),
        "fused": (9, 9),
    }
    assert torch.equal(targets["scale 0.5"], labels[:, ::16, ::16])
    # A crop whose sixteenths do not end on its edge: scale 0.5 is interpolated to scale 1, too
    odd = losses.label_targets(labels[:, :57, :57], LossParams(scales=(0.75, 0.5)))
    assert odd["scale 0.5"].shape == (1, 8, 8)


def test_class_weights_make_a_weighted_mean():
    target = torch.tensor([[[0, 1], [1, 255]]])
    logits = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([1.0, 3.0, 0.0])
    found = losses.cross_entropy_sum(logits, target, weights) / losses.divisor(target, weights)
    assert found == pytest.approx(F.cross_entropy(logits, target, weights, ignore_index=255).item(), rel=1e-6)


def test_targets_of_masks_and_a_teacher_by_hand():
    labels = torch.tensor([[[1, 255], [0, 255], [1, 0]]], dtype=torch.uint8)
    soft = torch.tensor([[[[0.5, 0.2], [2.0, 0.4], [0.1, 1.0]], [[0.5, 0.8], [0.0, 0.6], [0.1, 0.0]]]])
    inside = torch.tensor([[[True, True], [True, False], [True, False]]])
    targets = losses.mix_targets(labels, soft, inside, torch.full((1, 3, 2), 0.5))
    # A label and the teacher by halves; void: the teacher; a sum of 2: brought to 1; void and outside: nothing;
    # a sum of 0.2: unknown to the teacher, the label alone; outside: the label alone
    expected = [[[0.25, 0.2], [1.0, 0.0], [0.0, 1.0]], [[0.75, 0.8], [0.0, 0.0], [1.0, 0.0]]]
    torch.testing.assert_close(targets, torch.tensor([expected]))


def test_shares_of_classes_that_are_labels_have_the_loss_of_labels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 3, 3, generator=generator)
    labels = torch.randint(0, 5, (2, 3, 3), generator=generator).to(torch.uint8)
    labels[0, 0, 0] = 255
    nothing = torch.zeros(2, 3, 3, dtype=torch.bool)
    targets = losses.mix_targets(labels, torch.zeros(2, 5, 3, 3), nothing, torch.zeros(2, 3, 3))
    weights = torch.tensor([1.0, 2.0, 0.5, 1.5, 1.0])
    for each in (None, weights):
        torch.testing.assert_close(losses.divisor(targets, each), losses.divisor(labels, each))
        torch.testing.assert_close(
            losses.cross_entropy_sum(logits, targets, each), losses.cross_entropy_sum(logits, labels, each)
        )


def test_class_weights_are_one_on_average_and_favour_the_rare():
    pixels = np.array([900.0, 90.0, 10.0])
    weights = losses.class_weights(pixels, 0.5)
    assert weights[0] < weights[1] < weights[2]
    assert (weights * pixels / pixels.sum()).sum() == pytest.approx(1.0)
    np.testing.assert_allclose(losses.class_weights(pixels, 0.0), 1.0)
    assert np.isfinite(losses.class_weights([100, 25, 0], 0.5)).all()
