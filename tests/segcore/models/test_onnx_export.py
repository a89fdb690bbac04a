"""An exported file gives its network's scores: every variant, odd sizes, every convention, every pooling."""

import dataclasses

import numpy as np
import onnxruntime
import pytest
import torch

from segcore import models
from segcore.models import checkpoint, onnx_file
from segcore.models.card import ModelCard
from segcore.models.checkpoint import LoadedModel
from segcore.models.onnx_export import export
from segcore.models.variants import VARIANTS
from segcore.predictor import Predictor, PredictParams
from segcore.scoring.inference import InferenceParams

LARGE = 30_000_000
"""Parameters from which on a variant takes many seconds."""


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _scores(model: LoadedModel, images: list[np.ndarray]) -> list[np.ndarray]:
    params = PredictParams(InferenceParams(precision="fp32"), crf=None)
    found = Predictor(model, params, device="cpu", num_threads=1).score(images)
    return [entry.scores.astype(np.float32) for entry in found]


def _check(model: LoadedModel, sizes: list[tuple[int, int]]) -> None:
    """The file through `--model`'s own way against torch: logits to 1e-3 of their spread, 99.9 % of labels."""
    content, card = export(model)
    exported = LoadedModel(None, card, "", onnx=content)
    session = onnx_file.open_session(content, "exported", 1)
    dice = np.random.default_rng(0)
    images = [dice.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    for image, mine, theirs in zip(images, _scores(exported, images), _scores(model, images), strict=True):
        assert mine.shape == theirs.shape, image.shape
        # float16 of what a softmax can see
        near = theirs > -20
        assert np.abs(mine - theirs)[near].max() < 1e-3 * max(1.0, np.abs(theirs[near]).max()) + 1e-2, image.shape
        assert np.mean(mine.argmax(0) == theirs.argmax(0)) >= 0.999, image.shape
    if model.card.convention == "caffe":
        for height, width in ((33, 65), (97, 121)):
            given = dice.normal(size=(1, 3, height, width)).astype(np.float32) * model.card.preprocessing.input_std
            (scores,) = session.run(["scores"], {"images": given})
            margin = int(getattr(model.module, "margin_px", 0))
            padded = torch.nn.functional.pad(torch.from_numpy(given), (margin, 0, margin, 0))
            with torch.inference_mode():
                expected = model.module(padded).numpy()
            assert scores.shape == expected.shape and expected.std() > 0
            assert np.abs(scores - expected).max() < 1e-3 * max(1.0, expected.std())


SIZES = [(33, 33), (70, 101), (137, 64), (20, 45)]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if v.parameters > LARGE else []) for n, v in VARIANTS.items()]
)
def test_every_variant_has_torchs_scores(name: str) -> None:
    _check(checkpoint.load(name, untrained=True), SIZES)


def test_options_of_the_pyramid_and_the_grid() -> None:
    for name, options in (
        ("pspnet18", {"pooling": "max", "reduction": False, "bins": (1, 4, 6)}),
        ("pspnet14", {"shrink": 3}),
        ("pspnet_lite0", {"output_stride": 8}),
        ("pspnet_lite0", {"output_stride": 32}),
    ):
        loaded = checkpoint.load(name, untrained=True)
        module = models.build(name, 5, **options).eval()
        torch.manual_seed(0)
        card = dataclasses.replace(loaded.card, classes=tuple("abcde"), options=options)
        for part in module.modules():
            if isinstance(part, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(part.weight)
        _check(LoadedModel(module, card, ""), SIZES)


@pytest.mark.parametrize("convention", ["deeplab-pytorch", "semseg"])
def test_conventions_of_other_repositories_are_in_the_file(convention: str) -> None:
    name = "deeplab_v2_resnet18" if convention == "deeplab-pytorch" else "pspnet18"
    loaded = checkpoint.load(name, untrained=True)
    loaded.card = dataclasses.replace(loaded.card, convention=convention)
    _check(loaded, [(41, 41), (70, 101), (137, 64)])


def test_the_card_says_all_that_the_model_says(tmp_path) -> None:
    loaded = checkpoint.load("pspnet_lite0", untrained=True)
    loaded.card = dataclasses.replace(loaded.card, training_split="voc2012-trainval", notes="mine")
    content, card = export(loaded)
    assert ModelCard.from_json(card.to_json()) == card
    assert card.shown_name == "pspnet_lite0 (untrained)" and card.classes == loaded.card.classes
    assert card.training_split == "voc2012-trainval" and card.saw_voc_val and card.notes == "mine"
    assert card.parameters > 3_000_000
    with pytest.raises(ValueError, match="an ONNX file already"):
        export(LoadedModel(None, card, "", onnx=content))
    assert [entry.shape for entry in onnxruntime.InferenceSession(content).get_inputs()] == [[1, 3, "height", "width"]]
