"""Datasets whose masks are drawn, in the form in which each tool exports them: the right class for every pixel."""

import base64
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from segcore.datasets.pair_check import Kind
from segcore.images.masks import decode_mask
from tasks import storage
from tasks.datasets.prepare import DatasetJob, check_pairs, fetch_archives, unpack_archives, write_shards
from tasks.datasets.shards import iterate_rows, read_manifest
from tasks.errors import JobError
from tasks.storage import locate
from tests.datasets import jpeg
from tests.tasks.test_layouts_of_others import COUNTS, LABELS, SIZE, kinds, look, pixels, put

CAT = [3, 2, 13, 2, 13, 10, 3, 10]
DOG = [20, 15, 32, 15, 32, 25, 20, 25]
NAMES = {"cat": CAT, "dog": DOG}


def pairs(flat):
    return [flat[k : k + 2] for k in range(0, len(flat), 2)]


def photographs(*names):
    return {name: jpeg(number, SIZE) for number, name in enumerate(names)}


def coco(*images, **more):
    annotations = [
        {"image_id": number, "category_id": 17 + k, "segmentation": [flat], "area": 100, "bbox": [0, 0, 1, 1]}
        for number in range(len(images))
        for k, flat in enumerate(NAMES.values())
    ]
    listed = [{"id": n, "file_name": name, "width": 40, "height": 30} for n, name in enumerate(images)]
    categories = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    return json.dumps({"images": listed, "annotations": annotations, "categories": categories} | more)


def labelme(name, **more):
    shapes = [{"label": label, "points": pairs(flat), "shape_type": "polygon"} for label, flat in NAMES.items()]
    content = {"shapes": shapes, "imagePath": name, "imageData": None, "imageHeight": 30, "imageWidth": 40}
    return json.dumps(content | more)


def yolo(flats):
    lines = [
        f"{k} {' '.join(str(v / SIZE[n % 2]) for n, v in enumerate(flat))}\n" for k, flat in enumerate(flats) if flat
    ]
    return "".join(lines)


def test_coco_as_it_is_published(tmp_path):
    places = photographs("train2017/a.jpg", "train2017/b.jpg", "val2017/a.jpg", "val2017/c.jpg")
    files = places | {
        "annotations/instances_train2017.json": coco("a.jpg", "b.jpg"),
        "annotations/instances_val2017.json": coco("a.jpg", "c.jpg"),
        "annotations/person_keypoints_val2017.json": coco("a.jpg", keypoints=[]),
        "annotations/captions_val2017.json": json.dumps({"images": [], "annotations": []}),
    }
    found = look(put(tmp_path, files))
    assert {name: len(ids) for name, ids in found.layout.lists.items()} == {"train": 2, "val": 2}
    assert pixels(found) == COUNTS and not kinds(found)
    assert found.layout.label_set.classes == ("background", "cat", "dog")


def test_coco_of_roboflow_whose_first_category_is_the_dataset_itself(tmp_path):
    above = [{"id": 0, "name": "pets", "supercategory": "none"}]
    both = above + [{"id": 17 + k, "name": name, "supercategory": "pets"} for k, name in enumerate(NAMES)]
    files = photographs("train/a_jpg.rf.0f3.jpg", "valid/b_jpg.rf.77a.jpg") | {
        "train/_annotations.coco.json": coco("a_jpg.rf.0f3.jpg", categories=both),
        "valid/_annotations.coco.json": coco("b_jpg.rf.77a.jpg", categories=both),
    }
    found = look(put(tmp_path, files))
    assert found.layout.label_set.classes == ("background", "cat", "dog")
    assert pixels(found) == COUNTS and not kinds(found) and found.layout.lists.keys() == {"train", "val"}


def test_the_smaller_one_lies_on_top_in_coco_and_yolo(tmp_path):
    whole = [0, 0, 40, 0, 40, 30, 0, 30]
    over = [
        {"image_id": 0, "category_id": 17, "segmentation": [CAT], "area": 80},
        {"image_id": 0, "category_id": 18, "segmentation": [whole], "area": 1200},
    ]
    found = look(put(tmp_path / "coco", photographs("a.jpg") | {"a.json": coco("a.jpg", annotations=over)}))
    assert pixels(found) == {"cat": 80, "dog": 1120}
    files = photographs("images/a.jpg") | {"labels/a.txt": yolo([CAT, whole]), "data.yaml": "names: [cat, dog]"}
    assert pixels(look(put(tmp_path / "yolo", files))) == {"cat": 80, "dog": 1120}


