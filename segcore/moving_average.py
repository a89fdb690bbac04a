"""The average of a network's weights over the steps of its training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class MovingAverage:
    """Exponential average that follows closely at first, so that its beginning is forgotten soon."""

    def __init__(self, values: Mapping[str, Tensor], decay: float, *, warmup: int) -> None:
        """values: weights and statistics by name, from which it begins; they are the average, and changed in place.

        decay: share of itself that the average keeps in a step, below 1. warmup: in step n, counted from 1, it keeps no
        more than n / (n + warmup).
        """
        self.values = dict(values)
        self.decay = decay
        self.warmup = warmup
        self.steps = 0

    @torch.no_grad()
    def update(self, state: Mapping[str, Tensor]) -> None:
        """Take the state after a step in, by name as `values`; what is no float, such as a count, is copied."""
        self.steps += 1
        keep = min(self.decay, self.steps / (self.steps + self.warmup))
        real = [name for name, value in self.values.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.values[name] for name in real], [state[name] for name in real], 1 - keep)
        for name in self.values.keys() - set(real):
            self.values[name].copy_(state[name])
