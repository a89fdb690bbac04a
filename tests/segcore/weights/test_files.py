import argparse
import collections
import json
import pathlib
import zipfile

import numpy as np
import pytest
import torch

from segcore import models
from segcore.weights.importer import import_weights
from segcore.weights.sources import SEMSEG_PSPNET
from tests.segcore.weights.test_importer import SEMSEG, renamed

pytestmark = pytest.mark.usefixtures("narrow")


@pytest.fixture
def original():
    torch.manual_seed(3)
    return models.build("pspnet50").eval()


def published(module, prefix=""):
    return renamed(module, SEMSEG, prefix)


def same(imported, original) -> bool:
    expected = original.state_dict()
    return all(torch.equal(value, expected[name]) for name, value in imported.module.state_dict().items())


@pytest.mark.parametrize(
    "prefix",
    ["model.", "_orig_mod.", "net.", "module.model.", "module.", "model.module._orig_mod.", "_orig_mod.module.net.",
     "network.", "ema.module.", "student.", "_forward_module.model."],
)  # fmt: skip
@pytest.mark.parametrize("wrapped", [False, True])
def test_prefixes_of_trainers(tmp_path, original, prefix, wrapped):
    state = published(original, prefix)
    torch.save({"state_dict": state, "epoch": 3, "best": 0.71} if wrapped else state, tmp_path / "a.ckpt")
    assert same(import_weights(tmp_path / "a.ckpt", "pspnet50"), original)


@pytest.mark.parametrize(
    "keys",
    [("net",), ("ema",), ("model_state",), ("state_dict",), ("model",), ("model_state_dict",), ("params_ema",),
     ("checkpoint", "net"), ("state", "model", "module"), ("weights",)],
)  # fmt: skip
def test_containers_of_trainers(tmp_path, original, keys):
    value = published(original, "module.")
    for key in reversed(keys):
        value = {
            key: value,
            "iteration": 7,
            "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []},
        }
    torch.save(value, tmp_path / "a.pth")
    assert same(import_weights(tmp_path / "a.pth", "pspnet50"), original)


def test_what_stands_beside_weights_is_left(tmp_path, original):
    state = published(original, "module.") | {
        "n_averaged": torch.tensor(17),
        "module.criterion.weight": torch.ones(21),
        "criterion.weight": torch.full((21,), float("nan")),
        "loss_fn.ce.weight": torch.ones(21),
        "module.layer1.0.total_ops": torch.zeros(1),
        "epoch": 50,
    }
    torch.save(state, tmp_path / "swa.pth")
    assert same(import_weights(tmp_path / "swa.pth", "pspnet50"), original)
    torch.save(collections.OrderedDict(state), tmp_path / "ordered.pth")
    assert same(import_weights(tmp_path / "ordered.pth", "pspnet50"), original)


def test_compiled_and_sharded_parts_within_names(tmp_path, original):
    state = {
        name.replace("layer1.", "layer1._orig_mod.").replace("layer3.0.", "layer3.0._checkpoint_wrapped_module."): value
        for name, value in published(original).items()
    }
    torch.save(state, tmp_path / "a.pth")
    assert same(import_weights(tmp_path / "a.pth", "pspnet50"), original)


def test_of_two_models_the_moving_average_is_taken_and_said(tmp_path, original):
    torch.manual_seed(4)
    other = models.build("pspnet50").eval()
    optimizer = {"exp_avg": published(other)}  # By name, as some trainers have it
    torch.save({"net": published(other), "ema": published(original), "optimizer": optimizer}, tmp_path / "a.pth")
    imported = import_weights(tmp_path / "a.pth", "pspnet50")
    assert same(imported, original) and "Taken from ema; net has weights too." in imported.card.notes
    torch.save(
        {"state_dict": published(other, "model.") | published(original, "ema_model.module.")}, tmp_path / "b.pth"
    )
    imported = import_weights(tmp_path / "b.pth", "pspnet50")
    assert same(imported, original) and "state_dict.ema_model.module" in imported.card.notes


def test_half_precision_under_the_names_of_lightning_and_compile(tmp_path, original):
    # As weights_prefix/make.py of the field makes them, whose third line Python does not parse
    names = {name: SEMSEG_PSPNET.locate(name) for name in original.state_dict()}
    state = {
        theirs[0]: original.state_dict()[name].half()
        for name, theirs in names.items()
        if theirs and "num_batches" not in name
    }
    torch.save({"state_dict": {f"model.{name}": value for name, value in state.items()}}, tmp_path / "lightning.ckpt")
    torch.save({f"_orig_mod.{name}": value for name, value in state.items()}, tmp_path / "compiled.pth")
    for name in ("lightning.ckpt", "compiled.pth"):
        module = import_weights(tmp_path / name, "pspnet50").module
        assert torch.equal(module.trunk.res5[2].branch2c.conv.weight.half(), state["layer4.2.conv3.weight"])


def test_halves_and_what_is_missing_stay_errors(tmp_path, original):
    state = published(original, "model.")
    state["head." + "cls.4.weight"] = state.pop("model.cls.4.weight")
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"cls.4.weight is missing|without a classifier"):
        import_weights(tmp_path / "a.pth", "pspnet50")


class Config(dict):
    """As omegaconf's and addict's: a class of somebody's own."""


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (argparse.Namespace(lr=0.1), "argparse.Namespace"),
        (Config(lr=0.1), "Config"),
        (pathlib.PurePosixPath("/x"), "pathlib"),
        (np.float64(0.5), "numpy"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_pickled_extras_get_the_line_that_helps(tmp_path, original, extra, named):
    torch.save({"state_dict": published(original), "args": extra}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"torch\.save\(model\.state_dict\(\), \"weights\.pth\"\)") as error:
        import_weights(tmp_path / "a.pth", "pspnet50")
    assert named in str(error.value) and str(tmp_path / "a.pth") in str(error.value)


PAGES = {
    "web page": b"<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title>",
    "web page, not weights": b"\n <html><body>404</body></html>",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 92\n",
    "'Not Found'": json.dumps({"message": "Not Found", "status": "404"}).encode(),
    "a table of JSON": b'{"a": 1}',
    "is empty": b"",
    "gunzip": b"\x1f\x8b\x08 rest",
    "HDF5": b"\x89HDF\r\n\x1a\n",
}


@pytest.mark.parametrize("said", PAGES)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.caffemodel"])
def test_what_downloads_give_in_place_of_weights(tmp_path, said, name):
    (tmp_path / name).write_bytes(PAGES[said])
    with pytest.raises(ValueError, match=said) as error:
        import_weights(tmp_path / name, "pspnet50")
    assert str(tmp_path / name) in str(error.value)


def test_programs_and_folders_in_a_zip(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(tmp_path / "a.pt"))
    with pytest.raises(ValueError, match=r"a\.pt is a TorchScript archive.*torch\.jit\.load\(FILE\)\.state_dict\(\)"):
        import_weights(tmp_path / "a.pt", "pspnet50")
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
        archive.writestr("folder/train_epoch_50.pth", b"x")
    with pytest.raises(ValueError, match=r"b\.pth is a zip archive of other files \(folder/train_epoch_50.pth\)"):
        import_weights(tmp_path / "b.pth", "pspnet50")
