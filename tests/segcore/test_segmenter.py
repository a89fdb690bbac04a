import numpy as np
import pytest
from PIL import Image

import segcore
from segcore.inference import InferenceParams

NAME = "deeplab_v2_resnet18"


@pytest.fixture(scope="module")
def model():
    return segcore.load(NAME, untrained=True, params=InferenceParams(long_side_px=97, precision="fp32"))


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    across, down = np.meshgrid(np.linspace(0, 255, 120), np.linspace(0, 255, 80))
    return np.stack([across, down, 255 - across], axis=-1).astype(np.uint8)


def test_an_image_gets_labels_of_its_own_size(model, photograph):
    result = model.segment(photograph)
    assert result.labels.shape == (80, 120) and result.labels.dtype == np.uint8
    assert result.labels.max() < len(result.classes) == 21
    assert sum(result.pixels().values()) == 80 * 120
    assert "untrained" in repr(model)


def test_arrays_and_pictures_give_the_same(model, photograph):
    one = model.segment(photograph, crf=None).labels
    assert np.array_equal(one, model.segment(Image.fromarray(photograph), crf=None).labels)
    grey = Image.fromarray(photograph).convert("L")
    assert model.segment(grey, crf=None).labels.shape == (80, 120)


def test_the_crf_can_be_left_out(model, photograph):
    without = model.segment(photograph, crf=None)
    assert np.array_equal(without.refined.labels, without.refined.labels_before)
