import numpy as np
import pytest

from segcore.annotations.regions import Region, painted, regions_of

NAMES = {0: "background", 1: "cat", 2: "dog"}


def test_regions_are_painted_back():
    labels = np.array([[0, 1, 1], [2, 2, 0]], np.uint8)
    regions = regions_of(labels, NAMES, {1: 0.5})
    assert [(region.name, region.score) for region in regions] == [("cat", 0.5), ("dog", None)]
    by_name = {name: label for label, name in NAMES.items()}
    assert np.array_equal(painted(regions, by_name, 2, 3, 0), labels)


def test_a_model_without_background_has_a_region_for_label_0_and_void_has_none():
    labels = np.array([[0, 1, 255]], np.uint8)
    assert [region.name for region in regions_of(labels, {0: "wall", 1: "sky"})] == ["wall", "sky"]
    assert painted(regions_of(labels, {0: "wall", 1: "sky"}), {"wall": 0, "sky": 1}, 1, 3, 255).tolist() == [
        [0, 1, 255]
    ]


def test_later_regions_lie_over_earlier_ones_and_names_mean_what_they_say():
    whole = np.ones((1, 4), bool)
    first = [Region("CAT", whole), Region("dog", np.array([[0, 1, 0, 0]], bool))]
    more = [Region("Void", np.array([[0, 0, 1, 0]], bool)), Region("background", np.array([[0, 0, 0, 1]], bool))]
    assert painted([*first, *more], {"cat": 1, "dog": 2}, 1, 4, 0).tolist() == [[1, 2, 255, 0]]
    with pytest.raises(ValueError, match="no class is called 'cow'"):
        painted([Region("cow", whole)], {"cat": 1}, 1, 4, 0)
