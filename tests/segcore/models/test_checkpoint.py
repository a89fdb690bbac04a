import json
import os
import struct
import subprocess
import sys

import pytest
import torch

from segcore import models, voc
from segcore.models import checkpoint, untrained
from segcore.models.card import ModelCard
from segcore.models.preprocessing import DEEPLAB

NAME = "deeplab_v1_largefov"


@pytest.fixture(scope="module")
def model() -> checkpoint.LoadedModel:
    return checkpoint.load(NAME, untrained=True)


@pytest.fixture
def small(monkeypatch):
    """A network of a few numbers under a real name, so that files stay small."""

    def build(name, num_classes=21, **options):
        return torch.nn.Sequential(torch.nn.Conv2d(3, num_classes, 1))

    monkeypatch.setattr(models, "build", build)
    return build(NAME), ModelCard(NAME, voc.CLASSES, DEEPLAB, training_split="voc2012-train_aug", metrics={"miou": 1.5})


def test_untrained_is_deterministic_and_says_so(model):
    again = checkpoint.load(NAME, untrained=True)
    assert all(torch.equal(a, b) for a, b in zip(model.module.parameters(), again.module.parameters(), strict=True))
    assert model.name == f"{NAME} (untrained)" and model.card.untrained
    assert model.digest == again.digest == checkpoint.digest_of(NAME, untrained=True)
    assert checkpoint.digest_of(NAME, untrained=True, seed=1) != model.digest


def test_the_digest_knows_the_version_of_the_untrained_weights():
    assert checkpoint.UNTRAINED_VERSION == untrained.VERSION


def test_a_digest_needs_no_torch():
    code = f"import sys; from segcore.models import checkpoint as c; c.digest_of({NAME!r}, untrained=True); " \
        "sys.exit('torch' in sys.modules)"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


def test_a_saved_model_comes_back(tmp_path, small):
    module, card = small
    checkpoint.save(tmp_path / "m", module, card)
    for path in (tmp_path / "m", str(tmp_path / "m" / "model.safetensors")):
        loaded = checkpoint.load(path)
        assert loaded.card == card and loaded.name == NAME
        assert torch.equal(loaded.module[0].weight, module[0].weight)
        assert loaded.digest == checkpoint.digest_of(path)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_the_digest_follows_weights_and_preprocessing_but_not_notes(tmp_path, small):
    module, card = small
    checkpoint.save(tmp_path / "m", module, card)
    before = checkpoint.digest_of(tmp_path / "m")
    value = json.loads(card.to_json())
    (tmp_path / "m/card.json").write_text(json.dumps(value | {"notes": "seen"}))
    assert checkpoint.digest_of(tmp_path / "m") == before
    value["preprocessing"]["mean"][0] += 1
    (tmp_path / "m/card.json").write_text(json.dumps(value))
    assert checkpoint.digest_of(tmp_path / "m") != before


def test_saving_does_not_overwrite_unless_told(tmp_path, small):
    checkpoint.save(tmp_path / "m", *small)
    with pytest.raises(ValueError, match="exists already"):
        checkpoint.save(tmp_path / "m", *small)
    checkpoint.save(tmp_path / "m", *small, replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_a_save_that_fails_leaves_nothing(tmp_path, small, monkeypatch):
    def no_space(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path / "m", *small)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_not_saved(tmp_path, small):
    small[0][0].bias.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"0\.bias"):
        checkpoint.save(tmp_path / "m", *small)


def test_all_mismatches_stand_in_one_error(tmp_path, small):
    _, card = small
    other = torch.nn.Sequential(torch.nn.Conv2d(4, 21, 1, bias=False), torch.nn.Conv2d(1, 1, 1))
    checkpoint.save(tmp_path / "m", other, card)
    with pytest.raises(ValueError) as error:
        checkpoint.load(tmp_path / "m")
    for phrase in ("0.bias is missing", "0.weight has shape (21, 4, 1, 1) instead of (21, 3, 1, 1)", "1.bias is not"):
        assert phrase in str(error.value)


@pytest.mark.parametrize("cut", [0, 5, 60, 300])
def test_a_truncated_file_is_refused(tmp_path, small, cut):
    checkpoint.save(tmp_path / "m", *small)
    path = tmp_path / "m/model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        checkpoint.load(path)


def test_a_hostile_header_length_is_refused(tmp_path, small):
    checkpoint.save(tmp_path / "m", *small)
    path = tmp_path / "m/model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 62) + path.read_bytes()[8:])
    with pytest.raises(ValueError, match="cut short"):
        checkpoint.load(path)


def test_a_known_name_without_weights_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(checkpoint, "BUNDLED", tmp_path / "none")
    for function in (checkpoint.load, checkpoint.digest_of):
        with pytest.raises(ValueError, match="--untrained"):
            function(NAME)


def test_cached_weights_are_found_by_name(tmp_path, monkeypatch, small):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    checkpoint.save(checkpoint.cache_directory() / NAME, *small)
    assert checkpoint.load(NAME).card == small[1]


def test_a_card_that_asks_for_a_network_that_cannot_be_built(tmp_path, small, monkeypatch):
    checkpoint.save(tmp_path / "m", *small)
    monkeypatch.undo()
    for variant, options in (("pspnet18", {"bins": 3}), ("pspnet18", {"bins": ["a"]}), (NAME, {"bins": [1]})):
        value = json.loads(small[1].to_json()) | {"variant": variant, "options": options}
        (tmp_path / "m/card.json").write_text(json.dumps(value))
        with pytest.raises(ValueError, match=r"card\.json asks for a network"):
            checkpoint.load(tmp_path / "m")


def test_what_is_neither_a_name_nor_a_path(tmp_path):
    with pytest.raises(ValueError, match="did you mean"):
        checkpoint.load("deeplab_v1_larg")
    with pytest.raises(ValueError, match="There is no model at"):
        checkpoint.load(tmp_path / "none")
    with pytest.raises(ValueError, match="segment-archive models` lists them"):
        checkpoint.load("nonsense", untrained=True)
