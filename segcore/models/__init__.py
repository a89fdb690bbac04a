"""Every model of the three papers by name: `build("deeplab_v1_largefov")`.

Importing this module does not import torch; building a model does. What a variant is made of stands in its own module.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING, Any

from segcore.models.variants import VARIANTS, Variant

if TYPE_CHECKING:
    from torch import nn

NAMES: tuple[str, ...] = tuple(VARIANTS)
"""Every name that `build` knows."""


def variant(name: str) -> Variant:
    """The table's entry; a ValueError names the nearest names for one that is unknown."""
    if name not in VARIANTS:
        near = difflib.get_close_matches(name, NAMES, n=3, cutoff=0.5) or NAMES
        raise ValueError(f"There is no model {name!r}; did you mean {', '.join(near)}?")
    return VARIANTS[name]


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
