import numpy as np
import pytest

from segcore.annotations import cvat
from segcore.annotations.regions import painted, regions_of
from tests.segcore.annotations.masks import odd_masks

NAMES = {0: "background", 1: "dog & <cat>", 2: "two"}
COLOURS = {"dog & <cat>": (1, 2, 255), "two": (0, 128, 0)}


def document(elements, about="a task"):
    return "".join([cvat.header(COLOURS, about), *elements, cvat.FOOTER]).encode()


def image(body, name="a.jpg", size=(6, 4)):
    return f'<image id="0" name="{name}" width="{size[0]}" height="{size[1]}">{body}</image>'


def test_masks_and_polygons_come_back():
    random = np.random.default_rng(3)
    for tolerance in (None, 0.0):
        elements, wanted = [], []
        for number, mask in enumerate(odd_masks(number=40)):
            labels = np.where(mask, random.integers(0, 3, mask.shape), 0).astype(np.uint8)
            regions = regions_of(labels, NAMES, {1: 0.5, 2: 0.25})
            height, width = labels.shape
            elements.append(
                cvat.image_of(
                    regions,
                    number=number,
                    name=f'{number} "<\n&>.jpg',
                    width=width,
                    height=height,
                    tolerance_px=tolerance,
                )
            )
            wanted.append(labels)
        data = document(elements)
        found = list(cvat.read_images([data[:3001], data[3001:]]))
        assert [image.name for image in found] == [f'{n} "<\n&>.jpg' for n in range(len(wanted))]
        for annotated, labels in zip(found, wanted, strict=True):
            assert annotated.known_names == ("dog & <cat>", "two")
            by_name = {name: label for label, name in NAMES.items()}
            assert np.array_equal(painted(annotated.regions(), by_name, *labels.shape, 0), labels)


def test_run_lengths_are_those_of_the_documentation():
    mask = np.zeros((4, 6), bool)
    mask[1, 2:5] = mask[2, 3] = True
    assert cvat.encode_mask(mask) == ([0, 3, 1, 1, 1], 2, 1, 3, 2)
    assert np.array_equal(cvat.decode_mask([0, 3, 1, 1, 1], 2, 1, 3, 2, 4, 6), mask)


def test_what_lies_higher_is_painted_later_and_a_box_is_read():
    body = (
        '<box label="two" xtl="0" ytl="0" xbr="3" ybr="4" z_order="1"/>'
        '<polygon label="dog &amp; &lt;cat&gt;" points="0,0;6,0;6,4;0,4" z_order="0"/>'
        '<points label="two" points="1,1"/><tag label="two"/>'
    )
    [found] = cvat.read_images([document([image(body)])])
    labels = painted(found.regions(), {"dog & <cat>": 1, "two": 2}, 4, 6, 0)
    assert labels.tolist() == [[2, 2, 2, 1, 1, 1]] * 4


def test_damaged_files_are_one_sentence():
    bomb = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><annotations><image name="&b;"/></annotations>'
    for data, words in [
        (b"<a/>", "its root is a"),
        (b"<annotations>", "no sound XML"),
        (b"", "no sound XML"),
        (b"not xml", "no sound XML"),
        (bomb, "declares a document type"),
        (b'<annotations><track id="0"/></annotations>', "for video"),
    ]:
        with pytest.raises(ValueError, match=words):
            list(cvat.read_images([data]))
    for body, words in [
        ('<mask label="two" rle="1, 2" left="0" top="0" width="2" height="2"/>', "do not fill its box"),
        ('<mask label="two" rle="4" left="5" top="0" width="2" height="2"/>', "outside its image"),
        ('<mask label="two" rle="x" left="0" top="0" width="2" height="2"/>', "invalid literal"),
        ('<mask rle="4" left="0" top="0" width="2" height="2"/>', "has no label"),
        ('<polygon label="two" points="1,1;2,2"/>', "polygon is no list"),
        ('<ellipse label="two" cx="1" cy="1" rx="1" ry="1"/>', "a region is a ellipse, which is not read"),
        ('<box label="two" xtl="0" ytl="0" xbr="3" ybr="4" rotation="30"/>', "box that is turned"),
    ]:
        [found] = cvat.read_images([document([image(body)])])
        with pytest.raises(ValueError, match=words):
            list(found.regions())
    [found] = cvat.read_images([document([image("", size=(10**6, 10**6))])])
    with pytest.raises(ValueError, match="its size is"):
        list(found.regions())
