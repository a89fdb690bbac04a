import importlib

import numpy as np
import pytest
import torch

from segcore import models
from segcore.models import checkpoint
from segcore.models.fcn import BilinearUpsample
from segcore.models.resnet import fold_batch_norms
from segcore.models.untrained import initialise_untrained
from segcore.models.variants import VARIANTS
from segcore.scoring.inference import InferenceParams, Scorer

PAPER = {
    "deeplab_v1": 65_140_565,
    "deeplab_v1_4x4": 65_140_565,
    "deeplab_v1_7x7": 134_346_581,
    "deeplab_v1_largefov": 20_505_429,
    "deeplab_v1_msc": 65_140_565 + 1_206_121,
    "deeplab_v1_msc_largefov": 20_505_429 + 1_206_121,
    "deeplab_v2_vgg16_largefov": 20_505_429,
    "deeplab_v2_vgg16_aspp_s": 37_877_652,
    "deeplab_v2_vgg16_aspp_l": 37_877_652,
    "deeplab_v2_resnet101": 44_048_532,
    "pspnet50": 46_716_373,
    "pspnet101": 65_708_501,
    "pspnet152": 81_352_149,
}


def on_meta(name: str, *arguments: int, **options: object) -> torch.nn.Module:
    with torch.device("meta"):
        return models.build(name, *arguments, **options).eval()


def output_px(module: torch.nn.Module, size_px: int) -> int:
    scores = module(torch.empty(1, 3, size_px, size_px, device="meta"))
    assert scores.shape[2] == scores.shape[3]
    return scores.shape[2]


@pytest.mark.parametrize("name", models.NAMES)
def test_parameters(name):
    module = on_meta(name)
    counted = sum(value.numel() for key, value in module.named_parameters() if not key.startswith("auxiliary."))
    assert counted == VARIANTS[name].parameters == PAPER.get(name, counted)
    function = getattr(importlib.import_module(VARIANTS[name].module), name)
    assert f"{counted:,}" in function.__doc__, "a variant says its numbers"


def test_the_auxiliary_head_of_pspnet50():
    module = on_meta("pspnet50")
    assert sum(value.numel() for value in module.auxiliary.parameters()) == 2_365_205
    assert on_meta("pspnet50", auxiliary_at=None).auxiliary is None


# The deeper PSPNets differ from pspnet101 by the number of equal blocks
@pytest.mark.parametrize("name", sorted(set(models.NAMES) - {"pspnet152", "pspnet269"}))
def test_output_sizes(name):
    module = on_meta(name)
    assert [output_px(module, size + module.margin_px) for size in (321, 473, 513)] == [41, 60, 65]
    if VARIANTS[name].module.endswith("deeplab_v1") and module.margin_px:
        assert output_px(module, 306) == 39 and output_px(module, 514) == 65
    for size in (33, 34, 40, 47, 99):
        assert abs(output_px(module, size) - size / 8) < 2
    assert module(torch.empty(2, 3, 34, 80, device="meta")).shape[:2] == (2, 21)


@pytest.mark.parametrize("num_classes", [1, 7, 255])
def test_any_number_of_classes(num_classes):
    for name in ("fcn8s", "deeplab_v1_msc", "deeplab_v2_resnet18", "pspnet18"):
        assert on_meta(name, num_classes)(torch.empty(1, 3, 33, 33, device="meta")).shape[1] == num_classes


@pytest.mark.parametrize("num_classes", [0, 256, -1])
def test_numbers_of_classes_that_do_not_fit_a_label_map(num_classes):
    with pytest.raises(ValueError, match="num_classes"):
        models.build("pspnet18", num_classes)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean deeplab_v1_largefov"):
        models.build("deeplab_v1_largefow")


def test_an_unknown_option_is_named():
    with pytest.raises(ValueError, match="no option 'bins'"):
        models.build("deeplab_v1_largefov", bins=(1,))


@pytest.mark.parametrize("name", ["deeplab_v2_resnet18", "pspnet18", "deeplab_v1_msc_largefov"])
def test_gradients_reach_every_trained_parameter(name):
    torch.manual_seed(0)
    module = models.build(name, 3).train()
    logits = module(torch.randn(2, 3, 41, 41))
    sum(part.square().mean() for part in (logits if isinstance(logits, tuple) else (logits,))).backward()
    without = [key for key, value in module.named_parameters() if value.requires_grad and value.grad is None]
    assert without == []


@pytest.mark.parametrize("name", ["deeplab_v2_resnet18", "pspnet18"])
def test_folding_batch_normalisation_changes_nothing(name):
    torch.manual_seed(0)
    module = models.build(name, 3).eval()
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(part.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(part.weight, 0.3, 1.0)
            torch.nn.init.uniform_(part.bias, -0.5, 0.5)
    image = torch.randn(1, 3, 49, 57)
    with torch.no_grad():
        before = module(image)
        after = fold_batch_norms(module)(image)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules())
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["deeplab_v2_resnet18", "pspnet18"])
def test_untrained_weights_fill_every_tensor_and_depend_on_the_seed_alone(name):
    def tensors(seed: int) -> dict[str, torch.Tensor]:
        module = on_meta(name, 2).to_empty(device="cpu")
        for value in module.state_dict().values():
            value.fill_(99 if value.dtype == torch.int64 else float("nan"))
        initialise_untrained(module, seed, 1.0)
        return module.state_dict()

    one, again, other = tensors(1), tensors(1), tensors(2)
    assert all(torch.isfinite(value).all() and (value != 99).all() for value in one.values())
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert all(not torch.equal(one[key], other[key]) for key in one if key.endswith("conv.weight"))


def test_untrained_deconvolutions_are_bilinear():
    layer = BilinearUpsample(2)
    torch.nn.init.constant_(layer.weight, float("nan"))
    initialise_untrained(layer, 0, 1.0)
    assert layer.weight[0, 0].sum() == 4 and (layer.weight[0, 1] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", models.NAMES)
def test_every_untrained_model_scores_a_photograph(name):
    across, down = np.meshgrid(np.linspace(0, 255, 90), np.linspace(255, 0, 61))
    noise = np.random.default_rng(0).integers(0, 60, (61, 90))
    photograph = np.stack([across, down, (across + noise) / 2], axis=-1).astype(np.uint8)
    model = checkpoint.load(name, untrained=True)
    single, half = (
        np.float32(Scorer(model, InferenceParams(precision=precision))([photograph])[0].scores)
        for precision in ("fp32", "bf16")
    )
    assert single.shape == (21, 9, 13)
    assert 0.3 < (single - single.mean(axis=0)).std() < 6, "scores of unit scale"
    assert len(np.unique(single.argmax(0))) > 2, "no constant image"
    assert (single.argmax(0) != half.argmax(0)).mean() < 0.2