@pytest.mark.parametrize("pattern", ["images/{}/{}.{}", "{}/images/{}.{}", "{}/{}.{}"])
def test_yolo(tmp_path, pattern):
    files = {"data.yaml": "train: images/train\nnames:\n  0: cat\n  1: dog\n"}
    for number, (split, name) in enumerate((("train", "a"), ("train", "b"), ("val", "a"))):
        image = pattern.format(split, name, "jpg")
        files |= {
            image: jpeg(number, SIZE),
            image.replace("images", "labels").replace(".jpg", ".txt"): yolo([CAT, DOG]),
        }
    found = look(put(tmp_path, files))
    assert pixels(found) == COUNTS and not kinds(found)
    assert {name: len(ids) for name, ids in found.layout.lists.items()} == {"train": 2, "val": 1}


def test_yolo_of_a_photograph_that_exif_turns_is_of_it_upright(tmp_path):
    turned = Image.new("RGB", SIZE[::-1], "grey")
    exif = turned.getexif()
    exif[0x0112] = 6
    sink = io.BytesIO()
    turned.save(sink, "JPEG", exif=exif)
    files = {"images/a.jpg": sink.getvalue(), "labels/a.txt": yolo([CAT, DOG]), "classes.txt": "cat\ndog\n"}
    assert pixels(look(put(tmp_path, files))) == COUNTS


def test_numbers_without_names_are_asked_for_and_void_among_them_is_void(tmp_path):
    files = photographs("images/a.jpg") | {"labels/a.txt": yolo([CAT, DOG])}
    with pytest.raises(JobError, match="names the classes"):
        look(put(tmp_path, files))
    assert pixels(look(tmp_path, classes="cat,dog")) == COUNTS
    assert pixels(look(tmp_path, classes="cat,dog", void="dog")) == {"background": 1000, "cat": 80, "void": 120}
    found = look(tmp_path, classes="cat")
    assert kinds(found) == {
        Kind.MASK_UNREADABLE: ["labels/a.txt, images/a.jpg: it has the class 1, and 1 are named, from 0 on"]
    }


@pytest.mark.parametrize(
    ("text", "why"), [("0 0.5 0.5 0.2 0.2\n", "a box, not an outline"), ("cat in grass\n", "no outline of YOLO")]
)
def test_text_that_is_no_outline_is_told(tmp_path, text, why):
    with pytest.raises(JobError, match=why):
        look(put(tmp_path, photographs("images/a.jpg") | {"labels/a.txt": text, "classes.txt": "cat"}))


def test_labelme_of_several_shapes(tmp_path):
    box = Image.fromarray(np.full((8, 10), 255, np.uint8)).convert("1")
    sink = io.BytesIO()
    box.save(sink, "PNG")
    shapes = [
        {
            "label": "cat",
            "points": [[3, 2], [13, 10]],
            "shape_type": "mask",
            "mask": base64.b64encode(sink.getvalue()).decode(),
        },
        {"label": "dog", "points": [[20, 15], [32, 25]], "shape_type": "rectangle"},
        {"label": "post", "points": [[1, 1]], "shape_type": "point"},
    ]
    files = photographs("a.jpg", "b.jpg") | {
        "a.json": labelme("a.jpg", shapes=shapes),
        "b.json": labelme("..\\old name.jpg"),  # Renamed since
    }
    found = look(put(tmp_path, files))
    assert pixels(found) == COUNTS and not kinds(found)
    shapes = [{"label": "cat", "points": [[20, 15], [30, 15]], "shape_type": "circle"}]
    circle = look(put(tmp_path / "circle", photographs("a.jpg") | {"a.json": labelme("a.jpg", shapes=shapes)}))
    assert abs(pixels(circle)["cat"] - np.pi * 100) < 10


def test_labels_beside_labelme_give_the_order_and_what_is_drawn_counts_where_they_lack_a_name(tmp_path):
    files = photographs("a.jpg") | {"a.json": labelme("a.jpg"), "labels.txt": "__ignore__\n_background_\ndog\ncat\n"}
    assert look(put(tmp_path, files)).layout.label_set.classes == ("background", "dog", "cat")
    assert pixels(look(tmp_path)) == COUNTS
    put(tmp_path, {"labels.txt": "_background_\nhorse\n"})
    assert look(tmp_path).layout.label_set.classes == ("background", "cat", "dog")
    assert Kind.MASK_UNREADABLE in kinds(look(tmp_path, classes="background,cat"))


def test_cvat_for_images(tmp_path):
    def drawn(name):
        shapes = "".join(
            f'<polygon label="{label}" points="{";".join(f"{x},{y}" for x, y in pairs(flat))}" z_order="0"/>'
            for label, flat in NAMES.items()
        )
        return f'<image id="0" name="{name}" width="40" height="30">{shapes}</image>'

    labels = "".join(f"<label><name>{name}</name></label>" for name in ("dog", "cat", "fox"))
    images = drawn("a.jpg") + drawn("x/a.jpg")
    text = f"<annotations><meta><task><labels>{labels}</labels></task></meta>{images}</annotations>"
    files = photographs("images/a.jpg", "images/x/a.jpg") | {"annotations.xml": text}
    found = look(put(tmp_path, files))
    assert pixels(found) == COUNTS and found.layout.label_set.classes == ("background", "dog", "cat", "fox")
    assert list(kinds(found)) == [Kind.CLASS_ABSENT]


