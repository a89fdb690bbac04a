import shutil

import torch

from segcore.models import checkpoint
from segcore.predictor import PredictParams
from tasks.stream.model import predictor_of
from tasks.stream.units import MaskParams


def test_a_model_that_is_handed_over_needs_no_file(tmp_path):
    """As `run` and `evaluate` hand it to a cluster that does not see the files of this machine."""
    made = checkpoint.load("deeplab_v2_resnet18", untrained=True)
    place = tmp_path / "mine"
    checkpoint.save(place, made.module, made.card)
    digest, packed = checkpoint.digest_of(place), checkpoint.pack(place)
    shutil.rmtree(place)
    params = MaskParams(str(place), False, 0, "mine", digest, made.card.classes, PredictParams(), False)
    model = predictor_of(params, packed).model
    assert model.digest == digest
    expected = made.module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.module.state_dict().items())
