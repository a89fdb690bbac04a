import io
import json
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from segcore.crf import dense_crf
from segcore.crf.dense_crf import CrfParams
from segcore.images.decoding import Reading
from segcore.models import checkpoint
from segcore.predictor import Predictor, PredictParams
from segcore.scoring.inference import InferenceParams
from tests.conftest import photograph

NAME = "deeplab_v2_resnet18"
PARAMS = PredictParams(InferenceParams(long_side_px=65, precision="fp32"))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(checkpoint.load(NAME, untrained=True), PARAMS, num_threads=1)


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format_, **options)
    return buffer.getvalue()


def test_the_steps_one_by_one_are_the_whole(predictor):
    taken = predictor.decode(encoded(photograph(1, (120, 80)), "PNG"))
    assert taken.image.shape == (43, 65, 3) and (taken.width, taken.height) == (120, 80)
    refined = predictor.refine(taken.image, predictor.score([taken.image])[0])
    whole = predictor.segment(taken)
    assert np.array_equal(refined.labels, whole.refined.labels)
    assert whole.mask.shape == (80, 120) and whole.mask.dtype == np.uint8
    working = Predictor(predictor.model, replace(PARAMS, mask_size="working")).segment(taken)
    assert np.array_equal(working.mask, whole.refined.labels)


def test_everything_that_decides_a_mask_is_in_the_fingerprint(predictor):
    known = predictor.fingerprint()
    assert known == PARAMS.fingerprint(predictor.model.digest)  # And needs no loaded model
    assert known == json.loads(json.dumps(known)) | {"inference": known["inference"]}
    changes = (
        {"inference": replace(PARAMS.inference, mirror=True)},
        {"crf": None},
        {"crf": CrfParams(iterations=3)},
        {"crf_engine": "pydensecrf"},
        {"mask_size": "working"},
        {"max_pixels": 1000},
        {"reading": Reading(raw="full")},
        {"reading": Reading(ignore_profiles=True)},
    )
    seen = [json.dumps(replace(PARAMS, **change).fingerprint("a")) for change in changes]
    assert len({json.dumps(PARAMS.fingerprint("a")), json.dumps(PARAMS.fingerprint("b")), *seen}) == len(seen) + 2
    assert "reading" not in known  # A choice that nobody makes leaves the runs of before as they are
    named = dense_crf.choose_engine("auto")
    assert replace(PARAMS, crf_engine=named).fingerprint("a") == PARAMS.fingerprint("a")


def test_an_engine_that_is_not_here_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(dense_crf, "native", None)
    monkeypatch.setattr(dense_crf, "missing", "not built", raising=False)
    with pytest.raises(ValueError, match="choose the engine pydensecrf"):
        Predictor(None, PredictParams(crf_engine="native"))
    assert Predictor(None).params.crf_engine == "pydensecrf"


def test_a_process_that_only_decodes_and_refines_loads_no_model():
    def never() -> checkpoint.LoadedModel:
        raise AssertionError("the model is not needed")

    predictor = Predictor(never, PARAMS)
    taken = predictor.decode(encoded(photograph(1, (60, 40)), "PNG"))
    scored = Predictor(checkpoint.load(NAME, untrained=True), PARAMS).score([taken.image])[0]
    assert predictor.refine(taken.image, scored).labels.shape == (40, 60)
    assert Predictor(None, PARAMS).refine(taken.image, scored).labels.shape == (40, 60)


def test_released_it_scores_the_same_again(predictor):
    image = np.asarray(photograph(3, (60, 40)))
    before = predictor.score([image])[0].scores
    predictor.release()
    assert np.array_equal(predictor.score([image])[0].scores, before)
    assert predictor.device.startswith(("cpu/fp32", "cuda/fp32"))


def test_the_way_between_processes():
    sent = pickle.loads(pickle.dumps(Predictor(None, PARAMS)))
    assert sent.params == PARAMS.resolved()


def test_importing_decoding_and_refining_need_no_torch():
    code = (
        "import sys, io, numpy as np; from PIL import Image; from segcore.predictor import *; "
        "from segcore.scoring.inference import ScoreMap; b = io.BytesIO(); Image.new('RGB', (40, 30)).save(b, 'PNG'); "
        "p = Predictor(None); t = p.decode(b.getvalue()); "
        "p.refine(t.image, ScoreMap(np.zeros((3, 5, 6), np.float16), (33, 41))); "
        "p.params.fingerprint('digest'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
