"""An ONNX file of somebody else through the archive: both engines, from a bucket, with 150 classes and with 300."""

import json

import numpy as np
import pytest
from PIL import Image

import segcore
from segcore.images import masks
from segcore.predictor import PredictParams
from tasks import engines
from tasks.models.describe import describe_onnx
from tasks.results.compare import diff_runs
from tasks.results.export import ExportJob, export_run
from tasks.results.query import FindJob, ask, find
from tasks.results.reading import open_results
from tasks.results.sealing import CompactJob, compact
from tasks.segmentation.archive_job import identify
from tasks.segmentation.finish import publish_gallery
from tests.conftest import SERVERS_GROUP
from tests.segcore.models.test_onnx_file import described, given_model
from tests.tasks.test_archive import job_of, rows_of, run
from tests.tasks.test_report import read_script


@pytest.mark.parametrize(
    ("classes", "also"), [(150, ()), pytest.param(300, ("ray",), marks=[pytest.mark.slow, SERVERS_GROUP])]
)
def test_engines_and_the_library_give_the_same_masks(
    classes, also, photographs, bucket, tmp_path, monkeypatch, request
):
    if also:
        request.getfixturevalue("ray_cluster")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    path = described(tmp_path / "model", classes)
    for name in ("net.onnx", "card.json"):
        bucket.put(f"models/{name}", (path.parent / name).read_bytes())
    options = {"model": f"s3://{bucket.name}/models/net.onnx", "untrained": False, "inference": {}, "crf": None}
    found = {}
    for engine in ("local", *also):
        with engines.opened(engine):
            found[engine] = run(job_of(photographs, tmp_path / engine, **options))
    rows = {engine: rows_of(report) for engine, report in found.items()}
    library = segcore.load(str(path), params=PredictParams(crf=None))
    largest = 0
    for image_id, row in rows["local"].items():
        assert row["model"] == "net"
        assert all(row["mask"] == rows[engine][image_id]["mask"] is not None for engine in rows)
        labels = masks.decode_mask(row["mask"])
        assert np.array_equal(labels, library.segment(photographs / image_id).labels)
        assert {c["name"] for c in row["classes"]} == {f"thing {label}" for label in np.unique(labels)}
        largest = max(largest, int(labels.max()))
    assert largest > (255 if classes > 255 else 20)  # More than VOC has
    assert len({report.run_id for report in found.values()}) == 1
    card = json.loads((path.parent / "card.json").read_text())
    assert len(card["classes"]) == classes


def test_the_colours_of_the_model_are_those_of_pictures_and_exports(photographs, tmp_path, local_engine):
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "net.onnx"
    path.write_bytes(given_model(5)[0])
    colours = [(0, 0, 0), (250, 1, 2), (3, 251, 4), (5, 6, 252), (253, 254, 7)]
    lines = [f"thing {n}:{r},{g},{b}::" for n, (r, g, b) in enumerate(colours)]
    (tmp_path / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines]))  # As CVAT writes it
    describe_onnx(str(path), classes=str(tmp_path / "labelmap.txt"), preprocessing="0..1", stride=4)
    job = job_of(photographs, tmp_path / "out", model=str(path), untrained=False, inference={}, gallery_images=2)
    publish_gallery(job, run(job))
    [summary] = (tmp_path / "out" / "report").rglob("summary.js")
    clear = {shown["name"]: shown["clear"] for shown in read_script(summary)["classes"]}
    own = {name: "#{:02x}{:02x}{:02x}".format(*colours[int(name[-1])]) for name in clear}
    assert len(clear) > 1 and clear == own
    found = segcore.load(str(path)).segment(next(photographs.glob("*.jpg")))
    painted = {tuple(pixel) for pixel in found.overlay(1.0)[found.labels > 0].tolist()}
    assert painted == {colours[label] for label in np.unique(found.labels) if label}
    for to in ("cvat", "label-studio"):
        export_run(ExportJob(output=job.output, to=to, destination=str(tmp_path / to)))
        texts = "".join(p.read_text() for p in (tmp_path / to).rglob("*") if p.suffix in (".json", ".xml", ".txt"))
        assert all(colour in texts.lower() for colour in own.values())


def test_three_hundred_classes_through_everything_that_reads_masks(photographs, tmp_path, local_engine):
    (tmp_path / "model").mkdir()
    path = described(tmp_path / "model", 300)
    job = job_of(photographs, tmp_path / "out", model=str(path), untrained=False, inference={})
    report = run(job)
    assert report.masks == report.images and identify(job).deciding["schema_version"] == 3
    results = open_results(job.output)
    images = dict(results.masks())
    assert all(labels.dtype == np.uint16 for labels in images.values())
    present = {int(label) for labels in images.values() for label in np.unique(labels)}
    assert max(present) > 255
    for image_id, row in rows_of(report).items():
        counts = {c["index"]: c["pixels"] for c in row["classes"]}
        labels, pixels = np.unique(images[image_id], return_counts=True)
        assert counts == dict(zip(labels.tolist(), pixels.tolist(), strict=True))
        assert 0 < row["confidence"] <= 1 and row["entropy"] > 0 and row["changed_by_crf"] is not None
    rare = max(present)
    found = {row[0] for row in find(job.output, FindJob(classes=(f"thing {rare}",))).rows()}
    assert found == {image_id for image_id, labels in images.items() if rare in labels}
    asked = ask(job.output, "SELECT DISTINCT label FROM objects ORDER BY 1").rows()
    assert [label for (label,) in asked] == sorted(present)

    compact(CompactJob(output=job.output, expire=True, grace_minutes=0))
    again = open_results(job.output)
    assert all(np.array_equal(again.mask(image_id), labels) for image_id, labels in images.items())
    export_run(ExportJob(output=job.output, to="png", destination=str(tmp_path / "png")))
    for line in (tmp_path / "png" / "names.jsonl").read_text().splitlines():
        named = json.loads(line)
        with Image.open(tmp_path / "png" / f"{named['name']}.png") as image:
            assert image.mode == "I;16" and np.array_equal(np.asarray(image), images[named["image_id"]])
    assert len((tmp_path / "png" / "labelmap.txt").read_text().splitlines()) == 301
    export_run(ExportJob(output=job.output, to="coco", destination=str(tmp_path / "coco")))
    document = json.loads((tmp_path / "coco" / "annotations.json").read_text())
    ids = [annotation["id"] for annotation in document["annotations"]]
    assert len(set(ids)) == len(ids) and {a["category_id"] for a in document["annotations"]} == present
    other = run(job_of(photographs, tmp_path / "out", model=str(path), untrained=False, inference={}, crf=None))
    report_of_both = diff_runs(job.output, report.run_id, other.run_id)
    before = dict(open_results(job.output, other.run_id).masks())
    same = sum(int((images[image_id] == labels).sum()) for image_id, labels in before.items())
    assert report_of_both.agreement == pytest.approx(same / sum(labels.size for labels in before.values()))
    shown = publish_gallery(job.model_copy(update={"gallery_images": 3}), report)
    assert shown.gallery is not None
    items = [p.read_text() for p in (tmp_path / "out" / "report").rglob("items/**/*.js")]
    assert len(items) == 3 and all('"wide":true' in text.replace(" ", "") for text in items)
