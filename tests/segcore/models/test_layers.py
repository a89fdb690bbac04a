import pytest
import torch
from torch.nn import functional as F

from segcore.models.layers import Classifier, Conv, convolve_relu, resize_scores


@pytest.mark.parametrize(
    ("in_channels", "kernel", "how"),
    [
        (3, 3, {"padding": 1}),
        (3, 7, {"padding": 3, "stride": 2, "bias": False}),
        (16, 1, {}),
        (16, 3, {"padding": 12, "dilation": 12}),
        (16, 4, {"padding": 6, "dilation": 4}),
        (16, 3, {"padding": 1, "stride": 2}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_relu_agrees_with_the_two_steps(in_channels, kernel, how, dtype):
    torch.manual_seed(0)
    conv = Conv(in_channels, 24, kernel, **how).to(dtype).to(memory_format=torch.channels_last).eval()
    features = torch.randn(2, in_channels, 33, 41).to(dtype).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        fused, plain = convolve_relu(conv, features), F.relu(conv(features))
    assert fused.dtype == dtype and (plain > 0).any()
    torch.testing.assert_close(fused, plain, rtol=0.01 if dtype == torch.bfloat16 else 1e-6, atol=0.01)


def test_gradients_take_the_ordinary_way():
    conv = Conv(3, 4, 3)
    features = torch.randn(1, 3, 9, 9, requires_grad=True)
    convolve_relu(conv, features).sum().backward()
    assert conv.weight.grad is not None and features.grad is not None


def test_a_classifier_computes_in_its_own_type():
    assert Classifier(4, 2)(torch.randn(1, 4, 3, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_resizing_keeps_the_corners():
    scores = torch.randn(1, 2, 5, 6)
    resized = resize_scores(scores, (33, 41))
    torch.testing.assert_close(resized[..., ::8, ::8], scores, rtol=1e-4, atol=1e-5)
    assert resize_scores(scores, (5, 6)) is scores
