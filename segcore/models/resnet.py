"""Dilated residual trunks at output stride 8, in the two layouts of the papers.

DeepLab v2 (Caffe's original ResNet): 7x7 stem, stride on the first convolution of a block, Caffe's rounding.
PSPNet: three 3x3 convolutions as stem, stride on the 3x3 of a bottleneck. Weights of one layout give wrong maps in the
other. Parts carry the names of the Caffe configs: res2 to res5, branch2a, branch2b, branch2c, branch1 (shortcut).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.models import cpu_training
from segcore.models.layers import Conv, convolve_relu


class ConvBn(nn.Module):
    """Convolution without bias, then batch normalisation; inference folds the second into the first."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2 * dilation
        self.conv = Conv(
            in_channels, out_channels, kernel_size, stride=stride, padding=padding, dilation=dilation, groups=groups,
            bias=False,
        )  # fmt: skip
        # Caffe's moving average fraction of 0.95 (PSPNet); frozen in DeepLab.
        self.bn = nn.BatchNorm2d(out_channels, eps=eps, momentum=0.05)

    def forward(self, features: Tensor) -> Tensor:
        convolved = self._convolved(features)
        if cpu_training.fits_normalise(self.bn, convolved):
            return cpu_training.normalise(self.bn, convolved)
        normalised: Tensor = self.bn(convolved)
        return normalised

    def _convolved(self, features: Tensor) -> Tensor:
        if cpu_training.fits_depthwise(self.conv, features):
            return cpu_training.depthwise(self.conv, features)
        convolved: Tensor = self.conv(features)
        return convolved

    def relu(self, features: Tensor, bound: float | None = None) -> Tensor:
        """The ReLU of `forward`; bound: 6 for ReLU6."""
        if isinstance(self.bn, nn.Identity):
            return convolve_relu(self.conv, features, bound)
        if bound is not None:
            convolved = self._convolved(features)
            if cpu_training.fits_normalise(self.bn, convolved):
                return cpu_training.normalise(self.bn, convolved, bound)
            return F.hardtanh_(self.bn(convolved), 0.0, bound)
        normalised: Tensor = self(features)
        return normalised.relu_()

    def place(self, stride: int, dilation: int) -> None:
        """Evaluate the same kernel with another stride and dilation."""
        padding = (self.conv.kernel_size[0] - 1) // 2 * dilation
        self.conv.stride, self.conv.dilation, self.conv.padding = (stride,) * 2, (dilation,) * 2, (padding,) * 2

    def fold(self) -> None:
        """Multiply the normalisation into the convolution: the same function in eval mode, one layer less."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv = nn.utils.fusion.fuse_conv_bn_eval(self.conv, self.bn)
            self.bn = nn.Identity()  # type: ignore[assignment]


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch normalisation that uses its stored statistics in training too and whose scale and shift do not train."""

    def train(self, mode: bool = True) -> FrozenBatchNorm:
        del mode
        super().train(False)
        return self


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut; out_channels = 4 x width."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, *, stride_on_first: bool) -> None:
        super().__init__()
        out_channels = width * self.expansion
        first, second = (stride, 1) if stride_on_first else (1, stride)
        self.branch2a = ConvBn(in_channels, width, 1, stride=first)
        self.branch2b = ConvBn(width, width, 3, stride=second, dilation=dilation)
        self.branch2c = ConvBn(width, out_channels, 1)
        self.branch2c.bn.ends_branch = True  # type: ignore[assignment]
        self.branch1 = (
            ConvBn(in_channels, out_channels, 1, stride=stride) if in_channels != out_channels or stride > 1 else None
        )

    def forward(self, features: Tensor) -> Tensor:
        residual: Tensor = self.branch2c(self.branch2b.relu(self.branch2a.relu(features)))
        shortcut = features if self.branch1 is None else self.branch1(features)
        return (residual + shortcut).relu_()


class BasicBlock(nn.Module):
    """Two 3x3 with a shortcut; the stride is on the first in either layout."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, *, stride_on_first: bool) -> None:
        super().__init__()
        del stride_on_first
        self.branch2a = ConvBn(in_channels, width, 3, stride=stride, dilation=dilation)
        self.branch2b = ConvBn(width, width, 3, dilation=dilation)
        self.branch2b.bn.ends_branch = True  # type: ignore[assignment]
        self.branch1 = ConvBn(in_channels, width, 1, stride=stride) if in_channels != width or stride > 1 else None

    def forward(self, features: Tensor) -> Tensor:
        residual: Tensor = self.branch2b(self.branch2a.relu(features))
        shortcut = features if self.branch1 is None else self.branch1(features)
        return (residual + shortcut).relu_()


class SevenStem(nn.Module):
    """7x7 stride 2, maximum pooling 3x3 stride 2 with Caffe's rounding: (N, 3, H, W) -> (N, 64, h, w), stride 4."""

    out_channels = 64

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvBn(3, 64, 7, stride=2)
        self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.pool(self.conv1.relu(images))
        return features


