"""Layers that several models share: convolutions that know how they are initialised, and Caffe's pooling.

All tensors are (N, C, H, W). Backbones, heads and whole models live in their own modules.
"""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Conv(nn.Conv2d):
    """Convolution of a trunk: He initialisation (fan-in), bias 0, so that deep chains of ReLU keep their scale."""

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Classifier(nn.Conv2d):
    """Last convolution before the scores: N(0, `init_std`), bias 0, as every config of the three papers has it.

    It computes in the type of its own weights whatever the trunk computes in: an inference in bfloat16 keeps its
    classifiers in float32, since 8 bits of mantissa on the scores themselves would change labels.
    """

    keeps_float32 = True

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        kernel_size: int = 1,
        *,
        padding: int = 0,
        dilation: int = 1,
        init_std: float = 0.01,
    ) -> None:
        self.init_std = init_std
        super().__init__(in_channels, num_classes, kernel_size, padding=padding, dilation=dilation)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.init_std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.to(self.weight.dtype))


@functools.cache
def _fuses_relu() -> bool:
    """Whether oneDNN's fused convolution is at hand for bfloat16 on this CPU."""
    operators = torch.ops.mkldnn
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(operators, "_convolution_pointwise")
        and bool(operators._is_mkldnn_bf16_supported())
    )


def convolve_relu(conv: nn.Conv2d, features: Tensor, bound: float | None = None) -> Tensor:
    """ReLU of a convolution: `conv(features).relu_()`, bit for bit where we compared them; bound: 6 for ReLU6.

    In an inference in bfloat16 on a CPU both are one call of oneDNN, which spares a pass over the memory of large maps:
    about 15 % of the time of DeepLab-LargeFOV.
    """
    if (
        features.dtype == conv.weight.dtype == torch.bfloat16
        and features.device.type == "cpu"
        and not torch.is_grad_enabled()
        and isinstance(conv.padding, tuple)
        and _fuses_relu()
    ):
        fused: Tensor = torch.ops.mkldnn._convolution_pointwise(
            features, conv.weight, conv.bias, list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups,
            *(("relu", [], "") if bound is None else ("hardtanh", [0.0, bound], "")),
        )  # fmt: skip
        return fused
    result: Tensor = conv(features)
    return result.relu_() if bound is None else F.hardtanh_(result, 0.0, bound)


def caffe_max_pool(kernel_size: int, stride: int, padding: int) -> nn.MaxPool2d:
    """Maximum pooling with Caffe's rounding: the last window may hang over the edge (`ceil_mode`)."""
    return nn.MaxPool2d(kernel_size, stride, padding, ceil_mode=True)


def resize_scores(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, corner pixels on corner pixels: Caffe's `Interp`, that is `align_corners=True`.

    scores: (N, C, h, w) float. size: (height, width). Returns (N, C, *size).
    """
    if scores.shape[-2:] == torch.Size(size):
        return scores
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=True)
