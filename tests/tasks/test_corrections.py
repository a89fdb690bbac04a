"""Masks go out for review and come back corrected: every pixel, and who was changed."""

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
import zipfile

import numpy as np
import pytest
from PIL import Image

from flows import jobs
from flows.execution import directly
from segcore.annotations import cvat, label_studio
from segcore.annotations.regions import regions_of
from segcore.images.masks import decode_mask, encode_mask
from segcore.voc import CLASSES
from tasks import storage
from tasks.datasets.shards import read_manifest
from tasks.errors import JobError
from tasks.results.export import ExportJob, export_run
from tasks.results.reading import open_results
from tasks.review.corrections import CorrectionsJob, collect_corrections
from tasks.training.data import SplitReader
from tests.conftest import ROOT, photograph
from tests.outputs import error_row, mask_row, small_rows, write_run

DOG, CAT = CLASSES.index("dog"), CLASSES.index("cat")
NAMES = dict(enumerate(CLASSES))


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """A run of twelve masks and an error."""
    folder = tmp_path_factory.mktemp("corrected")
    rows = small_rows(folder / "photographs", num_images=12)
    write_run(str(folder / "out"), "r", [*rows, error_row("bad.jpg", "/bad.jpg")], class_names=list(CLASSES))
    return str(folder / "out")


def changed(labels):
    """What an annotator does: some rows become dog."""
    after = labels.copy()
    after[7:12, 3:20] = DOG
    return after


def edited(kind, folder, masks):
    """The export of a tool whose annotator has changed the first, accepted the others and left out the last three."""
    if kind == "label-studio":
        tasks = json.loads((folder / "tasks.json").read_text())
        for number, task in enumerate(tasks):
            labels = masks[task["data"]["image_id"]]
            task["id"] = number + 100
            if number == 0:
                height, width = labels.shape
                facts = {"address": "", "identity": "", "model_version": "", "score": None, "tolerance_px": None}
                regions = regions_of(changed(labels), NAMES)
                task["annotations"] = label_studio.task_of(regions, width=width, height=height, **facts)["predictions"]
            elif number < len(tasks) - 3:
                task["annotations"] = [{"id": number, "result": task["predictions"][0]["result"]}]
        place = folder / "project.json"
        place.write_text(json.dumps(tasks))
        return place
    if kind == "cvat":
        tree = ET.parse(folder / "annotations.xml")
        images = tree.getroot().findall("image")
        for image in images[-3:]:
            tree.getroot().remove(image)
        first = images[0]
        labels = changed(masks[first.get("name")])
        for shape in list(first):
            first.remove(shape)
        new = cvat.image_of(
            regions_of(labels, NAMES),
            number=0,
            name="",
            width=labels.shape[1],
            height=labels.shape[0],
            tolerance_px=None,
        )
        first.extend(ET.fromstring(new))
        tree.write(folder / "edited.xml")
        with zipfile.ZipFile(folder / "job.zip", "w") as archive:
            archive.write(folder / "edited.xml", "annotations.xml")
        return folder / "job.zip"
    if kind == "coco":
        document = json.loads((folder / "annotations.json").read_text())
        images = document["images"]
        gone = {image["id"] for image in images[-3:]}
        labels = changed(masks[images[0]["identity"]])
        gone_too = images[0]["id"]
        document["annotations"] = [
            a for a in document["annotations"] if a["image_id"] not in gone and a["image_id"] != gone_too
        ]
        for label in np.unique(labels)[1:].tolist():
            flat = (labels == label).ravel(order="F")
            counts = np.diff([0, *np.flatnonzero(np.diff(flat)) + 1, flat.size]).tolist()
            segmentation = {"size": list(labels.shape), "counts": [0] * int(flat[0]) + counts}
            document["annotations"].append({"image_id": gone_too, "category_id": label, "segmentation": segmentation})
        document["images"] = [{k: v for k, v in i.items() if k != "identity"} for i in images if i["id"] not in gone]
        (folder / "result.json").write_text(json.dumps(document))
        return folder / "result.json"
    names = sorted(folder.glob("*.png"))
    for place in names[-3:]:
        place.unlink()
    names[0].write_bytes(encode_mask(changed(decode_mask(names[0].read_bytes()))))
    return folder


