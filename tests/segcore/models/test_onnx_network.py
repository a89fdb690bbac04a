"""ONNX Runtime computes what torch computes: every small model, any size, any options of its card."""

import dataclasses

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn import functional as F

from segcore import models
from segcore.models import checkpoint, lite, onnx_network
from segcore.models.onnx_network import averages, interpolation
from segcore.models.variants import VARIANTS


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads that wait for each other take minutes on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


NAMES = [name for name, variant in VARIANTS.items() if variant.module == "segcore.models.lite"]


def test_averages_are_those_of_adaptive_pooling():
    assert averages(4, 2).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    assert averages(3, 2).tolist() == [[0.5, 0.5, 0], [0, 0.5, 0.5]]  # Cells overlap
    values = torch.arange(33.0)[None]
    for cells in (1, 2, 3, 6):
        expected = F.adaptive_avg_pool1d(values, cells)[0].numpy()
        np.testing.assert_allclose(averages(33, cells) @ values[0].numpy(), expected, rtol=1e-6)


def test_interpolation_puts_ends_on_ends():
    assert interpolation(2, 3).tolist() == [[1, 0], [0.5, 0.5], [0, 1]]
    assert interpolation(1, 3).tolist() == [[1], [1], [1]]
    values = torch.arange(6.0)[None, None].square()
    expected = F.interpolate(values, 33, mode="linear", align_corners=True)[0, 0].numpy()
    np.testing.assert_allclose(interpolation(6, 33) @ values[0, 0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_small_model_is_computed_as_torch_computes_it(name):
    loaded = checkpoint.load(name, untrained=True)
    for size in ((33, 65), (129, 97)):
        assert _largest_difference(loaded, size) < 1e-3


def test_options_of_a_card_are_those_of_the_network():
    options = {"bins": (1, 4), "output_stride": 8, "auxiliary": False}
    loaded = checkpoint.load("pspnet_lite0", untrained=True)
    torch.manual_seed(0)
    module = models.build("pspnet_lite0", 5, **options).eval()
    card = dataclasses.replace(loaded.card, classes=tuple("abcde"), options=options)
    assert _largest_difference(checkpoint.LoadedModel(module, card, ""), (65, 49)) < 1e-3
    aspp = models.build("deeplab_v2_lite0", 3, atrous_rates=(2, 5)).eval()
    card = dataclasses.replace(
        loaded.card, variant="deeplab_v2_lite0", classes=("a", "b", "c"), options={"atrous_rates": [2, 5]}
    )
    assert _largest_difference(checkpoint.LoadedModel(aspp, card, ""), (65, 81)) < 1e-3


def test_defaults_are_those_of_the_variants():
    for name in NAMES:
        defaults = getattr(lite, name).__kwdefaults__
        for option in ("bins", "atrous_rates", "output_stride"):
            if option in defaults:
                assert defaults[option] == onnx_network._DEFAULTS[option]
    assert {name for name in models.NAMES if onnx_network.takes(checkpoint._untrained_card(name, 0))} == set(NAMES)


def test_a_tensor_that_is_missing_or_of_another_shape_is_named():
    loaded = checkpoint.load("deeplab_v2_lite0", untrained=True)
    tensors = {name: value.numpy() for name, value in loaded.module.state_dict().items()}
    without = {name: value for name, value in tensors.items() if name != "skip.classifier.bias"}
    with pytest.raises(ValueError, match=r"skip\.classifier\.bias is missing"):
        onnx_network.network(loaded.card, without)
    with pytest.raises(ValueError, match=r"trunk\.stem\.bn\.weight has shape \(3,\)"):
        onnx_network.network(loaded.card, tensors | {"trunk.stem.bn.weight": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match=r"trunk\.stage3\.0\.expand has weights of shape"):
        onnx_network.network(
            loaded.card, tensors | {"trunk.stage3.0.expand.conv.weight": np.ones((144, 5, 1, 1), np.float32)}
        )


def test_a_network_without_its_last_block_or_of_another_width_is_none():
    loaded = checkpoint.load("deeplab_v2_lite0", untrained=True)
    tensors = {name: value.numpy() for name, value in loaded.module.state_dict().items()}
    without = {name: value for name, value in tensors.items() if not name.startswith("trunk.stage6.3.")}
    with pytest.raises(ValueError, match=r"trunk\.stage6\.3\.expand\.conv\.weight is missing"):
        onnx_network.network(loaded.card, without)
    larger = checkpoint.load("deeplab_v2_lite2", untrained=True)
    wider = {name: value.numpy() for name, value in larger.module.state_dict().items()}
    with pytest.raises(ValueError, match=r"project has \d+ channels instead of"):
        onnx_network.network(loaded.card, wider)
    with pytest.raises(ValueError, match="does not score 3 classes"):
        onnx_network.network(dataclasses.replace(loaded.card, classes=("a", "b", "c")), tensors)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_fits_where_torch_would_take_it(name):
    loaded = checkpoint.load(name, untrained=True)
    options = {"auxiliary": False} if name.startswith("pspnet") else {}
    card = dataclasses.replace(loaded.card, options=options)
    module = models.build(name, len(card.classes), **options)
    tensors = {name: value.numpy() for name, value in module.state_dict().items()}
    assert onnx_network.fits(card, tensors)
    for changed in (
        tensors | {"another": np.zeros(1, np.float32)},
        {key: value for key, value in tensors.items() if key != "trunk.stem.bn.num_batches_tracked"},
        tensors | {"skip.classifier.bias": np.zeros(3, np.float32)},
    ):
        assert not onnx_network.fits(card, changed)
    for options in ({"auxiliary": True}, {"output_stride": "a"}, {"unknown": 1}):
        assert not onnx_network.fits(dataclasses.replace(card, options=options), tensors)


def _largest_difference(loaded, size):
    """Over the spread of torch's scores."""
    tensors = {name: value.numpy() for name, value in loaded.module.state_dict().items()}
    network = onnx_network.network(loaded.card, tensors)
    height, width = (-(-(side - 1) // network.stride) * network.stride + 1 for side in size)
    images = np.random.default_rng(0).normal(size=(1, 3, height, width)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(network.model, options, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"images": images, **network.matrices(height, width)})
    with torch.inference_mode():
        expected = loaded.module(torch.from_numpy(images)).numpy()
    assert scores.shape == expected.shape and expected.std() > 0
    return abs(scores - expected).max() / expected.std()
