"""Classes, palette and label conventions of PASCAL VOC; nothing else in the project spells a class name or a colour.

Source: VOC2012 development kit, `VOClabelcolormap.m`; classes in the order of the kit (papers: DeepLab v1 section 4).
"""

import numpy as np

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""Names by label, 0 to 20."""

IGNORE_LABEL = 255
"""Label of void pixels (object borders, difficult objects): no part of any loss or score."""

MOST_BYTE_CLASSES = 255
"""Classes that labels of 8 bits can name beside 255, which means void; more have labels of 16 bits."""

MOST_CLASSES = 65_535
"""Classes that labels of 16 bits can name."""


def palette(num_colours: int = 256) -> np.ndarray:
    """Colour of each label: the bits of the label dealt out to R, G, B from the highest bit down.

    num_colours: 1 to 65,536.
    Returns (num_colours, 3) uint8, RGB. Label 255 is (224, 224, 192).
    """
    labels = np.arange(num_colours)
    colours = np.zeros((num_colours, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((labels >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours
