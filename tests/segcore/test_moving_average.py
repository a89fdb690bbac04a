"""The moving average, by hand and over many steps."""

import pytest
import torch

from segcore.moving_average import MovingAverage


def test_the_first_steps_by_hand_and_counts_are_copied() -> None:
    values = {"weight": torch.zeros(2), "count": torch.tensor(0)}
    average = MovingAverage(values, 0.4, warmup=3)
    average.update({"weight": torch.tensor([4.0, 8.0]), "count": torch.tensor(7), "other": torch.ones(1)})
    assert values["weight"].tolist() == [3, 6]  # It keeps 1 / 4
    assert values["count"] == 7
    average.update({"weight": torch.tensor([3.0, 1.0]), "count": torch.tensor(8)})
    torch.testing.assert_close(values["weight"], torch.tensor([3.0, 3.0]))  # 2 / 5 is the decay too
    average.update({"weight": torch.tensor([8.0, 3.0]), "count": torch.tensor(9)})
    torch.testing.assert_close(values["weight"], torch.tensor([6.0, 3.0]))  # 3 / 6 would be more
    assert average.steps == 3


def test_it_forgets_its_beginning_and_keeps_a_constant() -> None:
    values = {"weight": torch.zeros(1)}
    average = MovingAverage(values, 0.9, warmup=10)
    for _ in range(100):
        average.update({"weight": torch.ones(1)})
    assert float(values["weight"]) == pytest.approx(1.0, abs=1e-4)
