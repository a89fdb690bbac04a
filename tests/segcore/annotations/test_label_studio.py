import json
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from segcore.annotations import label_studio
from segcore.annotations.label_studio import decode_brush, encode_brush, read_tasks, task_of
from segcore.annotations.regions import Region
from tests.segcore.annotations.masks import odd_masks


def bits_of(mask):
    """The run lengths of a mask as Label Studio's own Python encoder writes them, bit for bit."""
    values = np.repeat(np.ravel(mask).astype(int) * 255, 4).tolist()
    text = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    while values:
        length = next((k for k, v in enumerate(values) if v != values[0]), len(values))
        length = min(length, 65536)
        kind = next(k for k, most in enumerate((8, 16, 256, 65536)) if length <= most)
        text += f"1{kind:02b}{length - 1:0{(3, 4, 8, 16)[kind]}b}{values[0]:08b}"
        values = values[length:]
    return bytes(int(text[k : k + 8].ljust(8, "0"), 2) for k in range(0, len(text), 8))


def test_a_brush_is_as_label_studio_writes_it_and_comes_back():
    for mask in (*odd_masks(), np.ones((200, 300), bool)):
        data = encode_brush(mask)
        assert data == bits_of(mask)
        assert np.array_equal(decode_brush(data, *mask.shape), mask)


def test_literal_values_are_read_as_the_brush_of_the_page_writes_them():
    # 2 x 2 RGBA: a literal run of nine values, then a run of seven
    values = [1, 2, 3, 255, 9, 9, 9, 128, 7, 0, 0, 0, 0, 0, 0, 0]
    text = f"{16:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    text += f"001{8:04b}" + "".join(f"{v:08b}" for v in values[:9]) + f"100{6:03b}{0:08b}"
    data = bytes(int(text[k : k + 8].ljust(8, "0"), 2) for k in range(0, len(text), 8))
    assert decode_brush(data, 2, 2).tolist() == [[True, True], [False, False]]


def test_damaged_brushes_are_refused():
    data = encode_brush(np.eye(9, dtype=bool))
    with pytest.raises(ValueError, match="not of an image of 9 x 8 px"):
        decode_brush(data, 8, 9)
    for broken in (data[:9], data[:-4]):
        with pytest.raises(ValueError, match="ends within its runs"):
            decode_brush(broken, 9, 9)
    random = np.random.default_rng(0)
    for _ in range(300):
        noise = data[:7] + bytes(random.integers(0, 256, 40, np.uint8))
        try:
            assert decode_brush(noise, 9, 9).shape == (9, 9)
        except ValueError:
            continue


def task(mask, tolerance=None, **more):
    regions = [Region("dog", mask, 0.75)]
    height, width = mask.shape
    facts = {"address": "/a.jpg", "identity": "a.jpg", "model_version": "m", "score": 0.9, "tolerance_px": tolerance}
    return task_of(regions, width=width, height=height, **facts) | more


def reviewed(given):
    [prediction] = given.pop("predictions")
    return given | {"annotations": [{"id": 1, "result": prediction["result"]}]}


@pytest.mark.parametrize("tolerance", [None, 0.0])
def test_a_task_that_was_accepted_comes_back(tolerance):
    for mask in odd_masks(number=40):
        given = json.dumps([reviewed(task(mask, tolerance))]).encode()
        [found] = read_tasks(given)
        assert (found.name, found.identity, found.reviewed) == ("/a.jpg", "a.jpg", True)
        union = np.zeros(mask.shape, bool)
        for region in found.regions():
            assert region.name == "dog"
            union |= region.mask
        assert np.array_equal(union, mask)


def test_predictions_hold_model_and_scores():
    [prediction] = task(np.eye(3, dtype=bool))["predictions"]
    assert (prediction["model_version"], prediction["score"]) == ("m", 0.9)
    [result] = prediction["result"]
    assert (result["type"], result["score"], result["value"]["brushlabels"]) == ("brushlabels", 0.75, ["dog"])


def test_what_nobody_has_accepted_is_not_reviewed():
    mask = np.eye(3, dtype=bool)
    cancelled = reviewed(task(mask))
    cancelled["annotations"][0]["was_cancelled"] = True
    found = list(read_tasks(json.dumps([task(mask), cancelled]).encode()))
    assert [image.reviewed for image in found] == [False, False]


def test_the_newest_annotation_counts():
    given = reviewed(task(np.zeros((3, 3), bool) | np.eye(3, dtype=bool)))
    other = reviewed(task(np.ones((3, 3), bool)))["annotations"][0]
    given["annotations"][0]["updated_at"] = "2026-02-02T00:00:00Z"
    given["annotations"].append(other | {"id": 2, "updated_at": "2026-01-01T00:00:00Z"})
    [found] = read_tasks(json.dumps(given).encode())
    assert found.regions()[0].mask.sum() == 3
    given["annotations"][1]["updated_at"] = "2026-03-03T00:00:00Z"
    [found] = read_tasks(json.dumps(given).encode())
    assert found.regions()[0].mask.all()


