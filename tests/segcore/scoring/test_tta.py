from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.models import checkpoint
from segcore.models.card import ModelCard
from segcore.models.checkpoint import LoadedModel
from segcore.models.preprocessing import DEEPLAB
from segcore.scoring.inference import InferenceParams, Scorer
from segcore.scoring.tta import scaled_px, score_views, window_starts

PLAIN = InferenceParams(precision="fp32")


class Local(torch.nn.Module):
    """A network at stride 8 that sees 17 px around each position; 3 classes, left and right are told apart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 3, 17, stride=8, padding=8)
        self.conv.weight.data *= 0.1

    def forward(self, images):
        return self.conv(images)


LOCAL = LoadedModel(Local().eval(), ModelCard("deeplab_v1_largefov", ("a", "b", "c"), DEEPLAB), digest="0")


@pytest.fixture(scope="module")
def resnet() -> LoadedModel:
    return checkpoint.load("deeplab_v2_resnet18", untrained=True)


def photograph(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def score(model: LoadedModel, params: InferenceParams, *images: np.ndarray) -> list[np.ndarray]:
    return [np.float32(result.scores) for result in Scorer(model, params)(images)]


@given(st.integers(4, 300), st.integers(4, 60), st.floats(0.01, 1.0))
def test_windows_cover_a_side_once_or_more_and_end_flush(blocks, crop_blocks, stride):
    length, crop = 8 * blocks + 1, 8 * crop_blocks + 1
    starts = window_starts(length, crop, stride)
    assert starts[0] == 0 and starts == sorted(set(starts)) and all(start % 8 == 0 for start in starts)
    if length > crop:
        assert starts[-1] + crop == length
        assert all(after <= before + crop - 1 for before, after in pairwise(starts))


def test_the_windows_of_pspnet():
    assert window_starts(513, 473, 2 / 3) == [0, 40]
    assert window_starts(1025, 473, 2 / 3) == [0, 312, 552]


@pytest.mark.parametrize("fusion", ["max", "mean"])
@pytest.mark.parametrize("mirror", [False, True])
def test_windows_over_an_image_smaller_than_one_equal_the_single_pass(resnet, fusion, mirror):
    params = replace(PLAIN, fusion=fusion, mirror=mirror)
    image = photograph(60, 75)
    assert np.array_equal(*score(resnet, params, image), *score(resnet, replace(params, crop_px=81), image))


def test_overlapping_windows_of_a_local_network_agree_with_the_single_pass_away_from_seams():
    image = photograph(97, 161)
    whole, windows = score(LOCAL, PLAIN, image)[0], score(LOCAL, replace(PLAIN, crop_px=65), image)[0]
    assert whole.shape == windows.shape
    # Positions 1 to 3 lie inside the first window only, out of reach of its far border.
    np.testing.assert_allclose(windows[:, :4, :4], whole[:, :4, :4], atol=0.05)


def test_the_size_of_a_chunk_of_windows_changes_nothing():
    images = torch.randn(2, 3, 97, 161)
    params = replace(PLAIN, crop_px=65, fusion="mean")
    with torch.inference_mode():
        one, many = (score_views(LOCAL.module, images, params, tiles) for tiles in (1, 64))
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-4)


def test_no_more_windows_at_once_than_allowed():
    seen = []

    def network(images):
        seen.append(tuple(images.shape))
        return LOCAL.module(images)

    with torch.inference_mode():
        score_views(network, torch.randn(1, 3, 513, 801), replace(PLAIN, crop_px=65), 4)
    assert len(seen) > 10 and all(shape[0] <= 4 and shape[2:] == (65, 65) for shape in seen)


@pytest.mark.parametrize("fusion", ["max", "mean"])
def test_scale_1_without_mirror_equals_the_plain_pass(resnet, fusion):
    image = photograph(65, 81)
    plain = score(resnet, PLAIN, image)[0]
    repeated = score(resnet, replace(PLAIN, scales=(1.0, 1.0), fusion=fusion), image)[0]
    assert np.array_equal(plain, score(resnet, replace(PLAIN, scales=(1.0,), fusion=fusion), image)[0])
    np.testing.assert_allclose(repeated, plain, atol=0.01)


@pytest.mark.parametrize("fusion", ["max", "mean"])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 0.75, 1.0)])
def test_a_mirrored_image_gives_mirrored_scores(resnet, fusion, scales):
    image = photograph(65, 97)
    params = replace(PLAIN, mirror=True, fusion=fusion, scales=scales)
    straight, mirrored = score(resnet, params, image, np.ascontiguousarray(image[:, ::-1]))
    np.testing.assert_allclose(mirrored[:, :, ::-1], straight, atol=0.01)
    without, _ = score(resnet, replace(params, mirror=False), image, np.ascontiguousarray(image[:, ::-1]))
    assert not np.allclose(without, straight, atol=0.01)


def test_max_takes_the_largest_and_mean_the_average_probability():
    maps = {33: torch.tensor([0.0, 4.0, 1.0]), 65: torch.tensor([2.0, 1.0, 1.0])}

    def network(images):
        size = (images.shape[2] - 1) // 8 + 1
        return maps[images.shape[2]].reshape(1, 3, 1, 1).expand(1, 3, size, size)

    images = torch.zeros(1, 3, 65, 65)
    largest = score_views(network, images, replace(PLAIN, scales=(0.5, 1.0), fusion="max"), 1)
    average = score_views(network, images, replace(PLAIN, scales=(0.5, 1.0), fusion="mean"), 1)
    assert largest[0, :, 4, 5].tolist() == [2.0, 4.0, 1.0]
    expected = (maps[33].softmax(0) + maps[65].softmax(0)) / 2
    torch.testing.assert_close(average[0, :, 4, 5].exp(), expected)


@settings(max_examples=50)
@given(st.integers(4, 128), st.floats(0.1, 4.0))
def test_scaled_sides_stay_on_the_grid(blocks, scale):
    size = scaled_px(8 * blocks + 1, scale)
    assert size % 8 == 1 and (size == 33 or abs((size - 1) - 8 * blocks * scale) <= 4)


@pytest.mark.parametrize("wrong", [{"scales": ()}, {"scales": (0.0,)}, {"crop_px": 9}])
def test_params_without_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Scorer(LOCAL, replace(PLAIN, **wrong))


def test_scales_of_deeplab_v2():
    assert [scaled_px(513, scale) for scale in (0.5, 0.75, 1.0)] == [257, 385, 513]


def test_a_wide_image_in_windows_has_its_own_grid(resnet):
    result = Scorer(resnet, replace(PLAIN, crop_px=65, fusion="mean"), batch_size=3)([photograph(34, 300)])[0]
    assert result.extent_px == (41, 305) and result.scores.shape == (21, 6, 39)
    assert np.isfinite(result.scores).all() and (result.scores.max(0) == 0).all()
