"""The model that ships with the project: it is there, says what it is, and knows a cat."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import segcore
from segcore import voc
from segcore.models import checkpoint

DEFAULT_MODEL = "pspnet_lite2"

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "photographs"


def test_the_default_model_is_bundled_and_small() -> None:
    weights = checkpoint.find(DEFAULT_MODEL)
    assert checkpoint.BUNDLED in weights.parents
    assert weights.stat().st_size < 12_000_000
    card, _ = checkpoint.describe(DEFAULT_MODEL)
    assert not card.untrained
    card.check_scoring_on("voc2012-val")
    assert card.classes == voc.CLASSES
    for subset, classes in (("val-300", 7), ("val-475", 21)):
        for crf in ("without_crf", "with_crf"):
            low, mean, high = (
                card.metrics[f"voc2012-{subset}/{crf}/miou_{classes}_{which}"] for which in ("low", "percent", "high")
            )
            assert low < mean < high
    assert "Apache-2.0" in card.notes and "DeepLabv3-MobileNetV2" in card.notes


def test_the_model_before_stays_loadable_by_name() -> None:
    assert checkpoint.load("pspnet14").card.variant == "pspnet14"


def test_the_default_model_knows_a_cat() -> None:
    result = segcore.load(DEFAULT_MODEL, num_threads=1).segment(Image.open(EXAMPLES / "cat.jpg"))
    assert (result.labels == voc.CLASSES.index("cat")).mean() > 0.6


def test_the_default_model_knows_a_person_and_no_animal_in_a_rocket() -> None:
    model = segcore.load(DEFAULT_MODEL, num_threads=1)
    astronaut = model.segment(Image.open(EXAMPLES / "astronaut.jpg")).labels
    assert (astronaut == voc.CLASSES.index("person")).mean() > 0.25
    rocket = model.segment(Image.open(EXAMPLES / "rocket.jpg")).labels
    animals = [voc.CLASSES.index(name) for name in ("bird", "cat", "cow", "dog", "horse", "sheep")]
    assert np.isin(rocket, animals).mean() < 0.05


@pytest.mark.parametrize(
    ("photograph", "shares"),
    [
        ("aeroplane", {"aeroplane": 0.1}),
        ("cars", {"car": 0.15}),
        ("dog", {"dog": 0.1, "person": 0.1}),
        ("horse", {"horse": 0.1, "person": 0.02}),
    ],
)
def test_the_default_model_knows_what_the_demo_shows(photograph, shares) -> None:
    labels = segcore.load(DEFAULT_MODEL, num_threads=1).segment(EXAMPLES / f"{photograph}.jpg").labels
    found = {name: (labels == number).mean() for number, name in enumerate(voc.CLASSES)}
    assert all(found[name] > least for name, least in shares.items()), found
    others = [share for name, share in found.items() if name not in (*shares, "background")]
    assert sum(others) < 0.03, found


def test_the_default_model_gives_the_labels_of_another_precision() -> None:
    from segcore.predictor import PredictParams
    from segcore.scoring.inference import InferenceParams

    with Image.open(EXAMPLES / "cat.jpg") as opened:
        picture = opened.convert("RGB")
    single, half = (
        segcore.load(DEFAULT_MODEL, params=PredictParams(InferenceParams(precision=precision)), num_threads=1)
        .segment(picture, crf=None)
        .labels
        for precision in ("fp32", "bf16")
    )
    assert np.mean(single == half) > 0.97
