import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from segcore.datasets.label_set import read_classes
from segcore.images.masks import decode_mask
from segcore.images.rle import decode_coco
from segcore.voc import CLASSES
from segcore.voc import palette as voc_palette
from tasks import storage
from tasks.datasets.check import mended_mask
from tasks.datasets.folders import read_layout
from tasks.errors import JobError
from tasks.results import export
from tasks.results.export import ExportJob, export_run
from tasks.results.reading import open_results
from tests.conftest import photograph
from tests.outputs import HOSTILE_NAMES, error_row, mask_row, real_rows, small_rows, write_run


def export_to(kind, output, folder, **options):
    return export_run(ExportJob(output=str(output), to=kind, destination=str(folder), **options))


def read_coco(place):
    """Label maps of a COCO file by pycocotools, by identity."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(place))
    found = {}
    for image in coco.loadImgs(coco.getImgIds()):
        labels = np.zeros((image["height"], image["width"]), np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            region = coco.annToMask(annotation).astype(bool)
            assert annotation["area"] == region.sum()
            y, x = np.nonzero(region)
            assert annotation["bbox"] == [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
            labels[region] = annotation["category_id"]
        found[image["file_name"]] = labels
    return found


def equal(found, wanted):
    assert found.keys() == wanted.keys()
    return all(np.array_equal(found[image_id], labels) for image_id, labels in wanted.items())


def test_coco_reads_every_mask_back(small_output, tmp_path):
    report = export_to("coco", small_output, tmp_path / "coco")
    masks = dict(open_results(small_output))
    assert equal(read_coco(tmp_path / "coco" / "annotations.json"), masks)
    assert (report.masks, report.without_mask) == (30, 2)
    document = json.loads((tmp_path / "coco" / "annotations.json").read_text())
    assert report.annotations == len(document["annotations"]) == len({a["id"] for a in document["annotations"]})
    assert all(category["name"] != "background" for category in document["categories"])
    assert sorted(p.name for p in (tmp_path / "coco").iterdir() if p.is_file()) == ["annotations.json", "export.json"]
    one = document["annotations"][0]["segmentation"]
    assert decode_coco(one["counts"].encode(), *one["size"]).any()


def test_png_and_voc_are_read_by_pillow(small_output, tmp_path):
    masks = dict(open_results(small_output))
    export_to("png", small_output, tmp_path / "png")
    assert equal({i: np.array(Image.open((tmp_path / "png" / i).with_suffix(".png"))) for i in masks}, masks)
    report = export_to("voc", small_output, tmp_path / "voc", photographs=True)
    names = (tmp_path / "voc" / "ImageSets" / "Segmentation" / "all.txt").read_text().splitlines()
    assert len(names) == report.photographs == 30 and report.photographs_missing == 0
    for name in names:  # As every reader of VOC does
        with Image.open(tmp_path / "voc" / "SegmentationClass" / f"{name}.png") as mask:
            assert mask.mode == "P" and np.array_equal(np.array(mask), masks[f"{name}.jpg"])
            with Image.open(tmp_path / "voc" / "JPEGImages" / f"{name}.jpg") as photograph:
                assert photograph.size == mask.size
    lines = (tmp_path / "voc" / "labelmap.txt").read_text().splitlines()[1:]
    assert [line.partition(":")[0] for line in lines] == list(CLASSES) and lines[12] == "dog:64,0,128::"


def test_an_export_that_was_ended_goes_on(small_output, tmp_path, monkeypatch):
    whole = export_to("coco", small_output, tmp_path / "whole")
    write, calls = export._Writer.write, []

    def ended(self, file, first_row, place):
        calls.append(file)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return write(self, file, first_row, place)

    with monkeypatch.context() as patched:
        patched.setattr(export._Writer, "write", ended)
        with pytest.raises(KeyboardInterrupt):
            export_to("coco", small_output, tmp_path / "coco")
    assert not (tmp_path / "coco" / "annotations.json").exists()
    again = export_to("coco", small_output, tmp_path / "coco")
    assert again.done_before == 16 and (again.masks, again.annotations) == (whole.masks, whole.annotations)
    assert (tmp_path / "coco" / "annotations.json").read_bytes() == (
        tmp_path / "whole" / "annotations.json"
    ).read_bytes()
    third = export_to("coco", small_output, tmp_path / "coco")
    assert third.done_before == third.masks == 30 and third.seconds == again.seconds


def test_nothing_is_mixed(small_output, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(JobError, match=r"not empty .thesis.txt."):
        export_to("png", small_output, tmp_path / "mine")
    export_to("png", small_output, tmp_path / "png")
    with pytest.raises(JobError, match=r"holds an export of something else"):
        export_to("png", small_output, tmp_path / "png", run="aaaa")
    with pytest.raises(JobError, match=r"is not finished"):
        export_to("png", small_output, tmp_path / "other", run="cccc")
    with pytest.raises(JobError, match=r"no place for photographs"):
        export_to("png", small_output, tmp_path / "other", photographs=True)


def test_hostile_names_stay_in_the_folder_and_apart(tmp_path):
    labels = np.ones((4, 5), np.uint8)
    names = [*HOSTILE_NAMES, "../../up.jpg", "a.jpg", "a.png", "a", "a.jpg.png"]
    rows = [mask_row(name, "/nowhere", labels * number) for number, name in enumerate(names, start=1)]
    write_run(str(tmp_path / "out"), "r", rows)
    for kind in ("png", "voc", "coco"):
        report = export_to(kind, tmp_path / "out", tmp_path / kind, photographs=kind != "png")
        assert report.masks == len(names)
        assert report.photographs_missing == (0 if kind == "png" else len(names))
    assert {p.name for p in tmp_path.iterdir()} == {"out", "png", "voc", "coco"}
    values = {np.array(Image.open(p)).max() for p in (tmp_path / "voc" / "SegmentationClass").rglob("*.png")}
    assert values == set(range(1, len(names) + 1))
    lines = (tmp_path / "voc" / "ImageSets" / "Segmentation" / "all.txt").read_text().split("\n")
    assert len(lines) == len(names) + 1
    for kind in ("png", "voc"):
        back = [json.loads(line) for line in (tmp_path / kind / "names.jsonl").read_text().splitlines()]
        assert [row["image_id"] for row in back] == names
    document = json.loads((tmp_path / "coco" / "annotations.json").read_text())
    assert [image["identity"] for image in document["images"]] == names


def test_a_bucket_to_a_bucket(bucket, tmp_path):
    rows = small_rows(tmp_path / "photographs", num_images=10)
    write_run(f"s3://{bucket.name}/out", "r", [*rows, error_row("broken", "broken")], per_file=4)
    export_to("coco", f"s3://{bucket.name}/out", f"s3://{bucket.name}/coco")
    data = storage.read_bytes(storage.locate(f"s3://{bucket.name}/coco/annotations.json"))
    (tmp_path / "annotations.json").write_bytes(data)
    assert equal(read_coco(tmp_path / "annotations.json"), {r["image_id"]: decode_mask(r["mask"]) for r in rows})
    assert [f.path for f in storage.list_files(storage.locate(f"s3://{bucket.name}/coco"))] == [
        "annotations.json",
        "export.json",
    ]


ODD_NAMES = ["with space.jpg", "deep/er/x.jpg", "ünïcode 🐕.png", "100%.jpg", "x.jpg", "x.png", "a#b.jpg", "1,name.jpg"]


@pytest.mark.parametrize("record", [{"class_names": list(CLASSES)}, {}], ids=["recorded", "older"])
def test_prepare_reads_our_export_pixel_by_pixel(record, tmp_path):
    """Only sofa and tvmonitor are there, so a list of those that are would give them the labels 1 and 2."""
    rows, wanted = [], {}
    for number, name in enumerate(ODD_NAMES):
        place = tmp_path / f"{number}.jpg"
        photograph(number, (30, 20)).save(place)
        labels = np.zeros((20, 30), np.uint8)
        labels[3:9, number : number + 9], labels[12:, 5:] = 18, 20
        rows.append(mask_row(name, str(place), labels))
        wanted[name] = labels
    write_run(str(tmp_path / "out"), "r", rows, **record)
    report = export_to("voc", tmp_path / "out", tmp_path / "voc", photographs=True)
    assert report.photographs == len(ODD_NAMES)
    layout = read_layout(storage.locate(str(tmp_path / "voc")))
    assert layout.label_set.classes == CLASSES and not layout.findings
    names = map(json.loads, (tmp_path / "voc" / "names.jsonl").read_text().splitlines())
    identity = {entry["name"]: entry["image_id"] for entry in names}
    assert layout.pairs.keys() == identity.keys() and set(identity.values()) == set(ODD_NAMES)
    for image_id, pair in layout.pairs.items():
        assert np.array_equal(decode_mask(mended_mask(pair, layout.label_set)), wanted[identity[image_id]])


def test_classes_of_another_dataset_keep_their_labels(tmp_path):
    names = ("background", "crack", "a:b", "rust # 2")
    labels = np.full((4, 5), 2, np.uint8)
    for record, classes in (({"class_names": names}, names), ({}, ("class 0", "class 1", "a:b"))):
        folder = tmp_path / str(len(record))
        write_run(str(folder / "out"), "r", [mask_row("a.jpg", "/a", labels, names=names)], **record)
        export_to("voc", folder / "out", folder / "voc")
        found = read_classes((folder / "voc" / "labelmap.txt").read_text(), "labelmap.txt")
        assert found.classes == tuple(" ".join(n.replace(":", " ").replace("#", " ").split()) for n in classes)
        assert found.colours == tuple(tuple(c) for c in voc_palette()[: len(classes)].tolist())


def test_a_selection_is_exported_alone(small_output, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_bytes(b'003.jpg\r\n029.jpg\n\n"bad/empty.jpg"\n')
    masks = dict(open_results(small_output))
    for kind in ("png", "voc", "coco"):
        report = export_to(kind, small_output, tmp_path / kind, ids=str(ids))
        assert (report.masks, report.without_mask) == (2, 1)
    wanted = {i: masks[i] for i in ("003.jpg", "029.jpg")}
    assert equal(read_coco(tmp_path / "coco" / "annotations.json"), wanted)
    assert {p.name for p in (tmp_path / "png").glob("*.png")} == {"003.png", "029.png"}
    assert (tmp_path / "voc" / "ImageSets" / "Segmentation" / "all.txt").read_text() == "003\n029\n"
    for text, words in (
        ("003.jpg\nnobody.jpg\n", "1 images that run .* has not: nobody.jpg"),
        ("\n", "lists no images"),
    ):
        ids.write_text(text)
        with pytest.raises(JobError, match=words):
            export_to("png", small_output, tmp_path / "other", ids=str(ids))


def test_a_long_name_ends_no_export(field, tmp_path):
    [given] = (field / "export_long_names").iterdir()
    ids = [given.name, "你" * 85 + ".jpg", "x" * 255, "/".join(["folder"] * 400) + "/x.jpg", "short.jpg"]
    write_run(
        str(tmp_path / "out"), "r", [mask_row(i, str(given), np.full((4, 5), n, np.uint8)) for n, i in enumerate(ids)]
    )
    for kind in ("png", "voc", "coco"):
        report = export_to(kind, tmp_path / "out", tmp_path / kind, photographs=kind != "png")
        assert report.masks == len(ids)
    for kind, folder in (("png", "."), ("voc", "SegmentationClass")):
        back = [json.loads(line) for line in (tmp_path / kind / "names.jsonl").read_text().splitlines()]
        assert [entry["image_id"] for entry in back] == ids and back[-1]["name"] == "short"
        for number, entry in enumerate(back):
            with Image.open(tmp_path / kind / folder / f"{entry['name']}.png") as mask:
                assert np.array(mask).max() == number
    document = json.loads((tmp_path / "coco" / "annotations.json").read_text())
    for image in document["images"]:
        assert (tmp_path / "coco" / image["file_name"]).read_bytes() == given.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_four_hundred_real_masks_come_back_from_every_format(voc, tmp_path):
    write_run(str(tmp_path / "out"), "r", real_rows(voc), per_file=64)
    masks = dict(open_results(str(tmp_path / "out")))
    assert len(masks) == 400
    for kind in ("coco", "png", "voc"):
        assert export_to(kind, tmp_path / "out", tmp_path / kind).masks == 400
    assert equal(read_coco(tmp_path / "coco" / "annotations.json"), masks)
    assert equal({i: np.array(Image.open((tmp_path / "png" / i).with_suffix(".png"))) for i in masks}, masks)
    for image_id, labels in masks.items():
        name = image_id.removesuffix(".jpg")
        assert np.array_equal(np.array(Image.open(tmp_path / "voc" / "SegmentationClass" / f"{name}.png")), labels)