def test_label_studio(tmp_path):
    def result(label, flat):
        points = [[100 * x / 40, 100 * y / 30] for x, y in pairs(flat)]
        return {
            "original_width": 40,
            "original_height": 30,
            "value": {"points": points, "polygonlabels": [label]},
            "type": "polygonlabels",
        }

    results = [result(label, flat) for label, flat in NAMES.items()]
    tasks = [
        {"id": 1, "data": {"image": "/data/upload/1/0a1b2c3d-a.jpg"}, "annotations": [{"id": 1, "result": results}]},
        {"id": 2, "data": {"image": "/data/upload/1/0a1b2c3d-b.jpg"}, "annotations": []},
    ]
    found = look(put(tmp_path, photographs("a.jpg", "b.jpg") | {"project-1.json": json.dumps(tasks)}))
    assert pixels(found) == COUNTS
    assert kinds(found) == {Kind.UNMASKED: ["b.jpg: "]}  # That nobody has looked at yet


def test_a_file_of_annotations_that_somebody_names(tmp_path):
    files = photographs("photos/a.jpg", "photos/b.jpg") | {"elsewhere/mine.json": coco("a.jpg", "gone.jpg")}
    put(tmp_path, files)
    found = look(tmp_path, images="photos", masks="elsewhere/mine.json")
    assert pixels(found) == COUNTS
    assert kinds(found) == {
        Kind.ORPHAN_MASK: ["elsewhere/mine.json: gone.jpg"],
        Kind.UNMASKED: ["photos/b.jpg: "],
    }
    with pytest.raises(JobError, match="There is no file"):
        look(tmp_path, images="photos", masks="elsewhere/yours.json")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (coco("a.jpg")[:-20], "it is no JSON"),
        (coco("a.jpg", annotations=[{"image_id": 0, "category_id": 17, "bbox": [1, 1, 3, 3]}]), "boxes, no outlines"),
    ],
)
def test_annotations_that_cannot_be_used_say_why(tmp_path, text, why):
    with pytest.raises(JobError, match=f"labels.coco.json: {why}|labels.coco.json: it has {why}"):
        look(put(tmp_path, photographs("a.jpg") | {"labels.coco.json": text}))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", {"images": [{"id": []}], "annotations": [{"segmentation": 1}], "categories": []}),
        (
            "a.json",
            {"shapes": [{"label": 1, "points": [[1], {}]}], "imagePath": 7, "imageWidth": 40, "imageHeight": 30},
        ),
        ("a.json", {"shapes": [{"points": 3}], "imagePath": "a.jpg", "imageWidth": 40, "imageHeight": 30}),
        ("a.json", [{"data": {"image": "a.jpg"}, "annotations": [{"result": [{"value": {"points": 3}}]}]}]),
        ("a.json", [{"data": 3, "annotations": 4, "result": 5}]),
    ],
)
def test_what_only_looks_like_annotations_ends_in_a_sentence_or_a_finding(tmp_path, name, content):
    put(tmp_path, photographs("a.jpg") | {name: json.dumps(content)})
    try:
        assert kinds(look(tmp_path))[Kind.MASK_UNREADABLE]
    except JobError as error:
        assert any(words in str(error) for words in ("a.json", "not in VOC layout", "names the classes"))


def test_one_damaged_region_is_a_finding_of_its_image(tmp_path):
    broken = [{"image_id": 1, "category_id": 17, "segmentation": [[1, 2]]}]
    content = json.loads(coco("a.jpg"))
    content["images"].append({"id": 1, "file_name": "b.jpg", "width": 40, "height": 30})
    content["annotations"] += broken
    found = look(put(tmp_path, photographs("a.jpg", "b.jpg") | {"all.json": json.dumps(content)}))
    assert [line.partition(": ")[0] for line in kinds(found)[Kind.MASK_UNREADABLE]] == ["all.json, b.jpg"]


def test_an_archive_of_them_becomes_shards_with_these_masks(tmp_path):
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for path, data in (photographs("train/a.jpg", "valid/b.jpg")).items():
            archive.writestr(path, data)
            archive.writestr(f"{path.partition('/')[0]}/_annotations.coco.json", coco(path.partition("/")[2]))
    job = DatasetJob(output=str(tmp_path / "out"), data=str(tmp_path / "export.zip"), work=str(tmp_path / "work"))
    sources = unpack_archives(job, fetch_archives(job))
    check_pairs(job, sources)
    assert write_shards(job, sources).splits == {"train": 1, "val": 1}
    place = locate(job.output)
    manifest = read_manifest(place)
    rows = [row for split in manifest.splits.values() for row in iterate_rows(place, split)]
    assert len(rows) == 2 and all(np.array_equal(decode_mask(row["mask"]), LABELS) for row in rows)
    assert storage.exists(place / "gallery.png")
