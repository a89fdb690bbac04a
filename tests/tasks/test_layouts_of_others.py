"""Datasets in the exact form in which other tools write them: the right class, pair and split for every pixel."""

import io
import json
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segcore.datasets.pair_check import ADVICE, Kind, Level
from segcore.images.masks import encode_mask
from segcore.voc import palette
from tasks.datasets.check import Examined, examine, label_counts
from tasks.datasets.folders import read_layout
from tasks.datasets.layout import OwnData
from tasks.errors import JobError
from tasks.storage import locate
from tests.datasets import jpeg

SIZE = (40, 30)
NAME = "task-1-annotation-1-tag-x-0"
LABELS = np.zeros((30, 40), np.uint8)
LABELS[2:10, 3:13] = 1  # 80 px
LABELS[15:25, 20:32] = 2  # 120 px
COUNTS = {"background": 1000, "cat": 80, "dog": 120}


def look(folder: Path, **given) -> Examined:
    return examine(read_layout(locate(str(folder)), OwnData(**given)))


def pixels(found: Examined) -> dict[str, int]:
    """Pixels of each class that is to be seen, in one image, and of void."""
    counts, _ = label_counts(found, list(found.checks))
    number = len(found.checks)
    names = dict(enumerate(found.layout.label_set.classes)) | {255: "void"}
    return {names[label]: int(count) // number for label, count in enumerate(counts) if count}


def kinds(found: Examined) -> dict[Kind, list[str]]:
    """Findings; without those about equal photographs, of which these tests have no care."""
    result: dict[Kind, list[str]] = {}
    for one in found.findings:
        if one.kind not in (Kind.SAME_WITHIN, Kind.SAME_IMAGE, Kind.LOOKS_SAME):
            result.setdefault(one.kind, []).append(f"{one.file}: {one.detail}")
    return result


def put(folder: Path, files: dict[str, bytes | str | np.ndarray | Image.Image]) -> Path:
    """Write text, bytes, and pictures as PNG."""
    for path, content in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            content = content.encode()
        if isinstance(content, np.ndarray):
            content = Image.fromarray(content)
        if isinstance(content, Image.Image):
            buffer = io.BytesIO()
            content.save(buffer, format="PNG")
            content = buffer.getvalue()
        place.write_bytes(content)
    return folder


def painted(colours: dict[int, tuple[int, int, int]], labels: np.ndarray = LABELS) -> np.ndarray:
    table = np.zeros((256, 3), np.uint8)
    for label, colour in colours.items():
        table[label] = colour
    return table[labels]


def errors(found: Examined) -> list[Kind]:
    return [kind for kind in kinds(found) if ADVICE[kind].level is Level.ERROR]


# The inputs of the field


def test_the_inputs_of_the_field(field):
    labelme = look(field / "classes_names/labelme_new")
    assert labelme.layout.label_set.classes == ("background", "scratch", "dent") and not errors(labelme)

    cvat = look(field / "background_not_first/cvat_cat_first")
    assert cvat.layout.label_set.classes == ("background", "Cat", "Dog")
    assert pixels(cvat) == {"background": 5412, "Cat": 900, "Dog": 600}
    assert set(cvat.layout.lists) == {"train", "val"}  # Of the one list `default`

    white = look(field / "black_white_rgb/mask_rgb_black_white")
    assert errors(white) == [Kind.GREY_VOID] and len(kinds(white)[Kind.GREY_VOID]) == 6

    permuted = look(field / "palette_permuted/palette_vs_labelmap")
    detail = "0 background has that of 2 Dog, 2 Dog has that of 0 background"
    assert {text.partition(": ")[2] for text in kinds(permuted)[Kind.PALETTE_PERMUTED]} == {detail}
    assert len(kinds(permuted)[Kind.PALETTE_PERMUTED]) == 8
    by_colour = look(field / "palette_permuted/palette_vs_labelmap", by_colour=True)
    assert pixels(by_colour) == {"background": 5412, "Cat": 900, "Dog": 600}

    orphans = look(field / "orphan_masks/orphans")
    assert len(orphans.checks) == 6 and not errors(orphans)
    assert kinds(orphans)[Kind.NAMED_ALIKE] == [
        f"JPEGImages/img{k:03}.jpg: its mask is img{k:03}_mask.png" for k in (4, 5)
    ]

    windows = look(field / "lists_of_others/list_windows_paths")
    assert windows.layout.lists == {
        "train": ["img000", "img001", "img002", "img003"],
        "val": ["img004", "img005"],
    }
    assert not errors(windows)

    own = look(field / "own_export")
    assert own.layout.label_set.classes[18] == "sofa" and own.layout.label_set.classes[20] == "tvmonitor"
    assert "tvmonitor" in pixels(own) and "aeroplane" not in pixels(own)


# Tools


def test_cvat_has_colours_and_background_anywhere(tmp_path):
    colours = {0: (0, 0, 0), 1: (51, 221, 255), 2: (250, 50, 83)}
    for number, lines in enumerate(
        (
            "dog:250,50,83::\ncat:51,221,255::\nbackground:0,0,0::\n",
            "\ufeff# label:color_rgb:parts:actions\r\ncat:51,221,255::\r\nbackground:0,0,0::\r\ndog:250,50,83::\r\n",
        )
    ):
        folder = put(
            tmp_path / str(number),
            {
                "labelmap.txt": lines,
                "JPEGImages/a.jpg": jpeg(1, SIZE),
                "SegmentationClass/a.png": painted(colours),
                "SegmentationObject/a.png": painted({1: (128, 0, 0), 2: (0, 128, 0)}),
                "ImageSets/Segmentation/Train.txt": "a\n",
            },
        )
        found = look(folder)
        assert pixels(found) == COUNTS and found.layout.label_set.classes[0] == "background"
        assert set(kinds(found)) == {Kind.RGB_MASK} and found.layout.lists == {"train": ["a"]}


def test_numbers_in_the_mask_where_classes_are_listed_by_colour_are_doubtful(tmp_path):
    folder = put(
        tmp_path,
        {
            "labelmap.txt": "cat:9,9,9::\nbackground:0,0,0::\n",
            "JPEGImages/a.jpg": jpeg(1, SIZE),
            "SegmentationClass/a.png": np.minimum(LABELS, 1),
        },
    )
    doubt = kinds(look(folder))[Kind.NUMBERS_UNCERTAIN]
    assert doubt == ["SegmentationClass/a.png: in labelmap.txt cat is listed as number 0, which is read as background"]


def test_labelme(tmp_path):
    folder = put(
        tmp_path,
        {
            "class_names.txt": "_background_\ncat\ndog",
            "labels.txt": "__ignore__\n_background_\ncat\ndog\n",
            "JPEGImages/a.jpg": jpeg(1, SIZE),
            "SegmentationClass/a.png": encode_mask(np.where(LABELS == 2, 255, LABELS).astype(np.uint8)),
            "SegmentationClassVisualization/a.jpg": jpeg(2, SIZE),
        },
    )
    found = look(folder)
    assert pixels(found) == {"background": 1000, "cat": 80, "void": 120}
    assert kinds(found) == {Kind.CLASS_ABSENT: ["class_names.txt: 2 dog"]}


def test_roboflow(tmp_path):
    files: dict = {}
    for split, number in (("train", 1), ("valid", 2), ("test", 3)):
        stem = f"{split}/street_{number}_jpg.rf.0a1b2c{number}"
        files |= {f"{stem}.jpg": jpeg(number, SIZE), f"{stem}_mask.png": LABELS}
        files[f"{split}/_classes.csv"] = "Pixel Value, Class\n0, background\n1, cat\n2, dog\n"
    found = look(put(tmp_path, files | {"README.roboflow.txt": "hello"}))
    assert pixels(found) == COUNTS and set(kinds(found)) == {Kind.GREY_MASK}
    assert found.layout.lists == {
        "train": ["street_1_jpg.rf.0a1b2c1"],
        "val": ["street_2_jpg.rf.0a1b2c2"],
        "test": ["street_3_jpg.rf.0a1b2c3"],
    }


@pytest.mark.parametrize("machine", [True, False])
def test_supervisely(tmp_path, machine):
    meta = {"classes": [{"title": "cat", "shape": "bitmap", "color": "#FF0000", "id": 771}], "tags": []}
    meta["classes"].append({"title": "dog", "shape": "polygon", "color": "#00FF00", "id": 770})
    colours = {1: (1, 1, 1), 2: (2, 2, 2)} if machine else {1: (255, 0, 0), 2: (0, 255, 0)}
    files = {
        "meta.json": json.dumps(meta),
        "ds0/img/a.jpg": jpeg(1, SIZE),
        "ds0/ann/a.jpg.json": "{}",
        "ds0/masks_machine/a.jpg.png": painted(colours),
        "ds0/masks_human/a.jpg.png": painted({1: (9, 9, 9)}),
    }
    if machine:
        files["obj_class_to_machine_color.json"] = json.dumps({"cat": [1, 1, 1], "dog": [2, 2, 2]})
    found = look(put(tmp_path, files))
    assert pixels(found) == COUNTS and set(kinds(found)) == {Kind.RGB_MASK}


def test_mmsegmentation(tmp_path):
    code = "META = dict(\n    classes=('background', 'cat', 'dog'),\n    palette=[[0, 0, 0], [9, 9, 9], [7, 7, 7]])\n"
    files: dict = {"dataset.py": code}
    for split in ("train", "val"):
        files |= {
            f"img_dir/{split}/x_{split}.jpg": jpeg(1, SIZE),
            f"ann_dir/{split}/x_{split}.png": encode_mask(LABELS),
        }
    found = look(put(tmp_path, files))
    assert pixels(found) == COUNTS and not kinds(found)
    assert found.layout.lists == {"train": ["x_train"], "val": ["x_val"]}


def test_label_studio_names_its_classes_in_a_json(tmp_path):
    notes = {"categories": [{"id": 0, "name": "background"}, {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
    files = {"notes.json": json.dumps(notes), "images/a.jpg": jpeg(1, SIZE), "labels/a.png": encode_mask(LABELS)}
    found = look(put(tmp_path, files))
    assert pixels(found) == COUNTS and not kinds(found)


def brush(task, annotation, tag, labels, part=0):
    painted = Image.fromarray(np.where(labels, 255, 0).astype(np.uint8))
    return {f"masks/task-{task}-annotation-{annotation}-by-1-tag-{tag}-{part}.png": painted}


def test_brushes_of_label_studio_become_one_mask(tmp_path):
    """One file for each task and label; the export's JSON says which photograph a task is of."""
    tasks = [
        {"id": 7, "data": {"image": "/data/upload/1/0a1b2c3d-street.jpg"}, "annotations": []},
        {"id": 8, "image": "/data/local-files/?d=photos/cats/home.jpg"},
    ]
    files: dict = {"project-1-at-2024.json": json.dumps(tasks), "images/street.jpg": jpeg(1, SIZE)}
    files |= {"images/home.jpg": jpeg(2, SIZE)}
    for task, annotation in ((7, 3), (8, 5)):
        files |= brush(task, annotation, "cat", LABELS == 1) | brush(task, annotation, "dog", LABELS == 2)
    files |= brush(7, 2, "cat", LABELS == 0)  # An earlier annotation of the same task
    folder = put(tmp_path, files)
    found = look(folder)
    assert pixels(found) == COUNTS and sorted(found.checks) == ["home", "street"] and not errors(found)
    assert found.layout.label_set.classes == ("background", "cat", "dog")
    assert kinds(found)[Kind.SAME_NAME] == [
        "masks/task-7-annotation-2-by-1-tag-cat-0.png: annotation 3 of task 7 is used"
    ]
    put(folder, {"classes.txt": "background\ndog\nCat\n"})
    again = look(folder)
    assert pixels(again) == {"background": 1000, "Cat": 80, "dog": 120}
    put(folder, brush(7, 3, "bird", LABELS == 1))
    with pytest.raises(JobError, match="has the label bird, and the classes are background, dog, Cat"):
        look(folder)


def test_brushes_without_the_list_of_tasks(tmp_path):
    files = {"images/street.jpg": jpeg(1, SIZE)} | brush(7, 3, "cat", LABELS == 1)
    with pytest.raises(JobError, match=r"tag-cat-0\.png names a task of Label Studio.*JSON export"):
        look(put(tmp_path / "a", files))
    files = {"images/7.jpg": jpeg(1, SIZE)} | brush(7, 3, "cat", LABELS == 1) | brush(7, 3, "cat", LABELS == 2, part=1)
    assert pixels(look(put(tmp_path / "b", files))) == {"background": 1000, "cat": 200}


def test_classes_in_a_yaml_file(tmp_path):
    files = {"data.yaml": "train: images\nnames:\n  0: background\n  1: cat\n  2: dog\n", "images/a.jpg": jpeg(1, SIZE)}
    assert pixels(look(put(tmp_path, files | {"masks/a.png": encode_mask(LABELS)}))) == COUNTS


def test_cityscapes(tmp_path):
    files = {
        "leftImg8bit/train/ulm/ulm_1_leftImg8bit.png": jpeg(1, SIZE),
        "gtFine/train/ulm/ulm_1_gtFine_labelTrainIds.png": LABELS,
        "leftImg8bit/val/bonn/bonn_1_leftImg8bit.png": jpeg(2, SIZE),
        "gtFine/val/bonn/bonn_1_gtFine_labelTrainIds.png": LABELS,
    }
    found = look(put(tmp_path, files), classes="background,cat,dog")
    assert pixels(found) == COUNTS
    assert found.layout.lists == {"train": ["ulm/ulm_1_leftImg8bit"], "val": ["bonn/bonn_1_leftImg8bit"]}


@pytest.mark.parametrize("listed", [False, True])
def test_camvid_as_the_tutorials_have_it(tmp_path, listed):
    files: dict = {"classes.txt": "sky\ncat\nvoid\n"}
    for split in ("train", "val", "test"):
        files |= {f"{split}/0001_{split}.png": jpeg(1, SIZE), f"{split}annot/0001_{split}.png": LABELS}
        if listed:
            line = "/SegNet/CamVid/{0}/0001_{0}.png /SegNet/CamVid/{0}annot/0001_{0}.png\n"
            files[f"{split}.txt"] = line.format(split)
    found = look(put(tmp_path, files))
    assert found.layout.lists == {"train": ["0001_train"], "val": ["0001_val"], "test": ["0001_test"]}
    assert pixels(found) == {"sky": 1000, "cat": 80, "void": 120} and found.layout.label_set.void_values == (2,)
    assert not errors(found)


def test_camvid_with_its_colours(tmp_path):
    files = {
        "label_colors.txt": "128 128 128\tSky\n128 0 0\t\tBuilding\n0 0 0\tVoid\n",
        "701_StillsRaw_full/0001TP_1.png": jpeg(1, SIZE),
        "LabeledApproved_full/0001TP_1_L.png": painted({0: (128, 128, 128), 1: (128, 0, 0), 2: (0, 0, 0)}),
    }
    folder = put(tmp_path, files)
    found = look(folder, images="701_StillsRaw_full", masks="LabeledApproved_full")
    assert pixels(found) == {"Sky": 1000, "Building": 80, "void": 120}
    assert set(kinds(found)) == {Kind.RGB_MASK, Kind.NO_BACKGROUND}


# Folders


@pytest.mark.parametrize(
    "places",
    [
        ("train/images/", "train/masks/", "val/images/", "val/masks/"),
        ("images/train/", "labels/train/", "images/val/", "labels/val/"),
        ("images/training/", "annotations/training/", "images/validation/", "annotations/validation/"),
        ("train/", "train_labels/", "val/", "val_labels/"),
        ("train_images/", "train_masks/", "valid_images/", "valid_masks/"),
        ("data/mine/Train/Images/", "data/mine/Train/Masks/", "data/mine/Val/Images/", "data/mine/Val/Masks/"),
    ],
)
def test_folders_for_each_split(tmp_path, places):
    files: dict = {}
    for number, (images, masks) in enumerate((places[:2], places[2:])):
        files |= {f"{images}0{number}.jpg": jpeg(number, SIZE), f"{masks}0{number}.png": encode_mask(LABELS)}
    found = look(put(tmp_path, files), classes="background,cat,dog")
    assert found.layout.lists == {"train": ["00"], "val": ["01"]} and pixels(found) == COUNTS and not kinds(found)


def test_one_name_in_two_splits_is_two_images(tmp_path):
    files: dict = {}
    for split in ("train", "val"):
        files |= {f"{split}/images/1.jpg": jpeg(len(split), SIZE), f"{split}/masks/1.png": encode_mask(LABELS)}
    found = look(put(tmp_path, files), classes="background,cat,dog")
    assert found.layout.lists == {"train": ["train/1"], "val": ["val/1"]} and len(found.checks) == 2


@pytest.mark.parametrize("masks", ["Annotations", "masks", "SegmentationClassPNG", "gt"])
def test_masks_beside_jpegimages_under_another_name(tmp_path, masks):
    files = {"JPEGImages/a.jpg": jpeg(1, SIZE), f"{masks}/a.png": encode_mask(LABELS), "Annotations/a.xml": "<a/>"}
    assert pixels(look(put(tmp_path, files), classes="background,cat,dog")) == COUNTS


def test_folders_that_somebody_names(tmp_path):
    put(tmp_path / "photos", {"a.jpg": jpeg(1, SIZE), "b.jpg": jpeg(2, SIZE)})
    put(tmp_path / "elsewhere", {"a.png": encode_mask(LABELS), "b.png": encode_mask(LABELS)})
    given = {"images": str(tmp_path / "photos"), "masks": str(tmp_path / "elsewhere")}
    found = look(tmp_path / "photos", **given, classes="background, cat, dog")
    assert pixels(found) == COUNTS and sorted(found.checks) == ["a", "b"]
    with pytest.raises(JobError, match=r"Nothing in .*photos names the classes.*--classes"):
        look(tmp_path / "photos", **given)
    put(tmp_path, {"classes.txt": "background\ncat\ndog\n"})
    assert pixels(look(tmp_path / "photos", **given)) == COUNTS
    with pytest.raises(JobError, match="--images needs --masks"):
        look(tmp_path / "photos", images="photos")
    with pytest.raises(JobError, match="holds no files that end in"):
        look(tmp_path / "photos", images=str(tmp_path / "elsewhere2"), masks="x")


def test_names_of_voc_are_never_taken_without_a_word(tmp_path):
    folder = put(tmp_path, {"JPEGImages/a.jpg": jpeg(1, SIZE), "SegmentationClass/a.png": encode_mask(LABELS)})
    assert kinds(look(folder))[Kind.VOC_ASSUMED] == ["PASCAL VOC, assumed: no file names them"]
    assert Kind.VOC_ASSUMED not in kinds(look(folder, classes="voc"))
    put(folder, {"SegmentationClass/a.png": encode_mask(LABELS * 20)})
    assert errors(look(folder)) == [Kind.OUT_OF_RANGE]
    put(folder, {"SegmentationClass/a.png": painted({1: (1, 2, 3), 2: (128, 0, 0)})})
    assert errors(look(folder)) == [Kind.UNKNOWN_COLOURS]
    put(folder, {"classes.txt": "background\ncat\ndog\n", "labels.txt": "background\ndog\ncat\n"})
    assert kinds(look(folder))[Kind.CLASS_FILES_DIFFER] == ["labels.txt: classes.txt is used"]


@pytest.mark.parametrize("void", ["2", "dog", "2, 9", "DOG"])
def test_void_by_number_or_by_name(tmp_path, void):
    folder = put(tmp_path, {"images/a.jpg": jpeg(1, SIZE), "masks/a.png": encode_mask(LABELS)})
    found = look(folder, classes="background,cat,dog", void=void)
    assert pixels(found) == {"background": 1000, "cat": 80, "void": 120}
    assert found.layout.label_set.classes == ("background", "cat") and not errors(found)
    with pytest.raises(JobError, match="no class 'bird' that could be void: 0 background, 1 cat"):
        look(folder, classes="background,cat,dog", void="bird")


def test_what_the_doctor_says_of_a_void_label_helps(tmp_path):
    folder = put(tmp_path, {"JPEGImages/a.jpg": jpeg(1, SIZE), "SegmentationClass/a.png": encode_mask(LABELS)})
    put(folder, {"classes.txt": "background\ncat\n"})
    assert errors(look(folder)) == [Kind.OUT_OF_RANGE] and "`void`" in ADVICE[Kind.OUT_OF_RANGE].remedy
    for name in ("void", "Unlabelled", "ignore", "unlabeled"):
        put(folder, {"classes.txt": f"background\ncat\n{name}\n"})
        assert pixels(look(folder)) == {"background": 1000, "cat": 80, "void": 120}


# Pairs


def test_what_has_no_partner_is_a_finding(tmp_path):
    mask = encode_mask(LABELS)
    folder = put(
        tmp_path,
        {
            "classes.txt": "background\ncat\ndog\n",
            **{f"JPEGImages/{name}.jpg": jpeg(k, SIZE) for k, name in enumerate(("a", "b", "c", "lonely"))},
            **{f"SegmentationClass/{name}.png": mask for name in ("a", "b", "c", "nobody", NAME)},
            "JPEGImages/b.png": jpeg(9, SIZE),
            "SegmentationClass/c.bmp": mask,
        },
    )
    found = kinds(look(folder))
    assert found.pop(Kind.ORPHAN_MASK) == [
        "SegmentationClass/nobody.png: ",
        "SegmentationClass/task-1-annotation-1-tag-x-0.png: ",
    ]
    assert found.pop(Kind.UNMASKED) == ["JPEGImages/lonely.jpg: "]
    assert found.pop(Kind.SAME_NAME) == ["JPEGImages/b.png: b.jpg is used", "SegmentationClass/c.bmp: c.png is used"]
    assert not found


def test_names_that_differ_in_form_are_pairs(tmp_path):
    mask, name = encode_mask(LABELS), "Größe é"
    folder = put(
        tmp_path,
        {
            "classes.txt": "background\ncat\ndog\n",
            f"JPEGImages/{unicodedata.normalize('NFD', name)}.jpg": jpeg(1, SIZE),
            f"SegmentationClass/{unicodedata.normalize('NFC', name)}.png": mask,
            "JPEGImages/IMG_1.JPG": jpeg(2, SIZE),
            "SegmentationClass/img_1.PNG": mask,
            "JPEGImages/x.jpg": jpeg(3, SIZE),
            "SegmentationClass/x_label.png": mask,
            "ImageSets/Segmentation/train.txt": f"{name}\nimg_1\nx\n",
        },
    )
    found = look(folder)
    assert pixels(found) == COUNTS and not errors(found) and len(found.checks) == 3
    assert kinds(found)[Kind.NAMED_ALIKE] == [
        "JPEGImages/IMG_1.JPG: its mask is img_1.PNG",
        "JPEGImages/x.jpg: its mask is x_label.png",
    ]
    assert found.layout.lists["train"] == [unicodedata.normalize("NFC", name), "IMG_1", "x"]


def test_image_and_mask_side_by_side_under_one_name(tmp_path):
    files = {"classes.txt": "background\ncat\ndog\n", "a.jpg": jpeg(1, SIZE), "a.png": encode_mask(LABELS)}
    found = look(put(tmp_path, files | {"b.jpg": jpeg(2, SIZE), "b.png": encode_mask(LABELS)}))
    assert sorted(found.checks) == ["a", "b"] and pixels(found) == COUNTS and not kinds(found)


# Lists


@pytest.mark.parametrize(
    "text",
    [
        b"a\r\nb c\r\n",
        "\ufeffa\nb c\n".encode(),
        "a\r\nb c\r\n".encode("utf-16"),
        "a\r\nb c\r\n".encode("utf-16-le"),
        b"A.JPG\nB C.JPG\n",
        b"./JPEGImages/a.jpg\n./JPEGImages/b c.jpg\n",
        b"JPEGImages\\a.jpg\nD:\\x\\JPEGImages\\b c.jpg\n",
        b"\"a\"\n'b c'\n",
        b"a.jpg\ta.png\nb c.jpg\tb c.png\n",
        b"a.jpg a.png\nb c.jpg b c.png\n",
        b"JPEGImages/a.jpg,SegmentationClass/a.png\nJPEGImages/b c.jpg,SegmentationClass/b c.png\n",
        b"image,mask\na.jpg,a.png\nb c.jpg,b c.png\n",
        b'filename;label\n"a.jpg";"a.png"\n"b c.jpg";"b c.png"\n',
        b"# of 2024\na\nb c\n",
        b"// of 2024\na\nb c\n\x1a",
        b'["a", "b c"]',
        b'[\n "JPEGImages/a.jpg",\n "JPEGImages/b c.jpg"\n]\n',
        b"- a\n- b c\n",
        b'{"image": "a.jpg", "mask": "a.png"}\n{"image": "b c.jpg", "mask": "b c.png"}\n',
        b'{"file_name": "JPEGImages/a.jpg", "width": 8}\r\n{"file_name": "JPEGImages/b c.jpg", "width": 8}\r\n',
        b'{"ID": "a", "Split": "train"}\n\n{"ID": "b c", "Split": "train"}\n',
        b'["a.jpg", "a.png"]\n["b c.jpg", "b c.png"]\n',
        b'"a"\n"b c"\n',
        b'[{"path": "x/a.jpg"}, {"path": "x/b c.jpg"}]',
        b'{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b c.jpg"}], "annotations": []}',
        b"0,a.jpg\n1,b c.jpg\n",
        b",image\n0,a.jpg\n1,b c.jpg\n",
        b'"","image"\r\n"1","a.jpg"\r\n"2","b c.jpg"\r\n',
        b"17;a.jpg;a.png\n4;b c.jpg;b c.png\n",
        b"0\ta\n1\tb c\n",
        b"file:///x/JPEGImages/a.jpg\nfile:///x/JPEGImages/b%20c.jpg\n",
        b"/home/me/data/JPEGImages/a.jpg /home/me/data/SegmentationClass/a.png\n/home/me/data/JPEGImages/b c.jpg x\n",
    ],
)
def test_lists_in_any_form(tmp_path, text):
    files: dict = {"classes.txt": "background\ncat\ndog\n", "ImageSets/Segmentation/train.txt": text}
    for k, name in enumerate(("a", "b c", "c")):
        mask = encode_mask(np.zeros_like(LABELS) if name == "c" else LABELS)
        files |= {f"JPEGImages/{name}.jpg": jpeg(k, SIZE), f"SegmentationClass/{name}.png": mask}
    found = look(put(tmp_path, files))
    assert found.layout.lists == {"train": ["a", "b c"]} and pixels(found) == COUNTS
    assert set(kinds(found)) == {Kind.UNLISTED}


def test_a_list_of_json_lines_is_found_by_its_name(tmp_path):
    files: dict = {"classes.txt": "background\ncat\ndog\n"}
    for name in ("a", "b"):
        files |= {f"images/{name}.jpg": jpeg(1, SIZE), f"masks/{name}.png": encode_mask(LABELS)}
    files |= {"train.jsonl": '{"file_name": "images/a.jpg"}\n', "val.jsonl": '{"file_name": "images/b.jpg"}\n'}
    assert look(put(tmp_path, files)).layout.lists == {"train": ["a"], "val": ["b"]}


def test_a_column_that_counts_is_no_name_even_where_images_are_numbers(tmp_path):
    files: dict = {"classes.txt": "background\ncat\ndog\n"}
    for name in ("0", "1", "2", "3"):
        files |= {f"JPEGImages/{name}.jpg": jpeg(int(name), SIZE), f"SegmentationClass/{name}.png": encode_mask(LABELS)}
    for text, ids in [
        ("0,3.jpg\n1,2.jpg\n", ["3", "2"]),
        ("1,3.jpg\n2,2.jpg\n", ["3", "2"]),
        ("3,0.png\n2,1.png\n", ["3", "2"]),  # These numbers do not count
        ("0\n1\n", ["0", "1"]),
    ]:
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        place.mkdir()
        assert look(put(place, files | {"train.txt": text})).layout.lists["train"] == ids, text


def test_a_list_that_names_masks_pairs_them(tmp_path):
    files = {"classes.txt": "background\ncat\ndog\n", "train_list.txt": "JPEGImages/1.jpg Annotations/m_7.png\n"}
    files |= {"JPEGImages/1.jpg": jpeg(1, SIZE), "Annotations/m_7.png": encode_mask(LABELS)}
    found = look(put(tmp_path, files))
    assert found.layout.lists == {"train": ["1"]} and pixels(found) == COUNTS and not kinds(found)


def test_a_list_of_a_form_that_is_not_known_says_what_it_has(tmp_path):
    files = {
        "classes.txt": "background\ncat\ndog\n",
        "train.txt": "{'file': 17}\n{'file': 18}\n",
    }
    files |= {"JPEGImages/1.jpg": jpeg(1, SIZE), "SegmentationClass/1.png": encode_mask(LABELS)}
    found = kinds(look(put(tmp_path, files)))
    detail = "no line names an image that is there; the first is \"{'file': 17}\""
    assert found[Kind.LIST_BROKEN] == [f"train.txt: {detail}"]
    assert "its name or its path" in ADVICE[Kind.LIST_BROKEN].remedy


# Masks


def test_black_and_white_may_be_two_classes(tmp_path):
    white = np.where(LABELS > 0, 255, 0).astype(np.uint8)
    files = {"labelmap.txt": "background:0,0,0::\ncat:255,255,255::\n", "JPEGImages/a.jpg": jpeg(1, SIZE)}
    for mask in (white, np.repeat(white[..., None], 3, 2), Image.fromarray(white).convert("P")):
        found = look(put(tmp_path, files | {"SegmentationClass/a.png": mask}))
        assert pixels(found) == {"background": 1000, "cat": 200} and set(kinds(found)) == {Kind.RGB_MASK}


def test_palettes_of_voc_that_a_program_reordered(tmp_path):
    """Pillow's own optimiser: only the used colours are left, in another order."""
    seen = Image.fromarray(palette()[LABELS * 12 // 2]).quantize(3)
    folder = put(tmp_path, {"JPEGImages/a.jpg": jpeg(1, SIZE), "SegmentationClass/a.png": seen})
    assert Kind.PALETTE_PERMUTED in kinds(look(folder, classes="voc"))
    right = look(folder, classes="voc", by_colour=True)
    assert pixels(right) == {"background": 1000, "bus": 80, "dog": 120}


@pytest.mark.parametrize("struct", [True, False])
def test_rows_of_parquet_files_as_hugging_face_keeps_them(tmp_path, struct):
    def cell(data):
        return {"bytes": data, "path": None} if struct else data

    mask = encode_mask(LABELS)
    for number, name in enumerate(("train-00000-of-00001-0a1b", "validation-00000-of-00001")):
        images = [cell(jpeg(10 * number + k, SIZE)) for k in range(5)]
        table = pa.table({"scene": [1] * 5, "image": images, "label": [cell(mask)] * 4 + [cell(None)]})
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "data" / f"{name}.parquet", row_group_size=2)
    with pytest.raises(JobError, match="names the classes"):
        look(tmp_path)
    put(tmp_path, {"id2label.json": json.dumps({"0": "background", "1": "cat", "2": "dog"})})
    found = look(tmp_path)
    assert {name: len(ids) for name, ids in found.layout.lists.items()} == {"train": 5, "val": 5}
    assert kinds(found) == {
        Kind.MASK_UNREADABLE: [
            f"data/{name}.parquet, row 4: the column label has no bytes in this row"
            for name in ("train-00000-of-00001-0a1b", "validation-00000-of-00001")
        ]
    }
    counts, _ = label_counts(found, list(found.checks))
    assert counts[:3].tolist() == [8 * COUNTS[name] for name in ("background", "cat", "dog")]
