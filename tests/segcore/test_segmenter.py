import numpy as np
import pytest
from PIL import Image

import segcore
from segcore.images.errors import ImageError
from segcore.predictor import PredictParams
from segcore.scoring.inference import InferenceParams

NAME = "deeplab_v2_resnet18"


@pytest.fixture(scope="module")
def model():
    return segcore.load(NAME, untrained=True, params=PredictParams(InferenceParams(long_side_px=97, precision="fp32")))


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


def test_a_path_bytes_and_an_open_picture_are_the_same(model, photograph, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(photograph).save(path)
    want = model.segment(photograph, crf=None).labels
    for image in (path, str(path), path.read_bytes(), Image.open(path)):
        assert np.array_equal(model.segment(image, crf=None).labels, want)


def test_what_is_no_image_says_so(model, tmp_path):
    with pytest.raises(ImageError, match="no accepted image format"):
        model.segment(b"hello")
    with pytest.raises(FileNotFoundError):
        model.segment(tmp_path / "absent.jpg")
    with pytest.raises(ValueError, match="expected"):
        model.segment(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"PredictParams\(inference"):
        segcore.load(NAME, untrained=True, params=InferenceParams())


def test_the_result_is_short_to_look_at_and_can_be_saved(model, photograph, tmp_path):
    result = model.segment(photograph, crf=None)
    assert repr(result).startswith("Segmentation(120 x 80 px: ") and len(repr(result)) < 200
    assert "array" not in repr(result)
    result.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.mode == "P" and np.array_equal(np.asarray(mask), result.labels)
    overlay = result.overlay()
    assert overlay.shape == (80, 120, 3) and overlay.dtype == np.uint8
    unchanged = result.labels == 0
    assert not unchanged.all()
    assert np.abs(overlay.astype(int) - photograph)[~unchanged].max() > 20
    result.save(tmp_path / "overlay.jpg", overlay=True)
    with Image.open(tmp_path / "overlay.jpg") as saved:
        assert saved.size == (120, 80) and saved.mode == "RGB"
    with pytest.raises(ValueError, match="saved as PNG"):
        result.save(tmp_path / "mask.jpg")
