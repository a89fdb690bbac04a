"""EfficientNet-Lite as a dilated backbone (Tan and Le, arXiv 1905.11946; TensorFlow's "lite" variants).

Inverted residual blocks without squeeze-and-excitation, ReLU6, and stem width that does not scale. TensorFlow pads
"SAME"; on sides of 32k + 1 px, which all our crops and padded inputs have, that is symmetric padding by (k - 1) / 2,
which is what we do on every side. Positions of the grid then lie on pixels 0, s, 2s, ... as in the other backbones.
"""

from __future__ import annotations

from torch import Tensor, nn

from segcore.models.lite_stages import EPS, STAGES, LiteSize, OutputStride, placed, scaled
from segcore.models.resnet import ConvBn

_RELU6 = 6.0


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; a shortcut where the shape stays."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, expansion: int, stride: int, dilation: int
    ) -> None:
        super().__init__()
        width = in_channels * expansion
        self.expand = ConvBn(in_channels, width, 1, eps=EPS) if expansion > 1 else None
        self.depthwise = ConvBn(width, width, kernel_size, stride=stride, dilation=dilation, groups=width, eps=EPS)
        self.project = ConvBn(width, out_channels, 1, eps=EPS)
        self.has_shortcut = stride == 1 and in_channels == out_channels
        if self.has_shortcut:
            self.project.bn.ends_branch = True  # type: ignore[assignment]

    def forward(self, features: Tensor) -> Tensor:
        wide = features if self.expand is None else self.expand.relu(features, _RELU6)
        residual: Tensor = self.project(self.depthwise.relu(wide, _RELU6))
        return features + residual if self.has_shortcut else residual


class EfficientNetLite(nn.Module):
    """Stem and seven stages, without the classification head: (N, 3, H, W) -> (N, out_channels, h, w).

    output_stride: strides beyond it are replaced by holes (hole algorithm, DeepLab v1 section 3.1).
    """

    def __init__(self, size: LiteSize, output_stride: OutputStride) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride!r}.")
        self.output_stride = output_stride
        self.stem = ConvBn(3, 32, 3, stride=2, eps=EPS)
        channels = 32
        widths = []
        sizes = zip(STAGES, placed(output_stride), scaled(size), strict=True)
        for number, (stage, at, (depth, width)) in enumerate(sizes, start=1):
            blocks = []
            for index in range(depth):
                stride, dilation = (at.stride, at.first_dilation) if index == 0 else (1, at.dilation)
                blocks.append(InvertedResidual(channels, width, stage.kernel, stage.expansion, stride, dilation))
                channels = width
            widths.append(width)
            self.add_module(f"stage{number}", nn.Sequential(*blocks))
        self.widths = tuple(widths)
        """Channels behind each stage, 1 to 7."""
        self.out_channels = channels

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_with_taps(images)[-1]

    def forward_with_taps(self, images: Tensor) -> list[Tensor]:
        """What leaves stages 1 to 7."""
        features = self.stem.relu(images, _RELU6)
        outputs = []
        for number in range(1, len(STAGES) + 1):
            features = self.get_submodule(f"stage{number}")(features)
            outputs.append(features)
        return outputs
