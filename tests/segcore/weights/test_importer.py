import re
import zipfile

import numpy as np
import pytest
import torch

from segcore import models, voc
from segcore.models import checkpoint
from segcore.models.preprocessing import DEEPLAB, IMAGENET_RGB, PSPNET_CAFFE
from segcore.weights.importer import import_weights
from segcore.weights.sources import CAFFE_PSPNET, SOURCES
from tests.segcore.weights import caffe_files, caffe_reference
from tests.segcore.weights.conftest import STAGES, WIDTHS

pytestmark = pytest.mark.usefixtures("narrow")


def scores(module: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module.double()(torch.from_numpy(image)[None])[0].numpy()


@pytest.mark.parametrize(
    ("variant", "network", "narrowed", "size", "old_form"),
    [
        ("fcn8s", "fcn8s", STAGES, (35, 41), False),
        ("deeplab_v1", "vanilla", STAGES, (42, 35), True),
        ("deeplab_v1_largefov", "largefov", STAGES, (41, 50), True),
        ("deeplab_v1_msc_largefov", "msc_largefov", STAGES, (41, 33), False),
        ("deeplab_v2_resnet101", "resnet101", WIDTHS, (46, 35), False),
        ("pspnet50", "pspnet50", WIDTHS, (41, 41), False),
    ],
)
def test_imported_caffe_networks_compute_what_caffe_computes(tmp_path, variant, network, narrowed, size, old_form):
    layers = getattr(caffe_files, network)(narrowed)
    imported = import_weights(caffe_files.write(tmp_path / "train.caffemodel", layers, old_form=old_form), variant)
    image = np.random.default_rng(1).standard_normal((3, *size)) * (2.0 if "resnet" in variant else 1.0)
    expected = getattr(caffe_reference, network)(caffe_reference.Caffe(layers), image)
    actual = scores(imported.module, image)
    assert actual.shape == expected.shape and np.abs(expected).max() > 0.1
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())
    assert imported.card.classes == voc.CLASSES and not imported.card.untrained and not imported.not_taken_over
    assert imported.card.preprocessing == (PSPNET_CAFFE if variant == "pspnet50" else DEEPLAB)
    assert imported.card.training_split == "unknown"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_every_tensor_of_a_variant_has_a_place_in_its_sources(source):
    for name in filter(re.compile(source.variants).fullmatch, models.NAMES):
        with torch.device("meta"):
            module = models.build(name)
        without = [key for key in module.state_dict() if not source.locate(key) and "num_batches" not in key]
        if source.kind == "model":
            without = [key for key in without if not (source is CAFFE_PSPNET and key.startswith("auxiliary"))]
            # MSc on the v2 trunk does not exist; every other tensor of a whole model is there.
            assert without == [], name
        else:
            assert not any(key.startswith("trunk.res") or ".conv1_1" in key for key in without), name


def test_an_imported_model_is_saved_and_loaded_like_any_other(tmp_path):
    path = caffe_files.write(tmp_path / "train.caffemodel", caffe_files.pspnet50(WIDTHS))
    imported = import_weights(path, "pspnet50", training_split="voc2012-trainval_aug")
    checkpoint.save(tmp_path / "m", imported.module, imported.card)
    loaded = checkpoint.load(tmp_path / "m")
    assert loaded.card == imported.card and loaded.module.auxiliary is None
    with pytest.raises(ValueError, match="trainval_aug"):
        loaded.card.check_scoring_on("voc2012-val")


def test_the_shared_copies_of_other_scales_are_left_out(tmp_path):
    layers = caffe_files.resnet101(WIDTHS)
    layers["res2a_branch1_res075"] = layers["res2a_branch1"]
    layers["fc1_voc12_c0_res05"] = layers["fc1_voc12_c0"]
    import_weights(caffe_files.write(tmp_path / "train2.caffemodel", layers), "deeplab_v2_resnet101")


def test_aspp_on_vgg(tmp_path):
    maker = caffe_files.Maker()
    caffe_files.vgg_trunk(maker, STAGES)
    for index in (1, 2, 3, 4):
        maker.conv(f"fc6_{index}", 1024, STAGES[-1][0], 3)
        maker.conv(f"fc7_{index}", 1024, 1024, 1)
        maker.conv(f"fc8_voc12_{index}", 21, 1024, 1)
    path = caffe_files.write(tmp_path / "train.caffemodel", maker.layers)
    module = import_weights(path, "deeplab_v2_vgg16_aspp_l").module
    for index in (1, 2, 3, 4):
        np.testing.assert_array_equal(
            module.head.branches[index - 1].fc6.weight.detach(), maker.layers[f"fc6_{index}"][1][0]
        )
    with pytest.raises(ValueError, match=r"fc6_4.weight has no place"):
        import_weights(path, "deeplab_v2_vgg16_largefov")
    single = caffe_files.write(tmp_path / "single.caffemodel", caffe_files.largefov(STAGES))
    import_weights(single, "deeplab_v2_vgg16_largefov")