def stored(dataset):
    """Masks of a prepared dataset by id."""
    place = storage.locate(str(dataset))
    manifest = read_manifest(place)
    masks = {}
    for split in manifest.splits.values():
        reader = SplitReader(place, split, 1 << 20)
        for number, image_id in enumerate(reader.ids):
            masks[image_id] = reader.decoded(number)[1]
    return manifest, masks


@pytest.mark.parametrize("kind", ["label-studio", "cvat", "coco", "png"])
def test_the_loop_is_closed(kind, output, tmp_path):
    masks = dict(open_results(output))
    export_run(ExportJob(output=output, to=kind, destination=str(tmp_path / "review")))
    corrections = edited(kind, tmp_path / "review", masks)
    job = CorrectionsJob(output=output, corrections=str(corrections), source=kind, dataset=str(tmp_path / "dataset"))
    report = jobs.import_corrections(job, directly)
    first, *others = sorted(masks)
    wanted = {first: changed(masks[first])} | {image_id: masks[image_id] for image_id in others[:-3]}
    assert (report.changed, report.unchanged, report.not_reviewed) == (1, 8, 3)
    assert not report.refused and not report.unknown and not report.new_classes
    differs = wanted[first] != masks[first]
    assert report.pixels_changed == differs.sum() and report.pixels == sum(m.size for m in wanted.values())
    assert report.classes["dog"].gained == differs.sum() and report.classes["dog"].lost == 0
    lost = {NAMES[k]: int((masks[first][differs] == k).sum()) for k in np.unique(masks[first][differs])}
    assert {name: change.lost for name, change in report.classes.items() if change.lost} == lost
    manifest, found = stored(tmp_path / "dataset")
    assert manifest.classes == list(CLASSES) and report.dataset.splits == {"train": 8, "val": 1}
    assert {f"{i}.jpg" for i in found} == wanted.keys()
    assert all(np.array_equal(found[i.removesuffix(".jpg")], labels) for i, labels in wanted.items())
    again = jobs.import_corrections(job, directly)
    assert again.dataset.unchanged and again.model_dump(exclude={"dataset"}) == report.model_dump(exclude={"dataset"})
    only = jobs.import_corrections(job.model_copy(update={"only_changed": True}), directly)
    assert only.dataset.splits == {"train": 1} and only.unchanged == 8
    assert [p.name for p in (tmp_path / "dataset/corrected/SegmentationClass").iterdir()] == ["000.png"]


def test_new_classes_void_and_what_was_erased(output, tmp_path):
    masks = dict(open_results(output))
    size = {"original_width": 48, "original_height": 65}
    whole = {"x": 0, "y": 0, "width": 100, "height": 100}

    def box(x, y, width, height, name):
        value = {"x": x, "y": y, "width": width, "height": height, "rectanglelabels": [name]}
        return {"type": "rectanglelabels", "value": value, **size}

    tasks = [
        {"data": {"image": "/upload/1/0a1b2c3d-000.jpg"}, "annotations": [{"result": [box(*whole.values(), "rust")]}]},
        {"data": {"image": "s3://b/photographs/003.jpg"}, "annotations": [{"result": [box(*whole.values(), "Void")]}]},
        {"data": {"image": "006.jpg"}, "annotations": [{"result": []}]},
        {"data": {"image": "009.jpg"}, "annotations": [{"result": [box(*whole.values(), "DOG")]}]},
    ]
    (tmp_path / "x.json").write_text(json.dumps(tasks))
    job = CorrectionsJob(
        output=output, corrections=str(tmp_path / "x.json"), source="label-studio", dataset=str(tmp_path / "d")
    )
    report = jobs.import_corrections(job, directly)
    assert (report.changed, report.new_classes, report.unknown) == (4, ["rust"], [])
    manifest, found = stored(tmp_path / "d")
    assert manifest.classes == [*CLASSES, "rust"]
    # A mask that is void throughout teaches nothing, and `prepare` says so
    for name, label in (("000", 21), ("003", 255), ("006", 0), ("009", DOG)):
        assert (found[name] == label).all() and found[name].shape == masks[f"{name}.jpg"].shape
    assert report.classes["rust"].gained == found["000"].size and report.classes["void"].gained == found["003"].size


