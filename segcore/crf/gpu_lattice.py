"""Permutohedral lattices (Adams, Baek and Davis 2010) of many images at once, laid and filtered on a GPU.

The same lattice as the native engine's (`engine/lattice.inl`), with the same arithmetic where rounding decides, but
found by sorting instead of a hash table: nothing is added atomically, so the same images give the same bits each time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

_CHUNK = 32
"""Items that one row of a program adds up; longer sums are sums of such sums."""

_KEY_BITS = 63


class LatticeTooFineError(ValueError):
    """The vertices have no names of 63 bits: the kernel is too narrow for such an image."""

    def __init__(self) -> None:
        super().__init__(
            "The CRF's kernel is too narrow for the engine cuda on an image of this size: choose a wider one, or the "
            "engine native."
        )


@dataclass
class _Level:
    """Sums over items; those of more than `_CHUNK` items go on at the next level."""

    first: torch.Tensor
    last: torch.Tensor
    target: torch.Tensor
    """(n,) int32 each: the items of a sum, and its row."""


@dataclass
class Lattice:
    """A lattice over the pixels of all images; a vertex belongs to one image."""

    rows: torch.Tensor
    """(pixels, corners) int32, the vertices around each pixel."""

    weights: torch.Tensor
    """(pixels, corners) float32, barycentric."""

    neighbours: list[tuple[torch.Tensor, torch.Tensor]]
    """By axis, rows of the vertices before and after each, int32; where there is none, the row that stays zero."""

    num_vertices: int
    num_rows: int
    """Vertices, the row that stays zero, and sums on the way to a vertex."""

    pixel: torch.Tensor
    """(items,) int32, the pixel of each item, in the order of the vertices that they are added to."""

    corner: torch.Tensor
    """(items,) int64, which of all corners an item is; one behind the last is of no pixel."""

    levels: list[_Level]

    def send(self, values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Splat and blur: (rows, channels) at the vertices. Needs Triton.

        values: (pixels, channels) float32. weights: (items,) float32.
        """
        from segcore.crf import gpu_kernels

        now = values.new_empty((self.num_rows, values.shape[1]))
        then = torch.empty_like(now)
        now[self.num_vertices] = 0
        then[self.num_vertices] = 0
        for number, level in enumerate(self.levels):
            weighted = (self.pixel, weights) if number == 0 else None
            source = values if number == 0 else now
            gpu_kernels.gather_sum(now, source, level.first, level.last, level.target, weighted)
        for before, after in self.neighbours:
            gpu_kernels.blur(then, now, before, after)
            now, then = then, now
        return now

    def of_items(self, weights: torch.Tensor) -> torch.Tensor:
        """(pixels, corners) in the order of the items, 0 for those of no pixel."""
        return torch.cat([weights.flatten(), weights.new_zeros(1)])[self.corner]

    def filtered(self, values: torch.Tensor) -> torch.Tensor:
        """(pixels,) float32: one channel, splatted, blurred and sliced. Needs Triton."""
        from segcore.crf import gpu_kernels

        out = torch.empty_like(values)
        sent = self.send(values[:, None], self.of_items(self.weights))
        gpu_kernels.slice_(out[:, None], sent, self.rows, self.weights * self.alpha)
        return out

    @property
    def alpha(self) -> float:
        """What undoes the gain of blurring."""
        return 1 / (1 + 2.0 ** -(self.rows.shape[1] - 1))


