"""PSPNet (arXiv 1612.01105): pyramid pooling over a dilated ResNet, with an auxiliary head for training.

Every `forward` takes (N, 3, H, W) float32, H and W from 33 px up, and returns (N, num_classes, h, w) logits at
stride 8 (473 -> 60); in training a `TrainingLogits` when there is an auxiliary head. Parameter counts are for
21 classes without that head. Layer sizes and the order of the pyramid are those of hszhao/semseg.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.models.layers import Classifier, resize_scores
from segcore.models.resnet import BasicBlock, Bottleneck, CompactResNet, ConvBn, ResNet, ThreeStem

Pooling = Literal["average", "max"]


class TrainingLogits(NamedTuple):
    """What a network with an auxiliary head returns in training; the loss weighs them 1 and 0.4."""

    logits: Tensor
    """(N, num_classes, h, w)."""

    auxiliary: Tensor
    """(N, num_classes, h', w')."""


class PyramidPooling(nn.Module):
    """Features beside their averages over bins x bins cells, each reduced, resized and concatenated (section 3.2).

    bins: grid sides, coarse to fine, in the order of semseg (Caffe concatenates 6, 3, 2, 1). reduction: 1x1
    convolution of each level to in_channels / number of levels. Cells follow adaptive pooling: on 60 x 60 maps these
    are Caffe's fixed kernels of 60, 30, 20, 10; elsewhere cells may overlap by one position.
    """

    def __init__(self, in_channels: int, bins: Sequence[int], pooling: Pooling, *, reduction: bool) -> None:
        super().__init__()
        if not bins or not all(isinstance(size, int) and 1 <= size <= 60 for size in bins):
            raise ValueError(f"bins must be whole numbers from 1 to 60, got {bins!r}.")
        if pooling not in ("average", "max"):
            raise ValueError(f"pooling must be 'average' or 'max', got {pooling!r}.")
        self.bins = tuple(bins)
        self.pooling = pooling
        width = in_channels // len(bins) if reduction else in_channels
        self.reductions = nn.ModuleList(ConvBn(in_channels, width, 1) if reduction else nn.Identity() for _ in bins)
        self.reduction = reduction
        self.out_channels = in_channels + width * len(bins)

    def forward(self, features: Tensor) -> Tensor:
        size = (features.shape[2], features.shape[3])
        levels = [features]
        for side, reduce in zip(self.bins, self.reductions, strict=True):
            level = reduce(self.pool(features, side))
            levels.append(resize_scores(F.relu(level) if self.reduction else level, size))
        return torch.cat(levels, dim=1)

    def pool(self, features: Tensor, cells: int) -> Tensor:
        """(N, C, cells, cells): averages or maxima over the cells."""
        pool = F.adaptive_avg_pool2d if self.pooling == "average" else F.adaptive_max_pool2d
        pooled: Tensor = pool(features, cells)
        return pooled


class PspHead(nn.Module):
    """3x3 convolution, batch normalisation, ReLU, dropout 0.1, classifier; main and auxiliary head alike."""

    def __init__(self, in_channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv = ConvBn(in_channels, width, 3)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = Classifier(width, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.dropout(self.conv.relu(features)))
        return scores


class PspNet(nn.Module):
    """Trunk, pyramid, head.

    auxiliary_at: where the auxiliary head listens: "res4" for the last block of a stage (the paper's res4b22 in
    ResNet-101), "res4b10" for block 10 counted from 0, None for no such head.
    """

    margin_px = 0

    def __init__(self, trunk: ResNet, pyramid: PyramidPooling, num_classes: int, *, auxiliary_at: str | None) -> None:
        super().__init__()
        self.trunk = trunk
        self.pyramid = pyramid
        self.head = PspHead(pyramid.out_channels, trunk.out_channels // 4, num_classes)
        self.auxiliary: PspHead | None = None
        if auxiliary_at is not None:
            self.tap = _position(trunk, auxiliary_at)
            part = trunk.stage(self.tap[0])[self.tap[1]]
            assert isinstance(part, Bottleneck | BasicBlock)
            width = ResNet.WIDTHS[self.tap[0] - 2] * part.expansion
            self.auxiliary = PspHead(width, max(width // 4, 32), num_classes)

    def forward(self, images: Tensor) -> Tensor | TrainingLogits:
        if self.training and self.auxiliary is not None:
            features, tapped = self.trunk.forward_with_tap(images, *self.tap)
            return TrainingLogits(self.head(self.pyramid(features)), self.auxiliary(tapped))
        scores: Tensor = self.head(self.pyramid(self.trunk(images)))
        return scores


class CompactPspNet(PspNet):
    """A PSPNet on a CompactResNet, whose head has holes too; its grid is interpolated to every eighth pixel."""

    def __init__(self, num_classes: int, bins: Sequence[int], shrink: int) -> None:
        trunk = CompactResNet(shrink)
        pyramid = PyramidPooling(trunk.out_channels, tuple(bins), "average", reduction=True)
        super().__init__(trunk, pyramid, num_classes, auxiliary_at=None)
        self.pitch_px = 4 * shrink
        self.head.conv.place(1, CompactResNet.out_dilation)

    def forward(self, images: Tensor) -> Tensor:
        if self.pitch_px == 8:
            return self._scores(images)
        # A rectangle on whose corners both grids have a position, then the part of it that the images are
        height, width = images.shape[2:]
        cell = math.lcm(self.pitch_px, 8)
        rows, columns = (height - 2) // cell + 1, (width - 2) // cell + 1  # ONNX rounds towards 0
        padded = F.pad(images, (0, columns * cell + 1 - width, 0, rows * cell + 1 - height))
        scores = resize_scores(self._scores(padded), (rows * cell // 8 + 1, columns * cell // 8 + 1))
        return scores[:, :, : (height - 1) // 8 + 1, : (width - 1) // 8 + 1]

    def _scores(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.pyramid(self.trunk(images)))
        return scores


def _position(trunk: ResNet, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"res([2-5])(?:b(\d{1,2}))?", text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"auxiliary_at is 'res2' to 'res5', with 'b' and a block if need be, got {text!r}.")
    stage = int(match[1])
    depth = len(trunk.stage(stage))
    block = depth - 1 if match[2] is None else int(match[2])
    if block >= depth:
        raise ValueError(f"auxiliary_at={text!r} does not exist: res{stage} has {depth} blocks, counted from 0.")
    return stage, block


def _pspnet(
    depths: tuple[int, int, int, int],
    num_classes: int,
    bins: Sequence[int],
    pooling: Pooling,
    reduction: bool,
    auxiliary_at: str | None,
    block: type[Bottleneck] | type[BasicBlock] = Bottleneck,
) -> PspNet:
    trunk = ResNet(ThreeStem(), block, depths, stride_on_first=False)
    pyramid = PyramidPooling(trunk.out_channels, tuple(bins), pooling, reduction=reduction)
    return PspNet(trunk, pyramid, num_classes, auxiliary_at=auxiliary_at)


def pspnet18(
    num_classes: int = 21,
    *,
    bins: Sequence[int] = (1, 2, 3, 6),
    pooling: Pooling = "average",
    reduction: bool = True,
    auxiliary_at: str | None = "res4",
) -> PspNet:
    """The same family for CPUs: basic blocks 2, 2, 2, 2; 12,770,773 parameters. Ours, not in the paper."""
    return _pspnet((2, 2, 2, 2), num_classes, bins, pooling, reduction, auxiliary_at, BasicBlock)


def pspnet14(num_classes: int = 21, *, bins: Sequence[int] = (1, 3), shrink: int = 2) -> CompactPspNet:
    """A narrow ResNet-14 on the photograph at 1 / shrink of its size: 5,358,149 parameters. Ours, not in the paper."""
    return CompactPspNet(num_classes, bins, shrink)


def pspnet50(
    num_classes: int = 21,
    *,
    bins: Sequence[int] = (1, 2, 3, 6),
    pooling: Pooling = "average",
    reduction: bool = True,
    auxiliary_at: str | None = "res4",
) -> PspNet:
    """ResNet-50: blocks 3, 4, 6, 3; 46,716,373 parameters. The arguments are the ablations of Table 1."""
    return _pspnet((3, 4, 6, 3), num_classes, bins, pooling, reduction, auxiliary_at)


def pspnet101(
    num_classes: int = 21,
    *,
    bins: Sequence[int] = (1, 2, 3, 6),
    pooling: Pooling = "average",
    reduction: bool = True,
    auxiliary_at: str | None = "res4",
) -> PspNet:
    """ResNet-101: blocks 3, 4, 23, 3; 65,708,501 parameters. The model of the VOC and Cityscapes results."""
    return _pspnet((3, 4, 23, 3), num_classes, bins, pooling, reduction, auxiliary_at)


def pspnet152(
    num_classes: int = 21,
    *,
    bins: Sequence[int] = (1, 2, 3, 6),
    pooling: Pooling = "average",
    reduction: bool = True,
    auxiliary_at: str | None = "res4",
) -> PspNet:
    """ResNet-152: blocks 3, 8, 36, 3; 81,352,149 parameters."""
    return _pspnet((3, 8, 36, 3), num_classes, bins, pooling, reduction, auxiliary_at)


def pspnet269(
    num_classes: int = 21,
    *,
    bins: Sequence[int] = (1, 2, 3, 6),
    pooling: Pooling = "average",
    reduction: bool = True,
    auxiliary_at: str | None = "res4",
) -> PspNet:
    """ResNet-269: blocks 3, 30, 48, 8 (the paper names the depth only); 123,232,725 parameters."""
    return _pspnet((3, 30, 48, 8), num_classes, bins, pooling, reduction, auxiliary_at)
