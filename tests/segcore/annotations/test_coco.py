import json

import numpy as np
import pytest
from pycocotools import mask as theirs

from segcore.annotations import coco
from segcore.annotations.coco import mask_of, segmentations_of
from tests.segcore.annotations.masks import odd_masks


def test_every_form_of_a_region_is_read():
    for mask in odd_masks(number=40):
        height, width = mask.shape
        labels = mask.astype(np.uint8)
        assert np.array_equal(mask_of(segmentations_of(labels, None)[1], height, width), mask)
        assert np.array_equal(mask_of(segmentations_of(labels, 0.0)[1], height, width), mask)
        compressed = theirs.encode(np.asfortranarray(labels))
        text = {"size": compressed["size"], "counts": compressed["counts"].decode()}
        assert np.array_equal(mask_of(text, height, width), mask)
        flat = labels.ravel(order="F")
        borders = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *borders, flat.size]).tolist()
        assert np.array_equal(
            mask_of({"size": [height, width], "counts": [0] * int(flat[0]) + counts}, height, width), mask
        )


def test_images_carry_their_identity_and_regions_their_class():
    mask = np.eye(3, dtype=np.uint8)
    segmentation = segmentations_of(mask, None)[1]
    document = {
        "images": [{"id": 4, "file_name": "x/a.jpg", "width": 3, "height": 3, "identity": "a"}, {"id": 5}],
        "categories": [{"id": 7, "name": "dog"}],
        "annotations": [{"id": 1, "image_id": 4, "category_id": 7, "segmentation": segmentation}],
    }
    first, second = coco.read_images(json.dumps(document).encode())
    assert (first.name, first.identity, first.width, first.known_names) == ("x/a.jpg", "a", 3, ("dog",))
    [region] = first.regions()
    assert region.name == "dog" and np.array_equal(region.mask, mask.astype(bool))
    with pytest.raises(ValueError, match="its size is"):
        list(second.regions())
    document["annotations"][0]["category_id"] = 8
    with pytest.raises(ValueError, match="category 8"):
        list(next(iter(coco.read_images(json.dumps(document).encode()))).regions())


def test_damaged_files_are_one_sentence():
    for data, words in [(b"x", "no JSON"), (b"[]", "lists images"), (b'{"images": [], "annotations": []}', "lists")]:
        with pytest.raises(ValueError, match=words):
            list(coco.read_images(data))
    for segmentation, words in [
        (None, "neither"),
        ([], "neither"),
        ({"size": [3, 4], "counts": "0"}, "of an image of"),
        ({"size": [3, 3], "counts": [4, 4]}, "do not fill"),
        ({"size": [3, 3], "counts": [-4, 13]}, "do not fill"),
        ({"size": [3, 3], "counts": "\u00e9"}, "RLE"),
        ([[1, 2, 3]], "polygon is no list"),
    ]:
        with pytest.raises(ValueError, match=words):
            mask_of(segmentation, 3, 3)
