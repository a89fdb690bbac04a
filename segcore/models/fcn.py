"""FCN-32s and FCN-8s on VGG-16 (Long et al., arXiv 1411.4038), the baseline that the papers compare with.

As released (shelhamer/fcn.berkeleyvision.org): conv1_1 padded by 100, 2x2 pooling with Caffe's rounding, fc6 7x7,
skip layers cropped at fixed offsets. `forward` takes (N, 3, H, W) float32, 33 px and up, and returns logits at stride
8 on the grid of the other models (pixels 0, 8, 16, ...): the released bilinear deconvolution, evaluated there only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segcore.models import vgg
from segcore.models.layers import Classifier, Conv, caffe_max_pool


class FcnTrunk(nn.Module):
    """conv1_1 to fc7: (N, 3, H, W) -> outputs of pool3, pool4 and fc7 (256, 512, 4096 channels; strides 8, 16, 32)."""

    def __init__(self) -> None:
        super().__init__()
        in_channels = 3
        for stage, (width, depth) in enumerate(vgg.STAGES, start=1):
            for index in range(1, depth + 1):
                # The border of 100 px lets fc6 see every pixel of small images.
                padding = 100 if (stage, index) == (1, 1) else 1
                self.add_module(f"conv{stage}_{index}", Conv(in_channels, width, 3, padding=padding))
                in_channels = width
        self.pool = caffe_max_pool(2, 2, 0)
        self.fc6 = Conv(vgg.STAGES[4][0], 4096, 7)
        self.fc7 = Conv(4096, 4096, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled = []
        features = images
        for stage, (_, depth) in enumerate(vgg.STAGES, start=1):
            for index in range(1, depth + 1):
                features = self.get_submodule(f"conv{stage}_{index}")(features).relu_()
            features = self.pool(features)
            pooled.append(features)
        features = self.dropout(self.fc6(features).relu_())
        features = self.dropout(self.fc7(features).relu_())
        return pooled[2], pooled[3], features


class BilinearUpsample(nn.ConvTranspose2d):
    """Twice the resolution by a 4x4 deconvolution, initialised bilinear, trained; each class by itself at first."""

    keeps_float32 = True

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, num_classes, 4, stride=2, bias=False)

    def reset_parameters(self) -> None:
        row = torch.tensor([0.25, 0.75, 0.75, 0.25])
        with torch.no_grad():
            self.weight.zero_()
            for label in range(self.in_channels):
                self.weight[label, label] = torch.outer(row, row)

    def forward(self, scores: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(scores.to(self.weight.dtype), output_size)


class Fcn32s(nn.Module):
    """Scores of fc7 alone."""

    margin_px = 0

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.trunk = FcnTrunk()
        self.score_fr = Classifier(4096, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        scores = self.score_fr(self.trunk(images)[2])
        # Deconvolution of kernel 64 and stride 32, cropped by 19: position j lies on pixel 32 j + 31.5 - 19.
        return _sample(scores, images.shape, first_px=31.5 - 19, stride_px=32)


class Fcn8s(nn.Module):
    """Scores of fc7, pool4 and pool3, fused step by step."""

    margin_px = 0

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.trunk = FcnTrunk()
        self.score_fr = Classifier(4096, num_classes)
        self.score_pool4 = Classifier(vgg.STAGES[3][0], num_classes)
        self.score_pool3 = Classifier(vgg.STAGES[2][0], num_classes)
        self.upscore2 = BilinearUpsample(num_classes)
        self.upscore_pool4 = BilinearUpsample(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        pool3, pool4, last = self.trunk(images)
        scores = _add_cropped(self.upscore2(self.score_fr(last)), self.score_pool4(pool4), 5)
        scores = _add_cropped(self.upscore_pool4(scores), self.score_pool3(pool3), 9)
        # Deconvolution of kernel 16 and stride 8, cropped by 31.
        return _sample(scores, images.shape, first_px=7.5 - 31, stride_px=8)


def _add_cropped(scores: Tensor, skip: Tensor, offset: int) -> Tensor:
    height, width = scores.shape[2], scores.shape[3]
    return scores + skip[:, :, offset : offset + height, offset : offset + width]


def _sample(scores: Tensor, image_shape: torch.Size, *, first_px: float, stride_px: int) -> Tensor:
    """Bilinear values of a map, whose position j lies on pixel first_px + stride_px x j, on pixels 0, 8, 16, ...

    Beyond the map it is 0, as a deconvolution has it.
    """
    rows = _weights(image_shape[2], scores.shape[2], first_px, stride_px).to(scores)
    columns = _weights(image_shape[3], scores.shape[3], first_px, stride_px).to(scores)
    return torch.einsum("ph,nchw,qw->ncpq", rows, scores, columns)


def _weights(length_px: int, num_positions: int, first_px: float, stride_px: int) -> Tensor:
    positions = (torch.arange(0, length_px, 8) - first_px) / stride_px
    return (1 - (positions[:, None] - torch.arange(num_positions)).abs()).clamp(min=0)


def fcn32s(num_classes: int = 21) -> Fcn32s:
    """FCN-32s: 134,346,581 parameters; VOC 2011 val 59.4 in its paper."""
    return Fcn32s(num_classes)


def fcn8s(num_classes: int = 21) -> Fcn8s:
    """FCN-8s, trained in stages: 134,376,863 parameters; VOC 2012 test 62.2 in its paper."""
    return Fcn8s(num_classes)
