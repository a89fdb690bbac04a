"""Seeded weights of unit scale for networks that nobody has trained yet.

In a deep chain with plain He initialisation the mean of the ReLU outputs dominates, so that an untrained network
paints a few classes everywhere. Filters without a mean (scaled weight standardisation, Brock et al. 2021, section 4.1)
remove that, but amplify every difference, rounding errors included, into noise. Half-way stands a network whose labels
follow the image in regions and agree between bfloat16 and float32 as well as those of a trained one.
"""

import hashlib
import math

import numpy as np
import torch
from torch import nn

from segcore.models.layers import Classifier

VERSION = 1
"""Part of the digest of an untrained model: raise it whenever this module would give other weights."""

# Share of a filter's mean that is removed: 0 is He initialisation, 1 is full standardisation (chaotic).
_CENTRING = 0.5

# Keeps the variance: max(0, x), x ~ N(0, 1), has variance (1 - 1/pi) / 2 and squared mean 1 / (2 pi).
_GAIN = math.sqrt(2.0 / (1.0 - 1.0 / math.pi + (1.0 - _CENTRING) ** 2 / math.pi))

# Share that a residual branch adds to its shortcut, so that 100 blocks do not explode.
_BRANCH_SCALE = 0.15


def initialise_untrained(module: nn.Module, seed: int, input_std: float) -> None:
    """Fill every parameter and buffer of `module` in place, a function of the seed and the parameter names alone.

    input_std: standard deviation of the network's input; scores come out with a standard deviation of 1 to 3.
    The numbers come from NumPy's PCG64, which does not depend on the processor.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data.copy_(_filters(part, f"{name}.weight", seed, input_std))
            if part.bias is not None:
                part.bias.data.zero_()
        elif isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            part.weight.data.fill_(_BRANCH_SCALE if getattr(part, "ends_branch", False) else 1.0)
            part.bias.data.zero_()
        elif next(part.parameters(recurse=False), None) is not None:
            part.reset_parameters()


def _filters(conv: nn.Conv2d, name: str, seed: int, input_std: float) -> torch.Tensor:
    """(O, I, k, k) float32."""
    if conv.in_channels == 3:
        gain, centring = 1.0 / input_std, 0.0
    elif isinstance(conv, Classifier):
        gain, centring = 1.0, 1.0
    else:
        gain, centring = _GAIN, _CENTRING
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
    shape = tuple(conv.weight.shape)
    values = np.random.Generator(np.random.PCG64(key)).standard_normal(shape, dtype=np.float32)
    values -= centring * values.mean(axis=(1, 2, 3), keepdims=True)
    values *= gain / math.sqrt(shape[1] * shape[2] * shape[3])
    return torch.from_numpy(values)
