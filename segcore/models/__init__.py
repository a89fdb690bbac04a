"""Every model of the three papers by name: `build("deeplab_v1_largefov")`.

Importing this module does not import torch; building a model does. What a variant is made of stands in its own module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from segcore.models.variants import VARIANTS, Variant
from segcore.names import known

if TYPE_CHECKING:
    from torch import nn

NAMES: tuple[str, ...] = tuple(VARIANTS)
"""Every name that `build` knows."""


def spelled(name: str) -> str:
    """The name with underscores, if it is one of `NAMES` then; else as it is."""
    plain = name.replace("-", "_")
    return plain if plain in VARIANTS else name


def variant(name: str) -> Variant:
    """The table's entry; a ValueError names the nearest names for one that is unknown."""
    return VARIANTS[known(name, NAMES, "model", "segment-archive models")]


def build(name: str, num_classes: int = 21, **options: Any) -> nn.Module:
    """A new network, initialised as for training from imported trunk weights.

    name: one of `NAMES`. num_classes: 1 to 255 (label 255 means ignored). options: the arguments of the variant's
    function. The module maps (N, 3, H, W) float32 to (N, num_classes, h, w) logits at its own stride; in training it
    adds auxiliary or per-scale logits. ValueError: unknown name, unknown option, number of classes out of range.
    """
    if not 1 <= num_classes <= 255:
        raise ValueError(f"num_classes must be in [1, 255], got {num_classes}.")
    function = getattr(import_module(variant(name).module), name)
    allowed = sorted(set(function.__kwdefaults__ or {}))
    for option in options:
        if option not in allowed:
            raise ValueError(f"{name} has no option {option!r}; it has {', '.join(allowed) or 'none'}.")
    module: nn.Module = function(num_classes, **options)
    return module
