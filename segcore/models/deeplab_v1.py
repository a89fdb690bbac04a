"""DeepLab v1 (arXiv 1412.7062): VGG-16 with the hole algorithm; a variant is fc6's kernel, rate and width.

Every `forward` takes (N, 3, H, W) float32, H and W from 33 px up, and returns (N, num_classes, h, w) logits at
stride 8. Parameter counts are for 21 classes.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from segcore.models.layers import Classifier, Conv, resize_scores
from segcore.models.vgg import FcHead, VggTrunk


class DeepLabV1(nn.Module):
    """Trunk, an optional average pooling (`pool5a`), head."""

    def __init__(self, trunk: VggTrunk, head: FcHead, *, average_pool5: bool = False) -> None:
        super().__init__()
        # With 2x2 pooling the score grid begins at pixel 1, not 0 (the configs crop the labels by `pad_beg: -1`):
        # whoever pads the image puts this many pixels of mean at its top and left.
        self.margin_px = 1 if trunk.pool_kernel == 2 else 0
        self.trunk = trunk
        # Caffe divides by the whole window at the border too.
        self.pool5a = nn.AvgPool2d(3, 1, 1, count_include_pad=True) if average_pool5 else nn.Identity()
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.pool5a(self.trunk(images)))
        return scores


class FeatureBranch(nn.Module):
    """3x3 to 128 at a stride, 1x1 to 128, classifier; dropout 0.5 behind both. N(0, 0.001), as released."""

    def __init__(self, in_channels: int, stride: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = Conv(in_channels, 128, 3, stride=stride, padding=1)
        self.conv2 = Conv(128, 128, 1)
        self.classifier = Classifier(128, num_classes, init_std=0.001)
        self.dropout = nn.Dropout(0.5)
        for conv in (self.conv1, self.conv2):
            nn.init.normal_(conv.weight, std=0.001)

    def forward(self, features: Tensor) -> Tensor:
        features = self.dropout(self.conv1(features).relu_())
        scores: Tensor = self.classifier(self.dropout(self.conv2(features).relu_()))
        return scores


class DeepLabV1Msc(nn.Module):
    """Multi-scale features: branches on the image and on pool1 to pool4 add their scores to those of `base`.

    The paper (section 3.2) concatenates 5 x 128 channels before the softmax layer; the released config sums six score
    maps, which is the same linear function, and so does this. Only the branches train in the released recipe.
    The released test config evaluates the branches at stride 1 and sums full-size maps; at the positions of our
    stride-8 grid, where training defines them, both are equal.
    """

    STRIDES = (8, 4, 2, 1, 1)
    WIDTHS = (3, 64, 128, 256, 512)

    def __init__(self, base: DeepLabV1, num_classes: int) -> None:
        super().__init__()
        self.margin_px = base.margin_px
        self.base = base
        self.branches = nn.ModuleList(
            FeatureBranch(width, stride, num_classes) for width, stride in zip(self.WIDTHS, self.STRIDES, strict=True)
        )

    def forward(self, images: Tensor) -> Tensor:
        *pooled, last = self.base.trunk.stages(images)
        scores: Tensor = self.base.head(self.base.pool5a(last))
        return scores + self._branch_scores([images, *pooled], (scores.shape[2], scores.shape[3]))

    def _branch_scores(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        # All maps have one size where H and W are 8k + 1, as the paper's are; elsewhere they differ by a position.
        maps = [resize_scores(branch(x), size) for branch, x in zip(self.branches, features, strict=True)]
        return sum(maps[1:], start=maps[0])


def deeplab_v1(num_classes: int = 21) -> DeepLabV1:
    """Vanilla DeepLab (`vgg128_noup`): fc6 4x4 at rate 4, width 4096; field of view 128 px; 65,140,565; 306 -> 39."""
    return DeepLabV1(VggTrunk(pool_kernel=2), FcHead(4, 4, 4096, num_classes))


def deeplab_v1_4x4(num_classes: int = 21) -> DeepLabV1:
    """DeepLab-4x4: fc6 4x4 at rate 8, width 4096; field of view 224 px; 65,140,565 parameters; 306 -> 39."""
    return DeepLabV1(VggTrunk(pool_kernel=2), FcHead(4, 8, 4096, num_classes))


def deeplab_v1_7x7(num_classes: int = 21) -> DeepLabV1:
    """DeepLab-7x7: fc6 7x7 at rate 4, width 4096; field of view 224 px; 134,346,581 parameters; 306 -> 39."""
    return DeepLabV1(VggTrunk(pool_kernel=2), FcHead(7, 4, 4096, num_classes))


def deeplab_v1_largefov(num_classes: int = 21, *, average_pool5: bool = True) -> DeepLabV1:
    """DeepLab-LargeFOV: fc6 3x3 at rate 12, width 1024; field of view 224 px; 20,505,429 parameters; 321 -> 41.

    average_pool5: the 3x3 average behind pool5 that the released config has and the paper does not mention.
    """
    return DeepLabV1(VggTrunk(pool_kernel=3), FcHead(3, 12, 1024, num_classes), average_pool5=average_pool5)


def deeplab_v1_msc(num_classes: int = 21) -> DeepLabV1Msc:
    """DeepLab-MSc: fc6 4x4 at rate 4 over 3x3 pooling (as released), with branches; 66,346,686; 321 -> 41."""
    return DeepLabV1Msc(DeepLabV1(VggTrunk(pool_kernel=3), FcHead(4, 4, 4096, num_classes)), num_classes)


def deeplab_v1_msc_largefov(num_classes: int = 21, *, average_pool5: bool = True) -> DeepLabV1Msc:
    """DeepLab-MSc-LargeFOV: LargeFOV with branches; 21,711,550 parameters; 321 -> 41."""
    return DeepLabV1Msc(deeplab_v1_largefov(num_classes, average_pool5=average_pool5), num_classes)
