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


@pytest.mark.parametrize("shrink", [2, 3, 4])
def test_shrinking_keeps_corner_pixels_and_smooth_images(shrink):
    # Every value is x or y, so that a triangle around every second (third, fourth) pixel gives that pixel
    module = models.build("pspnet14", 3, shrink=shrink).eval()
    seen = []
    module.trunk.stem.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    y, x = torch.meshgrid(torch.arange(49.0), torch.arange(73.0), indexing="ij")
    image = torch.stack([x, y, x])[None]
    with torch.no_grad():
        scores = module(image)
    (shrunk,) = seen
    given = image[:, :, ::shrink, ::shrink]
    assert scores.shape == (1, 3, 7, 10)
    inner = (..., slice(1, 48 // shrink), slice(1, 72 // shrink))
    torch.testing.assert_close(shrunk[inner], given[inner])


def test_scores_of_a_coarser_grid_stand_where_they_belong():
    # On 97 px the grid of 12 px has positions 0, 24, 48, ... in common with that of 8 px
    torch.manual_seed(0)
    module = models.build("pspnet14", 3, shrink=3).eval()
    image = torch.randn(1, 3, 97, 97)
    with torch.no_grad():
        scores = module(image)
        own = module._scores(image)
    assert (scores.shape[-1], own.shape[-1]) == (13, 9)
    torch.testing.assert_close(scores[:, :, ::3, ::3], own[:, :, ::2, ::2])
    with torch.no_grad():
        cut = module(image[:, :, :81, :89])
    assert cut.shape == (1, 3, 11, 12)


def test_a_size_that_does_not_shrink_is_refused():
    with pytest.raises(ValueError, match="shrink must be"):
        models.build("pspnet14", shrink=5)
