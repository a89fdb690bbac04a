import numpy as np
from PIL import Image

from flows.cli import app
from tests.console import invoke


def run(*arguments: str):
    return invoke(app, *arguments)


def test_models_are_listed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shown = run("models").output
    assert "deeplab_v1_largefov" in shown and "20,505,429" in shown and "none" in shown


def test_the_catalogue_is_listed():
    shown = run("weights", "list").output
    assert "deeplab_v2_resnet101-vocaug-kazuto" in shown and "unverified" in shown


def test_what_cannot_be_done_ends_with_one_sentence(tmp_path):
    for arguments in (("import", str(tmp_path / "none.pth"), "--model", "pspnet50"), ("pull", "nothing")):
        result = run("weights", *arguments)
        assert result.exit_code == 1 and "Traceback" not in result.output


def test_an_exported_model_is_a_model(tmp_path):
    file = tmp_path / "model.onnx"
    told = run("weights", "export", "pspnet_lite0", str(file), "--untrained")
    assert told.exit_code == 0 and f"--model {file} takes it" in told.output
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(photographs / "a.png")
    done = run("run", str(photographs), str(tmp_path / "out"), "--model", str(file), "--no-crf", "--engine", "local")
    assert done.exit_code == 0 and "pspnet_lite0 (untrained)" in done.output
    for arguments, sentence in (
        ((str(file),), "is there already"),
        ((str(tmp_path / "other.pt"),), "ends in .onnx"),
        ((str(tmp_path / "no" / "a.onnx"),), "does not exist"),
    ):
        result = run("weights", "export", "pspnet_lite0", *arguments, "--untrained")
        assert (
            result.exit_code == 1 and sentence in result.output.replace("\n", " ") and "Traceback" not in result.output
        )
    again = run("weights", "export", str(file), str(file), "--replace")
    assert again.exit_code == 1 and "ONNX file already" in again.output.replace("\n", " ")
