"""DeepLab v2's and PSPNet's heads on an EfficientNet-Lite backbone: the small models that train and run on CPUs. Ours.

The backbone's grid has one position every 16 px. A branch of features from stride 8 adds its scores to the head's, as
the multi-scale features of DeepLab v1 do (section 3.2), so that `forward` gives (N, num_classes, h, w) logits at
stride 8 like every other model; in training `TrainingLogits` where there is an auxiliary head.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from segcore.models.deeplab_v2 import SummedBranches, score_branches
from segcore.models.efficientnet_lite import EfficientNetLite
from segcore.models.layers import Classifier, resize_scores
from segcore.models.lite_stages import LITE0, LITE2, LiteSize, OutputStride
from segcore.models.pspnet import PspHead, PyramidPooling, TrainingLogits
from segcore.models.resnet import ConvBn

_SKIP_STAGE = 3
_AUXILIARY_STAGE = 5
_HEAD_WIDTH = 128
_SKIP_WIDTH = 64


class SkipBranch(nn.Module):
    """3x3 convolution with batch normalisation and ReLU, classifier: (N, C, h, w) features -> scores."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = ConvBn(in_channels, _SKIP_WIDTH, 3)
        self.classifier = Classifier(_SKIP_WIDTH, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.conv.relu(features))
        return scores


class LiteSegmenter(nn.Module):
    """Backbone, head, branch of finer features, and an auxiliary head that only training uses."""

    margin_px = 0

    def __init__(self, trunk: EfficientNetLite, head: nn.Module, num_classes: int, *, auxiliary: bool) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.skip = SkipBranch(trunk.widths[_SKIP_STAGE - 1], num_classes)
        width = trunk.widths[_AUXILIARY_STAGE - 1]
        self.auxiliary = PspHead(width, 64, num_classes) if auxiliary else None

    def forward(self, images: Tensor) -> Tensor | TrainingLogits:
        height, width = images.shape[2:]
        # Up to a rectangle on whose corners every grid has a position
        stride = self.trunk.output_stride
        rows, columns = ((side - 2) // stride + 1 for side in (height, width))  # ONNX rounds towards 0
        images = F.pad(images, (0, columns * stride + 1 - width, 0, rows * stride + 1 - height))
        features = self.trunk.forward_with_taps(images)
        fine: Tensor = self.skip(features[_SKIP_STAGE - 1])
        scores: Tensor = fine + resize_scores(self.head(features[-1]), (fine.shape[2], fine.shape[3]))
        scores = scores[:, :, : (height - 1) // 8 + 1, : (width - 1) // 8 + 1]
        if self.training and self.auxiliary is not None:
            return TrainingLogits(scores, self.auxiliary(features[_AUXILIARY_STAGE - 1]))
        return scores


def _aspp(size: LiteSize, num_classes: int, rates: Sequence[int], output_stride: OutputStride) -> LiteSegmenter:
    trunk = EfficientNetLite(size, output_stride)
    head: SummedBranches = score_branches(trunk.out_channels, tuple(rates), num_classes)
    return LiteSegmenter(trunk, head, num_classes, auxiliary=False)


def _psp(
    size: LiteSize, num_classes: int, bins: Sequence[int], auxiliary: bool, output_stride: OutputStride
) -> LiteSegmenter:
    trunk = EfficientNetLite(size, output_stride)
    pyramid = PyramidPooling(trunk.out_channels, tuple(bins), "average", reduction=True)
    head = nn.Sequential(pyramid, PspHead(pyramid.out_channels, _HEAD_WIDTH, num_classes))
    return LiteSegmenter(trunk, head, num_classes, auxiliary=auxiliary)


def deeplab_v2_lite0(
    num_classes: int = 21, *, atrous_rates: Sequence[int] = (3, 6, 9, 12), output_stride: OutputStride = 16
) -> LiteSegmenter:
    """ASPP on EfficientNet-Lite0: 3,225,385 parameters. The rates of v2 halved, since the grid is twice as coarse."""
    return _aspp(LITE0, num_classes, atrous_rates, output_stride)


def deeplab_v2_lite2(
    num_classes: int = 21, *, atrous_rates: Sequence[int] = (3, 6, 9, 12), output_stride: OutputStride = 16
) -> LiteSegmenter:
    """ASPP on EfficientNet-Lite2: 4,653,289 parameters."""
    return _aspp(LITE2, num_classes, atrous_rates, output_stride)


def pspnet_lite0(
    num_classes: int = 21,
    *,
    bins: Sequence[int] = (1, 2, 3, 6),
    auxiliary: bool = True,
    output_stride: OutputStride = 16,
) -> LiteSegmenter:
    """Pyramid pooling on EfficientNet-Lite0: 3,826,666 parameters."""
    return _psp(LITE0, num_classes, bins, auxiliary, output_stride)


def pspnet_lite2(
    num_classes: int = 21,
    *,
    bins: Sequence[int] = (1, 2, 3, 6),
    auxiliary: bool = True,
    output_stride: OutputStride = 16,
) -> LiteSegmenter:
    """Pyramid pooling on EfficientNet-Lite2: 5,325,674 parameters."""
    return _psp(LITE2, num_classes, bins, auxiliary, output_stride)