def test_all_problems_stand_in_one_error(tmp_path):
    layers = caffe_files.resnet101(WIDTHS)
    del layers["res4b7_branch2b"], layers["scale5c_branch2c"]
    layers["extra"] = layers["conv1"]
    layers["res2b_branch2a"][1][0] = layers["res2b_branch2a"][1][0][:3]
    path = caffe_files.write(tmp_path / "a.caffemodel", layers)
    with pytest.raises(ValueError) as error:
        import_weights(path, "deeplab_v2_resnet101")
    for phrase in (
        "res4b7_branch2b.weight is missing",
        "scale5c_branch2c.bias is missing",
        "extra.weight has no place",
        "res2b_branch2a.weight has shape (3, 16, 1, 1) instead of (4, 16, 1, 1)",
    ):
        assert phrase in str(error.value)


def test_a_wrong_model_is_refused(tmp_path):
    path = caffe_files.write(tmp_path / "a.caffemodel", caffe_files.largefov(STAGES))
    with pytest.raises(ValueError, match="cannot become pspnet50"):
        import_weights(path, "pspnet50")
    with pytest.raises(ValueError, match=r"fc6.weight has shape"):
        import_weights(path, "deeplab_v1")
    path = caffe_files.write(tmp_path / "b.caffemodel", {"ip": ("InnerProduct", [np.ones((2, 2)), np.ones(2)])})
    with pytest.raises(ValueError, match="none that we know"):
        import_weights(path, "deeplab_v1")


def test_other_numbers_of_classes(tmp_path):
    path = caffe_files.write(tmp_path / "a.caffemodel", caffe_files.pspnet50(WIDTHS, classes=19))
    assert import_weights(path, "pspnet50").card.classes[:2] == ("class 0", "class 1")
    names = [f"street {label}" for label in range(19)]
    assert import_weights(path, "pspnet50", classes=names).card.classes == tuple(names)
    with pytest.raises(ValueError, match="19 classes apart, but 2 names"):
        import_weights(path, "pspnet50", classes=["a", "b"])


def test_coco_weights_as_initialisation(tmp_path):
    path = caffe_files.write(tmp_path / "init.caffemodel", caffe_files.resnet101(WIDTHS, classes=91))
    assert len(import_weights(path, "deeplab_v2_resnet101").card.classes) == 91
    imported = import_weights(path, "deeplab_v2_resnet101", as_init=True)
    assert imported.card.untrained and imported.card.classes == voc.CLASSES
    assert imported.not_taken_over == [f"head.branches.{index}" for index in range(4)]
    assert "head.branches.0" in imported.card.notes


@pytest.mark.parametrize("old_form", [False, True])
def test_imagenets_vgg_is_decimated_and_thinned(tmp_path, old_form):
    layers = caffe_files.imagenet_vgg(STAGES)
    path = caffe_files.write(tmp_path / "VGG.caffemodel", layers, old_form=old_form)
    full = layers["fc6"][1][0].reshape(4096, STAGES[-1][0], 7, 7)

    seven = import_weights(path, "deeplab_v1_7x7")
    np.testing.assert_array_equal(seven.module.head.fc6.weight.detach(), full)
    four = import_weights(path, "deeplab_v1").module.head
    np.testing.assert_array_equal(four.fc6.weight.detach(), full[:, :, ::2, ::2])

    large = import_weights(path, "deeplab_v1_largefov")
    assert large.card.untrained and large.card.training_split == "imagenet"
    assert large.not_taken_over == ["head.fc8"] and large.card.preprocessing.mean == (103.939, 116.779, 123.68)
    fc6, fc7 = large.module.head.fc6, large.module.head.fc7
    # Every kept filter is one of the 4,096, decimated by three; fc7 reads from those that fc6 kept.
    bias = layers["fc6"][1][1]
    kept = [int(np.flatnonzero(bias == value)[0]) for value in fc6.bias.detach().numpy()]
    assert len(set(kept)) == 1024 and kept == sorted(kept)
    np.testing.assert_array_equal(fc6.weight.detach(), full[kept][:, :, ::3, ::3])
    rows = [int(np.flatnonzero(layers["fc7"][1][1] == value)[0]) for value in fc7.bias.detach().numpy()]
    np.testing.assert_array_equal(fc7.weight.detach()[:, :, 0, 0], layers["fc7"][1][0][rows][:, kept])
    again = import_weights(path, "deeplab_v1_largefov").module
    assert all(torch.equal(a, b) for a, b in zip(large.module.parameters(), again.parameters(), strict=True))


