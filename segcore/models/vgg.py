"""VGG-16 as the DeepLab papers use it: output stride 8 by the hole algorithm, fc6 to fc8 turned into convolutions.

Trunk: DeepLab v1 section 3.1 and its released configs; the whole models are in `deeplab_v1.py`, `deeplab_v2.py`.
"""

from typing import Literal

from torch import Tensor, nn

from segcore.models.layers import Classifier, Conv, caffe_max_pool, convolve_relu

PoolKernel = Literal[2, 3]

# (width, number of convolutions) of stages 1 to 5 of VGG-16
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VggTrunk(nn.Module):
    """conv1_1 to pool5 with pool4 and pool5 at stride 1 and conv5 at dilation 2: 14,714,688 parameters.

    pool_kernel: 3 for LargeFOV, MSc and v2 (pool1-4 are 3x3, padding 1: 321 -> 41), 2 for the vanilla network
        (pool1-3 are 2x2 with padding 1, pool4 is 2x2 without: 306 -> 39). pool5 is 3x3 in all of them.
    forward: (N, 3, H, W) -> (N, 512, h, w) at stride 8.
    """

    def __init__(self, pool_kernel: PoolKernel = 3) -> None:
        super().__init__()
        self.pool_kernel = pool_kernel
        in_channels = 3
        for stage, (width, depth) in enumerate(STAGES, start=1):
            dilation = 2 if stage == 5 else 1
            for index in range(1, depth + 1):
                conv = Conv(in_channels, width, 3, padding=dilation, dilation=dilation)
                self.add_module(f"conv{stage}_{index}", conv)
                in_channels = width
        for stage in (1, 2, 3):
            self.add_module(f"pool{stage}", caffe_max_pool(pool_kernel, 2, 1))
        self.pool4 = caffe_max_pool(pool_kernel, 1, 1 if pool_kernel == 3 else 0)
        self.pool5 = caffe_max_pool(3, 1, 1)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Outputs of pool1 to pool5: widths 64, 128, 256, 512, 512 at strides 2, 4, 8, 8, 8."""
        outputs = []
        features = images
        for stage, (_, depth) in enumerate(STAGES, start=1):
            for index in range(1, depth + 1):
                conv = self.get_submodule(f"conv{stage}_{index}")
                assert isinstance(conv, Conv)
                features = convolve_relu(conv, features)
            features = self.get_submodule(f"pool{stage}")(features)
            outputs.append(features)
        return outputs

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(images)[-1]


class FcHead(nn.Module):
    """fc6, fc7, fc8 of VGG-16 as convolutions: kernel `kernel` at atrous rate `rate`, then two 1x1 layers.

    Nominal field of view 8 x ((kernel - 1) x rate + 4) px (DeepLab v2 section 4.1.1); dropout 0.5 behind fc6 and fc7.
    forward: (N, 512, h, w) -> (N, num_classes, h, w).
    """

    def __init__(self, kernel: int, rate: int, width: int, num_classes: int) -> None:
        super().__init__()
        extent = (kernel - 1) * rate
        # An even kernel has no middle; the released config pads 4x4 at rate 4 by 6 on all sides, which keeps the size.
        self.fc6 = Conv(STAGES[-1][0], width, kernel, padding=extent // 2, dilation=rate)
        self.fc7 = Conv(width, width, 1)
        self.fc8 = Classifier(width, num_classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, features: Tensor) -> Tensor:
        features = self.dropout(convolve_relu(self.fc6, features))
        features = self.dropout(convolve_relu(self.fc7, features))
        scores: Tensor = self.fc8(features)
        return scores
