import numpy as np
import pytest
import torch

from segcore import voc
from segcore.models import checkpoint
from segcore.models.card import ModelCard
from segcore.models.checkpoint import LoadedModel
from segcore.models.preprocessing import DEEPLAB
from segcore.scoring.inference import InferenceParams, Scorer, padded_px


class Stride8(torch.nn.Module):
    """Three channels averaged over 9x9 px at stride 8; class c is channel c, so that scores can be told by hand."""

    margin_px = 0

    def forward(self, images):
        return torch.nn.functional.avg_pool2d(images, 9, 8, 4, count_include_pad=False)


def loaded(module: torch.nn.Module) -> LoadedModel:
    return LoadedModel(module.eval(), ModelCard("deeplab_v1_largefov", ("a", "b", "c"), DEEPLAB), digest="0")


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


FP32 = InferenceParams(precision="fp32")


def test_lengths_are_padded_to_8k_plus_1():
    assert [padded_px(length) for length in (1, 33, 34, 41, 375, 500, 513)] == [33, 33, 41, 41, 377, 505, 513]


def test_scores_and_extent_by_hand():
    image = np.zeros((33, 40, 3), np.uint8)
    image[..., 0] = 255  # red is the third channel of a BGR network
    scores, extent = Scorer(loaded(Stride8()), FP32)([image])[0]
    assert scores.dtype == np.float16 and scores.shape == (3, 5, 6) and extent == (33, 41)
    assert (scores.argmax(0) == 2).all() and (scores.max(0) == 0).all()
    assert scores[0, 0, 0] == pytest.approx(-104.008 - (255 - 122.675), abs=0.1)


def test_padding_is_exactly_the_mean():
    image = np.full((33, 35, 3), 200, np.uint8)
    seen = []
    module = Stride8()
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    scorer = Scorer(loaded(module), FP32)
    scorer([image])
    assert seen[-1].shape == (1, 3, 33, 41)
    assert (seen[-1][..., 35:] == 0).all() and (seen[-1][..., :35] != 0).all()


def test_the_margin_of_the_vanilla_network_is_at_the_top_left():
    class Shifted(Stride8):
        margin_px = 1

        def forward(self, images):
            return super().forward(images[..., 1:, 1:])

    images = [photograph(70, 90)]
    plain, shifted = Scorer(loaded(Stride8()), FP32)(images)[0], Scorer(loaded(Shifted()), FP32)(images)[0]
    assert plain.extent_px == shifted.extent_px and np.array_equal(plain.scores, shifted.scores)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_order_and_company_do_not_matter(batch_size):
    sizes = [(33, 40), (64, 50), (35, 41), (1, 1), (64, 52), (36, 38)]
    images = [photograph(*size, seed=index) for index, size in enumerate(sizes)]
    scorer = Scorer(loaded(Stride8()), FP32, batch_size=batch_size)
    for image, result in zip(images, scorer(images), strict=True):
        alone = scorer([image])[0]
        assert result.extent_px == alone.extent_px == (padded_px(image.shape[0]), padded_px(image.shape[1]))
        np.testing.assert_allclose(result.scores, alone.scores, atol=0.1)


def test_out_of_memory_halves_the_batch():
    class Tight(Stride8):
        def forward(self, images):
            if len(images) > 3:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    images = [photograph(40, 40, seed) for seed in range(16)]
    tight = Scorer(loaded(Tight()), FP32, batch_size=16)(images)
    roomy = Scorer(loaded(Stride8()), FP32, batch_size=16)(images)
    assert all(np.array_equal(a.scores, b.scores) for a, b in zip(tight, roomy, strict=True))


def test_scores_that_are_not_finite_are_an_error():
    class Broken(Stride8):
        def forward(self, images):
            return super().forward(images) * float("inf")

    with pytest.raises(ValueError, match="not finite"):
        Scorer(loaded(Broken()), FP32)([photograph(40, 40)])


def test_large_scores_stay_finite_in_float16():
    class Large(Stride8):
        def forward(self, images):
            return super().forward(images) * 1e6

    scores = Scorer(loaded(Large()), FP32)([photograph(40, 40)])[0].scores
    assert np.isfinite(scores).all() and scores.min() == -65504


@pytest.mark.parametrize(
    "image", [np.zeros((3, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), np.zeros((3, 4, 3)), np.zeros((0, 4, 3), "u1")]
)
def test_what_is_no_photograph_is_refused(image):
    with pytest.raises(ValueError, match="Image 1"):
        Scorer(loaded(Stride8()), FP32)([photograph(3, 3), image])


def test_unknown_device_is_refused():
    with pytest.raises(ValueError, match="'auto', 'cpu'"):
        Scorer(loaded(Stride8()), FP32, device="gpu")


def test_largefov_untrained_gives_a_picture_of_several_classes():
    model = checkpoint.load("deeplab_v1_largefov", untrained=True)
    ramp = np.linspace(0, 255, 97).astype(np.uint8)
    image = np.stack([np.tile(ramp, (65, 1)), np.tile(ramp[::-1], (65, 1)), photograph(65, 97)[..., 0]], axis=-1)
    single, half = (Scorer(model, InferenceParams(precision=p))([image])[0].scores for p in ("fp32", "bf16"))
    assert single.shape == (len(voc.CLASSES), 9, 13)
    assert len(np.unique(single.argmax(0))) > 2
    assert 0.2 < np.float32(single).std() < 5
    assert (single.argmax(0) != half.argmax(0)).mean() < 0.15


def test_scorer_says_what_it_runs_on():
    scorer = Scorer(loaded(Stride8()), FP32, device="cpu")
    assert scorer.device == torch.device("cpu") and scorer.dtype == torch.float32 and scorer.batch_size == 1
