"""How uint8 RGB becomes a network's input: colour order, mean and scale, which travel with the weights.

Plain values without torch: the card of a model (`checkpoint.py`) contains them, `scoring/` applies them.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

ColourOrder = Literal["RGB", "BGR"]


@dataclass(frozen=True)
class Preprocessing:
    """input[channel] = (pixel[channel] - mean[channel]) / std[channel], channels taken in `colour_order`."""

    colour_order: ColourOrder
    """Order of the network's three input channels; `mean` and `std` stand in this order too."""

    mean: tuple[float, float, float]
    """Subtracted from pixel values, 0 to 255."""

    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Divides the difference, in units of pixel values (0 to 255); above 0."""

    def __post_init__(self) -> None:
        if self.colour_order not in get_args(ColourOrder):
            raise ValueError(f"Colour order {self.colour_order!r} is unknown; it is 'RGB' or 'BGR'.")
        for name, values, low in (("mean", self.mean, 0.0), ("std", self.std, 1e-6)):
            if len(values) != 3 or not all(math.isfinite(value) and low <= value <= 255.0 for value in values):
                raise ValueError(f"Preprocessing {name} must be three numbers in [{low:g}, 255], got {values!r}.")

    @property
    def input_std(self) -> float:
        """Typical standard deviation of the network's input on photographs: about 58 of 255 levels, over `std`."""
        return 58.0 / (sum(self.std) / 3)

    def to_json(self) -> dict[str, Any]:
        return {"colour_order": self.colour_order, "mean": list(self.mean), "std": list(self.std)}


# DeepLab v1 and v2, and FCN: `mean_value` of the released train.prototxt files, in the order B, G, R.
DEEPLAB = Preprocessing("BGR", (104.008, 116.669, 122.675))

# PSPNet as trained by hszhao/semseg: ImageNet statistics of torchvision, times 255.
IMAGENET_RGB = Preprocessing("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))

# PSPNet as released for Caffe (hszhao/PSPNet, evaluation code): mean only.
PSPNET_CAFFE = Preprocessing("BGR", (103.939, 116.779, 123.68))

# EfficientNet-Lite as TensorFlow trained it: (pixel - 127) / 128.
EFFICIENTNET_LITE = Preprocessing("RGB", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0))

BY_RANGE = {
    "imagenet": IMAGENET_RGB,
    "0..1": Preprocessing("RGB", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
    "-1..1": Preprocessing("RGB", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "0..255": Preprocessing("RGB", (0.0, 0.0, 0.0)),
}
"""Usual ones of models of others by the range that pixels are brought to."""
