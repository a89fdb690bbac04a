import numpy as np
import pytest
import torch

from segcore.models import checkpoint
from segcore.models.layers import Classifier
from segcore.scoring import hardware
from segcore.scoring.device import choose_device, choose_precision, to_precision
from segcore.scoring.inference import InferenceParams, Scorer


@pytest.fixture(scope="module")
def model() -> checkpoint.LoadedModel:
    return checkpoint.load("deeplab_v2_resnet18", untrained=True)


def test_classifiers_stay_in_float32_and_the_original_is_left_alone(model):
    half = to_precision(model.module, torch.bfloat16)
    for part in half.modules():
        if isinstance(part, torch.nn.Conv2d):
            assert part.weight.dtype == (torch.float32 if isinstance(part, Classifier) else torch.bfloat16)
    assert all(value.dtype != torch.bfloat16 for value in model.module.state_dict().values())
    assert any(isinstance(part, torch.nn.BatchNorm2d) for part in model.module.modules())


def test_scores_of_bf16_are_close_to_those_of_fp32(model):
    image = np.random.default_rng(0).integers(0, 256, (65, 97, 3), dtype=np.uint8)
    single, half = (
        np.float32(Scorer(model, InferenceParams(precision=precision))([image])[0].scores)
        for precision in ("fp32", "bf16")
    )
    assert np.abs(single - half).max() < 0.1 * np.abs(single).max()
    assert (single.argmax(0) != half.argmax(0)).mean() < 0.15


def test_precision_on_request():
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu) == torch.float32 and choose_precision("fp16", cpu) == torch.float16
    assert choose_precision("auto", cpu) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_what_torch_would_choose_is_known_without_it(precision, device):
    chosen = choose_device(device)
    expected = chosen.type == "cpu" and choose_precision(precision, chosen) == torch.float32
    assert hardware.scores_in_float32(precision, device) == expected
    assert hardware.has_gpu() == torch.cuda.is_available()
    abilities = torch.cpu.get_capabilities()
    named = any(abilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))
    assert hardware.multiplies_bf16() == named


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(model):
    random = np.random.default_rng(0)
    sizes = [(65, 97), (97, 65), (65, 97), (40, 40), (65, 95)] * 3
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    params = InferenceParams(precision="fp32")
    expected = Scorer(model, params, device="cpu")(images)
    for batch_size in (1, 4):
        for ours, reference in zip(Scorer(model, params, batch_size=batch_size)(images), expected, strict=True):
            assert ours.extent_px == reference.extent_px
            np.testing.assert_allclose(np.float32(ours.scores), np.float32(reference.scores), atol=0.05)
