"""The number format of a CPU: measured once, the same for all who ask, and never by chance."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from segcore.models import checkpoint  # noqa: E402
from segcore.predictor import Predictor, PredictParams  # noqa: E402
from segcore.scoring import fastest, hardware  # noqa: E402
from segcore.scoring.fastest import Choice, choice_of, choose  # noqa: E402

BOTH: tuple[Choice, ...] = ("bf16", "fp32")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> checkpoint.LoadedModel:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return checkpoint.load("pspnet_lite0", untrained=True)


def test_nearly_equal_ones_stay_bf16() -> None:
    assert choose({"bf16": 1.0, "fp32": 0.5}) == "fp32"
    assert choose({"bf16": 1.0, "fp32": 0.95}) == choose({"bf16": 1.0, "fp32": 2.0}) == "bf16"
    assert choose({"bf16": 1.0, "fp32": 0.5, "openvino": 0.47}) == choose({"fp32": 1.0, "openvino": 0.95}) == "fp32"
    assert choose({"bf16": 1.0, "fp32": 0.95, "openvino": 0.8}) == choose({"fp32": 1.0, "openvino": 0.5}) == "openvino"


def test_it_is_measured_once_and_kept(
    model: checkpoint.LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: Iterator[dict[str, float]] = iter([{"bf16": 2.0, "fp32": 1.0}, {"bf16": 1.0, "fp32": 2.0}])
    monkeypatch.setattr(fastest, "measure", lambda *_: next(answers))
    assert [choice_of(model, 1, BOTH) for _ in range(3)] == ["fp32"] * 3
    assert choice_of(model, 2, BOTH) == "bf16"  # Other threads are measured for themselves
    [kept, _] = sorted((tmp_path / "segment-archive" / "scoring").iterdir(), key=lambda p: p.stat().st_mtime_ns)
    assert json.loads(kept.read_text())["seconds"] == {"bf16": 2.0, "fp32": 1.0}
    kept.write_text("damaged")
    monkeypatch.setattr(fastest, "measure", lambda *_: {"bf16": 2.0, "fp32": 1.0})
    assert choice_of(model, 1, BOTH) == "bf16"  # Nothing can be kept under this name: the rule of what it can


def test_processes_at_the_same_moment_have_one_answer(
    model: checkpoint.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)
    lock, answers = threading.Lock(), [{"bf16": 2.0, "fp32": 1.0}, {"bf16": 1.0, "fp32": 2.0}]

    def measured(*_: object) -> dict[str, float]:
        both.wait(30)
        with lock:
            return answers.pop()

    monkeypatch.setattr(fastest, "measure", measured)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(choice_of(model, 1, BOTH))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and len(set(found)) == 1


def test_a_folder_that_cannot_be_written_leaves_what_it_can(
    model: checkpoint.LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "segment-archive").write_text("a file, where a folder is wanted")
    monkeypatch.setattr(fastest, "measure", lambda *_: {"bf16": 2.0, "fp32": 1.0})
    assert choice_of(model, 1, BOTH) == "bf16"


@pytest.mark.parametrize(("precision", "place"), [("fp32", "cpu/fp32"), ("bf16", "cpu/bf16")])
def test_the_predictor_takes_it_and_says_so(
    model: checkpoint.LoadedModel, precision: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda: True)
    monkeypatch.setattr(fastest, "choices", lambda *_: list(BOTH))
    monkeypatch.setattr(fastest, "measure", lambda *_: {"bf16": 9.0, "fp32": 9.0, precision: 1.0})
    predictor = Predictor(model, PredictParams(), device="cpu", num_threads=1)
    before = predictor.fingerprint()
    assert predictor.device == place and predictor.fingerprint() == before


def test_what_was_asked_for_is_not_measured(model: checkpoint.LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastest, "measure", lambda *_: pytest.fail("it was measured"))
    from segcore.scoring.inference import InferenceParams

    predictor = Predictor(model, PredictParams(InferenceParams(precision="bf16")), device="cpu", num_threads=1)
    assert predictor.device == "cpu/bf16"


def test_the_measurement_is_of_all(model: checkpoint.LoadedModel) -> None:
    found = fastest.measure(model, 1, BOTH)
    assert tuple(found) == BOTH and all(0 < taken < 600 for taken in found.values())
