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


@pytest.mark.parametrize("step", [2, 4, 8])
def test_the_halved_trunk_without_holes_is_the_same_function_at_fewer_places(step):
    torch.manual_seed(0)
    module = models.build("pspnet18_half", 3).eval()
    image = torch.randn(1, 3, 193, 129)
    with torch.no_grad():
        dense = module.trunk(image)
        module.sample_every(step)
        sparse = module.trunk(image)
        module.sample_every(1)
        again = module.trunk(image)
    assert dense.shape[2:] == (25, 17)
    torch.testing.assert_close(sparse, dense[:, :, ::step, ::step], rtol=1e-3, atol=1e-3)
    assert torch.equal(again, dense)


def test_the_head_of_the_halved_network_has_holes_too():
    torch.manual_seed(0)
    module = models.build("pspnet18_half", 3).eval()
    features = torch.randn(1, 1024, 17, 17)
    dense = module.head(features)
    module.sample_every(8)
    torch.testing.assert_close(module.head(features[:, :, ::8, ::8]), dense[:, :, ::8, ::8])


def test_halving_keeps_corner_pixels_and_smooth_images():
    # Every value is x or y, so that weights of 1, 2, 1 around every second pixel give that pixel
    module = models.build("pspnet18_half", 3).eval()
    seen = []
    module.trunk.stem.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    y, x = torch.meshgrid(torch.arange(41.0), torch.arange(57.0), indexing="ij")
    image = torch.stack([x, y, x])[None]
    with torch.no_grad():
        module(image)
        module.take_halved(True)
        module(image[:, :, ::2, ::2])
    halved, given = seen
    assert halved.shape == (1, 3, 21, 29)
    torch.testing.assert_close(halved[:, :, 1:-1, 1:-1], given[:, :, 1:-1, 1:-1])


def test_a_step_that_no_grid_has_is_refused():
    with pytest.raises(ValueError, match="step must be"):
        models.build("pspnet18_half", 3).sample_every(3)
