"""Fifty real masks through the tools' own packages: exported by us, read and written by them, imported by us."""

import subprocess
import sys

import numpy as np
import pytest

from flows import jobs
from flows.execution import directly
from segcore.voc import CLASSES
from tasks.results.export import ExportJob, export_run
from tasks.results.reading import open_results
from tasks.review.corrections import CorrectionsJob
from tests.outputs import real_rows, write_run
from tests.packages import installed
from tests.tasks.test_corrections import stored

LABEL_STUDIO = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("brush", sys.argv[1] + "/label_studio_sdk/converter/brush.py")
brush = importlib.util.module_from_spec(spec)
spec.loader.exec_module(brush)
tasks = json.load(open(sys.argv[2] + "/tasks.json"))
for number, task in enumerate(tasks):
    [prediction] = task.pop("predictions")
    for region in prediction["result"]:
        width, height = region["original_width"], region["original_height"]
        alpha = brush.decode_rle(region["value"]["rle"]).reshape(height, width, 4)[:, :, 3]
        region["value"]["rle"] = brush.mask2rle(alpha)
    task["annotations"] = [{"id": number, "was_cancelled": False, "result": prediction["result"]}]
json.dump(tasks, open(sys.argv[3] + "/project.json", "w"))
"""
"""Every brush decoded and encoded by the SDK of Label Studio, as an annotator who accepts everything leaves it."""

DATUMARO = """
import sys
from datumaro.components.dataset import Dataset
dataset = Dataset.import_from(sys.argv[1], "cvat")
if sys.argv[3] == "drawn":
    dataset.transform("polygons_to_masks")
dataset.export(sys.argv[2], "cvat", save_media=False)
"""
"""CVAT's file read and written by Datumaro; drawn: with its own reading of polygons."""

WITH_DATUMARO = (
    *("datumaro==1.13.12", "opencv-python-headless==4.14.0.94", "shapely==2.2.0", "lxml==6.1.3", "imagesize==2.0.1"),
    *("defusedxml==0.7.1", "json-stream==2.5.1", "json-stream-rs-tokenizer==0.5.4"),
)


@pytest.fixture(scope="module")
def output(voc, tmp_path_factory):
    """A run of fifty real masks."""
    place = str(tmp_path_factory.mktemp("review") / "out")
    write_run(place, "r", real_rows(voc, limit=50), class_names=list(CLASSES))
    return place


def run(script, packages, *arguments):
    told = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={"PYTHONPATH": packages, "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr


def brought_back(output, corrections, source, dataset):
    job = CorrectionsJob(output=output, corrections=str(corrections), source=source, dataset=str(dataset))
    report = jobs.import_corrections(job, directly)
    assert not report.refused and not report.unknown and not report.not_reviewed
    return report, {f"{image_id}.jpg": mask for image_id, mask in stored(dataset)[1].items()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_label_studio_brings_every_pixel_back(output, tmp_path):
    packages = installed("label-studio-sdk==2.1.2")
    export_run(ExportJob(output=output, to="label-studio", destination=str(tmp_path / "review")))
    (tmp_path / "back").mkdir()
    run(LABEL_STUDIO, packages, packages, tmp_path / "review", tmp_path / "back")
    report, found = brought_back(output, tmp_path / "back", "label-studio", tmp_path / "dataset")
    masks = dict(open_results(output))
    assert (report.unchanged, report.changed, len(masks)) == (50, 0, 50)
    assert all(np.array_equal(found[image_id], labels) for image_id, labels in masks.items())


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("shapes", "how", "most"),
    [
        ({}, "as they are", 0.0),
        ({"shapes": "polygons", "tolerance_px": 0}, "as they are", 0.0),
        # What pycocotools, by which Datumaro fills polygons, makes of outlines along the edges of pixels
        ({"shapes": "polygons", "tolerance_px": 0}, "drawn", 0.01),
        ({"shapes": "polygons"}, "drawn", 0.02),
    ],
    ids=["masks", "polygons", "exact polygons drawn by Datumaro", "polygons drawn by Datumaro"],
)
def test_cvat_brings_every_pixel_back(shapes, how, most, output, tmp_path):
    packages = installed(*WITH_DATUMARO)
    export_run(ExportJob(output=output, to="cvat", destination=str(tmp_path / "review"), photographs=True, **shapes))
    run(DATUMARO, packages, tmp_path / "review", tmp_path / "back", how)
    report, found = brought_back(output, tmp_path / "back", "cvat", tmp_path / "dataset")
    masks = dict(open_results(output))
    if most == 0:
        assert (report.unchanged, report.changed, len(masks)) == (50, 0, 50)
        assert all(np.array_equal(found[image_id], labels) for image_id, labels in masks.items())
    share = report.pixels_changed / report.pixels
    print(f"{shapes or 'masks'}, {how}: {share:.4%} of the pixels differ")
    assert share <= most


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_datasets_of_hugging_face_loads_the_export(output, tmp_path):
    packages = installed("datasets==5.2.0", "dill==0.4.1", "multiprocess==0.70.19", "xxhash==4.1.0")
    export_run(ExportJob(output=output, to="hf", destination=str(tmp_path / "hf")))
    script = (
        "import sys, numpy as np; from datasets import load_dataset\n"
        "rows = load_dataset(sys.argv[1], split='train', cache_dir=sys.argv[2])\n"
        "np.savez(sys.argv[3], **{row['image_id']: np.array(row['mask']) for row in rows"
        " if row['image'].size == row['mask'].size})"
    )
    run(script, packages, tmp_path / "hf", tmp_path / "cache", tmp_path / "masks.npz")
    found = np.load(tmp_path / "masks.npz")
    masks = dict(open_results(output))
    assert set(found.files) == masks.keys()
    assert all(np.array_equal(found[image_id], labels) for image_id, labels in masks.items())
