"""VGG-16's fully connected layers as convolutions: reshaped, decimated, thinned (DeepLab v1 section 3.2, v2 4.1.1)."""

from __future__ import annotations

import hashlib

import numpy as np


def convolutional(weight: np.ndarray, in_channels: int) -> np.ndarray:
    """(O, I x k x k) or (O, I, k, k) -> (O, I, k, k); fc6 of VGG-16 sees 512 channels of 7 x 7.

    ValueError when the numbers do not make squares.
    """
    if weight.ndim == 4:
        return weight
    side = round((weight.shape[1] / in_channels) ** 0.5)
    if side * side * in_channels != weight.shape[1]:
        raise ValueError(f"{weight.shape[1]} inputs are no square of {in_channels} channels")
    return weight.reshape(weight.shape[0], in_channels, side, side)


def decimate(weight: np.ndarray, kernel_size: int) -> np.ndarray:
    """(O, I, 7, 7) -> (O, I, k, k) by taking every second (k = 4) or every third (k = 3) row and column.

    Both keep the corners and so the extent of the kernel. ValueError for a size that no regular step gives.
    """
    side = weight.shape[-1]
    if kernel_size == side:
        return weight
    if kernel_size < 2 or (side - 1) % (kernel_size - 1):
        raise ValueError(f"a {side}x{side} kernel cannot be decimated to {kernel_size}x{kernel_size}")
    step = (side - 1) // (kernel_size - 1)
    return weight[..., ::step, ::step]


def kept_filters(layer: str, num_filters: int, num_kept: int) -> np.ndarray:
    """Sorted indices of the filters that a thinner layer keeps: random, as in the papers, and the same every time.

    layer: its name in our network, so that the branches of ASPP keep different ones.
    """
    if num_kept == num_filters:
        return np.arange(num_filters)
    key = int.from_bytes(hashlib.sha256(layer.encode()).digest()[:8], "little")
    return np.sort(np.random.Generator(np.random.PCG64(key)).permutation(num_filters)[:num_kept])
