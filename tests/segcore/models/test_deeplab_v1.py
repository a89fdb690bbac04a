import pytest
import torch

from segcore import models
from segcore.models.deeplab_v1 import deeplab_v1_largefov

# name: (fc6 kernel, fc6 rate, nominal field of view, extent of the gradient), DeepLab v2 Table 1
FIELDS = {
    "deeplab_v1": (4, 4, 128, 308),
    "deeplab_v1_4x4": (4, 8, 224, 404),
    "deeplab_v1_7x7": (7, 4, 224, 404),
    "deeplab_v1_largefov": (3, 12, 224, 435),
}


def linear_in_one_channel(module: torch.nn.Module) -> torch.nn.Module:
    """The geometry of a network without its widths: each convolution averages one channel, pooling averages."""
    for name, part in list(module.named_modules()):
        if isinstance(part, torch.nn.Conv2d):
            part.weight = torch.nn.Parameter(torch.ones(1, 1, *part.kernel_size))
            part.bias = None
        elif isinstance(part, torch.nn.MaxPool2d):
            average = torch.nn.AvgPool2d(part.kernel_size, part.stride, part.padding, ceil_mode=True)
            module.get_submodule(name.rpartition(".")[0]).register_module(name.rpartition(".")[2], average)
    return module.eval()


@pytest.mark.parametrize("name", FIELDS)
def test_field_of_view(name):
    kernel, rate, nominal_px, extent_px = FIELDS[name]
    with torch.device("meta"):
        module = models.build(name)
    assert (module.head.fc6.kernel_size[0], module.head.fc6.dilation[0]) == (kernel, rate)
    # The 4 is the half kernel on each side as VGG's own padding sees it; the extent of the gradient is larger
    assert 8 * ((kernel - 1) * rate + 4) == nominal_px
    # A narrow strip of pixels is enough to see how far the gradient of one score reaches.
    strip = torch.ones(1, 1, 1001, 129, dtype=torch.float64, requires_grad=True)
    scores = linear_in_one_channel(module).double()(strip)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    reached = strip.grad[0, 0].sum(dim=1).nonzero().squeeze(1)
    assert int(reached[-1] - reached[0]) + 1 == extent_px == len(reached)


def test_the_released_average_behind_pool5_is_an_option():
    with torch.device("meta"):
        assert isinstance(deeplab_v1_largefov().pool5a, torch.nn.AvgPool2d)
        assert isinstance(deeplab_v1_largefov(average_pool5=False).pool5a, torch.nn.Identity)


def test_msc_adds_its_branches_to_the_base():
    torch.manual_seed(0)
    module = models.build("deeplab_v1_msc_largefov", 2).eval()
    image = torch.randn(1, 3, 41, 49)
    with torch.no_grad():
        base, fused = module.base(image), module(image)
        for branch in module.branches:
            torch.nn.init.zeros_(branch.classifier.weight)
        assert torch.equal(module(image), base)
    assert not torch.equal(base, fused)
