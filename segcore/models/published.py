"""What the papers measured, to stand beside what we measure. Percent; nothing here is ours."""

import re
from dataclasses import dataclass

from segcore.models.variants import VARIANTS


@dataclass(frozen=True)
class Published:
    """Mean IoU of a variant as it was printed."""

    split: str
    """Of VOC 2012: "val" (1,449 images) or "test" (1,456, on the server)."""

    mean_iou: float | None
    """Percent, without CRF (PSPNet has none)."""

    with_crf: float | None
    """Percent, with CRF."""

    source: str
    """Paper and table."""


_FORM = re.compile(r"(val|test) ([0-9.]+)(?:, with CRF ([0-9.]+))?(?:.*?)(?:\((.*)\)|, of (.*?))$")

VOC_IMAGES = {"val": 1449, "test": 1456}
"""Images of the splits of VOC 2012 that the papers measured on."""


def published(variant: str) -> Published | None:
    """The mean IoU that was printed for a variant; None where none was."""
    text = VARIANTS[variant].published if variant in VARIANTS else ""
    found = _FORM.match(text)
    if found is None:
        return None
    split, plain, crf, source, other = found.groups()
    # FCN-8s and PSPNet have no CRF; a network that has one is listed without it first
    return Published(split, float(plain), float(crf) if crf else None, source or other or "")


PUBLISHED_CLASS_IOU: dict[str, tuple[str, tuple[float, ...]]] = {
    "deeplab_v1_msc_largefov": (
        "VOC test, with CRF (PSPNet Table 5)",
        (84.4, 54.5, 81.5, 63.6, 65.9, 85.1, 79.1, 83.4, 30.7, 74.1, 59.8, 79.0, 76.1, 83.2, 80.8, 59.7, 82.2, 50.4,
         73.1, 63.7),
    ),
    "deeplab_v2_resnet101": (
        "VOC test, with CRF and COCO (PSPNet Table 5)",
        (92.6, 60.4, 91.6, 63.4, 76.3, 95.0, 88.4, 92.6, 32.7, 88.5, 67.6, 89.6, 92.1, 87.0, 87.4, 63.3, 88.3, 60.0,
         86.8, 74.5),
    ),
    "pspnet101": (
        "VOC test, without COCO (PSPNet Table 5)",
        (91.8, 71.9, 94.7, 71.2, 75.8, 95.2, 89.9, 95.9, 39.3, 90.7, 71.7, 90.5, 94.5, 88.8, 89.6, 72.8, 89.6, 64.0,
         85.1, 76.3),
    ),
}  # fmt: skip
"""IoU of labels 1 to 20 in percent, with what they are of; the papers print none for background, and none for val."""
