"""Depthwise convolution and batch normalisation of a training step in bfloat16 on CPUs, by `segcore/_layers`.

The same functions as torch's, several times faster: of a step of EfficientNet-Lite in bfloat16, torch 2.13 spends most
of the time in the gradients of depthwise convolutions. Where the extension or the format is not at hand, `fits_*` say
so and torch's own layers do the work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

try:
    from segcore import _layers as native
except ImportError:  # Not compiled: torch's own layers do the work
    native = None  # type: ignore[assignment]

_MOST_CHANNELS = 4096


def fits_depthwise(conv: nn.Conv2d, features: Tensor) -> bool:
    """Whether `depthwise` computes this convolution: in training under bfloat16's autocast on a CPU."""
    return (
        _in_training(conv, features)
        and conv.groups == conv.in_channels == conv.out_channels
        and conv.kernel_size in ((3, 3), (5, 5))
        and conv.bias is None
        and conv.in_channels % 16 == 0
        and torch.is_autocast_enabled("cpu")
    )


def fits_normalise(bn: nn.Module, features: Tensor) -> bool:
    """Whether `normalise` computes this normalisation: over the batch, of features in bfloat16 on a CPU."""
    return (
        type(bn) is nn.BatchNorm2d
        and _in_training(bn, features)
        and features.dtype == torch.bfloat16
        and features.shape[1] % 16 == 0
        and features.shape[1] <= _MOST_CHANNELS
        and features.shape[0] * features.shape[2] * features.shape[3] > 1
    )


def _in_training(module: nn.Module, features: Tensor) -> bool:
    return (
        native is not None and module.training and torch.is_grad_enabled() and features.device.type == "cpu"
        and not torch.compiler.is_compiling()
    )  # fmt: skip


def depthwise(conv: nn.Conv2d, features: Tensor) -> Tensor:
    """The convolution of (N, C, H, W) features in bfloat16, with sums in float32."""
    result: Tensor = _Depthwise.apply(  # type: ignore[no-untyped-call]
        features, conv.weight, conv.stride[0], conv.dilation[0], int(conv.padding[0])
    )
    return result


def normalise(bn: nn.BatchNorm2d, features: Tensor, bound: float = 0.0) -> Tensor:
    """Batch normalisation over (N, C, H, W) bfloat16, then a ReLU with an upper bound where `bound` is above 0.

    The running statistics of `bn` follow, as in torch.
    """
    result, mean, variance = _Normalise.apply(  # type: ignore[no-untyped-call]
        features, bn.weight, bn.bias, bn.eps, bound
    )
    with torch.no_grad():
        assert bn.running_mean is not None and bn.running_var is not None and bn.momentum is not None
        count = features.shape[0] * features.shape[2] * features.shape[3]
        bn.running_mean.lerp_(mean, bn.momentum)
        bn.running_var.lerp_(variance * (count / (count - 1)), bn.momentum)
        assert bn.num_batches_tracked is not None
        bn.num_batches_tracked.add_(1)
    return result  # type: ignore[no-any-return]


def _rows(features: Tensor) -> Tensor:
    return features.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


def _like(shape: tuple[int, ...] | torch.Size) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, stride: int, dilation: int, padding: int) -> Tensor:
        features = _rows(features)
        number, channels, height, width = features.shape
        kernel = weight.shape[2]
        extent = dilation * (kernel - 1) + 1
        out_height, out_width = ((side + 2 * padding - extent) // stride + 1 for side in (height, width))
        taps = weight.detach().float().reshape(channels, kernel * kernel).t().contiguous()
        result = _like((number, channels, out_height, out_width))
        ctx.sizes = (number, height, width, channels, kernel, stride, dilation, padding, out_height, out_width)
        native.convolve(ctx.sizes, features.data_ptr(), taps.data_ptr(), result.data_ptr(), torch.get_num_threads())
        ctx.save_for_backward(features, taps)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, taps = ctx.saved_tensors
        gradient, threads = _rows(gradients[0]), torch.get_num_threads()
        kernel = ctx.sizes[4]
        of_features, of_taps = _like(features.shape), torch.empty_like(taps)
        native.convolve_gradient(ctx.sizes, gradient.data_ptr(), taps.data_ptr(), of_features.data_ptr(), threads)
        native.weight_gradient(ctx.sizes, features.data_ptr(), gradient.data_ptr(), of_taps.data_ptr(), threads)
        return of_features, of_taps.t().reshape(-1, 1, kernel, kernel).contiguous(), None, None, None


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, eps: float, bound: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        features = _rows(features)
        number, channels, height, width = features.shape
        rows, threads = number * height * width, torch.get_num_threads()
        sums, squares = torch.empty(2, channels, dtype=torch.float64)
        native.statistics(features.data_ptr(), rows, channels, sums.data_ptr(), squares.data_ptr(), threads)
        mean = sums / rows
        variance = (squares / rows - mean * mean).clamp_(min=0)
        inverse = (variance + eps).rsqrt()
        scale = (inverse * weight.detach()).float()
        shift = (bias.detach() - mean * inverse * weight.detach()).float()
        result = _like(features.shape)
        native.normalise(
            features.data_ptr(), result.data_ptr(), rows, channels, scale.data_ptr(), shift.data_ptr(), bound, threads
        )
        ctx.save_for_backward(features, weight, mean, inverse, scale, shift)
        ctx.bound = bound
        found, spread = mean.float(), variance.float()
        ctx.mark_non_differentiable(found, spread)
        return result, found, spread

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, mean, inverse, scale, shift = ctx.saved_tensors
        number, channels, height, width = features.shape
        rows, threads = number * height * width, torch.get_num_threads()
        gradient = _rows(gradients[0])
        sums, products = torch.empty(2, channels, dtype=torch.float64)
        native.gradient_sums(
            features.data_ptr(), gradient.data_ptr(), rows, channels, scale.data_ptr(), shift.data_ptr(), ctx.bound,
            sums.data_ptr(), products.data_ptr(), threads,
        )  # fmt: skip
        of_weight = (products - mean * sums) * inverse
        # weight * inverse * (gradient - mean of it - normalised features * mean of both), as one linear function
        a = weight.detach().double() * inverse
        b = -a * inverse * of_weight / rows
        c = -a * sums / rows - b * mean
        first, second, third = a.float(), b.float(), c.float()
        of_features = _like(features.shape)
        native.normalise_gradient(
            features.data_ptr(), gradient.data_ptr(), of_features.data_ptr(), rows, channels, scale.data_ptr(),
            shift.data_ptr(), ctx.bound, first.data_ptr(), second.data_ptr(), third.data_ptr(), threads,
        )  # fmt: skip
        return of_features, of_weight.float(), sums.float(), None, None
