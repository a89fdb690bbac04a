"""Targets from masks and a teacher, their loss, and the plan that a budget of time follows."""

import numpy as np
import pytest
import torch

from segcore.augment import AugmentParams
from segcore.distillation import (
    Phase,
    Plan,
    class_weights,
    cut_mix,
    mix_targets,
    paste_objects,
    weighted_cross_entropy,
)

VIEWS = AugmentParams(crop_px=33, stride_px=32)
PLAN = Plan(phases=(Phase(0.5, 8, 4, VIEWS), Phase(1.0, 4, 2, VIEWS)), learning_rate=1.0, warmup=0.1)


def test_phases_follow_the_budget() -> None:
    assert [PLAN.phase(share).batch for share in (0.0, 0.49, 0.5, 0.99, 1.0, 1.2)] == [4, 4, 2, 2, 2, 2]


def test_the_rate_rises_then_falls_to_nothing() -> None:
    rates = [PLAN.rate(share) for share in np.linspace(0, 1, 101)]
    assert 0 < rates[0] < 0.02
    assert np.argmax(rates) == 10
    assert max(rates) == pytest.approx(1.0)
    assert (np.diff(rates[10:]) < 0).all()
    assert PLAN.rate(1.0) == PLAN.rate(1.5) == 0


def test_targets_by_hand() -> None:
    labels = torch.tensor([[[1, 255], [0, 255]]], dtype=torch.uint8)
    soft = torch.tensor([[[[0.5, 0.2], [2.0, 0.4]], [[0.5, 0.8], [0.0, 0.6]]]])
    inside = torch.tensor([[[True, True], [True, False]]])
    targets = mix_targets(labels, soft, inside, teacher=0.5)
    # A label and the teacher by halves; void: the teacher; a sum of 2: brought to 1; outside: nothing
    expected = [[[0.25, 0.2], [1.0, 0.0]], [[0.75, 0.8], [0.0, 0.0]]]
    torch.testing.assert_close(targets, torch.tensor([expected]))


def test_the_loss_is_that_of_torch_where_targets_are_labels() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 3, 3)
    labels = torch.randint(0, 5, (2, 3, 3))
    labels[0, 0, 0] = 255
    targets = mix_targets(labels.to(torch.uint8), torch.zeros(2, 5, 3, 3), labels != 255, teacher=0.0)
    weights = torch.tensor([1.0, 2.0, 0.5, 1.5, 1.0])
    expected = torch.nn.functional.cross_entropy(logits, labels, weights, ignore_index=255)
    torch.testing.assert_close(weighted_cross_entropy(logits, targets, weights), expected)


def test_a_batch_that_says_nothing_costs_nothing() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = weighted_cross_entropy(logits, torch.zeros(1, 3, 2, 2), torch.ones(3))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_class_weights_are_one_on_average_and_favour_the_rare() -> None:
    pixels = np.array([900.0, 90.0, 10.0])
    weights = class_weights(pixels, 0.5)
    assert weights[0] < weights[1] < weights[2]
    assert (weights * pixels / pixels.sum()).sum() == pytest.approx(1.0)
    np.testing.assert_allclose(class_weights(pixels, 0.0), 1.0)


def test_mixed_views_keep_pixels_and_targets_together() -> None:
    # Each image's colour is its number, and so are its targets
    for seed in range(20):
        images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 65, 65).clone()
        targets = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 2, 9, 9).clone()
        cut_mix(images, targets, 8, np.random.default_rng(seed))
        assert torch.equal(images[:, 0, ::8, ::8], targets[:, 0])
        changed = (targets[0, 0] != 0).float().mean()
        assert 0 < changed < 0.7


def test_objects_go_to_the_next_view_with_their_targets() -> None:
    images = torch.stack([torch.full((3, 9, 9), value) for value in (1.0, 2.0)])
    targets = torch.stack([torch.full((2, 3, 3), value) for value in (0.25, 0.75)])
    masks = torch.zeros(2, 9, 9, dtype=torch.uint8)
    masks[0, 3:6, 3:9] = 8
    masks[0, 2] = 255
    paste_objects(images, targets, masks, 4)
    assert (images[0] == 1).all(), "the second view has no object to give"
    assert (targets[0] == 0.25).all()
    assert (images[1, :, 3:6, 3:9] == 1).all()
    assert (images[1] == 1).sum() == 3 * 3 * 6
    # Positions lie at pixels 0, 4 and 8: the object holds those at row 4, columns 4 and 8
    expected = torch.full((2, 3, 3), 0.75)
    expected[:, 1, 1:] = 0.25
    assert torch.equal(targets[1], expected)
