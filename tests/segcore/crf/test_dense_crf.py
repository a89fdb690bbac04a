"""The CRF against pydensecrf, its own checks, and the properties that any CRF has."""

import logging
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segcore.crf import dense_crf
from segcore.crf.dense_crf import CRF_PRESETS, CrfParams, Refined, refine, refine_scores

EXACT = CrfParams(min_probability=0)
DATA = Path(os.environ.get("SEGMENT_ARCHIVE_DATA", Path(__file__).parents[4] / "shared" / "data")) / "voc2012"

needs_native = pytest.mark.skipif(dense_crf.native is None, reason="the extension segcore._crf is not built")
pytestmark = needs_native


def photograph(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: smooth colours, an edge and noise."""
    y, x = np.mgrid[:height, :width]
    colours = [128 + 100 * np.sin(x / 9 + c) * np.cos(y / (7 + c)) for c in range(3)]
    image = np.stack(colours, axis=-1) + 60 * (x + y > (height + width) / 2)[..., None]
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=0))
    return (powers / powers.sum(axis=0)).astype(np.float32)


def random_probabilities(rng: np.random.Generator, num_classes: int, height: int, width: int) -> np.ndarray:
    """(C, H, W): blobs of a few pixels, so that the CRF has something to weigh."""
    coarse = rng.normal(0, 3, (num_classes, height // 5 + 1, width // 5 + 1))
    return softmax(coarse.repeat(5, axis=1).repeat(5, axis=2)[:, :height, :width])


def assert_equals_pydensecrf(image: np.ndarray, probabilities: np.ndarray, params: CrfParams) -> None:
    """Marginals to 1e-4, or as near to pydensecrf as it is to itself.

    Where classes are in balance the mean field doubles rounding errors with each iteration: after ten, pydensecrf's own
    marginals move by up to 5e-4 here and there when its input moves by one unit in the last place.
    """

    def theirs(probabilities: np.ndarray, iterations: int) -> np.ndarray:
        exact = replace(params, iterations=iterations, min_probability=0)
        return refine(image, probabilities, exact, backend="pydensecrf")

    def away(iterations: int) -> np.ndarray:
        ours = refine(image, probabilities, replace(params, iterations=iterations), backend="native")
        return np.abs(ours - theirs(probabilities, iterations))

    later = away(min(params.iterations, 3))
    assert later.max() <= 1e-5
    if params.iterations > 3:
        later = away(params.iterations)
    if later.max() <= 1e-4:
        return
    assert (later <= 1e-4).mean() >= 0.999, later.max()
    rng = np.random.default_rng(0)
    nudged = [
        np.nextafter(probabilities, rng.integers(0, 2, probabilities.shape, np.int32).astype(np.float32))
        for _ in range(4)
    ]
    itself = max(np.abs(theirs(p, params.iterations) - theirs(probabilities, params.iterations)).max() for p in nudged)
    assert later.max() <= 8 * itself, (later.max(), itself)


# Sizes that are no multiple of 4 make pydensecrf pad with a black pixel at the origin, which adds vertices
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (1, 7), (9, 1), (2, 2), (3, 5), (17, 23), (32, 48), (61, 67)])
@pytest.mark.parametrize("num_classes", [1, 2, 5, 21])
def test_equals_pydensecrf_over_sizes_and_classes(size: tuple[int, int], num_classes: int) -> None:
    rng = np.random.default_rng(num_classes)
    image = photograph(rng, *size)
    assert_equals_pydensecrf(image, random_probabilities(rng, num_classes, *size), EXACT)


@pytest.mark.parametrize("num_classes", [3, 4, 6, 9, 10, 13, 14, 17, 25, 26, 33, 34, 66, 150])
def test_equals_pydensecrf_for_every_row_width(num_classes: int) -> None:
    rng = np.random.default_rng(7)
    assert_equals_pydensecrf(photograph(rng, 21, 30), random_probabilities(rng, num_classes, 21, 30), EXACT)


@pytest.mark.parametrize("name", list(CRF_PRESETS))
def test_equals_pydensecrf_with_every_preset(name: str) -> None:
    rng = np.random.default_rng(3)
    params = replace(CRF_PRESETS[name], min_probability=0)
    assert_equals_pydensecrf(photograph(rng, 70, 90), random_probabilities(rng, 4, 70, 90), params)


@pytest.mark.parametrize(
    "params",
    [
        CrfParams(10, 500, 500, 10, 200, min_probability=0),
        CrfParams(3, 0.7, 1, 3, 0.3, min_probability=0),
        CrfParams(3, 5, 0.4, 0, 3, min_probability=0),
        CrfParams(0, 5, 5, 3, 3, min_probability=0),
        CrfParams(0, 5, 5, 0, 3, min_probability=0),
        CrfParams(4, 67, 3, 3, 1, iterations=1, min_probability=0),
        CrfParams(4, 67, 3, 3, 1, iterations=40, min_probability=0),
        CrfParams(4, 67, 3, 3, 1, normalization="caffe", min_probability=0),
        CrfParams(5, 50, 10, 3, 3, normalization="caffe", min_probability=0),
    ],
)
def test_equals_pydensecrf_at_both_ends_of_the_parameters(params: CrfParams) -> None:
    rng = np.random.default_rng(5)
    assert_equals_pydensecrf(photograph(rng, 40, 51), random_probabilities(rng, 6, 40, 51), params)


def test_keys_grow_with_the_image_and_its_sigmas() -> None:
    # 64-bit keys end here; the 128-bit ones take over
    rng = np.random.default_rng(5)
    params = CrfParams(3, 0.05, 0.05, 3, 1, min_probability=0)
    assert_equals_pydensecrf(photograph(rng, 12, 700), random_probabilities(rng, 3, 12, 700), params)


@pytest.mark.parametrize("value", [0, 255])
def test_equals_pydensecrf_on_constant_images(value: int) -> None:
    rng = np.random.default_rng(5)
    image = np.full((30, 41, 3), value, np.uint8)
    assert_equals_pydensecrf(image, random_probabilities(rng, 5, 30, 41), EXACT)


def test_equals_pydensecrf_on_certain_and_uniform_probabilities() -> None:
    rng = np.random.default_rng(5)
    image = photograph(rng, 30, 41)
    certain = np.zeros((3, 30, 41), np.float32)
    certain[0, :, :20] = certain[2, :, 20:] = 1
    assert_equals_pydensecrf(image, certain, EXACT)
    # A balance that ten iterations would tip over
    uniform = np.full((3, 30, 41), 1 / 3, np.float32)
    assert_equals_pydensecrf(image, uniform, replace(EXACT, iterations=5))


@pytest.mark.slow
def test_equals_pydensecrf_on_a_large_photograph() -> None:
    rng = np.random.default_rng(5)
    image = photograph(rng, 2000, 3000)
    probabilities = random_probabilities(rng, 2, 2000, 3000)
    params = CrfParams(4, 67, 10, 3, 3, iterations=2, min_probability=0)
    assert_equals_pydensecrf(image, probabilities, params)


def test_every_build_of_the_engine_agrees() -> None:
    rng = np.random.default_rng(8)
    image, probabilities = photograph(rng, 45, 53), random_probabilities(rng, 7, 45, 53)
    best = dense_crf.engine_name()
    expected = refine(image, probabilities, EXACT, backend="pydensecrf")
    try:
        for name in ("native-plain", "native-avx2", "native-avx512"):
            try:
                dense_crf.native.use_engine(name)
            except ValueError:
                continue  # not on this processor
            assert dense_crf.engine_name() == name
            np.testing.assert_allclose(refine(image, probabilities, EXACT), expected, atol=1e-4, rtol=0)
    finally:
        dense_crf.native.use_engine(best)


def test_marginals_are_probabilities() -> None:
    rng = np.random.default_rng(1)
    refined = refine(photograph(rng, 33, 44), random_probabilities(rng, 5, 33, 44), CrfParams())
    assert refined.shape == (5, 33, 44)
    assert refined.dtype == np.float32
    assert refined.min() >= 0
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-5)


def test_no_weight_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    probabilities = random_probabilities(rng, 5, 20, 31)
    params = CrfParams(bilateral_weight=0, gaussian_weight=0, min_probability=0)
    refined = refine(photograph(rng, 20, 31), probabilities, params)
    np.testing.assert_allclose(refined, probabilities, atol=2e-5)


def test_the_order_of_classes_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    image, probabilities = photograph(rng, 20, 31), random_probabilities(rng, 5, 20, 31)
    backwards = refine(image, probabilities[::-1], EXACT)
    np.testing.assert_allclose(backwards[::-1], refine(image, probabilities, EXACT), atol=1e-4)


def test_a_class_that_cannot_win_is_left_out() -> None:
    rng = np.random.default_rng(1)
    probabilities = np.zeros((21, 20, 31), np.float32)
    probabilities[3:6] = random_probabilities(rng, 3, 20, 31) * 0.99
    probabilities[20] = 0.01
    refined = refine(photograph(rng, 20, 31), probabilities, CrfParams(min_probability=0.02))
    assert (refined[[*range(3), *range(6, 21)]] == 0).all()
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-5)


def same(a: Refined, b: Refined) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in Refined.__dataclass_fields__)


@pytest.mark.parametrize("params", [EXACT, CrfParams(), None, CrfParams(gaussian_weight=0)])
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (9, 11), (1, 5)])
@pytest.mark.parametrize("extent_px", [None, (65, 81)])
def test_scores_to_labels_equal_the_reference(
    params: CrfParams | None, grid: tuple[int, int], extent_px: tuple[int, int] | None
) -> None:
    rng = np.random.default_rng(11)
    image = photograph(rng, 62, 75)
    scores = rng.normal(0, 3, (21, *grid)).astype(np.float16)
    ours = refine_scores(image, scores, params, extent_px=extent_px, backend="native")
    theirs = refine_scores(
        image, scores, params and replace(params, min_probability=0), extent_px=extent_px, backend="pydensecrf"
    )
    assert (ours.labels_before == theirs.labels_before).mean() > 0.999
    assert (ours.labels == theirs.labels).mean() > 0.999
    assert ours.labels.dtype == ours.labels_before.dtype == np.uint8
    np.testing.assert_array_equal(ours.class_pixels, np.bincount(ours.labels.ravel(), minlength=21))
    np.testing.assert_allclose(ours.class_confidence, theirs.class_confidence, atol=2e-3)
    assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-4)
    assert ours.entropy == pytest.approx(theirs.entropy, abs=1e-5)
    assert ours.changed == pytest.approx((ours.labels != ours.labels_before).mean(), abs=1e-12)
    if params is None:
        assert ours.changed == 0
        np.testing.assert_array_equal(ours.labels, ours.labels_before)


def test_scores_and_their_probabilities_give_the_same_labels() -> None:
    rng = np.random.default_rng(2)
    image = photograph(rng, 41, 49)
    scores = rng.normal(0, 3, (6, 41, 49)).astype(np.float16)  # a grid as fine as the image
    labels = refine_scores(image, scores, EXACT).labels
    marginals = refine(image, softmax(scores.astype(np.float32)), EXACT)
    np.testing.assert_array_equal(labels, marginals.argmax(axis=0))


def test_one_class_and_255_classes() -> None:
    rng = np.random.default_rng(2)
    image = photograph(rng, 16, 20)
    only = refine_scores(image, np.ones((1, 2, 3), np.float16), EXACT)
    assert only.confidence == pytest.approx(1)
    assert only.entropy == pytest.approx(0)
    assert (only.labels == 0).all()
    many = refine_scores(image, rng.normal(0, 4, (255, 3, 4)).astype(np.float16), EXACT)
    assert many.class_pixels.sum() == 16 * 20


def test_more_classes_than_bytes_have_labels() -> None:
    """Those that win nothing change nothing: the labels are those of the classes that do."""
    rng = np.random.default_rng(5)
    image = photograph(rng, 60, 81)
    few = rng.normal(0, 3, (6, 9, 12)).astype(np.float16)
    many = np.full((1000, 9, 12), -60, np.float16)
    places = np.array([3, 254, 255, 256, 700, 999])
    many[places] = few
    for params in (None, CrfParams()):
        expected = refine_scores(image, few, params)
        found = refine_scores(image, many, params)
        assert found.labels.dtype == found.labels_before.dtype == np.uint16
        assert np.array_equal(found.labels, places[expected.labels])
        assert np.array_equal(found.labels_before, places[expected.labels_before])
        assert np.array_equal(found.class_pixels[places], expected.class_pixels)
        assert found.class_confidence[places] == pytest.approx(expected.class_confidence, abs=1e-4)
        assert found.confidence == pytest.approx(expected.confidence, abs=1e-4)
        assert found.entropy == pytest.approx(expected.entropy, abs=1e-4)
        assert found.changed == pytest.approx(expected.changed)


def test_more_winners_than_the_crf_is_told_of() -> None:
    rng = np.random.default_rng(6)
    image = photograph(rng, 65, 65)
    scores = rng.normal(0, 8, (600, 65, 65)).astype(np.float16)
    before = refine_scores(image, scores, None)
    assert np.array_equal(before.labels, scores.astype(np.float32).argmax(axis=0)) and before.changed == 0
    assert len(np.unique(before.labels)) > 500
    after = refine_scores(image, scores, CrfParams())
    assert np.array_equal(after.labels_before, before.labels) and len(np.unique(after.labels)) <= 255
    with pytest.raises(ValueError, match="1 to 65535 classes"):
        refine_scores(image, np.zeros((65536, 2, 2), np.float16), None)


def test_read_only_strided_and_half_precision_input() -> None:
    rng = np.random.default_rng(2)
    image, probabilities = photograph(rng, 24, 30), random_probabilities(rng, 3, 24, 30)
    expected = refine(image, probabilities, EXACT)
    strided = np.repeat(np.repeat(probabilities, 2, axis=1), 3, axis=2)[:, ::2, ::3]
    turned = np.asfortranarray(image)
    strided.flags.writeable = turned.flags.writeable = False
    np.testing.assert_array_equal(refine(turned, strided, EXACT), expected)
    np.testing.assert_allclose(refine(image, probabilities.astype(np.float16), EXACT), expected, atol=5e-3)
    scores = rng.normal(0, 3, (4, 6, 10)).astype(np.float16)
    expected_labels = refine_scores(image, scores, EXACT)
    doubled = np.repeat(scores, 2, axis=2)[:, :, ::2]
    assert same(refine_scores(turned, doubled, EXACT), expected_labels)
    assert same(refine_scores(turned, scores.astype(np.float32), EXACT), expected_labels)


def test_run_to_run_and_in_threads_the_same() -> None:
    rng = np.random.default_rng(4)
    images = [photograph(rng, 60 + 9 * i, 80) for i in range(4)]
    scores = [rng.normal(0, 3, (21, 9, 11)).astype(np.float16) for _ in images]
    expected = [refine_scores(i, s, CrfParams()) for i, s in zip(images, scores, strict=True)]
    found: dict[int, list[Refined]] = {}

    def work(thread: int) -> None:
        order = range(4) if thread else reversed(range(4))
        found[thread] = [refine_scores(images[i], scores[i], CrfParams()) for i in order]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(a, b) for a, b in zip(found[1], expected, strict=True))
    assert all(same(a, b) for a, b in zip(found[0], reversed(expected), strict=True))


def test_memory_is_reused_and_bounded() -> None:
    rng = np.random.default_rng(4)
    native = dense_crf.native
    native.forget()
    image, scores = photograph(rng, 100, 120), rng.normal(0, 3, (21, 9, 11)).astype(np.float16)
    refine_scores(image, scores, CrfParams())
    before = native.memory()
    assert before[0] > 0
    assert before[1] > 0
    for _ in range(3):
        refine_scores(image, scores, CrfParams())
    assert native.memory() == before
    limit = 1 << 20
    native.forget(limit)
    for width in range(60, 120, 3):
        refine_scores(photograph(rng, 80, width), scores, CrfParams())
        assert native.memory()[1] <= limit
    native.forget()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bilateral_weight": float("nan")}, "bilateral_weight"),
        ({"bilateral_weight": float("inf")}, "bilateral_weight"),
        ({"gaussian_weight": -1}, "gaussian_weight"),
        ({"bilateral_xy_std_px": 0}, "bilateral_xy_std_px"),
        ({"bilateral_rgb_std": -3}, "bilateral_rgb_std"),
        ({"gaussian_xy_std_px": 0}, "gaussian_xy_std_px"),
        ({"iterations": 0}, "iterations"),
        ({"iterations": 101}, "iterations"),
        ({"iterations": 2.5}, "iterations"),
        ({"min_probability": 1}, "min_probability"),
        ({"normalization": "none"}, "normalization"),
    ],
)
def test_bad_parameters_are_named(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CrfParams(), **change)


def test_bad_input_is_named() -> None:
    rng = np.random.default_rng(2)
    image, probabilities = photograph(rng, 12, 14), random_probabilities(rng, 3, 12, 14)

    def spoiled(value: float) -> np.ndarray:
        p = probabilities.copy()
        p[1, 4, 5] = value
        return p

    for bad in (np.nan, -0.1):
        with pytest.raises(ValueError, match="class 1 at row 4, column 5"):
            refine(image, spoiled(bad), EXACT)
    for bad in (3.0, np.inf):
        with pytest.raises(ValueError, match=r"sum to 1 .* at row 4, column 5"):
            refine(image, spoiled(bad), EXACT)
    with pytest.raises(ValueError, match="image must be"):
        refine(image.astype(np.float32), probabilities, EXACT)
    with pytest.raises(ValueError, match="image must be"):
        refine(image[..., 0], probabilities, EXACT)
    with pytest.raises(ValueError, match="no pixels"):
        refine(image[:0], probabilities[:, :0], EXACT)
    with pytest.raises(ValueError, match="the image is"):
        refine(image, probabilities[:, :, 1:], EXACT)
    with pytest.raises(ValueError, match="1 to 255 classes, got 0"):
        refine(image, probabilities[:0], EXACT)
    with pytest.raises(ValueError, match="too small"):
        refine(np.zeros((1, 6000, 3), np.uint8), np.ones((1, 1, 6000), np.float32), CrfParams(gaussian_xy_std_px=0.01))
    with pytest.raises(ValueError, match="backend"):
        refine(image, probabilities, EXACT, backend="gpu")  # type: ignore[arg-type]
    scores = np.zeros((3, 2, 2), np.float16)
    with pytest.raises(ValueError, match="must hold the image"):
        refine_scores(image, scores, EXACT, extent_px=(11, 14))
    with pytest.raises(ValueError, match="scores must be"):
        refine_scores(image, scores.astype(int), EXACT)
    with pytest.raises(ValueError, match="1 to 255 classes, got 256"):
        refine(image, np.full((256, *image.shape[:2]), 1 / 256, np.float32), EXACT)
    scores[2, 1, 0] = np.inf
    with pytest.raises(ValueError, match="class 2 at row 1, column 0"):
        refine_scores(image, scores, EXACT)


def test_without_the_extension_it_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dense_crf, "native", None)
    monkeypatch.setattr(dense_crf, "missing", "not built", raising=False)
    dense_crf._say_slow.cache_clear()
    rng = np.random.default_rng(2)
    image, scores = photograph(rng, 12, 14), rng.normal(0, 1, (3, 2, 2)).astype(np.float16)
    with caplog.at_level(logging.WARNING):
        refine_scores(image, scores, CrfParams())
        refine_scores(image, scores, CrfParams())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert dense_crf.engine_name() == "pydensecrf"
    with pytest.raises(ValueError, match="native CRF engine is not built"):
        refine_scores(image, scores, CrfParams(), backend="native")


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    num_classes=st.integers(1, 30),
    spread=st.floats(0, 40),
    seed=st.integers(0, 2**32 - 1),
    params=st.builds(
        CrfParams,
        bilateral_weight=st.floats(0, 20),
        bilateral_xy_std_px=st.floats(0.05, 300),
        bilateral_rgb_std=st.floats(0.05, 300),
        gaussian_weight=st.floats(0, 20),
        gaussian_xy_std_px=st.floats(0.05, 300),
        iterations=st.integers(1, 12),
        normalization=st.sampled_from(["symmetric", "caffe"]),
        min_probability=st.floats(0, 0.99),
    ),
)
def test_any_image_and_parameters_give_probabilities(
    height: int, width: int, num_classes: int, spread: float, seed: int, params: CrfParams
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    probabilities = softmax(rng.normal(0, spread, (num_classes, height, width)))
    refined = refine(image, probabilities, params)
    assert np.isfinite(refined).all()
    assert refined.min() >= 0
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-4)
    grid = rng.normal(0, spread, (num_classes, 1 + height // 4, 1 + width // 3)).astype(np.float16)
    found = refine_scores(image, grid, params)
    assert found.class_pixels.sum() == height * width
    assert 0 <= found.changed <= 1
    assert 0 <= found.confidence <= 1 + 1e-6
    assert -1e-6 <= found.entropy <= np.log(num_classes) + 1e-5


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data is not at {DATA.parent}; set SEGMENT_ARCHIVE_DATA")
@pytest.mark.parametrize("name", ["deeplab_v1", "deeplab_v2_resnet101"])
def test_real_photographs_get_the_labels_of_pydensecrf(name: str) -> None:
    stored = np.load(DATA / "scores_val_have.npz")
    for number in (0, 59):  # the second is the one of 300 that pruning changes most
        image = np.array(Image.open(DATA / "JPEGImages" / f"{stored['ids'][number]}.jpg").convert("RGB"))
        scores = stored["logits"][number]
        params = CRF_PRESETS[name]
        everything = replace(params, min_probability=0)
        theirs = refine_scores(image, scores, everything, backend="pydensecrf").labels
        exact = refine_scores(image, scores, everything, backend="native").labels
        pruned = refine_scores(image, scores, params, backend="native").labels
        theirs_pruned = refine_scores(image, scores, params, backend="pydensecrf").labels
        assert (exact == theirs).mean() >= 0.9999
        assert (theirs_pruned == theirs).mean() >= 0.9999
        assert (pruned == theirs).mean() >= 0.9999