class ShrinkingStem(SevenStem):
    """A SevenStem on the photograph at a half, a third or a quarter of its size: stride 4 x `shrink`.

    A small network sees whole objects in a small photograph, at a fraction of the work.
    """

    def __init__(self, shrink: int) -> None:
        super().__init__()
        if shrink not in (2, 3, 4):
            raise ValueError(f"shrink must be 2, 3 or 4, got {shrink!r}.")
        self.shrink = shrink

    def forward(self, images: Tensor) -> Tensor:
        # Two averages: a triangle around every second (third, fourth) pixel from the corner on; padding is the mean
        side = self.shrink
        images = F.pad(images, (side - 1,) * 4)
        return super().forward(F.avg_pool2d(F.avg_pool2d(images, side, 1), side, side))


class ThreeStem(nn.Module):
    """Three 3x3 convolutions of 64 (stride 2), 64, 128, maximum pooling: (N, 3, H, W) -> (N, 128, h, w), stride 4."""

    out_channels = 128

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvBn(3, 64, 3, stride=2)
        self.conv2 = ConvBn(64, 64, 3)
        self.conv3 = ConvBn(64, 128, 3)
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv2.relu(self.conv1.relu(images))
        pooled: Tensor = self.pool(self.conv3.relu(features))
        return pooled


class ResNet(nn.Module):
    """Stem, then res2 to res5 with strides 1, 2, 1, 1 and dilations 1, 1, 2, 4.

    depths: blocks of res2 to res5. forward: (N, 3, H, W) -> (N, out_channels, h, w) at stride 8.
    """

    STRIDES = (1, 2, 1, 1)
    DILATIONS = (1, 1, 2, 4)
    WIDTHS = (64, 128, 256, 512)

    def __init__(
        self,
        stem: SevenStem | ThreeStem,
        block: type[Bottleneck] | type[BasicBlock],
        depths: Sequence[int],
        *,
        stride_on_first: bool,
    ) -> None:
        super().__init__()
        self.stem = stem
        in_channels = stem.out_channels
        stages = zip((2, 3, 4, 5), depths, self.WIDTHS, self.STRIDES, self.DILATIONS, strict=True)
        for number, depth, width, stride, dilation in stages:
            blocks = []
            for index in range(depth):
                blocks.append(
                    block(in_channels, width, stride if index == 0 else 1, dilation, stride_on_first=stride_on_first)
                )
                in_channels = width * block.expansion
            self.add_module(f"res{number}", nn.Sequential(*blocks))
        self.out_channels = in_channels

    def stage(self, number: int) -> nn.Sequential:
        """res2 to res5 by number; its length is the number of blocks."""
        part = self.get_submodule(f"res{number}")
        assert isinstance(part, nn.Sequential)
        return part

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.stem(images)
        for number in (2, 3, 4, 5):
            features = self.stage(number)(features)
        return features

    def forward_with_tap(self, images: Tensor, number: int, block: int) -> tuple[Tensor, Tensor]:
        """The output, and what leaves block `block` (from 0) of stage `number`."""
        features: Tensor = self.stem(images)
        tapped = features
        for at in (2, 3, 4, 5):
            for index, part in enumerate(self.stage(at)):
                features = part(features)
                if (at, index) == (number, block):
                    tapped = features
        return features, tapped

    def freeze_batch_norm(self) -> None:
        """Put `FrozenBatchNorm` in the place of every batch normalisation."""
        for part in self.modules():
            if isinstance(part, ConvBn):
                frozen = FrozenBatchNorm(part.bn.num_features, device=part.bn.weight.device).eval()
                frozen.requires_grad_(False)
                if getattr(part.bn, "ends_branch", False):
                    frozen.ends_branch = True  # type: ignore[assignment]
                part.bn = frozen


class CompactResNet(ResNet):
    """A narrow ResNet-14 (basic blocks 1, 1, 2, 2) behind a ShrinkingStem, all at the stem's stride by holes.

    It was trained as an ordinary ResNet, with a stride of 2 at each of res3 to res5: the same function at every eighth
    position of this grid (the hole algorithm, v1 section 3.1).
    """

    STRIDES = (1, 1, 1, 1)
    DILATIONS = (1, 1, 1, 1)
    WIDTHS = (64, 96, 192, 320)

    out_dilation = 8
    """Dilation that layers behind it need."""

    def __init__(self, shrink: int) -> None:
        super().__init__(ShrinkingStem(shrink), BasicBlock, (1, 1, 2, 2), stride_on_first=False)
        dilation = 1
        for number in (3, 4, 5):
            for index, block in enumerate(self.stage(number)):
                assert isinstance(block, BasicBlock)
                # The first convolution looks at the grid that the stage before it left
                block.branch2a.place(1, dilation if index == 0 else 2 * dilation)
                block.branch2b.place(1, 2 * dilation)
            dilation *= 2


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Fold every normalisation of `module` (in eval mode) into the convolution before it, in place."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, ConvBn):
                part.fold()
    return module
