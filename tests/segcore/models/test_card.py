import json
from dataclasses import replace

import pytest

from segcore import voc
from segcore.models.card import ModelCard
from segcore.models.preprocessing import DEEPLAB, Preprocessing

CARD = ModelCard("deeplab_v1_largefov", voc.CLASSES, DEEPLAB, options={"average_pool5": False})


def test_a_card_survives_json():
    assert ModelCard.from_json(CARD.to_json()) == CARD
    assert "colours" not in CARD.to_json()
    painted = replace(CARD, colours=tuple((label, 0, 255) for label in range(21)))
    assert ModelCard.from_json(painted.to_json()) == painted and painted.deciding() == CARD.deciding()


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"variant": "alexnet"}, "alexnet"),
        ({"variant": 3}, "variant"),
        ({"classes": []}, "classes"),
        ({"classes": ["a", "a"]}, "each once"),
        ({"clases": ["a"]}, "clases"),
        ({"format": 2}, "format"),
        ({"untrained": "no"}, "untrained"),
        ({"options": []}, "options"),
        ({"metrics": {"miou": "high"}}, "metrics"),
        ({"colours": [[0, 0, 0]]}, "a colour for each of its 21 classes"),
        ({"colours": [[0, 0, 256]] * 21}, "colours must be a list"),
        ({"colours": "red"}, "colours must be a list"),
        ({"preprocessing": {"colour_order": "RGB"}}, "mean"),
        ({"preprocessing": {"colour_order": "GBR", "mean": [0, 0, 0], "std": [1, 1, 1]}}, "GBR"),
        ({"preprocessing": {"colour_order": "RGB", "mean": [0, 0, True], "std": [1, 1, 1]}}, "mean"),
        ({"preprocessing": {"colour_order": "RGB", "mean": [0, 0, 0], "std": [1, 1, 0]}}, "std"),
    ],
)
def test_a_wrong_card_names_its_culprit(change, culprit):
    with pytest.raises(ValueError, match=culprit) as error:
        ModelCard.from_json(json.dumps(json.loads(CARD.to_json()) | change), where="card.json")
    assert str(error.value).startswith("card.json")


@pytest.mark.parametrize("content", ["", "[", "[]", "[" * 100_000, b"\xff\xff"])
def test_what_is_no_card_at_all(content):
    with pytest.raises(ValueError, match="card"):
        ModelCard.from_json(content)


def test_a_model_is_not_scored_on_what_it_saw():
    def card(split: str) -> ModelCard:
        return ModelCard("deeplab_v1_largefov", voc.CLASSES, DEEPLAB, training_split=split)

    card("voc2012-train_aug").check_scoring_on("voc2012-val")
    for split in ("voc2012-trainval_aug", "voc2012-trainval", "voc2012-val", "sbd-train"):
        with pytest.raises(ValueError, match="was trained on"):
            card(split).check_scoring_on("voc2012-val")


def test_input_std_is_in_units_of_the_network():
    assert DEEPLAB.input_std == 58
    assert 0.9 < Preprocessing("RGB", (124, 116, 104), (58, 57, 57)).input_std < 1.1