def test_what_cannot_be_used_is_refused_by_name_and_stops_nothing(output, tmp_path):
    size = {"original_width": 48, "original_height": 65}
    odd = {"x": 1, "y": 1, "radiusX": 3, "radiusY": 3, "ellipselabels": ["dog"]}
    good = {"x": 0, "y": 0, "width": 50, "height": 50, "rectanglelabels": ["dog"]}
    tasks = [
        {"data": {"image": "000.jpg"}, "annotations": [{"result": [{"value": odd, **size}]}]},
        {"data": {"image": "003.jpg"}, "annotations": [{"result": [{"value": good, **size}]}]},
        {"data": {"image": "004.jpg"}, "annotations": [{"result": [{"value": good, **size}]}]},
        {"data": {"image": "bad.jpg"}, "annotations": [{"result": []}]},
        {"data": {"image": "nobody.jpg"}, "annotations": [{"result": []}]},
    ]
    (tmp_path / "x.json").write_text(json.dumps(tasks))
    job = CorrectionsJob(
        output=output, corrections=str(tmp_path / "x.json"), source="label-studio", dataset=str(tmp_path / "d")
    )
    report = jobs.import_corrections(job, directly)
    assert report.changed == 1 and report.unknown == ["nobody.jpg"] and report.not_reviewed == 9
    assert report.refused.keys() == {"000.jpg", "004.jpg", "bad.jpg"}
    assert "shape that is not read" in report.refused["000.jpg"]
    assert report.refused["004.jpg"] == "its correction is of 48 x 65 px, the photograph has 64 x 48"
    lines = (tmp_path / "d/corrections.csv").read_text().splitlines()
    assert len(lines) == 5 and lines[2].startswith("003.jpg,changed,")


def test_mistakes_are_one_sentence_and_nothing_is_mixed(output, tmp_path):
    review = tmp_path / "review"
    export_run(ExportJob(output=output, to="label-studio", destination=str(review)))
    export_run(ExportJob(output=output, to="png", destination=str(tmp_path / "png")))
    (tmp_path / "bad.zip").write_bytes(b"PK")
    (tmp_path / "brushes").mkdir()
    shutil.copy(tmp_path / "png/000.png", tmp_path / "brushes/task-1-annotation-2-by-1-tag-dog-0.png")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    for corrections, source, to, words in [
        (review, "label-studio", "d", "no image of run r that was reviewed: 12 images of the run are in it"),
        (review, "cvat", "d", "holds no images of cvat: .*label_config.xml: it is no file of CVAT"),
        (tmp_path / "nothing", "coco", "d", "does not exist"),
        (tmp_path / "bad.zip", "cvat", "d", "no sound zip archive"),
        (review / "tasks.json", "png", "d", "holds no masks that end in .png"),
        (tmp_path / "brushes", "png", "d", "one label of one task.*--from label-studio"),
        (tmp_path / "png", "png", "mine", r"is not empty \(thesis.txt\)"),
    ]:
        job = CorrectionsJob(output=output, corrections=str(corrections), source=source, dataset=str(tmp_path / to))
        with pytest.raises(JobError, match=words) as refused:
            collect_corrections(job)
        assert "\n" not in str(refused.value)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"] and not (tmp_path / "d").exists()


def test_coloured_masks_of_cvat_with_their_own_order_of_classes(output, tmp_path):
    """CVAT's "Segmentation mask 1.1": RGB in the colours of labelmap.txt, classes in the order of their names."""
    masks = dict(open_results(output))
    folder = tmp_path / "export/SegmentationClass"
    folder.mkdir(parents=True)
    colours = {"background": (0, 0, 0), "cat": (9, 9, 9), "dog": (200, 0, 0)}
    lines = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in colours.items()]
    (tmp_path / "export/labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n")
    labels = np.zeros(masks["000.jpg"].shape, np.uint8)
    labels[:9], labels[20:30] = 1, 2
    Image.fromarray(np.array(list(colours.values()), np.uint8)[labels]).save(folder / "000.png")
    shutil.make_archive(str(tmp_path / "export"), "zip", tmp_path / "export")
    for corrections in ("export", "export.zip"):
        job = CorrectionsJob(
            output=output,
            corrections=str(tmp_path / corrections),
            source="png",
            dataset=str(tmp_path / f"of-{corrections}"),
        )
        assert jobs.import_corrections(job, directly).changed == 1
        _, found = stored(tmp_path / f"of-{corrections}")
        assert np.array_equal(found["000"], np.array([0, CAT, DOG], np.uint8)[labels])


