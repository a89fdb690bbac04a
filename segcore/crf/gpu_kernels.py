"""Triton kernels of the dense CRF on a GPU: sums over lattice vertices, blurring, and a mean-field step.

Values are float32 rows of `channels` classes. The kernels know of nothing but rows; which row is which vertex or pixel
is in `gpu_lattice.py`. Their arguments have no types, which Triton would take for values of the GPU; the functions
behind them have. With TRITON_INTERPRET=1, set before Triton's first import, they run on tensors of the CPU, operation
by operation, which is how they are tested.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def _gather_sum(
    out,
    source,
    first,
    last,
    target,
    item,
    weight,
    num,
    weighted: tl.constexpr,
    channels: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
):
    """out[target] = sum of weight * source[item] over the items first <= i < last; unweighted, of source[i]."""
    at = tl.program_id(0) * block + tl.arange(0, block)
    channel = tl.arange(0, width)
    real = (channel < channels)[None, :]
    from_row = source + channel[None, :]
    live = at < num
    begin = tl.load(first + at, mask=live, other=0)
    end = tl.load(last + at, mask=live, other=0)
    total = tl.zeros([block, width], tl.float32)
    for step in range(tl.max(end - begin, 0)):
        i = begin + step
        inside = i < end
        some = inside[:, None] & real
        if weighted:
            row = tl.load(item + i, mask=inside, other=0).to(tl.int64)
            share = tl.load(weight + i, mask=inside, other=0.0)
            total += share[:, None] * tl.load(from_row + row[:, None] * channels, mask=some, other=0.0)
        else:
            total += tl.load(from_row + i.to(tl.int64)[:, None] * channels, mask=some, other=0.0)
    to = tl.load(target + at, mask=live, other=0).to(tl.int64)
    tl.store(out + to[:, None] * channels + channel[None, :], total, mask=live[:, None] & real)


@triton.jit
def _blur(
    out,
    values,
    before,
    after,
    num,
    channels: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
):
    """out = values + (values[before] + values[after]) / 2, of the first `num` rows."""
    at = tl.program_id(0) * block + tl.arange(0, block)
    channel = tl.arange(0, width)
    live = at < num
    some = live[:, None] & (channel < channels)[None, :]
    left = tl.load(before + at, mask=live, other=0).to(tl.int64)
    right = tl.load(after + at, mask=live, other=0).to(tl.int64)
    own = at.to(tl.int64)[:, None] * channels + channel[None, :]
    beside = tl.load(values + left[:, None] * channels + channel[None, :], mask=some, other=0.0)
    beside += tl.load(values + right[:, None] * channels + channel[None, :], mask=some, other=0.0)
    tl.store(out + own, tl.load(values + own, mask=some, other=0.0) + 0.5 * beside, mask=some)


@triton.jit
def _sliced(values, rows, weights, at, live, channel, channels, corners):
    """What the corners of the pixels `at` hold, weighted: (pixels, channels)."""
    some = live[:, None] & (channel < channels)[None, :]
    place = at.to(tl.int64) * corners
    row = tl.load(rows + place, mask=live, other=0).to(tl.int64)
    share = tl.load(weights + place, mask=live, other=0.0)
    total = share[:, None] * tl.load(values + row[:, None] * channels + channel[None, :], mask=some, other=0.0)
    for k in tl.static_range(1, corners):
        row = tl.load(rows + place + k, mask=live, other=0).to(tl.int64)
        share = tl.load(weights + place + k, mask=live, other=0.0)
        total += share[:, None] * tl.load(values + row[:, None] * channels + channel[None, :], mask=some, other=0.0)
    return total


@triton.jit
def _slice(
    out,
    values,
    rows,
    weights,
    num,
    corners: tl.constexpr,
    channels: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
):
    """out[pixel] = what its corners hold, weighted."""
    at = tl.program_id(0) * block + tl.arange(0, block)
    channel = tl.arange(0, width)
    live = at < num
    total = _sliced(values, rows, weights, at, live, channel, channels, corners)
    own = at.to(tl.int64)[:, None] * channels + channel[None, :]
    tl.store(out + own, total, mask=live[:, None] & (channel < channels)[None, :])


@triton.jit
def _update(
    marginals,
    label,
    unary,
    values5,
    rows5,
    weights5,
    values2,
    rows2,
    weights2,
    num,
    with_bilateral: tl.constexpr,
    with_spatial: tl.constexpr,
    with_labels: tl.constexpr,
    channels: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
):
    """Marginals, or their largest alone, from the unary log probabilities and the messages of both kernels."""
    at = tl.program_id(0) * block + tl.arange(0, block)
    channel = tl.arange(0, width)
    live = at < num
    some = live[:, None] & (channel < channels)[None, :]
    own = at.to(tl.int64)[:, None] * channels + channel[None, :]
    z = tl.load(unary + own, mask=some, other=-1e30)  # Which wins nowhere
    if with_bilateral:
        z += _sliced(values5, rows5, weights5, at, live, channel, channels, 6)
    if with_spatial:
        z += _sliced(values2, rows2, weights2, at, live, channel, channels, 3)
    if with_labels:
        tl.store(label + at, tl.argmax(z, 1).to(tl.uint8), mask=live)
    else:
        power = tl.exp(z - tl.max(z, 1)[:, None])
        tl.store(marginals + own, power / tl.sum(power, 1)[:, None], mask=some)


INTERPRETED = not isinstance(_blur, triton.JITFunction)
"""Whether the kernels run on the CPU, operation by operation."""


def _grid(num: int, channels: int) -> tuple[tuple[int], dict[str, Any]]:
    """A program works on 1,024 numbers or so; an interpreted one on all, since each operation has a price."""
    width = 1 << (channels - 1).bit_length()
    block = 1 << (num - 1).bit_length() if INTERPRETED else max(1, 1024 // width)
    return (-(-num // block),), {"channels": channels, "width": width, "block": block}


def gather_sum(
    out: torch.Tensor,
    source: torch.Tensor,
    first: torch.Tensor,
    last: torch.Tensor,
    target: torch.Tensor,
    weighted: tuple[torch.Tensor, torch.Tensor] | None,
) -> None:
    """out[target[n]] = the sum over i from first[n] to last[n] of weight[i] * source[item[i]], in that order.

    out, source: (rows, channels) float32. first, last, target: (n,) int32. weighted: item (int32) and weight (float32)
        by i; None for source[i] itself.
    """
    grid, sizes = _grid(len(first), out.shape[1])
    item, weight = weighted if weighted is not None else (first, source)
    _gather_sum[grid](
        out, source, first, last, target, item, weight, len(first), weighted=weighted is not None, **sizes
    )


def blur(out: torch.Tensor, values: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> None:
    """One axis of the lattice: 1/2, 1, 1/2 over a vertex and its two neighbours.

    out, values: (rows, channels) float32. before, after: (vertices,) int32, rows of the neighbours.
    """
    grid, sizes = _grid(len(before), out.shape[1])
    _blur[grid](out, values, before, after, len(before), **sizes)


def slice_(out: torch.Tensor, values: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> None:
    """out[p] = sum over the corners k of weights[p, k] * values[rows[p, k]].

    out: (pixels, channels) float32. rows: (pixels, corners) int32. weights: the same, float32.
    """
    grid, sizes = _grid(len(rows), out.shape[1])
    _slice[grid](out, values, rows, weights, len(rows), corners=rows.shape[1], **sizes)


def update(
    unary: torch.Tensor,
    bilateral: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
    spatial: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
    *,
    marginals: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
) -> None:
    """One step of the mean field, into `marginals` or, of each pixel the most probable channel, into `labels`.

    unary: (pixels, channels) float32, log probabilities. bilateral, spatial: values at the vertices (rows, channels),
        rows and weights of each pixel (pixels, corners), of 6 corners and of 3; None: no such kernel.
    marginals: (pixels, channels) float32. labels: (pixels,) uint8; of equals the first.
    """
    nothing = (unary, unary, unary)
    grid, sizes = _grid(len(unary), unary.shape[1])
    _update[grid](
        unary if marginals is None else marginals,
        unary if labels is None else labels,
        unary,
        *(bilateral or nothing),
        *(spatial or nothing),
        len(unary),
        with_bilateral=bilateral is not None,
        with_spatial=spatial is not None,
        with_labels=labels is not None,
        **sizes,
    )
