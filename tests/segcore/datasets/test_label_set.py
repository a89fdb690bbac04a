import json
import re

import numpy as np
import pytest

from segcore.datasets.class_lists import decode_text
from segcore.datasets.label_set import VOC_LABELS, LabelSet, labels_of_colours, read_classes, with_void
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
    with pytest.raises(ValueError, match=r"line 1: 'cat:#12345::' is not .* nor name:#rrggbb"):
        read_classes("cat:#12345::\n")
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


CLASSES_3 = ("background", "cat", "dog")


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("0: background\n1: cat\n2: dog\n", "classes.txt"),
        ("0 background\r\n1 cat\r\n2 dog\r\n", "labels.txt"),
        ("2 dog\n0 background\n1 cat", "labels.txt"),
        ("0,background\n1,cat\n2,dog\n", "classes.csv"),
        ("0;background\n1;cat\n2;dog\n", "classes.csv"),
        ("0\tbackground\n1\tcat\n2\tdog\n", "classes.txt"),
        ("[0] background\n[1] cat\n[2] dog\n", "classes.txt"),
        ("background 0\ncat 1\ndog 2\n", "classes.txt"),
        ("background=0\ncat=1\ndog=2\n", "classes.txt"),
        ("1 cat\n2 dog\n", "classes.txt"),  # 0 is what nobody names
        ("id,name\n0,background\n1,cat\n2,dog\n", "classes.csv"),
        ("Pixel Value, Class\n0, background\n1, cat\n2, dog\n", "_classes.csv"),
        ("label;name\n0;background\n1;cat\n2;dog\n255;void\n", "labels.csv"),
        ("name\nbackground\ncat\ndog\n", "classes.csv"),
        ("background,cat,dog", "--classes"),
        ('"background"\n"cat"\n"dog"\n', "names.txt"),
        ("\ufeff\n\n# mine\n_background_\ncat\n\ndog", "class_names.txt"),
        ("__ignore__\n__background__\ncat\ndog", "labels.txt"),
        ('["background", "cat", "dog"]', "classes.json"),
        ('{"0": "background", "1": "cat", "2": "dog"}', "id2label.json"),
        ('{"id2label": {"0": "background", "1": "cat", "2": "dog"}}', "config.json"),
        ('{"background": 0, "cat": 1, "dog": 2}', "label2id.json"),
        ('{"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}', "notes.json"),
        ('{"label_map": {"0": "background", "1": "cat", "2": "dog"}}', "dataset_meta.json"),
        ("class D(B):\n    CLASSES = ('background', 'cat', 'dog')\n", "dataset.py"),
        ("METAINFO = {'classes': ['background', 'cat', 'dog']}\n", "metainfo.py"),
    ],
)
def test_names_with_their_numbers(text, origin):
    label_set = read_classes(text, origin)
    assert label_set.classes == CLASSES_3 and not label_set.has_colours and label_set.void_values == ()
    assert label_set.origin == origin


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("background:0,0,0::\ncat:250,50,83::\ndog:0,9,8::\n", "labelmap.txt"),
        ("cat:250,50,83\nbackground:0,0,0\ndog:0,9,8\n", "labelmap.txt"),
        ("0 0 0\tbackground\n250 50 83\tcat\n0 9 8\tdog\n", "label_colors.txt"),
        ("background 0 0 0\ncat 250 50 83\ndog 0 9 8", "colors.txt"),
        ("background #000000\ncat #fa3253\ndog #000908", "colors.txt"),
        ("#000000 background\n#FA3253 cat\n#000908 dog", "colors.txt"),
        ("name,r,g,b\nbackground,0,0,0\ncat,250,50,83\ndog,0,9,8\n", "class_dict.csv"),
        ("id,name,color\n0,background,#000000\n1,cat,#fa3253\n2,dog,#000908\n", "classes.csv"),
        ("0 0 0 0 background\n1 250 50 83 cat\n2 0 9 8 dog", "colors.txt"),
        ("background (0, 0, 0)\ncat (250, 50, 83)\ndog (0, 9, 8)\n", "colors.txt"),
        ('{"__bg__": [0, 0, 0], "cat": [250, 50, 83], "dog": [0, 9, 8]}', "colors.json"),
        ('{"classes": [{"title": "cat", "color": "#FA3253"}, {"title": "dog", "color": "#000908"}]}', "meta.json"),
        ("M = dict(classes=('background', 'cat', 'dog'), palette=[[0, 0, 0], [250, 50, 83], [0, 9, 8]])", "dataset.py"),
    ],
)
def test_names_with_their_colours(text, origin):
    label_set = read_classes(text, origin)
    assert label_set.classes == CLASSES_3 and label_set.has_colours
    assert label_set.colours == ((0, 0, 0), (250, 50, 83), (0, 9, 8))


