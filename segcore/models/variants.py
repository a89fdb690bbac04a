"""The table of models that can be asked for by name; plain values, read without importing torch."""

from dataclasses import dataclass

from segcore.models.preprocessing import DEEPLAB, EFFICIENTNET_LITE, IMAGENET_RGB, Preprocessing


@dataclass(frozen=True)
class Variant:
    """What is known of a model without building it."""

    module: str
    """Module of the function that builds it; the function has the variant's name."""

    parameters: int
    """Trainable parameters at 21 classes, of what is evaluated (no auxiliary head)."""

    preprocessing: Preprocessing
    """What the published weights of this variant expect."""

    published: str = ""
    """The paper's mean IoU in percent on VOC 2012, and where it stands."""


_FCN = "segcore.models.fcn"
_V1 = "segcore.models.deeplab_v1"
_V2 = "segcore.models.deeplab_v2"
_PSP = "segcore.models.pspnet"
_LITE = "segcore.models.lite"

VARIANTS: dict[str, Variant] = {
    "fcn32s": Variant(_FCN, 134_346_581, DEEPLAB),
    "fcn8s": Variant(_FCN, 134_376_863, DEEPLAB, "test 62.2 (v1 Table 3)"),
    "deeplab_v1": Variant(_V1, 65_140_565, DEEPLAB, "val 59.80, with CRF 63.74 (v1 Table 1)"),
    "deeplab_v1_4x4": Variant(_V1, 65_140_565, DEEPLAB, "val 63.41, with CRF 67.14 (v2 Table 1)"),
    "deeplab_v1_7x7": Variant(_V1, 134_346_581, DEEPLAB, "val 64.38, with CRF 67.64 (v1 Table 1)"),
    "deeplab_v1_largefov": Variant(_V1, 20_505_429, DEEPLAB, "val 62.25, with CRF 67.64 (v1 Table 1)"),
    "deeplab_v1_msc": Variant(_V1, 66_346_686, DEEPLAB, "val 61.30, with CRF 65.21 (v1 Table 1)"),
    "deeplab_v1_msc_largefov": Variant(_V1, 21_711_550, DEEPLAB, "val 64.21, with CRF 68.70 (v1 Table 1)"),
    "deeplab_v2_vgg16_largefov": Variant(_V2, 20_505_429, DEEPLAB, "val 65.76, with CRF 69.84 (v2 Table 3)"),
    "deeplab_v2_vgg16_aspp_s": Variant(_V2, 37_877_652, DEEPLAB, "val 66.98, with CRF 69.73 (v2 Table 3)"),
    "deeplab_v2_vgg16_aspp_l": Variant(_V2, 37_877_652, DEEPLAB, "val 68.96, with CRF 71.57 (v2 Table 3)"),
    "deeplab_v2_resnet101": Variant(_V2, 44_048_532, DEEPLAB, "val 76.35, with CRF 77.69 (v2 Table 4)"),
    "deeplab_v2_resnet101_largefov": Variant(_V2, 42_887_253, DEEPLAB, "val 75.54 (v2 Table 4)"),
    "deeplab_v2_resnet18": Variant(_V2, 11_563_668, DEEPLAB),
    "pspnet18": Variant(_PSP, 12_770_773, IMAGENET_RGB),
    "pspnet14": Variant(_PSP, 5_358_149, IMAGENET_RGB),
    "pspnet50": Variant(_PSP, 46_716_373, IMAGENET_RGB, "val 77.05, of semseg (the paper has none)"),
    "pspnet101": Variant(_PSP, 65_708_501, IMAGENET_RGB, "test 82.6, with COCO 85.4 (PSPNet section 5.3)"),
    "pspnet152": Variant(_PSP, 81_352_149, IMAGENET_RGB),
    "pspnet269": Variant(_PSP, 123_232_725, IMAGENET_RGB),
    "deeplab_v2_lite0": Variant(_LITE, 3_225_385, EFFICIENTNET_LITE),
    "deeplab_v2_lite2": Variant(_LITE, 4_653_289, EFFICIENTNET_LITE),
    "pspnet_lite0": Variant(_LITE, 3_826_666, EFFICIENTNET_LITE),
    "pspnet_lite2": Variant(_LITE, 5_325_674, EFFICIENTNET_LITE),
}
"""Every model by name, in the order of the papers; ours on EfficientNet-Lite at the end."""
