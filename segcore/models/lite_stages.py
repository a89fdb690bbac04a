"""Table 1 of EfficientNet in its "lite" form: what the network is made of, readable without torch."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Literal, NamedTuple

OutputStride = Literal[8, 16, 32]

EPS = 1e-3
"""Of every batch normalisation of the backbone."""


class Stage(NamedTuple):
    """One stage at a width and depth of 1."""

    depth: int
    """Blocks."""
    kernel: int
    """Side of the depthwise convolutions."""
    stride: int
    """Of the first block."""
    expansion: int
    """Channels inside a block over those before it."""
    width: int
    """Channels behind it."""


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class LiteSize(NamedTuple):
    """How one of the variants scales the stages."""

    width: float
    """Of channels, rounded to multiples of 8."""
    depth: float
    """Of blocks, rounded up; not of the first and the last stage."""


LITE0 = LiteSize(1.0, 1.0)
LITE2 = LiteSize(1.1, 1.2)


def scaled(size: LiteSize) -> Iterator[tuple[int, int]]:
    """Blocks and channels of each stage."""
    for number, stage in enumerate(STAGES, start=1):
        depth = stage.depth if number in (1, len(STAGES)) else ceil(stage.depth * size.depth)
        width = stage.width * size.width
        nearest = max(8, int(width + 4) // 8 * 8)
        yield depth, nearest + 8 if nearest < 0.9 * width else nearest  # By no more than a tenth down


class Placed(NamedTuple):
    """How a stage looks at its grid."""

    stride: int
    """Of its first block."""
    first_dilation: int
    """Of its first block, which looks at the grid that the stage before it left."""
    dilation: int
    """Of the blocks behind it."""


def placed(output_stride: OutputStride) -> Iterator[Placed]:
    """Strides and dilations of the stages; strides beyond `output_stride` become holes (DeepLab v1 section 3.1)."""
    reached, dilation = 2, 1
    for stage in STAGES:
        stride, before = stage.stride, dilation
        if reached * stride > output_stride:
            stride, dilation = 1, dilation * stride
        reached *= stride
        yield Placed(stride, before, dilation)