def test_colours_decide_and_background_is_first():
    label_set = read_classes("Cat:48,112,32::\nDog:176,112,32::\nbackground:0,0,0::\n", "labelmap.txt")
    assert label_set.classes == ("background", "Cat", "Dog") and label_set.colours[1] == (48, 112, 32)
    assert label_set.renumbered == "Cat is listed as number 0, which is read as background"
    black = read_classes("Cat:48,112,32::\nnothing:0,0,0::\n", "labelmap.txt")
    assert black.classes == ("nothing", "Cat")
    named = read_classes("road:0,0,0::\nbackground:0,128,0::\n", "labelmap.txt")
    assert named.classes == ("background", "road") and named.colours[0] == (0, 128, 0)


def test_numbers_stay_and_gaps_are_unused():
    gap = read_classes("0 background\n2 dent\n")
    assert gap.classes == ("background", "unused 1", "dent") and gap.unused == (1,)
    own = read_classes("0 background\n18 sofa\n20 tvmonitor\n", "labels.txt")
    assert own.classes == CLASSES and own.origin == "labels.txt, numbers and names of PASCAL VOC"
    assert read_classes("0 background\n8 cat\n12 dog\n").classes == CLASSES
    assert read_classes("0 background\n8 dog\n").classes[8] == "dog"  # Not VOC's
    # Names that only look as if they had numbers
    assert read_classes("grade 0\ngrade 1\n").classes == ("grade 0", "grade 1")
    assert read_classes("1 euro\n2 euro\n").classes == ("1 euro", "2 euro")


def test_void_takes_its_number():
    label_set = read_classes("sky\nvoid\ncar\n")
    assert label_set.classes == ("sky", "unused 1", "car") and label_set.void_values == (1,)
    assert read_classes("sky\ncar\nUnlabelled\n").void_values == (2,)
    assert read_classes("0: unlabeled\n1: sky\n").classes == ("unused 0", "sky")
    assert read_classes("255: void\n0: sky\n").void_values == ()
    coloured = read_classes("64 128 64\tAnimal\n0 0 0\tVoid\n", "label_colors.txt")
    assert coloured.classes == ("Animal",) and (0, 0, 0) in coloured.void_colours and coloured.void_values == (1,)
    shifted = read_classes("class D:\n  CLASSES = ('wall', 'sky')\n  x = dict(reduce_zero_label=True)\n", "dataset.py")
    assert shifted.classes == ("unused 0", "wall", "sky") and shifted.void_values == (0,)
    more = with_void(read_classes("sky\ncar\nme\n"), "ME, 7, 255")
    assert more.classes == ("sky", "car") and more.void_values == (2, 7)
    with pytest.raises(ValueError, match=r"no class 'him' that could be void: 0 sky, 1 car, 2 me"):
        with_void(read_classes("sky\ncar\nme\n"), "him")


