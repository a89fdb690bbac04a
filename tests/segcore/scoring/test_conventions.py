"""The arithmetic of other repositories, restated here image by image and window by window, against `score_views`."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from segcore.models import checkpoint
from segcore.models.card import ModelCard
from segcore.models.checkpoint import LoadedModel
from segcore.models.preprocessing import DEEPLAB, IMAGENET_RGB
from segcore.predictor import Predictor, PredictParams
from segcore.scoring.inference import DEEPLAB_V2_MSC, PSPNET_MULTI_SCALE, InferenceParams
from segcore.scoring.tta import score_views
from tests.segcore.scoring.test_tta import Local

SIZES = [(50, 67), (97, 161), (100, 33), (129, 128), (41, 200)]


@pytest.fixture(scope="module")
def resnet() -> LoadedModel:
    return checkpoint.load("deeplab_v2_resnet18", untrained=True)


def photograph(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def relative(found, expected) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def deeplab_pytorch(network, image, scales=(0.5, 0.75)):
    """The largest logit over scales on the grid of the image itself, then at its size; pixels are areas throughout."""
    height, width = image.shape[2:]
    whole = network(image)
    largest = whole
    for scale in scales:
        small = F.interpolate(image, (int(height * scale), int(width * scale)), mode="bilinear", align_corners=False)
        again = F.interpolate(network(small), whole.shape[2:], mode="bilinear", align_corners=False)
        largest = torch.maximum(largest, again)
    return F.interpolate(largest, (height, width), mode="bilinear", align_corners=False)


def linear(length: int, size: int):
    """(size, length) float64: OpenCV's linear resize along one side, as a matrix."""
    matrix = np.zeros((size, length))
    for row in range(size):
        at = (row + 0.5) * length / size - 0.5
        low = math.floor(at)
        for index, share in ((low, 1 - (at - low)), (low + 1, at - low)):
            matrix[row, min(max(index, 0), length - 1)] += share
    return torch.from_numpy(matrix)


def resize(image, height: int, width: int):
    """(C, h, w) float64 -> (C, height, width)."""
    return linear(image.shape[1], height) @ image @ linear(image.shape[2], width).T


def semseg(network, image, base: int, crop: int, scales):
    """(C, H, W) float64 mean probability over scales; windows at two thirds of their side, mirrored each, in pixels."""
    _, height, width = image.shape
    stride = math.ceil(crop * 2 / 3)
    total = 0
    for scale in scales:
        long = round(scale * base)
        h, w = (long, round(long / height * width)) if height > width else (round(long / width * height), long)
        view = resize(image, h, w)
        above, before = max(crop - h, 0) // 2, max(crop - w, 0) // 2
        padded = torch.zeros(3, max(h, crop), max(w, crop), dtype=torch.float64)
        padded[:, above : above + h, before : before + w] = view
        sums = torch.zeros(3, *padded.shape[1:], dtype=torch.float64)
        counts = torch.zeros(padded.shape[1:], dtype=torch.float64)
        for row in range(math.ceil((padded.shape[1] - crop) / stride) + 1):
            for column in range(math.ceil((padded.shape[2] - crop) / stride) + 1):
                bottom = min(row * stride + crop, padded.shape[1])
                right = min(column * stride + crop, padded.shape[2])
                place = (slice(bottom - crop, bottom), slice(right - crop, right))
                window = padded[:, place[0], place[1]].float()[None]
                both = torch.cat([window, window.flip(3)])
                scores = F.interpolate(network(both), (crop, crop), mode="bilinear", align_corners=True).softmax(1)
                sums[:, place[0], place[1]] += ((scores[0] + scores[1].flip(2)) / 2).double()
                counts[place] += 1
        mean = (sums / counts)[:, above : above + h, before : before + w]
        total = total + resize(mean, height, width)
    return total / len(scales)


@pytest.mark.parametrize("size", SIZES)
def test_scales_are_fused_as_deeplab_pytorch_does(resnet, size):
    image = torch.randn(1, 3, *size)
    with torch.inference_mode():
        expected = deeplab_pytorch(resnet.module, image)
        found = score_views(resnet.module, image, DEEPLAB_V2_MSC, 1, "deeplab-pytorch")
        caffe = score_views(
            resnet.module, F.pad(image, (0, -(size[1] - 1) % 8, 0, -(size[0] - 1) % 8)), DEEPLAB_V2_MSC, 1
        )
    assert found.shape == (1, resnet.module(image).shape[1], *size)
    assert relative(found, expected) < 1e-4
    grown = F.interpolate(caffe, scale_factor=8, mode="bilinear", align_corners=True)[:, :, : size[0], : size[1]]
    assert grown.shape != expected.shape or relative(grown, expected) > 1e-3  # So that the choice matters


@pytest.mark.parametrize("size", SIZES)
def test_windows_are_fused_as_semseg_does(size):
    network, image = Local().eval(), torch.randn(3, *size)
    scales = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    params = replace(PSPNET_MULTI_SCALE, long_side_px=128, crop_px=97, scales=scales)
    with torch.inference_mode():
        expected = semseg(network, image.double(), 128, 97, scales)
        found = score_views(network, image[None], params, 3, "semseg")[0].exp()
    assert relative(found.double(), expected) < 1e-4


def test_the_windows_of_semseg_step_316_px():
    lefts = []

    def network(windows):
        lefts.extend(int(window[0, 0, 0]) for window in windows)
        return torch.zeros(len(windows), 2, 60, 60)

    columns = torch.arange(896.0).expand(1, 3, 473, 896)
    params = InferenceParams(long_side_px=896, fusion="mean", crop_px=473)
    score_views(network, columns, params, 1, "semseg")
    assert lefts == [0, 316, 423]


@pytest.mark.parametrize("convention", ["deeplab-pytorch", "semseg"])
def test_the_whole_path_takes_the_convention_of_the_card(convention):
    module = Local().eval()
    cards = {
        "deeplab-pytorch": ModelCard("deeplab_v2_resnet101", ("a", "b", "c"), DEEPLAB, convention="deeplab-pytorch"),
        "semseg": ModelCard("pspnet50", ("a", "b", "c"), IMAGENET_RGB, convention="semseg"),
    }
    model = LoadedModel(module, cards[convention], digest="0")
    params = PredictParams(InferenceParams(long_side_px=128, scales=(0.5, 1.0), precision="fp32"), crf=None)
    predictor = Predictor(model, params, device="cpu")
    images = [photograph(*size) for size in ((50, 67), (1, 1), (128, 90), (50, 67))]
    for image, result in zip(images, predictor.score(images), strict=True):
        assert result.scores.shape == (3, *image.shape[:2]) and result.extent_px == image.shape[:2]
        refined = predictor.refine(image, result)
        assert np.array_equal(refined.labels, result.scores.argmax(0))


def test_a_convention_is_part_of_what_decides_a_mask():
    plain = ModelCard("pspnet50", ("a", "b"), IMAGENET_RGB)
    other = replace(plain, convention="semseg")
    assert "convention" not in plain.deciding() and plain.deciding() != other.deciding()
    assert ModelCard.from_json(other.to_json()) == other
    with pytest.raises(ValueError, match="convention is one of caffe, deeplab-pytorch, semseg, areas, got 'torch'"):
        replace(plain, convention="torch")