def test_a_missing_trunk_layer_is_an_error_for_initialisations_too(tmp_path):
    layers = caffe_files.imagenet_vgg(STAGES)
    del layers["conv4_2"]
    with pytest.raises(ValueError, match=r"conv4_2.weight is missing; conv4_2.bias is missing|conv4_2.bias"):
        import_weights(caffe_files.write(tmp_path / "VGG.caffemodel", layers), "deeplab_v1_largefov")


def test_a_missing_classifier_says_as_init(tmp_path):
    layers = {name: layer for name, layer in caffe_files.resnet101(WIDTHS).items() if not name.startswith("fc1")}
    path = caffe_files.write(tmp_path / "a.caffemodel", layers)
    with pytest.raises(ValueError, match="--as-init"):
        import_weights(path, "deeplab_v2_resnet101")
    assert import_weights(path, "deeplab_v2_resnet101", as_init=True).card.untrained


def renamed(module: torch.nn.Module, names: dict[str, str], prefix: str) -> dict[str, torch.Tensor]:
    """A state dict with some pieces of its names exchanged, in order."""
    state = {}
    for name, value in module.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[prefix + name] = value
    return state


KAZUTO = {
    "trunk.stem.conv1": "layer1.conv1", "branch2a": "reduce", "branch2b": "conv3x3", "branch2c": "increase",
    "branch1": "shortcut", "head.branches.": "aspp.c",
} | {
    f"trunk.res{stage}.{block}.": f"layer{stage}.block{block + 1}." for stage in (2, 3, 4, 5) for block in range(23)
}  # fmt: skip

SEMSEG = {
    "trunk.stem.conv1.conv": "layer0.0", "trunk.stem.conv1.bn": "layer0.1", "trunk.stem.conv2.conv": "layer0.3",
    "trunk.stem.conv2.bn": "layer0.4", "trunk.stem.conv3.conv": "layer0.6", "trunk.stem.conv3.bn": "layer0.7",
    "trunk.res2": "layer1", "trunk.res3": "layer2", "trunk.res4": "layer3", "trunk.res5": "layer4",
    "branch1.conv": "downsample.0", "branch1.bn": "downsample.1", "branch2a.conv": "conv1", "branch2a.bn": "bn1",
    "branch2b.conv": "conv2", "branch2b.bn": "bn2", "branch2c.conv": "conv3", "branch2c.bn": "bn3",
    "head.conv.conv": "cls.0", "head.conv.bn": "cls.1", "head.classifier": "cls.4",
    "auxiliary.conv.conv": "aux.0", "auxiliary.conv.bn": "aux.1", "auxiliary.classifier": "aux.4",
} | {
    f"pyramid.reductions.{level}.{part}": f"ppm.features.{level}.{index}"
    for level in range(4) for part, index in (("conv", 1), ("bn", 2))
}  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "names", "prefix", "wrapped", "preprocessing"),
    [
        ("deeplab_v2_resnet101", KAZUTO, "base.", False, DEEPLAB),
        ("pspnet50", SEMSEG, "module.", True, IMAGENET_RGB),
    ],
)
def test_pytorch_reproductions(tmp_path, variant, names, prefix, wrapped, preprocessing):
    torch.manual_seed(3)
    original = models.build(variant).eval()
    for part in original.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.running_mean, -0.1, 0.1)
    state = renamed(original, names, prefix)
    assert not any("branch" in name or "trunk" in name for name in state)
    torch.save({"epoch": 50, "state_dict": state} if wrapped else state, tmp_path / "a.pth")
    imported = import_weights(tmp_path / "a.pth", variant)
    assert imported.card.preprocessing == preprocessing and not imported.card.untrained
    assert imported.card.convention == ("semseg" if variant == "pspnet50" else "deeplab-pytorch")
    image = torch.randn(1, 3, 41, 41)
    with torch.no_grad():
        assert torch.equal(imported.module(image), original(image))
    if variant == "pspnet50":
        assert imported.module.auxiliary is not None