def lay(features: torch.Tensor, image: torch.Tensor, largest: list[float], counts: list[int]) -> Lattice:
    """The lattice of all pixels of all images, which come one after the other.

    features: (pixels, D) float32, not negative, in standard deviations of the kernel. image: (pixels,) int64,
        ascending, which image a pixel is of. largest: D largest features. counts: pixels of each image.
    Raises LatticeTooFineError.
    """
    dims, device = features.shape[1], features.device
    scales, units, biases, shift = _plan(largest)
    if shift + (len(counts) - 1).bit_length() > _KEY_BITS:
        raise LatticeTooFineError()
    # pydensecrf pads an image to a multiple of four pixels with the point 0, whose vertices then exist
    extra = torch.tensor([number for number, count in enumerate(counts) if count % 4], device=device, dtype=torch.int64)
    points = torch.cat([features, features.new_zeros((len(extra), dims))])
    keys, weights = _embed(points, scales, units, biases)
    keys += (torch.cat([image, extra]) << shift)[:, None]

    # Stable, for one order of the items of a vertex
    in_order, corner = torch.sort(keys.flatten(), stable=True)
    is_new = torch.ones_like(in_order, dtype=torch.bool)
    is_new[1:] = in_order[1:] != in_order[:-1]
    starts = is_new.nonzero().flatten()
    vertices = in_order[starts]
    num = len(vertices)
    rows = torch.empty_like(corner, dtype=torch.int32)
    rows[corner] = (is_new.cumsum(0) - 1).to(torch.int32)
    levels, num_rows = _levels(starts, len(corner), num)

    corners, pixels = dims + 1, len(features)
    return Lattice(
        rows.view(-1, corners)[:pixels].contiguous(),
        weights[:pixels].contiguous(),
        [_neighbours(vertices, axis, units) for axis in range(corners)],
        num,
        num_rows,
        (corner // corners).clamp(max=pixels - 1).to(torch.int32),
        corner.clamp(max=pixels * corners),
        levels,
    )


def _plan(largest: list[float]) -> tuple[list[float], list[int], list[int], int]:
    """How a vertex is named: its quotients with as many bits each as the features ask for, above three of remainder.

    Returns the scale of each feature, what one step of each quotient adds to a name, what makes quotients positive, and
    the bits of a name.
    """
    dims = len(largest)
    deviation = _float32(math.sqrt(2.0 / 3.0) * (dims + 1))
    scales = [_float32(1.0 / math.sqrt((i + 2) * (i + 1)) * deviation) for i in range(dims)]
    reach = [size * scale for size, scale in zip(largest, scales, strict=True)]
    units, biases, shift = [], [], 3
    for i in range(dims + 1):
        lowest, highest = (-i * reach[i - 1] if i else 0.0), sum(reach[i:])
        # One step each for rounding, for returning to the plane, for the far corners, for neighbours; and one more
        margin = 5 + 1e-6 * (highest - lowest)
        first = math.floor(math.floor(lowest / (dims + 1)) - margin)
        last = math.ceil(math.ceil(highest / (dims + 1)) + margin)
        biases.append(-first)
        units.append(1 << shift if i < dims else 0)
        if i < dims:
            shift += (last - first + 2).bit_length()
    return scales, units, biases, shift


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


def _embed(
    features: torch.Tensor, scales: list[float], units: list[int], biases: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Names and barycentric weights of the corners around each point: (points, D + 1) int64 and float32.

    The order of the arithmetic is that of the published filter: which of two simplices a point on their border belongs
    to decides which vertices exist.
    """
    dims = features.shape[1]
    elevated = []
    total = torch.zeros_like(features[:, 0])
    for j in range(dims, 0, -1):
        scaled = features[:, j - 1] * scales[j - 1]
        elevated.append(total - j * scaled)
        total = total + scaled
    elevated.append(total)
    position = torch.stack(elevated[::-1])  # (D + 1, points)

    step, inverse = dims + 1, _float32(1 / (dims + 1))
    quotient = torch.round(position * inverse)
    rest = position - quotient * step
    rank = torch.zeros_like(position, dtype=torch.int64)
    for i in range(dims):
        less = (rest[i] < rest[i + 1 :]).to(torch.int64)
        rank[i] += less.sum(0)
        rank[i + 1 :] += 1 - less
    rank += quotient.sum(0).to(torch.int64)
    turn = (rank < 0).to(torch.int64) - (rank > dims).to(torch.int64)
    rank += turn * step
    whole = quotient.to(torch.int64) + turn
    part = (position - whole.to(torch.float32) * step) * inverse
    ranked = torch.zeros_like(part).scatter_(0, rank, part)
    corners = [ranked[dims] + (1 - ranked[0])]
    corners += [ranked[dims - k] - ranked[dims + 1 - k] for k in range(1, dims + 1)]

    unit = torch.tensor(units, device=features.device)[:, None]
    base = (unit * (whole + torch.tensor(biases, device=features.device)[:, None])).sum(0)
    by_rank = torch.zeros_like(rank).scatter_(0, rank, unit.expand_as(rank))
    keys = [base]
    for k in range(1, dims + 1):
        base = base - by_rank[dims + 1 - k]
        keys.append(base + k)
    return torch.stack(keys, 1), torch.stack(corners, 1)


def _neighbours(vertices: torch.Tensor, axis: int, units: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the vertices before and after each along an axis.

    A step along axis j lowers every coordinate by one but raises coordinate j by D.
    """
    num, remainder = len(vertices), vertices & 7
    moved = vertices - remainder + units[axis]
    moved = torch.where(remainder > 0, moved + remainder - 1, moved - sum(units) + len(units) - 1)
    after = torch.searchsorted(vertices, moved).clamp(max=num - 1)
    found = vertices[after] == moved
    before = torch.full_like(after, num)
    before[after[found]] = found.nonzero().flatten()
    return before.to(torch.int32), torch.where(found, after, num).to(torch.int32)


def _levels(starts: torch.Tensor, num_items: int, num: int) -> tuple[list[_Level], int]:
    """How the items of each vertex are added up, and the rows that this takes. starts: (vertices,), the first items."""
    last = torch.cat([starts[1:], starts.new_tensor([num_items])])
    owner = torch.arange(num, device=starts.device)
    first, num_rows, levels = starts, num + 1, []
    while len(first):
        chunks = (last - first + _CHUNK - 1) // _CHUNK
        of = torch.repeat_interleave(torch.arange(len(first), device=first.device), chunks)
        within = torch.arange(len(of), device=first.device) - (chunks.cumsum(0) - chunks)[of]
        begin = first[of] + within * _CHUNK
        several = chunks[of] > 1
        partial = several.cumsum(0) - 1 + num_rows
        end, target = torch.minimum(begin + _CHUNK, last[of]), torch.where(several, partial, owner[of])
        levels.append(_Level(*(numbers.to(torch.int32) for numbers in (begin, end, target))))
        # Of the vertices with several, the sums are items of the next level
        unfinished = chunks > 1
        owner, counts = owner[unfinished], chunks[unfinished]
        first = num_rows + counts.cumsum(0) - counts
        last = first + counts
        num_rows += int(counts.sum())
    return levels, num_rows
