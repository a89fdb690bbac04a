"""Exports for tools that people correct masks in, or train with: read back as those tools read them."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from segcore.annotations import coco, cvat, label_studio
from segcore.annotations.polygons import filled, points_of
from segcore.annotations.regions import painted
from segcore.images.decoding import decode
from segcore.voc import CLASSES
from tasks.errors import JobError
from tasks.results.export import ExportJob, export_run
from tasks.results.query import FindJob, find
from tasks.results.reading import open_results
from tests.outputs import HOSTILE_CLASSES, HOSTILE_NAMES, mask_row, small_rows, write_run

LABELS = {name: label for label, name in enumerate(CLASSES)}


def export_to(kind, output, folder, **options):
    return export_run(ExportJob(output=str(output), to=kind, destination=str(folder), **options))


def read_back(kind, folder):
    """Label maps of an export by the name of the image, with regions accepted as they are."""
    if kind == "label-studio":
        tasks = json.loads((folder / "tasks.json").read_text())
        accepted = [{"data": t["data"], "annotations": [{"id": 1, **t["predictions"][0]}]} for t in tasks]
        found = label_studio.read_tasks(json.dumps(accepted).encode())
    elif kind == "cvat":
        found = cvat.read_images([(folder / "annotations.xml").read_bytes()])
    else:
        found = coco.read_images((folder / "annotations.json").read_bytes())
    return {i.identity or i.name: painted(i.regions(), LABELS, i.height, i.width, 0) for i in found if i.regions()}


@pytest.mark.parametrize("kind", ["label-studio", "cvat", "coco"])
@pytest.mark.parametrize("shapes", [{}, {"shapes": "polygons", "tolerance_px": 0}], ids=["masks", "polygons"])
def test_every_pixel_comes_back(kind, shapes, small_output, tmp_path):
    report = export_to(kind, small_output, tmp_path / "out", **shapes)
    masks = dict(open_results(small_output))
    found = read_back(kind, tmp_path / "out")
    assert found.keys() == masks.keys() and report.masks == 30 and report.annotations >= 59
    assert all(np.array_equal(found[image_id], labels) for image_id, labels in masks.items())
    again = export_to(kind, small_output, tmp_path / "out", **shapes)
    assert again.done_before == 30


def test_tasks_say_which_model_how_sure_and_where_the_photograph_is(small_output, tmp_path):
    export_to("label-studio", small_output, tmp_path / "plain")
    export_to("label-studio", small_output, tmp_path / "copied", photographs=True)
    export_to("label-studio", small_output, tmp_path / "served", images_at="https://example.org/photos/")
    results = open_results(small_output)
    for name, address in (
        ("plain", None),
        ("copied", "/data/local-files/?d=images/"),
        ("served", "https://example.org/photos/"),
    ):
        tasks = json.loads((tmp_path / name / "tasks.json").read_text())
        for task in tasks:
            row = results.row(task["data"]["image_id"])
            assert task["data"]["image"] == (row["uri"] if address is None else f"{address}{row['image_id']}")
            [prediction] = task["predictions"]
            assert prediction["model_version"] == f"test run {results.run_id}"
            assert prediction["score"] == pytest.approx(row["confidence"], abs=1e-5)
            scores = {r["value"]["brushlabels"][0]: r["score"] for r in prediction["result"]}
            wanted = {c["name"]: c["confidence"] for c in row["classes"] if c["name"] != "background"}
            assert scores == pytest.approx(wanted, abs=1e-5)
    assert len(list((tmp_path / "copied/images").glob("*.jpg"))) == 30
    assert '<Label value="tvmonitor"' in (tmp_path / "plain/label_config.xml").read_text()


def test_cvat_has_the_labels_of_a_project(small_output, tmp_path):
    export_to("cvat", small_output, tmp_path / "out", photographs=True)
    labels = json.loads((tmp_path / "out/labels.json").read_text())
    assert [label["name"] for label in labels] == list(CLASSES[1:]) and labels[11]["color"] == "#400080"
    assert 'score">0.90000' in (tmp_path / "out/annotations.xml").read_text()


def test_hugging_face_reads_pictures_and_masks(small_output, tmp_path):
    report = export_to("hf", small_output, tmp_path / "out")
    assert report.photographs == report.masks == 30 and report.photographs_missing == 0
    masks, seen = dict(open_results(small_output)), set()
    for place in (tmp_path / "out/data").glob("*.parquet"):
        table = pq.read_table(place)
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        assert features.keys() == set(table.column_names) and features["mask"] == {"_type": "Image"}
        for row in table.to_pylist():
            labels = np.array(Image.open(io.BytesIO(row["mask"]["bytes"])))
            picture = Image.open(io.BytesIO(row["image"]["bytes"]))
            assert np.array_equal(labels, masks[row["image_id"]]) and picture.size == labels.shape[::-1]
            assert set(row["classes"]) == {CLASSES[k] for k in np.unique(labels)}
            seen.add(row["image_id"])
    assert seen == masks.keys()
    assert json.loads((tmp_path / "out/id2label.json").read_text())["12"] == "dog"


def test_yolo_has_polygons_lists_and_names(small_output, tmp_path):
    report = export_to("yolo", small_output, tmp_path / "out", photographs=True, tolerance_px=0)
    assert report.photographs == 30
    about = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    assert about["names"] == {k - 1: name for k, name in enumerate(CLASSES) if k}
    lists = {split: (tmp_path / "out" / about[split]).read_text().splitlines() for split in ("train", "val")}
    assert not set(lists["train"]) & set(lists["val"]) and len(lists["train"]) + len(lists["val"]) == 30
    masks = dict(open_results(small_output))
    for line in lists["train"] + lists["val"]:
        image = tmp_path / "out" / line
        labels = np.zeros(masks[image.name].shape, np.uint8)
        for text in (tmp_path / "out/labels" / image.name).with_suffix(".txt").read_text().splitlines():
            number, *numbers = text.split()
            points = points_of([float(value) for value in numbers]) * labels.shape[::-1]
            labels[filled([np.round(points, 2)], *labels.shape)] = int(number) + 1
        assert np.array_equal(labels, masks[image.name]) and Image.open(image).size == labels.shape[::-1]


def test_what_a_question_finds_is_exported(small_output, tmp_path):
    asked = {"classes": ("dog",), "min_share": 0.05, "sort": "confidence", "limit": 1}
    [found] = find(small_output, FindJob(**asked)).arrow()["image_id"].to_pylist()
    export_to("cvat", small_output, tmp_path / "asked", **asked)
    assert read_back("cvat", tmp_path / "asked").keys() == {found}
    wanted = find(small_output, FindJob(sort="annotate", limit=7)).arrow()
    pq.write_table(wanted, tmp_path / "ids.parquet")
    (tmp_path / "ids.json").write_text(json.dumps(wanted.to_pylist(), default=str))
    (tmp_path / "ids.csv").write_text(
        "image_id,confidence\n" + "".join(f"{i},1\n" for i in wanted["image_id"].to_pylist())
    )
    for ending in ("parquet", "json", "csv"):
        export_to("label-studio", small_output, tmp_path / ending, ids=str(tmp_path / f"ids.{ending}"))
        assert read_back("label-studio", tmp_path / ending).keys() == set(wanted["image_id"].to_pylist())
    both = {"ids": str(tmp_path / "ids.json"), "max_confidence": 1.0, "limit": 1000}
    export_to("coco", small_output, tmp_path / "both", **both)
    assert read_back("coco", tmp_path / "both").keys() == set(wanted["image_id"].to_pylist())


def test_senseless_questions_are_one_sentence(small_output, tmp_path):
    (tmp_path / "x.csv").write_text("name\na.jpg\n")
    for options, words in [
        ({"to": "png", "shapes": "polygons"}, "Masks of png are pictures"),
        ({"to": "hf", "shapes": "polygons"}, "Masks of hf are pictures"),
        ({"to": "cvat", "images_at": "x"}, "--images-at is for"),
        ({"to": "cvat", "ids": str(tmp_path / "x.csv")}, "no column image_id"),
        ({"to": "cvat", "max_confidence": 0.0}, "nothing to export"),
        ({"to": "cvat", "min_share": 0.5}, "name one with --class"),
        ({"to": "cvat", "classes": ("dgo",)}, "holds 'dgo'"),
    ]:
        with pytest.raises(JobError, match=words):
            export_run(ExportJob(output=small_output, destination=str(tmp_path / "e"), **options))
    assert not (tmp_path / "e").exists()


def test_a_mask_smaller_than_its_photograph_is_laid_on_it(tmp_path):
    rows = small_rows(tmp_path / "photographs", num_images=2)
    labels = np.array([[0, 1], [2, 0]], np.uint8)
    rows[0] = mask_row("000.jpg", rows[0]["uri"], labels) | {"width": 48, "height": 65}
    write_run(str(tmp_path / "out"), "r", rows)
    for kind in ("label-studio", "cvat"):
        export_to(kind, tmp_path / "out", tmp_path / kind)
        found = read_back(kind, tmp_path / kind)["000.jpg"]
        assert found.shape == (65, 48) and (found[:32, 24:] == 1).all() and (found[33:, :24] == 2).all()


@pytest.mark.parametrize("kind", ["label-studio", "cvat", "yolo", "hf"])
def test_hostile_names_and_classes(kind, tmp_path):
    labels = np.full((4, 5), 1, np.uint8)
    labels[0] = 2
    names = [*HOSTILE_NAMES, "../../up.jpg"]
    rows = [mask_row(name, "/nowhere", labels, names=HOSTILE_CLASSES) for name in names]
    write_run(str(tmp_path / "out"), "r", rows, class_names=list(HOSTILE_CLASSES))
    photographs = {} if kind == "hf" else {"photographs": True}
    report = export_to(kind, tmp_path / "out", tmp_path / kind, **photographs)
    assert report.masks == report.photographs_missing == len(names)
    assert {p.name for p in tmp_path.iterdir()} == {"out", kind}
    if kind == "yolo":
        about = yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())
        assert about["names"] == dict(enumerate(HOSTILE_CLASSES[1:]))
    elif kind == "cvat":
        found = list(cvat.read_images([(tmp_path / "cvat/annotations.xml").read_bytes()]))
        assert {region.name for image in found for region in image.regions()} == set(HOSTILE_CLASSES[1:3])
    elif kind == "label-studio":
        tasks = json.loads((tmp_path / "label-studio/tasks.json").read_text())
        assert [task["data"]["image_id"] for task in tasks] == names


def test_photographs_of_yolo_lie_as_their_masks(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert decode((tmp_path / "a.jpg").read_bytes()).image.shape == (30, 20, 3)
    write_run(str(tmp_path / "out"), "r", [mask_row("a.jpg", str(tmp_path / "a.jpg"), np.ones((30, 20), np.uint8))])
    export_to("yolo", tmp_path / "out", tmp_path / "yolo", photographs=True)
    with Image.open(tmp_path / "yolo/images/a.jpg") as copied:
        assert copied.size == (20, 30) and not copied.getexif()
    assert (tmp_path / "yolo/train.txt").read_text() == (tmp_path / "yolo/val.txt").read_text() == "./images/a.jpg\n"
