"""`module:function`: the torch module's own scores, what it must say, and what is part of the digest."""

from pathlib import Path

import numpy as np
import pytest

from segcore.models import checkpoint, python_model
from segcore.predictor import Predictor, PredictParams
from segcore.scoring.python_scorer import PythonScorer

torch = pytest.importorskip("torch")

CODE = """
import torch

def net(classes=("sky", "grass", "water"), seed=0, says=True, gives="tensor"):
    torch.manual_seed(seed)
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, len(classes), 1, stride=4)
        def forward(self, images):
            scores = self.layer(images)
            return {"out": scores} if gives == "mapping" else scores
    made = Net()
    if says:
        made.classes, made.preprocessing, made.stride = classes, "0..1", 4
    return made

def mapping(): return net(gives="mapping")
def other(): return net(seed=1)
def silent(): return net(says=False)
def text(): return "no module"
def failing(): raise RuntimeError("no weights here")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module in the current folder, another for each test."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("function", ["net", "mapping"])
def test_scores_are_the_modules_own(module: str, function: str) -> None:
    model = checkpoint.load(f"{module}:{function}")
    assert model.card.classes == ("sky", "grass", "water") and model.card.parameters == 12
    image = np.random.default_rng(1).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    predictor = Predictor(model, PredictParams(crf=None), device="cpu", num_threads=1)
    found = predictor.score([image])[0]
    assert isinstance(predictor.scorer, PythonScorer)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        scores = model.module.layer(pixels)
        expected = torch.nn.functional.interpolate(scores, (40, 52), mode="bilinear")[0].numpy()
    assert np.abs(found.scores - (expected - expected.max(0))).max() < 5e-3
    assert np.mean(found.scores.argmax(0) == expected.argmax(0)) > 0.999


def test_weights_are_in_the_digest_and_nothing_else_is_sent(module: str) -> None:
    first = checkpoint.digest_of(f"{module}:net")
    assert first == checkpoint.load(f"{module}:net").digest == checkpoint.describe(f"{module}:net")[1]
    assert checkpoint.digest_of(f"{module}:other") != first
    with pytest.raises(ValueError, match="not sent to others"):
        checkpoint.pack(f"{module}:net")


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("silent", "does not say its classes .* nor what its pixels are .* these attributes"),
        ("text", "returned str, not a torch.nn.Module"),
        ("failing", "RuntimeError: no weights here"),
        ("absent", "gave no model"),
    ],
)
def test_what_is_no_model_is_said_in_one_sentence(module: str, function: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        checkpoint.load(f"{module}:{function}")
    assert "\n" not in str(caught.value)


def test_what_is_taken_for_such_a_name() -> None:
    assert python_model.is_name("package.part:make")
    for other in ("hf:org/name", "hf:name", "s3://bucket/x", "C:\\net.onnx", "pspnet_lite2", "a b:c", "os.path:"):
        assert not python_model.is_name(other), other
