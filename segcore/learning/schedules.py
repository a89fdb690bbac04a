"""Learning rates: how one falls over the iterations, and which layer has which share of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Interval

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Schedule:
    """The factor on every learning rate at iteration i of n, counted from 0."""

    kind: Literal["step", "poly", "cosine"] = "poly"
    """step: `factor` to the power of i // every. poly: (1 - i / n) ** power. cosine: half a cosine from 1 to 0."""

    power: Annotated[float, Interval(gt=0.0, le=10.0)] = 0.9
    """Exponent of poly; 0.9 in DeepLab v2 (section 4.1.1) and PSPNet (section 5.1)."""

    every: Annotated[int, Ge(1)] = 2000
    """Iterations of each stair of step."""

    factor: Annotated[float, Interval(gt=0.0, le=1.0)] = 0.1
    """What each stair of step multiplies by. DeepLab v1's "drop by 0.1" means times 0.1."""

    warmup: Annotated[int, Ge(0)] = 0
    """Iterations over which the factor rises linearly at the start, on top of `kind`."""

    def __call__(self, iteration: int, iterations: int) -> float:
        """Factor of `iteration`, 0 to `iterations` - 1."""
        if self.kind == "step":
            value = self.factor ** (iteration // self.every)
        elif self.kind == "poly":
            value = (1 - iteration / iterations) ** self.power
        else:
            value = (1 + cos(pi * iteration / iterations)) / 2
        return value * min(1.0, (iteration + 1) / (self.warmup + 1))


@dataclass(frozen=True)
class LayerRule:
    """Shares of the learning rate for the layers whose name a pattern finds; 0 freezes."""

    pattern: str
    """Regular expression, searched in the name of the layer: "^head\\.", "fc8$"."""

    weight: Annotated[float, Ge(0.0)] = 1.0
    """Multiplies the learning rate of its weights."""

    bias: Annotated[float, Ge(0.0)] = 1.0
    """Multiplies the learning rate of its biases."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate and a weight decay."""

    multiplier: float
    """Of the learning rate."""

    weight_decay: float
    """0 where the group does not decay."""

    names: tuple[str, ...]
    """Parameters as the network names them."""

    @property
    def label(self) -> str:
        """Short name for tables: "x10 decay 0.0005"."""
        return f"x{self.multiplier:g} decay {self.weight_decay:g}"


def parameter_groups(
    network: nn.Module, rules: Sequence[LayerRule], weight_decay: float, *, decay_biases: bool
) -> list[ParameterGroup]:
    """What of a network trains, by learning rate and decay, in order of the first parameter of each group.

    rules: the first whose pattern is found in a layer's name decides; a layer without one trains at x1. Parameters that
        do not require gradients (frozen batch normalisation) are in no group, and neither are those at x0.
    decay_biases: whether biases decay too, and the scales and shifts of batch normalisation with them.
    ValueError: nothing trains.
    """
    groups: dict[tuple[float, float], list[str]] = {}
    for name, parameter in network.named_parameters():
        layer, _, kind = name.rpartition(".")
        rule = next((rule for rule in rules if re.search(rule.pattern, layer)), LayerRule(""))
        multiplier = rule.bias if kind == "bias" else rule.weight
        if not parameter.requires_grad or not multiplier:
            continue
        # A vector is a bias, or scale or shift of a normalisation
        decays = decay_biases or parameter.ndim > 1
        groups.setdefault((multiplier, weight_decay if decays else 0.0), []).append(name)
    if not groups:
        raise ValueError("The recipe trains nothing: every layer is frozen by a rule or by the network itself.")
    return [ParameterGroup(*key, tuple(names)) for key, names in groups.items()]


def freeze_others(network: nn.Module, groups: Sequence[ParameterGroup]) -> None:
    """Switch gradients off for every parameter that is in no group."""
    trained = {name for group in groups for name in group.names}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)


def torch_groups(network: nn.Module, groups: Sequence[ParameterGroup], learning_rate: float) -> list[dict[str, Any]]:
    """The groups as an optimiser of torch takes them; `base_lr` is the rate that the schedule multiplies."""
    named = dict(network.named_parameters())
    return [
        {
            "params": [named[name] for name in group.names],
            "lr": learning_rate * group.multiplier,
            "base_lr": learning_rate * group.multiplier,
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]