def test_what_is_no_class_file_says_so():
    for text, origin, message in (
        ("0 a\n1 b\nc\n2 d\n", "classes.txt", "line 3: 'c' has no number, most other lines have"),
        ("0 a\n300 b\n", "classes.txt", "gives b the label 300"),
        ("{}", "meta.json", "names no classes in a form that is known"),
        ("no json", "meta.json", "names no classes"),
        ('{"classes": [{"title": 3}]}', "meta.json", "names no classes"),
        ("import os\n", "dataset.py", "no tuple `classes`"),
        ("def (", "dataset.py", "no tuple `classes`"),
        ("CLASSES = open('x').read()\n", "dataset.py", "no tuple `classes`"),
        ("x" * 5000, "classes.txt", "no list of classes"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            read_classes(text, origin)


def test_text_files_of_windows():
    for data in (b"a\xc3\xa4", b"\xef\xbb\xbfa\xc3\xa4", "aä".encode("utf-16"), "aä".encode("utf-16-le")):
        assert decode_text(data) == "aä"
    for data in (b"a\xe4", b"\xff\xfe\x00", b"ab\0c"):
        with pytest.raises(ValueError, match="no text in UTF-8"):
            decode_text(data)


@pytest.mark.parametrize(
    "text",
    [
        "names: ['background', 'cat', 'big dog']\n",
        "train: ../train/images\nnc: 3\nnames: [background, cat, big dog]\nroboflow:\n  license: MIT\n",
        "# Ultralytics\r\npath: ../datasets\r\nnames:\r\n  0: background\r\n  1: cat  # felis\r\n  2: 'big dog'\r\n",
        '\ufeffNames:\n- background\n- cat\n- "big dog"\nnc: 3\n',
        "names:\n  - background\n  - cat\n  - big dog\n\ndownload: https://example.org/x.zip\n",
        "names: {0: background, 1: cat, 2: 'big dog'}\n",
        "names: [\n  'background',\n  'cat',\n  'big dog',\n]\nval: valid/images\n",
    ],
)
def test_names_in_yaml(text):
    assert read_classes(text, "data.yaml").classes == ("background", "cat", "big dog")


def test_yaml_that_names_no_classes():
    for text in ("train: a\nval: b\n", "names:\n", "names:\n  - name: cat\n  - name: dog\n", ""):
        with pytest.raises(ValueError, match=r"data\.yaml .*--classes"):
            read_classes(text, "data.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "['background', 'cat', 'big dog']",
        "classes = ['background', 'cat', 'big dog']",
        "{0: 'background', 1: 'cat', 2: 'big dog'}",
        "- background\r\n- cat\r\n- big dog\r\n",
        "(0) background\n(1) cat\n(2) big dog\n",
        "__IGNORE__\n_BACKGROUND_\ncat\nbig dog\n",
        '"background",\n"cat",\n"big dog"\n',
    ],
)
def test_lists_as_programs_print_them(text):
    assert read_classes(text).classes == ("background", "cat", "big dog")


@pytest.mark.parametrize(
    "text",
    [
        "'background': (0, 0, 0),\n'cat': (255, 0, 0),\n",
        "background rgb(0, 0, 0)\ncat RGB(255, 0, 0)\n".replace("RGB", "rgb"),
        "CAT:255,0,0::\r\nBACKGROUND:0,0,0::\r\n".replace("CAT", "cat"),
    ],
)
def test_colours_as_programs_print_them(text):
    found = read_classes(text, "colors.txt")
    assert found.classes == ("background", "cat") and found.colours == ((0, 0, 0), (255, 0, 0))


@pytest.mark.parametrize("colour", ["#FF0000", "ff0000", "#F00", [255, 0, 0]])
def test_supervisely_with_other_spellings(colour):
    for text in ('{"classes": [{"title": "cat", "color": %s}]}', '\ufeff{"Classes": [{"Title": "cat", "Color": %s}]}'):
        found = read_classes(text % json.dumps(colour), "meta.json")
        assert found.classes == ("background", "cat") and found.colours == ((0, 0, 0), (255, 0, 0))


@pytest.mark.parametrize(
    "text",
    [
        "background  # 0\ncat  # 1\ndog  # 2\n",
        "// from the wiki\nbackground\ncat // furry\ndog\n",
        "0 -> background\n1 -> cat\n2 -> dog\n",
        "background => 0\ncat => 1\ndog => 2\n",
        "| id | name |\n|---|---|\n| 0 | background |\n| 1 | cat |\n| 2 | dog |\n",
        "# a heading\nbackground #000000\ncat #33ddff\ndog #fa3253\n",
    ],
)
def test_remarks_arrows_and_tables_are_no_part_of_a_name(text):
    assert read_classes(text).classes == ("background", "cat", "dog")


@pytest.mark.parametrize(
    "text",
    [
        "item {\n  id: 1\n  name: 'cat'\n}\nitem {\n  id: 3\n  name: 'dog'\n}\n",
        'item: { name: "/m/01yrx" id: 1 display_name: "cat" } # a comment\nitem: { display_name: "dog" id: 3 }',
    ],
)
def test_label_maps_of_tensorflow(text):
    label_set = read_classes(text, "label_map.pbtxt")
    assert (label_set.classes, label_set.unused) == (("background", "cat", "unused 2", "dog"), (2,))


def test_label_maps_that_name_nothing_say_so():
    with pytest.raises(ValueError, match="has an item without id or name: \"name: 'cat'\""):
        read_classes("item { name: 'cat' }", "label_map.pbtxt")
    with pytest.raises(ValueError, match="is no label map"):
        read_classes("cat\ndog\n", "label_map.pbtxt")


@pytest.mark.parametrize(
    "text",
    [
        "background:0,0,0::\ncat:255,128,0::\n",
        "background:#000000::\ncat:#ff8000::\n",
        "# label:color:parts:actions\nbackground:#000::\ncat: #FF8000 ::\n",
        "background:0;0;0::\ncat:255;128;0::\n",
        "background: 0 0 0::\ncat: 255 128 0::\n",
        "background:#000000\ncat:#FF8000\n",
    ],
)
def test_colours_of_cvat_in_any_notation(text):
    label_set = read_classes(text, "labelmap.txt")
    assert label_set.classes == ("background", "cat") and label_set.colours[1] == (255, 128, 0)


def test_more_classes_than_masks_can_hold_are_refused_and_none_becomes_void_in_silence():
    names = [f"class {k}" for k in range(255)]
    assert read_classes("\n".join([*names, "void"])).classes == tuple(names)
    for number in (256, 300):
        with pytest.raises(ValueError, match=f"{number} classes, and masks of 8 bits tell 255 apart"):
            read_classes("\n".join(f"class {k}" for k in range(number)))
    assert len(read_classes("\n".join(f"class {k}" for k in range(300)), wide=True).classes) == 300
