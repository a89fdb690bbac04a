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
