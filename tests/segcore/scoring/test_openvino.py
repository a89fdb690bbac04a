"""bfloat16 by OpenVINO: the labels of float32 but for close calls, chosen where it is fastest, and said in the rows."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.photographs import FIVE
from segcore import extras
from segcore.models import checkpoint
from segcore.models.checkpoint import CARD_FILE
from segcore.predictor import Predictor, PredictParams
from segcore.scoring import fastest, openvino_session
from segcore.scoring.inference import InferenceParams
from segcore.scoring.onnx_scorer import OnnxScorer

PHOTOGRAPHS = [np.asarray(Image.open(path)) for path in FIVE]


@pytest.fixture
def here() -> None:
    pytest.importorskip("openvino", reason="pip install 'segment-archive[openvino]' (180 MB)")
    if not openvino_session.is_usable():
        pytest.skip("the processor has no bfloat16")


@pytest.mark.usefixtures("here")
def test_labels_are_those_of_float32_but_for_close_calls() -> None:
    model = checkpoint.load("pspnet_lite2")
    exact, fast = (
        OnnxScorer(model, InferenceParams(precision=precision), num_threads=1) for precision in ("fp32", "bf16")
    )
    assert (exact.place, fast.place) == ("cpu/fp32", "cpu/bf16 by OpenVINO")
    sizes = ((300, 200), (301, 65), (33, 40), (257, 257), (90, 333))
    for photograph, (height, width) in zip(PHOTOGRAPHS, sizes, strict=True):
        image = photograph[:height, :width]
        [a], [b] = exact([image]), fast([image])
        assert a.extent_px == b.extent_px and a.scores.shape == b.scores.shape
        assert np.mean(a.scores.argmax(0) == b.scores.argmax(0)) > 0.95


@pytest.mark.usefixtures("here")
def test_it_is_chosen_where_it_is_fastest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = checkpoint.load("pspnet_lite2")
    among = fastest.choices(model, InferenceParams(), "cpu")
    assert among[-1] == "openvino"
    assert "openvino" not in fastest.choices(model, InferenceParams(mirror=True), "cpu")
    assert "openvino" not in fastest.choices(checkpoint.load("pspnet18", untrained=True), InferenceParams(), "cpu")
    monkeypatch.setattr(fastest, "measure", lambda *_: {choice: 1.0 - (choice == "openvino") / 2 for choice in among})
    predictor = Predictor(model, PredictParams(), device="cpu", num_threads=1)
    before = predictor.fingerprint()
    assert predictor.device == "cpu/bf16 by OpenVINO" and predictor.fingerprint() == before


@pytest.mark.usefixtures("here")
def test_the_measurement_knows_it(tmp_path: Path) -> None:
    found = fastest.measure(checkpoint.load("pspnet_lite2"), 1, ["fp32", "openvino"])
    assert list(found) == ["fp32", "openvino"] and all(0 < taken < 600 for taken in found.values())


@pytest.mark.usefixtures("here")
def test_a_file_of_others_takes_it_where_it_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from segcore.models.onnx_export import export

    content, card = export(checkpoint.load("pspnet_lite0", untrained=True))
    (tmp_path / "model.onnx").write_bytes(content)
    (tmp_path / CARD_FILE).write_text(card.to_json())
    model = checkpoint.load(str(tmp_path / "model.onnx"))
    assert fastest.choices(model, InferenceParams(), "cpu") == []
    scorer = OnnxScorer(model, InferenceParams(precision="bf16"), num_threads=1)
    [found] = scorer([PHOTOGRAPHS[0][:97, :129]])
    [exact] = OnnxScorer(model, InferenceParams(), num_threads=1)([PHOTOGRAPHS[0][:97, :129]])
    spread = float(exact.scores.std())
    assert scorer.place == "cpu/bf16 by OpenVINO"
    assert 0 < np.abs(found.scores.astype(np.float32) - exact.scores).mean() < 0.1 * spread


def test_without_it_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    from segcore.models.onnx_export import export

    monkeypatch.setattr(openvino_session, "is_usable", lambda: False)
    content, card = export(checkpoint.load("pspnet_lite0", untrained=True))
    (tmp_path / "model.onnx").write_bytes(content)
    (tmp_path / CARD_FILE).write_text(card.to_json())
    model = checkpoint.load(str(tmp_path / "model.onnx"))
    with pytest.raises(ValueError, match=r"precision bf16: leave --precision out, or pip install 'segment-archive"):
        OnnxScorer(model, InferenceParams(precision="bf16"))
    assert extras.EXTRAS["openvino"] == "openvino"
