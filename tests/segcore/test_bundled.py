"""The model that ships with the project: it is there, says what it is, and knows a cat."""

from pathlib import Path

import numpy as np
from PIL import Image

import segcore
from segcore import checkpoint, voc

DEFAULT_MODEL = "pspnet14"

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "photographs"


def test_the_default_model_is_bundled_and_small() -> None:
    weights = checkpoint.find(DEFAULT_MODEL)
    assert checkpoint.BUNDLED in weights.parents
    assert weights.stat().st_size < 30_000_000
    card, _ = checkpoint.describe(DEFAULT_MODEL)
    assert not card.untrained
    card.check_scoring_on("voc2012-val")
    assert card.classes == voc.CLASSES
    for crf in ("without_crf", "with_crf"):
        low, mean, high = (
            card.metrics[f"voc2012-val-300/{crf}/miou_7_{which}"] for which in ("low", "percent", "high")
        )
        assert low < mean < high


def test_the_default_model_knows_a_cat() -> None:
    result = segcore.load(DEFAULT_MODEL, num_threads=1).segment(Image.open(EXAMPLES / "cat.jpg"))
    assert (result.labels == voc.CLASSES.index("cat")).mean() > 0.6


def test_the_default_model_gives_the_labels_of_another_precision() -> None:
    from segcore.inference import InferenceParams

    with Image.open(EXAMPLES / "cat.jpg") as opened:
        picture = opened.convert("RGB")
    single, half = (
        segcore.load(DEFAULT_MODEL, params=InferenceParams(precision=precision), num_threads=1)
        .segment(picture, crf=None)
        .labels
        for precision in ("fp32", "bf16")
    )
    assert np.mean(single == half) > 0.97
