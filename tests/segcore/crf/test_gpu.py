"""The CRF's engine for GPUs, on this CPU: all but its kernels, which test_gpu_kernels.py has."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segcore.crf import gpu
from segcore.crf.dense_crf import CRF_PRESETS, CrfParams, refine, refine_batch, refine_scores
from tests.gpu_kernels_on_cpu import put_in_place
from tests.packages import installed
from tests.segcore.crf.test_dense_crf import DATA, photograph, random_probabilities

EXACT = CrfParams(min_probability=0)
KERNELS = Path(__file__).with_name("test_gpu_kernels.py")


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine "cuda" with plain PyTorch for the kernels."""
    put_in_place(monkeypatch)


def scores_of(rng: np.random.Generator, num_classes: int, height: int, width: int) -> np.ndarray:
    return (rng.normal(0, 3, (num_classes, height, width))).astype(np.float16)


# Sizes that are no multiple of 4 make pydensecrf pad with a black pixel at the origin, which adds vertices
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (1, 7), (9, 1), (3, 5), (17, 23), (61, 67)])
@pytest.mark.parametrize("num_classes", [1, 2, 21, 33])
@pytest.mark.parametrize("params", [EXACT, replace(EXACT, normalization="caffe"), CRF_PRESETS["deeplab_v1"]], ids=str)
def test_marginals_are_those_of_pydensecrf(on_cpu: None, size, num_classes, params) -> None:
    rng = np.random.default_rng(num_classes)
    image, probabilities = photograph(rng, *size), random_probabilities(rng, num_classes, *size)
    # Where classes are in balance each iteration doubles rounding errors: see test_dense_crf
    params = replace(params, iterations=3)
    found = refine(image, probabilities, params, backend="cuda")
    expected = refine(image, probabilities, params, backend="pydensecrf")
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("leave_out", [{"bilateral_weight": 0}, {"gaussian_weight": 0}])
def test_a_kernel_without_weight_is_left_out(on_cpu: None, leave_out: dict) -> None:
    rng = np.random.default_rng(1)
    image, scores = photograph(rng, 40, 53), scores_of(rng, 7, 6, 7)
    params = replace(EXACT, **leave_out)
    found, expected = (refine_scores(image, scores, params, backend=b) for b in ("cuda", "pydensecrf"))
    assert (found.labels != expected.labels).mean() <= 1e-3


def test_everything_beside_the_labels_is_that_of_the_native_engine(on_cpu: None) -> None:
    rng = np.random.default_rng(5)
    image, scores = photograph(rng, 47, 62), scores_of(rng, 21, 8, 9)
    for params, extent in ((None, (47, 62)), (EXACT, (65, 81)), (CrfParams(), (47, 62))):
        found = refine_scores(image, scores, params, extent_px=extent, backend="cuda")
        expected = refine_scores(image, scores, params, extent_px=extent, backend="native")
        assert np.array_equal(found.labels_before, expected.labels_before)
        assert (found.labels != expected.labels).mean() <= 1e-3
        assert found.entropy == pytest.approx(expected.entropy, abs=1e-5)
        assert found.confidence == pytest.approx(expected.confidence, abs=1e-4)
        assert found.changed == pytest.approx(expected.changed, abs=1e-3)
        assert found.class_pixels.sum() == image.shape[0] * image.shape[1]
        np.testing.assert_allclose(found.class_confidence, expected.class_confidence, atol=1e-2)


def test_an_image_has_the_same_labels_whatever_is_beside_it(on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    sizes = [(31, 45), (64, 33), (9, 70), (31, 45), (50, 50)]
    images = [photograph(rng, *size) for size in sizes]
    scores = [scores_of(rng, 21, 5, 6) * (1 + number) for number in range(len(sizes))]
    scores = [s.astype(np.float16) for s in scores]
    alone = [refine_scores(i, s, CrfParams(), backend="cuda") for i, s in zip(images, scores, strict=True)]
    for most in (2_000_000, 3000):
        monkeypatch.setattr(gpu, "PIXELS_AT_ONCE", most)
        together = refine_batch(images, scores, CrfParams(), sizes, "cuda")
        for one, same in zip(alone, together, strict=True):
            assert np.array_equal(one.labels, same.labels) and one.confidence == same.confidence
    assert refine_batch([], [], CrfParams(), [], "cuda") == []


def test_a_kernel_too_narrow_for_it_is_refused_in_a_sentence(on_cpu: None) -> None:
    rng = np.random.default_rng(0)
    image, scores = photograph(rng, 40, 50), scores_of(rng, 3, 5, 6)
    with pytest.raises(ValueError, match=r"too narrow for the engine cuda.*native"):
        refine_scores(image, scores, CrfParams(bilateral_rgb_std=0.02), backend="cuda")


@pytest.mark.skipif(not DATA.exists(), reason="the real data is not here: SEGMENT_ARCHIVE_DATA")
def test_real_photographs_get_the_labels_of_pydensecrf(on_cpu: None) -> None:
    stored = np.load(DATA / "scores_val_have.npz")
    for number, params in ((0, CrfParams()), (59, CRF_PRESETS["deeplab_v1"])):
        image = np.array(Image.open(DATA / "JPEGImages" / f"{stored['ids'][number]}.jpg").convert("RGB"))
        scores, extent = stored["logits"][number], image.shape[:2]
        image, everything = image[:180, :240], replace(params, min_probability=0)
        expected = refine_scores(image, scores, everything, extent_px=extent, backend="pydensecrf").labels
        for asked in (params, everything):
            found = refine_scores(image, scores, asked, extent_px=extent, backend="cuda").labels
            assert (found == expected).mean() >= 0.9999


@pytest.mark.gpu
def test_on_a_gpu_the_labels_are_those_of_the_native_engine() -> None:
    rng = np.random.default_rng(11)
    sizes = [(375, 500), (333, 500), (61, 67)]
    images = [photograph(rng, *size) for size in sizes]
    scores = [scores_of(rng, 21, 12, 16) for _ in sizes]
    for params in (EXACT, CrfParams(), CRF_PRESETS["deeplab_v1"], replace(EXACT, normalization="caffe")):
        once, again = (refine_batch(images, scores, params, sizes, "cuda") for _ in range(2))
        expected = refine_batch(images, scores, params, sizes, "native")
        for found, same, native in zip(once, again, expected, strict=True):
            assert np.array_equal(found.labels, same.labels)
            assert (found.labels == native.labels).mean() >= 0.9999


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_is_refused_in_a_sentence() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"needs a GPU.*leave the engine out"):
        refine_scores(photograph(rng, 8, 8), scores_of(rng, 3, 2, 2), EXACT, backend="cuda")


@pytest.mark.slow
def test_the_kernels_do_the_same_and_compile_for_a_gpu() -> None:
    """With Triton, a gigabyte that nothing else here needs, in a process of its own."""
    packages = installed("triton==3.9.0")
    environment = os.environ | {"PYTHONPATH": packages, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", str(KERNELS)]
    told = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert told.returncode == 0 and "5 passed in" in told.stdout, told.stdout + told.stderr
