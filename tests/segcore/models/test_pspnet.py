import pytest
import torch

from segcore import models
from segcore.models.pspnet import PyramidPooling, TrainingLogits


def test_training_adds_the_auxiliary_logits():
    torch.manual_seed(0)
    module = models.build("pspnet18", 3)
    image = torch.randn(2, 3, 41, 49)
    trained = module.train()(image)
    assert isinstance(trained, TrainingLogits)
    assert trained.logits.shape == trained.auxiliary.shape == (2, 3, 6, 7)
    assert module.eval()(image).shape == (2, 3, 6, 7)


@pytest.mark.parametrize(("place", "width", "size"), [("res2", 64, 11), ("res3", 128, 6), ("res4b0", 256, 6)])
def test_the_auxiliary_head_can_listen_anywhere(place, width, size):
    module = models.build("pspnet18", 3, auxiliary_at=place).train()
    assert module.auxiliary.conv.conv.in_channels == width
    assert module(torch.randn(2, 3, 41, 41)).auxiliary.shape[-1] == size


@pytest.mark.parametrize("place", ["res6", "res4b2", "conv4", 4, "res4b"])
def test_places_that_do_not_exist(place):
    with pytest.raises(ValueError, match="auxiliary_at"):
        models.build("pspnet18", 3, auxiliary_at=place)


def test_the_auxiliary_gradient_reaches_only_what_lies_before_it():
    module = models.build("pspnet18", 3, auxiliary_at="res3").train()
    module(torch.randn(2, 3, 41, 41)).auxiliary.sum().backward()
    assert module.trunk.res3[1].branch2a.conv.weight.grad is not None
    assert module.trunk.res4[0].branch2a.conv.weight.grad is None


def test_the_stride_is_on_the_3x3():
    with torch.device("meta"):
        first = models.build("pspnet50").trunk.res3[0]
    assert first.branch2a.conv.stride == (1, 1) and first.branch2b.conv.stride == (2, 2)


def test_the_pyramid_on_60_is_caffes_fixed_pooling():
    pyramid = PyramidPooling(2, (1, 2, 3, 6), "average", reduction=False)
    features = torch.randn(1, 2, 60, 60)
    levels = pyramid(features).split(2, dim=1)
    assert torch.equal(levels[0], features)
    for level, kernel in zip(levels[1:], (60, 30, 20, 10), strict=True):
        pooled = torch.nn.functional.avg_pool2d(features, kernel, kernel)
        expected = torch.nn.functional.interpolate(pooled, size=(60, 60), mode="bilinear", align_corners=True)
        torch.testing.assert_close(level, expected)


@pytest.mark.parametrize("pooling", ["average", "max"])
@pytest.mark.parametrize("reduction", [True, False])
@pytest.mark.parametrize("bins", [(1,), (1, 2, 3, 6)])
def test_the_ablations_of_table_1(bins, pooling, reduction):
    with torch.device("meta"):
        module = models.build("pspnet18", 3, bins=bins, pooling=pooling, reduction=reduction, auxiliary_at=None).eval()
        assert module(torch.empty(1, 3, 65, 65)).shape == (1, 3, 9, 9)
    expected = 512 + len(bins) * (512 // len(bins) if reduction else 512)
    assert module.head.conv.conv.in_channels == expected


@pytest.mark.parametrize("options", [{"bins": ()}, {"bins": (0,)}, {"bins": "12"}, {"pooling": "sum"}])
def test_wrong_ablations_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        models.build("pspnet18", 3, **options)
