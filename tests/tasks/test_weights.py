import hashlib
import zipfile
from dataclasses import replace

import pytest
import torch

from segcore import models
from segcore.models import checkpoint
from tasks.models import weights
from tests.tasks.file_server import serve

VARIANT = "deeplab_v2_resnet101"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("segcore.models.resnet.ResNet.WIDTHS", (4, 8, 12, 16))
    return tmp_path / "cache/segment-archive/weights"


@pytest.fixture
def file(tmp_path):
    """Weights in the layout of kazuto1011/deeplab-pytorch."""
    module = models.build(VARIANT)
    names = {"trunk.stem.conv1": "layer1.conv1", "branch2a": "reduce", "branch2b": "conv3x3", "branch2c": "increase",
             "branch1": "shortcut", "head.branches.": "aspp.c"}  # fmt: skip
    names |= {f"trunk.res{s}.{b}.": f"layer{s}.block{b + 1}." for s in (2, 3, 4, 5) for b in range(23)}
    state = {}
    for name, value in module.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[f"base.{name}"] = value
    path = tmp_path / "published" / "weights.pth"
    path.parent.mkdir()
    torch.save(state, path)
    return path


@pytest.fixture
def server(file):
    with serve(file.parent) as running:
        yield running


def entry(server, **more) -> weights.CatalogueEntry:
    given = {"name": "mine", "variant": VARIANT, "url": f"{server.url}/weights.pth", "licence": "none",
             "trained_on": "voc2012-trainval_aug", "read_in": "here"}  # fmt: skip
    return weights.CatalogueEntry(**(given | more))


def test_the_catalogue_makes_sense():
    entries = weights.read_catalogue()
    assert len(entries) > 10
    for name, found in entries.items():
        assert found.url.startswith(("http://", "https://")) and found.licence and found.read_in, name
        assert not found.verified, "say so only of what was fetched"
        assert name.startswith(found.variant)
    with pytest.raises(ValueError, match="fcn8s-pascal-authors"):
        weights.catalogue_entry("fcn8s")


def test_a_catalogue_with_a_typing_error_is_named(tmp_path):
    (tmp_path / "c.toml").write_text('[a]\nvariant = "fcn8s"\nurll = "x"\n')
    with pytest.raises(ValueError, match="a has unknown entries: urll"):
        weights.read_catalogue(tmp_path / "c.toml")
    (tmp_path / "c.toml").write_text('[a]\nvariant = "fcn8s"\n')
    with pytest.raises(ValueError, match="a is incomplete"):
        weights.read_catalogue(tmp_path / "c.toml")


def test_an_imported_file_is_found_by_name(file, cache):
    told = weights.import_weights(file, VARIANT, training_split="voc2012-train_aug")
    assert f"--model {VARIANT}" in told and "kazuto1011" in told
    assert checkpoint.load(VARIANT).card.training_split == "voc2012-train_aug"
    with pytest.raises(ValueError, match="already"):
        weights.import_weights(file, VARIANT)
    weights.import_weights(file, VARIANT, replace=True)
    weights.import_weights(file, VARIANT, name="start", as_init=True)
    rows = {row.name: row.weights for row in weights.list_models()}
    assert rows[VARIANT] == "trained on unknown" and rows["start"].startswith("initialisation")
    assert rows["pspnet50"] == "none" and set(models.NAMES) <= rows.keys()


def test_an_import_that_fails_leaves_nothing(file, cache):
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match="cut short"):
        weights.import_weights(file, VARIANT)
    assert not cache.exists()


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden"])
def test_names_stay_inside_the_cache(file, name):
    with pytest.raises(ValueError, match="cannot name weights"):
        weights.import_weights(file, VARIANT, name=name)


def test_pull_fetches_checks_and_imports(file, server, cache):
    published = hashlib.sha256(file.read_bytes()).hexdigest()
    told = weights.pull("mine", entry=entry(server, sha256=published))
    assert "--model mine" in told and "no hash" not in told
    card = checkpoint.load("mine").card
    assert card.training_split == "voc2012-trainval_aug" and card.saw_voc_val
    assert "already" in weights.pull("mine", entry=entry(server)) and len(server.asked) == 1
    assert [path.name for path in (cache / ".downloads").iterdir()] == []


def test_a_download_goes_on_where_it_stopped(file, server, cache):
    server.stop_after = 100_000
    with pytest.raises(ValueError, match=r"stopped after 100000 of|could not be fetched"):
        weights.pull("mine", entry=entry(server))
    server.stop_after = 1 << 40
    weights.pull("mine", entry=entry(server, md5=hashlib.md5(file.read_bytes()).hexdigest()))
    assert server.asked == [None, "bytes=100000-"]


@pytest.mark.parametrize("kind", ["sha256", "sha256_prefix", "md5"])
def test_what_was_not_published_is_refused_and_forgotten(server, cache, kind):
    with pytest.raises(ValueError, match="was published"):
        weights.pull("mine", entry=entry(server, **{kind: "00000000"}))
    assert not (cache / "mine").exists() and list((cache / ".downloads").iterdir()) == []


def test_a_member_of_an_archive(file, server):
    with zipfile.ZipFile(file.parent / "a.zip", "w") as archive:
        archive.write(file, "models/weights.pth")
        archive.writestr("readme.txt", "x")
    zipped = entry(server, url=f"{server.url}/a.zip", member="weights.pth")
    weights.pull("mine", entry=zipped)
    assert checkpoint.load("mine").card.variant == VARIANT
    with pytest.raises(ValueError, match="holds 0 files named other"):
        weights.pull("other", entry=replace(zipped, name="other", member="other"))
    (file.parent / "b.zip").write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(ValueError, match="no zip archive"):
        weights.pull("other", entry=replace(zipped, name="other", url=f"{server.url}/b.zip"))


def test_offline_is_one_clear_sentence(server):
    closed = entry(server, url="http://127.0.0.1:9/weights.pth")
    with pytest.raises(ValueError, match=r"could not be fetched .*weights import"):
        weights.pull("mine", entry=closed)


def test_a_server_that_sends_too_much_is_stopped(server, monkeypatch):
    monkeypatch.setattr("tasks.download.MAX_DOWNLOAD_BYTES", 1000)
    with pytest.raises(ValueError, match="larger than 1000 bytes"):
        weights.pull("mine", entry=entry(server))


def test_what_only_a_person_can_fetch():
    with pytest.raises(ValueError, match="in a browser") as error:
        weights.pull("pspnet101-voc-authors")
    assert "--training-split voc2012-trainval_aug" in str(error.value)


def test_damaged_caches_are_listed_as_such(cache):
    (cache / "fcn8s").mkdir(parents=True)
    (cache / "fcn8s/model.safetensors").write_bytes(b"")
    assert {row.name: row.weights for row in weights.list_models()}["fcn8s"] == "damaged"


def test_int8_is_calibrated_on_photographs(tmp_path):
    for options in ({"int8": True}, {"calibration": str(tmp_path)}):
        with pytest.raises(ValueError, match="--int8 and --calibration FOLDER go together"):
            weights.export_weights("pspnet_lite2", tmp_path / "model.onnx", **options)
    with pytest.raises(ValueError, match="0 photographs are too few"):
        weights.export_weights("pspnet_lite2", tmp_path / "model.onnx", int8=True, calibration=str(tmp_path))
