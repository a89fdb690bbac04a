"""The kernels of a training step on CPUs against torch's own layers in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segcore.models import cpu_training
from segcore.models.efficientnet_lite import EfficientNetLite
from segcore.models.lite_stages import LITE0
from segcore.models.resnet import FrozenBatchNorm

pytestmark = pytest.mark.skipif(cpu_training.native is None, reason="segcore/_layers is not compiled")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers of bfloat16 in channels-last."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("channels", "side", "kernel", "stride", "dilation"),
    [(144, 29, 5, 2, 1), (96, 33, 3, 2, 1), (48, 17, 3, 1, 1), (208, 15, 5, 1, 2), (16, 4, 5, 1, 4), (32, 1, 3, 1, 1)],
)
def test_depthwise_convolution_and_its_gradients(channels, side, kernel, stride, dilation, threads):
    conv = nn.Conv2d(
        channels, channels, kernel, stride, (kernel - 1) // 2 * dilation, dilation, groups=channels, bias=False
    )
    features = random(3, channels, side, side).requires_grad_()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert cpu_training.fits_depthwise(conv, features)
            found = cpu_training.depthwise(conv, features)
        gradient = random(*found.shape, seed=1)
        gradients = torch.autograd.grad(found, (features, conv.weight), gradient)
    finally:
        torch.set_num_threads(before)
    exact, weight = features.detach().double().requires_grad_(), conv.weight.detach().double().requires_grad_()
    expected = F.conv2d(exact, weight, None, stride, conv.padding, dilation, channels)
    assert distance(found.detach(), expected.detach()) < 0.005  # One rounding to 8 bits
    for one, other in zip(gradients, torch.autograd.grad(expected, (exact, weight), gradient.double()), strict=True):
        assert distance(one, other) < 0.005


@pytest.mark.parametrize("bound", [0.0, 6.0])
def test_normalisation_and_its_gradients(bound):
    bn, own = nn.BatchNorm2d(48, eps=1e-3, momentum=0.1), nn.BatchNorm2d(48, eps=1e-3, momentum=0.1).double()
    with torch.no_grad():
        bn.weight.copy_(torch.linspace(0.5, 4.0, 48))
        bn.bias.copy_(torch.linspace(-2.0, 3.0, 48))
    own.load_state_dict(bn.state_dict())
    features = (3 + 2 * random(4, 48, 17, 13).float()).to(torch.bfloat16)
    features = features.contiguous(memory_format=torch.channels_last).requires_grad_()
    assert cpu_training.fits_normalise(bn, features)
    found = cpu_training.normalise(bn, features, bound)
    exact = features.detach().double().requires_grad_()
    expected = own(exact)
    if bound:
        expected = expected.clamp(0, bound)
    assert distance(found.detach(), expected.detach()) < 0.005
    gradient = random(*found.shape, seed=1)
    ours = torch.autograd.grad(found, (features, bn.weight, bn.bias), gradient)
    theirs = torch.autograd.grad(expected, (exact, own.weight, own.bias), gradient.double())
    for one, other in zip(ours, theirs, strict=True):
        assert distance(one, other) < 0.005
    assert distance(bn.running_mean, own.running_mean) < 1e-5
    assert distance(bn.running_var, own.running_var) < 1e-5
    assert bn.num_batches_tracked == 1


def test_what_is_left_to_torch():
    conv = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
    features = random(1, 16, 5, 5)
    assert not cpu_training.fits_depthwise(conv, features), "without autocast"
    with torch.autocast("cpu", torch.bfloat16):
        assert cpu_training.fits_depthwise(conv, features)
        assert not cpu_training.fits_depthwise(conv.eval(), features)
        assert not cpu_training.fits_depthwise(nn.Conv2d(24, 24, 3, groups=24, bias=False), random(1, 24, 5, 5))
    assert not cpu_training.fits_normalise(nn.BatchNorm2d(16), features.float())
    assert not cpu_training.fits_normalise(nn.BatchNorm2d(16), random(1, 16, 1, 1)), "of one number"
    assert not cpu_training.fits_normalise(FrozenBatchNorm(16).train(), features)


def test_a_backbone_learns_as_well_as_with_torchs_layers(monkeypatch):
    network = EfficientNetLite(LITE0, 16).to(memory_format=torch.channels_last)
    images = random(2, 3, 65, 65).float()

    def gradients(*, half: bool) -> torch.Tensor:
        network.zero_grad()
        network.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = network(images).float().square().mean()
        loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])

    exact, ours = gradients(half=False), gradients(half=True)
    with monkeypatch.context() as patch:
        patch.setattr(cpu_training, "native", None)
        theirs = gradients(half=True)
    # Rounding to 8 bits through 48 layers changes the direction; ours no more than torch's
    ours_is, theirs_is = (float(F.cosine_similarity(each, exact, dim=0)) for each in (ours, theirs))
    assert ours_is > 0.8 and ours_is > theirs_is - 0.05