def torchvision_resnet(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    names = {ours: theirs for ours, theirs in SEMSEG.items() if ours.startswith(("trunk.res", "branch"))}
    state = {name: value for name, value in renamed(module, names, "").items() if name.startswith("layer")}
    state["conv1.weight"] = torch.randn(64, 3, 7, 7)
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        state[f"bn1.{leaf}"] = torch.rand(64)
    inner = state["layer1.0.downsample.0.weight"].shape[0]
    state["layer1.0.conv1.weight"] = torch.randn(inner // 4, 64, 1, 1)
    state["layer1.0.downsample.0.weight"] = torch.randn(inner, 64, 1, 1)
    return state | {"fc.weight": torch.randn(1000, 8), "fc.bias": torch.randn(1000)}


def test_torchvisions_resnet_initialises_what_fits(tmp_path):
    original = models.build("pspnet50")
    state = torchvision_resnet(original)
    torch.save(state, tmp_path / "resnet50.pth")
    imported = import_weights(tmp_path / "resnet50.pth", "pspnet50")
    assert imported.card.untrained and imported.card.preprocessing == IMAGENET_RGB
    assert "trunk.stem.conv1.conv" in imported.not_taken_over and "trunk.stem.conv3.bn" in imported.not_taken_over
    assert "trunk.res2.0.branch2a.conv" in imported.not_taken_over
    assert "trunk.res3.0.branch2a.conv" not in imported.not_taken_over
    assert "7x7 stem" in imported.card.notes
    assert torch.equal(imported.module.trunk.res5[2].branch2c.conv.weight, original.trunk.res5[2].branch2c.conv.weight)


def test_semsegs_resnet_initialises_the_stem_too(tmp_path):
    original = models.build("pspnet50")
    names = {ours: theirs for ours, theirs in SEMSEG.items() if ours.startswith(("trunk.res", "branch"))}
    names |= {f"trunk.stem.conv{i}.conv": f"conv{i}" for i in (1, 2, 3)}
    names |= {f"trunk.stem.conv{i}.bn": f"bn{i}" for i in (1, 2, 3)}
    state = {n: v for n, v in renamed(original, names, "").items() if not n.startswith(("head", "pyramid", "aux"))}
    torch.save(state | {"fc.weight": torch.randn(10, 8), "fc.bias": torch.randn(10)}, tmp_path / "resnet50_v2.pth")
    imported = import_weights(tmp_path / "resnet50_v2.pth", "pspnet50")
    assert not any(name.startswith("trunk") for name in imported.not_taken_over)
    assert torch.equal(imported.module.trunk.stem.conv3.conv.weight, original.trunk.stem.conv3.conv.weight)


def test_torchvisions_vgg(tmp_path):
    layers = caffe_files.imagenet_vgg(STAGES)
    index = iter((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28))
    names = {name: f"features.{next(index)}" for name in layers if name.startswith("conv")}
    names |= {"fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"}
    state = {}
    for name, (_, (weight, bias)) in layers.items():
        state |= {f"{names[name]}.weight": torch.from_numpy(weight), f"{names[name]}.bias": torch.from_numpy(bias)}
    torch.save(state, tmp_path / "vgg16.pth")
    module = import_weights(tmp_path / "vgg16.pth", "deeplab_v1_largefov").module
    np.testing.assert_array_equal(module.trunk.conv3_2.weight.detach(), layers["conv3_2"][1][0])
    caffe = import_weights(caffe_files.write(tmp_path / "v.caffemodel", layers), "deeplab_v1_largefov").module
    assert torch.equal(module.head.fc7.weight, caffe.head.fc7.weight)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_with_code_is_refused_without_running_it(tmp_path, capsys):
    torch.save({"layer0.0.weight": torch.ones(1), "evil": Evil()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="no PyTorch file of plain tensors"):
        import_weights(tmp_path / "a.pth", "pspnet50")
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"a\.pth .*it asks for [\w.]*print, and") as error:
        import_weights(tmp_path / "a.pth", "pspnet50")
    assert "weights_only" not in str(error.value)  # No advice to trust it


@pytest.mark.parametrize("shape", [(10**6, 10**6), (64, 3, 3, 3)])
def test_a_tensor_that_claims_more_numbers_than_the_file_holds(tmp_path, shape):
    wide = torch.as_strided(torch.zeros(1), shape, (0,) * len(shape))
    torch.save({"conv1_1.weight": wide}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth: conv1_1.weight claims a shape of .* more numbers than"):
        import_weights(tmp_path / "a.pth", "deeplab_v1_largefov")


def test_a_zip_that_unpacks_to_more_than_it_is(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(5_000_000))
    with pytest.raises(ValueError, match=r"a\.pth is no PyTorch file: it would unpack to 5000000 bytes"):
        import_weights(tmp_path / "a.pth", "pspnet50")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x80\x02}q\x00.", b"<html>"])
def test_what_is_no_pytorch_file(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pth"):
        import_weights(tmp_path / "a.pth", "pspnet50")


def test_a_truncated_pytorch_file(tmp_path):
    torch.save({"fc.weight": torch.ones(100, 100)}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:-3000])
    with pytest.raises(ValueError, match="cut short"):
        import_weights(tmp_path / "b.pth", "pspnet50")