def test_names_that_were_changed_on_the_way_are_found_again(tmp_path):
    names = ["a/x.jpg", "b/x.jpg", "ünï 🐕.png", "100%.jpg", "deep/er/y.jpeg", "x.png"]
    rows, wanted = [], {}
    for number, name in enumerate(names):
        place = tmp_path / f"{number}.jpg"
        photograph(number, (30, 20)).save(place)
        labels = np.zeros((20, 30), np.uint8)
        labels[number : number + 4] = DOG
        rows.append(mask_row(name, str(place), labels))
        wanted[name] = labels
    write_run(str(tmp_path / "out"), "r", rows, class_names=list(CLASSES))
    for kind, copied in (("cvat", True), ("cvat", False), ("png", False), ("voc", True), ("coco", True)):
        folder = tmp_path / f"{kind}-{copied}"
        export_run(ExportJob(output=str(tmp_path / "out"), to=kind, destination=str(folder), photographs=copied))
        if kind == "coco":
            document = json.loads((folder / "annotations.json").read_text())
            document["images"] = [{k: v for k, v in i.items() if k != "identity"} for i in document["images"]]
            (folder / "annotations.json").write_text(json.dumps(document))
        elif kind != "cvat":
            (folder / "names.jsonl").unlink()
        source = "png" if kind == "voc" else kind
        dataset = tmp_path / f"{kind}-{copied}-back"
        job = CorrectionsJob(output=str(tmp_path / "out"), corrections=str(folder), source=source, dataset=str(dataset))
        report = jobs.import_corrections(job, directly)
        assert (report.unchanged, report.changed, report.unknown, report.refused) == (len(names), 0, [], {}), kind
        _, found = stored(dataset)
        assert sorted(m.tobytes() for m in found.values()) == sorted(m.tobytes() for m in wanted.values())


def test_a_bucket_to_a_bucket(bucket, tmp_path):
    rows = small_rows(tmp_path / "photographs", num_images=4)
    at = f"s3://{bucket.name}"
    write_run(f"{at}/out", "r", rows, class_names=list(CLASSES))
    export_run(ExportJob(output=f"{at}/out", to="cvat", destination=f"{at}/review"))
    job = CorrectionsJob(output=f"{at}/out", corrections=f"{at}/review", source="cvat", dataset=f"{at}/dataset")
    report = jobs.import_corrections(job, directly)
    assert report.unchanged == 4 and sum(report.dataset.splits.values()) == 4


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_model_goes_on_from_another_on_corrections_and_both_are_evaluated(output, tmp_path):
    """The commands of docs/results.md: import, train, train --initial, evaluate, baseline accept, evaluate."""

    def command(*words):
        told = subprocess.run(
            [sys.executable, "-m", "flows.cli", *map(str, words)], capture_output=True, text=True, cwd=ROOT
        )
        assert told.returncode == 0, told.stderr
        return told.stdout

    export_run(ExportJob(output=output, to="png", destination=str(tmp_path / "png")))
    edited("png", tmp_path / "png", {})
    dataset, few = tmp_path / "dataset", ("--crop", 33, "--batch-size", 2, "--workers", 1, "--validation-images", 0)
    told = command("import", output, tmp_path / "png", "--from", "png", "--to", dataset, "--val-share", 0.3)
    assert "1 mask changed, 8 left as they were, 3 not reviewed" in told and "dog" in told
    for name, more in (("first", ()), ("second", ("--initial", tmp_path / "models/first"))):
        line = ("train", dataset, tmp_path / name, "--recipe", "deeplab_v2_resnet18", "--iterations", 2, *few, *more)
        report = json.loads(command(*line, "--json"))
        (tmp_path / "models").mkdir(exist_ok=True)
        shutil.copytree(report["model"], tmp_path / "models" / name)
        asked = (tmp_path / "models", dataset, tmp_path / "evaluation", "--no-crf", "--long-side", 65, "--no-report")
        told = json.loads(command("evaluate", *asked, "--engine", "local", "--json"))
        if name == "first":
            command("baseline", "accept", tmp_path / "evaluation")
    assert "second" in json.dumps(told)