def test_short_form_labels_of_another_control_and_rectangles():
    mask = np.eye(4, dtype=bool)
    [result] = task(mask)["predictions"][0]["result"]
    short = {"image": "/x/a.jpg", "id": 3, "tag": [result["value"] | {"original_width": 4, "original_height": 4}]}
    [found] = read_tasks(json.dumps([short]).encode())
    assert found.name == "/x/a.jpg" and np.array_equal(found.regions()[0].mask, mask)

    size = {"original_width": 4, "original_height": 4}
    two = [
        {"id": "r", "type": "brush", "value": {"format": "rle", "rle": result["value"]["rle"]}, **size},
        {"id": "r", "type": "labels", "value": {"labels": ["cat"]}, **size},
        {"id": "q", "type": "choices", "value": {"choices": ["blurred"]}},
        {
            "id": "s",
            "type": "rectanglelabels",
            "value": {"x": 50, "y": 0, "width": 50, "height": 25, "rotation": 0, "rectanglelabels": ["dog"]},
            **size,
        },
    ]
    [found] = read_tasks(json.dumps([{"data": {"image": "a.jpg"}, "annotations": [{"result": two}]}]).encode())
    cat, dog = found.regions()
    assert cat.name == "cat" and np.array_equal(cat.mask, mask)
    assert dog.name == "dog" and np.argwhere(dog.mask).tolist() == [[0, 2], [0, 3]]


def test_a_rectangle_turns_clockwise_about_its_corner():
    value = {"x": 50, "y": 50, "width": 40, "height": 20, "rotation": 90, "rectanglelabels": ["dog"]}
    result = {"value": value, "original_width": 10, "original_height": 10}
    [found] = read_tasks(json.dumps([{"data": {"image": "a"}, "annotations": [{"result": [result]}]}]).encode())
    [region] = found.regions()
    assert np.argwhere(region.mask).tolist() == [[y, x] for y in range(5, 9) for x in (3, 4)]
    assert math.isclose(region.mask.sum(), 8)


def test_damaged_documents_are_one_sentence():
    for data, words in [(b"{", "no JSON"), (b"[1]", "no list"), (b'"x"', "no list"), (b"[" * 100000, "no JSON")]:
        with pytest.raises(ValueError, match=words):
            list(read_tasks(data))
    size = {"original_width": 4, "original_height": 4}
    for value, words in [
        ({"rle": "abc", "format": "rle", "brushlabels": ["a"]}, "shape that is not read"),
        ({"rle": [300], "brushlabels": ["a"]}, "no list of bytes"),
        ({"rle": [1, 2], "brushlabels": ["a"]}, "not of an image"),
        ({"points": [[1, 1], [2, 2]], "polygonlabels": ["a"]}, "polygon is no list"),
        ({"points": [[1, 1], [2, 2], [None, 3]], "polygonlabels": ["a"]}, "polygon is no list"),
        ({"x": 1, "y": None, "width": 2, "height": 2, "rectanglelabels": ["a"]}, "not as Label Studio"),
        ({"points": [[1, 1], [2, 2], [3, 3]]}, "no label"),
        ({"x": 1, "y": 2, "radiusX": 3, "radiusY": 4, "ellipselabels": ["a"]}, "shape that is not read"),
    ]:
        given = [{"data": {"image": "a"}, "annotations": [{"result": [{"value": value, **size}]}]}]
        [found] = read_tasks(json.dumps(given).encode())
        with pytest.raises(ValueError, match=words):
            found.regions()
    turned = [{"data": {"image": "a"}, "annotations": [{"result": [{"value": {}, "image_rotation": 90, **size}]}]}]
    [found] = read_tasks(json.dumps(turned).encode())
    with pytest.raises(ValueError, match="was turned in Label Studio"):
        found.regions()
    size = {"original_width": 10**6, "original_height": 10**6}
    [found] = read_tasks(json.dumps([{"data": {}, "annotations": [{"result": [{"value": {}, **size}]}]}]).encode())
    with pytest.raises(ValueError, match="its size is"):
        found.regions()


def test_the_interface_names_every_class_with_its_colour():
    root = ET.fromstring(label_studio.labelling_config({"dog": (0, 0, 255), 'a "b" <c>': (1, 2, 3)}))
    for kind in ("BrushLabels", "PolygonLabels"):
        labels = [(label.get("value"), label.get("background")) for label in root.find(kind)]
        assert labels == [("dog", "#0000ff"), ('a "b" <c>', "#010203")]
