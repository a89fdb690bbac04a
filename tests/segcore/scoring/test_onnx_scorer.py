"""Without torch the default model gives the same scores; what needs torch says so."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import segcore
from segcore import extras
from segcore.models import checkpoint
from segcore.predictor import Predictor, PredictParams
from segcore.scoring.inference import InferenceParams, Scorer
from segcore.scoring.onnx_scorer import OnnxScorer, is_better
from tests.light import LIGHT

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "photographs"


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return checkpoint.load("pspnet_lite2")


def test_scores_are_those_of_torch_at_any_size(model):
    with Image.open(EXAMPLES / "cat.jpg") as opened:
        cat = np.asarray(opened.convert("RGB"))
    images = [cat[:200, :311], cat[:40, :33], cat[:1, :1]]
    params = InferenceParams(precision="fp32")
    ours = OnnxScorer(model, params, num_threads=1)(images)
    for image, mine, theirs in zip(
        images, ours, Scorer(model, params, device="cpu", num_threads=1)(images), strict=True
    ):
        assert mine.extent_px == theirs.extent_px and mine.scores.shape == theirs.scores.shape
        assert mine.scores.dtype == np.float16 and mine.scores.max() == 0
        # Relative to float16: 1e-3
        np.testing.assert_allclose(
            mine.scores.astype(np.float32), theirs.scores.astype(np.float32), rtol=2e-3, atol=2e-3
        )
        assert (mine.scores.argmax(0) == theirs.scores.argmax(0)).mean() >= 0.999, image.shape


def test_what_is_no_photograph_is_refused(model):
    with pytest.raises(ValueError, match="expected"):
        OnnxScorer(model, InferenceParams())([np.zeros((3, 4), np.uint8)])


@pytest.mark.parametrize(
    ("params", "device", "culprit"),
    [
        (InferenceParams(mirror=True), "auto", "Test-time augmentation"),
        (InferenceParams(scales=(0.5, 1.0)), "auto", "Test-time augmentation"),
        (InferenceParams(crop_px=321), "auto", "Test-time augmentation"),
        (InferenceParams(precision="bf16"), "auto", "Precision bf16"),
        (InferenceParams(), "cuda:0", "The device 'cuda:0'"),
    ],
)
def test_what_needs_torch_says_the_line_that_installs_it(model, params, device, culprit):
    with pytest.raises(ValueError, match=r"pip install 'segment-archive\[torch\]'") as raised:
        OnnxScorer(model, params, device=device)
    assert str(raised.value).startswith(f"{culprit} needs PyTorch, which is not installed")


def test_torch_scores_where_it_is_faster_or_the_only_one(model):
    assert is_better(model, InferenceParams(precision="fp32"), "cpu")
    assert not is_better(model, InferenceParams(precision="bf16"), "cpu")
    assert not is_better(model, InferenceParams(precision="fp32", mirror=True), "cpu")
    other = checkpoint.load("deeplab_v2_resnet18", untrained=True)
    assert not is_better(other, InferenceParams(precision="fp32"), "cpu")
    predictor = Predictor(model, PredictParams(InferenceParams(precision="fp32")), device="cpu", num_threads=1)
    assert isinstance(predictor.scorer, OnnxScorer) and predictor.device == "cpu/fp32"


def test_torch_is_not_imported_where_it_does_not_score():
    """Its import would be part of the start of each process of a job."""
    code = f"""
import segcore, sys
from segcore.predictor import PredictParams
from segcore.scoring.inference import InferenceParams
params = PredictParams(InferenceParams(precision="fp32"))
model = segcore.load("pspnet_lite2", params=params, device="cpu", num_threads=1)
print((model.segment({str(EXAMPLES / "cat.jpg")!r}).labels == 8).mean() > 0.6, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_the_network_of_torch_is_made_once_it_is_asked_for():
    loaded = checkpoint.load("pspnet_lite2")
    assert callable(loaded.given) and loaded.tensors is not None
    state = loaded.module.state_dict()
    assert loaded.module is loaded.given and not loaded.module.training
    assert state.keys() == loaded.tensors.keys()
    assert all((state[name].float().numpy() == value).all() for name, value in loaded.tensors.items())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("skip.classifier.bias"), r"skip\.classifier\.bias is missing"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "more is not part of the network"),
        (lambda tensors: tensors["skip.classifier.bias"].fill_(torch.nan), "has values that are not finite"),
        (
            lambda tensors: tensors.update({"skip.classifier.bias": torch.zeros(21, dtype=torch.int64)}),
            r"skip\.classifier\.bias holds torch\.int64 instead of torch\.float32",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_when_it_is_loaded(change, told, tmp_path):
    place = tmp_path / "model"
    shutil.copytree(checkpoint.BUNDLED / "pspnet_lite2", place)
    tensors = load_file(place / "model.safetensors")
    change(tensors)
    save_file(tensors, place / "model.safetensors")
    with pytest.raises(ValueError, match=told):
        checkpoint.load(place)


def test_the_library_works_without_torch(tmp_path):
    code = f"""
import numpy as np, segcore, sys
model = segcore.load("pspnet_lite2", num_threads=1)
np.save({str(tmp_path / "labels.npy")!r}, model.segment({str(EXAMPLES / "cat.jpg")!r}).labels)
assert "torch" not in sys.modules and "onnxruntime" in sys.modules
for asked in (dict(name_or_path="pspnet14"), dict(name_or_path="pspnet_lite2", untrained=True)):
    try:
        segcore.load(**asked)
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", LIGHT + code], capture_output=True, text=True, check=True)
    assert done.stdout.count("pip install 'segment-archive[torch]'") == 2 and "pspnet14 needs PyTorch" in done.stdout
    params = PredictParams(InferenceParams(precision="fp32"))
    labels = segcore.load("pspnet_lite2", num_threads=1, params=params).segment(EXAMPLES / "cat.jpg").labels
    assert (np.load(tmp_path / "labels.npy") == labels).mean() >= 0.999


def test_the_sentence_names_what_is_missing_and_the_remedy():
    assert extras.sentence("ray") == "This needs Ray, which is not installed: pip install 'segment-archive[cluster]'."
