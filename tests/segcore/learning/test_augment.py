"""Views of training images: exact labels, one geometry for all, the same whoever asks."""

import dataclasses

import numpy as np
import pytest

from segcore.learning.augment import AugmentParams, augment, view_rng
from segcore.voc import IGNORE_LABEL

EVERYTHING = AugmentParams(
    crop_px=65, scales=(0.4, 2.5), rotation_degrees=30, blur_probability=0.5, brightness=0.3, contrast=0.3,
    saturation=0.3, hue_degrees=20,
)  # fmt: skip


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def coordinates(height: int, width: int) -> np.ndarray:
    """A picture whose red is x and whose green is y."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)


def test_a_crop_at_scale_one_is_a_copy_of_image_and_labels() -> None:
    image = coordinates(90, 120)
    mask = (image[..., 0] // 6).astype(np.uint8)
    view = augment(image, mask, AugmentParams(crop_px=33, mirror=False), np.random.default_rng(3))
    left, top = (int(value) for value in view.image[0, 0, :2])
    assert (left, top) != (0, 0)
    assert np.array_equal(view.image, image[top : top + 33, left : left + 33])
    assert np.array_equal(view.mask, mask[top : top + 33, left : left + 33])
    assert view.inside.shape == (5, 5)
    assert view.inside.all()


def test_mirrored_views_are_exact_and_every_second_one() -> None:
    image = coordinates(33, 33)
    mask = image[..., 0].copy()
    params = AugmentParams(crop_px=33)
    views = [augment(image, mask, params, view_rng(0, epoch, "one")) for epoch in range(40)]
    mirrored = [view for view in views if np.array_equal(view.image, image[:, ::-1])]
    straight = [view for view in views if np.array_equal(view.image, image)]
    assert len(mirrored) + len(straight) == 40
    assert 10 <= len(mirrored) <= 30
    assert all(np.array_equal(view.mask, mask[:, ::-1]) for view in mirrored)


def test_labels_are_never_interpolated() -> None:
    mask = np.where(np.random.default_rng(1).random((70, 90)) < 0.5, 3, 17).astype(np.uint8)
    for epoch in range(50):
        view = augment(photograph(70, 90), mask, EVERYTHING, view_rng(0, epoch, "a"))
        assert set(np.unique(view.mask)) <= {3, 17, IGNORE_LABEL}


def test_image_labels_and_soft_labels_share_one_geometry() -> None:
    # Red is x and green y; the mask is a coarse x; the soft labels are linear in x and y, so bilinear sampling is exact
    height, width = 150, 200
    image = coordinates(height, width)
    mask = (image[..., 0] // 10).astype(np.uint8)
    rows, columns = np.mgrid[:33, :33] / 32
    soft = np.stack([columns, rows])
    geometry = dataclasses.replace(
        EVERYTHING, blur_probability=0, brightness=0, contrast=0, saturation=0, hue_degrees=0, scales=(0.7, 2.0)
    )
    seen = 0
    for epoch in range(30):
        view = augment(image, mask, geometry, view_rng(0, epoch, "a"), soft)
        assert view.soft is not None
        grid = view.image[::8, ::8].astype(float)
        labels = view.mask[::8, ::8]
        # A pixel from the border on, where bilinear sampling of the image has both its neighbours
        x, y = view.soft[0] * (width - 1), view.soft[1] * (height - 1)
        well = view.inside & (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2)
        seen += int(well.sum())
        assert np.abs(grid[..., 0] - x)[well].max(initial=0) <= 1.01
        assert np.abs(grid[..., 1] - y)[well].max(initial=0) <= 1.01
        assert np.array_equal(labels[well], (np.floor(x + 0.5) // 10).astype(np.uint8)[well])
        assert (labels[~view.inside] == IGNORE_LABEL).all()
        assert (labels[view.inside] != IGNORE_LABEL).all()
    assert seen > 500


def test_corners_of_the_soft_labels_lie_on_the_corner_pixels() -> None:
    soft = np.random.default_rng(0).integers(0, 256, (4, 33, 33), dtype=np.uint8)
    view = augment(photograph(257, 257), np.zeros((257, 257), np.uint8), AugmentParams(crop_px=257, mirror=False),
                   np.random.default_rng(0), soft)  # fmt: skip
    assert view.soft is not None
    np.testing.assert_allclose(view.soft, soft / 255, atol=1e-6)


def test_a_shrunk_photograph_keeps_its_place() -> None:
    # At a third of the size blocks are averaged first: that must not shift anything
    image = coordinates(243, 243)
    params = AugmentParams(crop_px=81, scales=(1 / 3,), mirror=False)
    view = augment(image, np.zeros((243, 243), np.uint8), params, np.random.default_rng(0))
    expected = np.arange(81) * 3 + 1
    assert np.abs(view.image[40, :, 0].astype(int) - expected).max() <= 1
    assert np.abs(view.image[:, 40, 1].astype(int) - expected).max() <= 1
    assert view.inside.all()


def test_outside_the_photograph_is_fill_colour_and_ignored() -> None:
    image = np.full((20, 30, 3), 200, np.uint8)
    params = dataclasses.replace(EVERYTHING, scales=(1.0,), rotation_degrees=0, blur_probability=1)
    view = augment(image, np.full((20, 30), 5, np.uint8), params, np.random.default_rng(0), np.ones((2, 9, 9)))
    outside = view.mask == IGNORE_LABEL
    assert (~outside).sum() == 20 * 30
    assert (view.image[outside] == params.fill_rgb).all()
    assert (view.image[~outside] != params.fill_rgb).any()
    assert np.array_equal(view.inside, ~outside[::8, ::8])


def test_the_whole_photograph_fits_the_crop_at_scale_one_of_crop() -> None:
    params = AugmentParams(crop_px=97, stride_px=32, scale_of="crop")
    view = augment(photograph(150, 300), np.zeros((150, 300), np.uint8), params, np.random.default_rng(0))
    rows, columns = np.nonzero(view.mask == 0)
    assert (columns.min(), columns.max()) == (0, 96)
    assert abs(rows.max() - rows.min() + 1 - 97 / 2) <= 1


def test_a_view_depends_on_seed_epoch_and_image_alone() -> None:
    image, mask = photograph(60, 80), np.zeros((60, 80), np.uint8)

    def view(seed: int, epoch: int, image_id: str) -> bytes:
        return augment(image, mask, EVERYTHING, view_rng(seed, epoch, image_id)).image.tobytes()

    assert view(0, 1, "a") == view(0, 1, "a")
    assert len({view(0, 1, "a"), view(1, 1, "a"), view(0, 2, "a"), view(0, 1, "b"), view(1, 0, "a")}) == 5


def test_colour_changes_do_what_they_say() -> None:
    grey = np.full((33, 33, 3), 100, np.uint8)
    colourful = np.full((33, 33, 3), (200, 100, 50), np.uint8)
    mask = np.zeros((33, 33), np.uint8)

    def changed(image: np.ndarray, **what: float) -> list[np.ndarray]:
        params = AugmentParams(crop_px=33, **what)
        return [augment(image, mask, params, view_rng(0, epoch, "a")).image[0, 0].astype(int) for epoch in range(20)]

    # A flat grey picture has no contrast, saturation or hue to change
    for what in ({"contrast": 0.5}, {"saturation": 0.5}, {"hue_degrees": 90.0}):
        assert all(np.abs(pixel - 100).max() <= 1 for pixel in changed(grey, **what))
    bright = [int(pixel[0]) for pixel in changed(grey, brightness=0.5)]
    assert min(bright) >= 50
    assert max(bright) <= 150
    assert max(bright) - min(bright) > 40
    # Saturation and hue keep the luma
    luma = np.array([0.299, 0.587, 0.114])
    for what in ({"saturation": 0.3}, {"hue_degrees": 20.0}):
        pixels = changed(colourful, **what)
        assert all(abs(pixel @ luma - np.array([200, 100, 50]) @ luma) < 1.5 for pixel in pixels)
        assert len({tuple(pixel) for pixel in pixels}) > 5


def test_a_share_of_the_views_has_no_colour() -> None:
    image, mask = np.full((33, 33, 3), (200, 100, 50), np.uint8), np.zeros((33, 33), np.uint8)

    def spreads(**what: float) -> list[int]:
        params = AugmentParams(crop_px=33, grey_probability=0.5, **what)
        pixels = [augment(image, mask, params, view_rng(0, epoch, "a")).image[0, 0] for epoch in range(40)]
        return [int(np.ptp(pixel.astype(int))) for pixel in pixels]

    alone = spreads()
    assert set(alone) <= {0, 1, 149, 150, 151}
    assert 8 < sum(spread <= 1 for spread in alone) < 32
    assert 8 < sum(spread <= 2 for spread in spreads(saturation=0.3, hue_degrees=10.0)) < 32


def test_what_does_not_fit_is_refused() -> None:
    mask = np.zeros((40, 40), np.uint8)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="305 would be"):
        AugmentParams(crop_px=306)
    with pytest.raises(ValueError, match="scales"):
        AugmentParams(scales=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8"):
        augment(np.zeros((40, 40, 3), np.float32), mask, AugmentParams(), rng)
    with pytest.raises(ValueError, match="like its image"):
        augment(photograph(40, 41), mask, AugmentParams(), rng)
    with pytest.raises(ValueError, match="soft labels"):
        augment(photograph(40, 40), mask, AugmentParams(), rng, np.zeros((33, 33)))
