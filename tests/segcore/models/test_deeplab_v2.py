import torch

from segcore import models
from segcore.models.resnet import FrozenBatchNorm


def test_aspp_is_the_sum_of_its_branches():
    torch.manual_seed(0)
    module = models.build("deeplab_v2_resnet18", 3).eval()
    features = torch.randn(1, 512, 5, 6)
    with torch.no_grad():
        expected = sum(branch(features) for branch in module.head.branches)
        torch.testing.assert_close(module.head(features), expected)
    assert [branch.dilation[0] for branch in module.head.branches] == [6, 12, 18, 24]


def test_rates_of_the_vgg_variants():
    with torch.device("meta"):
        for name, rates in (("s", [2, 4, 8, 12]), ("l", [6, 12, 18, 24])):
            head = models.build(f"deeplab_v2_vgg16_aspp_{name}").head
            assert [branch.fc6.dilation[0] for branch in head.branches] == rates


def test_the_stride_is_on_the_first_1x1_and_dilations_are_2_and_4():
    with torch.device("meta"):
        trunk = models.build("deeplab_v2_resnet101").trunk
    first = trunk.res3[0]
    assert first.branch2a.conv.stride == (2, 2) and first.branch2b.conv.stride == (1, 1)
    assert first.branch1.conv.stride == (2, 2)
    assert trunk.res4[0].branch2b.conv.dilation == (2, 2) and trunk.res5[0].branch2b.conv.dilation == (4, 4)
    assert [len(trunk.stage(number)) for number in (2, 3, 4, 5)] == [3, 4, 23, 3]
    assert trunk.stem.pool.ceil_mode


def test_batch_normalisation_is_frozen_in_training_too():
    torch.manual_seed(0)
    module = models.build("deeplab_v2_resnet18", 3).train()
    layers = [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert layers and all(isinstance(part, FrozenBatchNorm) and not part.training for part in layers)
    before = {key: value.clone() for key, value in module.state_dict().items() if "running" in key}
    image = torch.randn(2, 3, 33, 33)
    trained = module(image)
    assert all(torch.equal(module.state_dict()[key], value) for key, value in before.items())
    torch.testing.assert_close(trained, module.eval()(image))
    assert not any(parameter.requires_grad for part in layers for parameter in part.parameters())


def test_batch_normalisation_trains_on_request():
    module = models.build("deeplab_v2_resnet18", 3, frozen_batch_norm=False).train()
    assert all(part.training for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d))
