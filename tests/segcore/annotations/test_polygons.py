import numpy as np
import pytest

from segcore.annotations import polygons
from segcore.annotations.polygons import filled, points_of, traced
from tests.segcore.annotations.masks import odd_masks


def area(points):
    """Signed area of a closed outline: holes turn the other way, so that they count against it."""
    after = np.roll(points, -1, axis=0)
    return float((points[:, 0] * after[:, 1] - after[:, 0] * points[:, 1]).sum() / 2)


def test_a_polygon_without_tolerance_is_its_mask():
    for mask in odd_masks():
        outlines = traced(mask)
        assert np.array_equal(filled(outlines, *mask.shape), mask)
        # By the rule of winding numbers too, which some tools fill by
        assert sum(map(area, outlines)) == mask.sum()


def test_a_part_is_what_hangs_together_by_edges():
    mask = np.array([[1, 0, 0], [0, 1, 1], [0, 1, 1]], bool)
    small, large = traced(mask)
    assert small.tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]
    assert large.tolist() == [[1, 1], [3, 1], [3, 3], [1, 3]]
    assert traced(np.zeros((3, 4), bool)) == []


def test_a_hole_is_reached_by_a_slit_of_one_polygon():
    mask = np.ones((5, 5), bool)
    mask[2, 2] = False
    [outline] = traced(mask)
    assert outline.tolist() == [
        [0, 0],
        [5, 0],
        [5, 5],
        [0, 5],
        [0, 2],
        [2, 2],
        [2, 3],
        [3, 3],
        [3, 2],
        [2, 2],
        [0, 2],
    ]


def test_tolerance_leaves_out_points_and_stays_near():
    y, x = np.mgrid[:200, :300]
    disc = (y - 90) ** 2 + (x - 150) ** 2 < 70**2
    hole = (y - 80) ** 2 + (x - 140) ** 2 < 20**2
    mask = disc & ~hole
    [exact] = traced(mask)
    sizes = [len(exact)]
    for tolerance in (0.5, 1.0, 2.0):
        [outline] = traced(mask, tolerance)
        sizes.append(len(outline))
        wrong = filled([outline], 200, 300) != mask
        inner, outer = (y - 90) ** 2 + (x - 150) ** 2, (y - 80) ** 2 + (x - 140) ** 2
        near = (abs(np.sqrt(inner) - 70) <= tolerance + 1) | (abs(np.sqrt(outer) - 20) <= tolerance + 1)
        assert not (wrong & ~near).any()
    assert sizes == sorted(sizes, reverse=True) and sizes[2] < sizes[0] / 5


def test_simplified_outlines_of_noise_can_be_filled():
    for mask in odd_masks(seed=1, number=60):
        for tolerance in (0.7, 3.0):
            assert filled(traced(mask, tolerance), *mask.shape).shape == mask.shape


def test_polygons_that_lie_outside_are_cut():
    square = points_of([-5, -5, 2.5, -5, 2.5, 2.5, -5, 2.5])
    assert filled([square], 4, 4).sum() == 4  # Centres at 0.5 and 1.5 in both directions; 2.5 is on the border
    assert filled([square + 100], 4, 4).sum() == 0


def test_what_is_no_polygon_is_refused():
    far = [0, 0, 1e300, 0, 1e300, 1e300]  # No picture reaches it, and products of it overflow
    for numbers in ([1, 2, 3, 4], [1, 2, 3, 4, 5], [0, 0, 1, 0, 1, float("nan")], [[0, 0]] * 6, ["a"] * 6, far):
        with pytest.raises(ValueError, match="polygon is no list"):
            points_of(numbers)


def test_edges_are_crossed_a_few_at_a_time(monkeypatch):
    """There may be a million of them, each as high as the picture."""
    masks = list(odd_masks(seed=2, number=40))
    whole = [filled(traced(mask, 1.0), *mask.shape) for mask in masks]
    monkeypatch.setattr(polygons, "_CROSSINGS", 7)
    assert all(np.array_equal(filled(traced(m, 1.0), *m.shape), w) for m, w in zip(masks, whole, strict=True))
