import numpy as np
import pytest

from segcore.label_set import VOC_LABELS, LabelSet, labels_of_colours, read_classes
from segcore.voc import CLASSES, palette


def test_classes_are_read_in_the_order_of_labels():
    label_set = read_classes("\ufeff# my classes\n__ignore__\n background \r\ncat\n\ndog\n")
    assert label_set.classes == ("background", "cat", "dog")
    assert label_set.colours[1] == (128, 0, 0) and label_set.void_colours == ((224, 224, 192),)
    assert VOC_LABELS.classes == CLASSES


def test_a_labelmap_is_read_with_its_colours():
    text = (
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:255,0,0::\ndog: 0, 255, 0::\nignore:255,255,255::\n"
    )
    label_set = read_classes(text)
    assert label_set.classes == ("background", "cat", "dog")
    assert label_set.colours == ((0, 0, 0), (255, 0, 0), (0, 255, 0))
    assert (255, 255, 255) in label_set.void_colours


def test_what_makes_no_sense_names_the_line():
    with pytest.raises(ValueError, match=r"line 2: 'cat:red::' is not name:red,green,blue"):
        read_classes("background:0,0,0::\ncat:red::\n")
    with pytest.raises(ValueError, match="is not name"):
        read_classes("cat:0,0,256::")
    with pytest.raises(ValueError, match="the class cat to two labels"):
        read_classes("cat\ncat\n")
    with pytest.raises(ValueError, match=r"the colour \(1, 1, 1\) to two labels"):
        read_classes("a:1,1,1::\nb:1,1,1::")
    with pytest.raises(ValueError, match="names 0 classes"):
        read_classes("\n\n")


def test_colours_become_labels_and_back():
    labels = np.array([[0, 1, 20], [255, 15, 0]], np.uint8)
    back, strange = labels_of_colours(palette()[labels], VOC_LABELS)
    assert strange == []
    np.testing.assert_array_equal(back, labels)
    rgb = palette()[labels]
    rgb[0, 0] = (1, 2, 3)
    back, strange = labels_of_colours(rgb, VOC_LABELS)
    assert strange == [(1, 2, 3)] and back[0, 0] == 255


def test_the_colour_of_void_may_be_that_of_a_class():
    label_set = read_classes("background:0,0,0::\npale:224,224,192::\n")
    assert label_set.void_colours == ()
    assert isinstance(label_set, LabelSet)
    labels, _ = labels_of_colours(np.full((1, 1, 3), (224, 224, 192), np.uint8), label_set)
    assert labels.item() == 1
