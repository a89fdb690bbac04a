"""DeepLab v2 (arXiv 1606.00915): atrous spatial pyramid pooling on VGG-16 and on ResNet-101.

Every `forward` takes (N, 3, H, W) float32, H and W from 33 px up, and returns (N, num_classes, h, w) logits at
stride 8: 321 -> 41, 513 -> 65. The networks are single-scale; multi-scale inputs (MSC) run one network on several
sizes of the image and fuse the scores, which inference and the training loss do.
"""

from torch import Tensor, nn

from segcore.models.layers import Classifier
from segcore.models.resnet import BasicBlock, Bottleneck, ResNet, SevenStem
from segcore.models.vgg import FcHead, VggTrunk


class SummedBranches(nn.Module):
    """Score maps of parallel branches over the same features, summed (v2 section 3.2)."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, features: Tensor) -> Tensor:
        maps = [branch(features) for branch in self.branches]
        total: Tensor = sum(maps[1:], start=maps[0])
        return total


class DeepLabV2(nn.Module):
    """A trunk at stride 8 and a head of summed atrous branches."""

    margin_px = 0

    def __init__(self, trunk: nn.Module, head: SummedBranches) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.trunk(images))
        return scores


def _vgg16(rates: tuple[int, ...], num_classes: int) -> DeepLabV2:
    branches: list[nn.Module] = [FcHead(3, rate, 1024, num_classes) for rate in rates]
    return DeepLabV2(VggTrunk(pool_kernel=3), SummedBranches(branches))


def score_branches(in_channels: int, rates: tuple[int, ...], num_classes: int) -> SummedBranches:
    """3x3 convolutions straight to the classes, as the released ResNet configs have it: no fc6, no fc7."""
    branches: list[nn.Module] = [Classifier(in_channels, num_classes, 3, padding=rate, dilation=rate) for rate in rates]
    return SummedBranches(branches)


def deeplab_v2_vgg16_largefov(num_classes: int = 21) -> DeepLabV2:
    """One branch, rate 12: 20,505,429 parameters. As v1's LargeFOV without the average behind pool5."""
    return _vgg16((12,), num_classes)


def deeplab_v2_vgg16_aspp_s(num_classes: int = 21) -> DeepLabV2:
    """ASPP-S: rates 2, 4, 8, 12; 37,877,652 parameters."""
    return _vgg16((2, 4, 8, 12), num_classes)


def deeplab_v2_vgg16_aspp_l(num_classes: int = 21) -> DeepLabV2:
    """ASPP-L: rates 6, 12, 18, 24; 37,877,652 parameters."""
    return _vgg16((6, 12, 18, 24), num_classes)


def deeplab_v2_resnet101(
    num_classes: int = 21,
    *,
    atrous_rates: tuple[int, ...] = (6, 12, 18, 24),
    frozen_batch_norm: bool = True,
) -> DeepLabV2:
    """ASPP on ResNet-101: 44,048,532 parameters, 1,548,372 of them in the head.

    7x7 stem, pooling with Caffe's rounding, stride on the first 1x1 of res3, res4 at dilation 2 and res5 at 4.
    frozen_batch_norm: the released configs neither train nor update batch normalisation.
    """
    trunk = ResNet(SevenStem(), Bottleneck, (3, 4, 23, 3), stride_on_first=True)
    if frozen_batch_norm:
        trunk.freeze_batch_norm()
    return DeepLabV2(trunk, score_branches(trunk.out_channels, tuple(atrous_rates), num_classes))


def deeplab_v2_resnet101_largefov(num_classes: int = 21, *, frozen_batch_norm: bool = True) -> DeepLabV2:
    """One 3x3 layer at rate 12 on ResNet-101 (v2 Table 4, "LargeFOV"): 42,887,253 parameters."""
    return deeplab_v2_resnet101(num_classes, atrous_rates=(12,), frozen_batch_norm=frozen_batch_norm)


def deeplab_v2_resnet18(
    num_classes: int = 21,
    *,
    atrous_rates: tuple[int, ...] = (6, 12, 18, 24),
    frozen_batch_norm: bool = True,
) -> DeepLabV2:
    """The same family for CPUs: ASPP on ResNet-18, 11,563,668 parameters. Ours, in none of the papers."""
    trunk = ResNet(SevenStem(), BasicBlock, (2, 2, 2, 2), stride_on_first=True)
    if frozen_batch_norm:
        trunk.freeze_batch_norm()
    return DeepLabV2(trunk, score_branches(trunk.out_channels, tuple(atrous_rates), num_classes))
