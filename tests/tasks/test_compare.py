import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks.errors import JobError
from tasks.results.compare import diff_runs
from tasks.results.report import build_diff_report
from tests.outputs import error_row, mask_row, write_run


def rows_of(masks, **options):
    return [mask_row(name, f"/{name}", labels, **options) for name, labels in masks.items()]


def test_agreement_is_the_iou_between_the_runs(tmp_path):
    first, second = np.zeros((2, 4), np.uint8), np.zeros((2, 4), np.uint8)
    first[:, 0], second[:, :2] = 12, 12  # 2 of 4 pixels of the union
    same = np.full((2, 2), 8, np.uint8)
    write_run(str(tmp_path), "a1", [*rows_of({"x": first, "same": same, "only-a": same}), error_row("e", "e")])
    # In other files and another order, and "x" at twice the size
    twice = second.repeat(2, axis=0).repeat(2, axis=1)
    write_run(str(tmp_path), "b2", rows_of({"same": same, "only-b": same, "x": twice, "e": same}), per_file=2)
    report = diff_runs(str(tmp_path), "a1", "b2")
    assert (report.images, report.equal, report.only_a, report.only_b) == (2, 1, 1, 2)
    assert report.agreement == pytest.approx(10 / 12)
    assert {name: c.agreement for name, c in report.classes.items()} == {
        "dog": 0.5,
        "background": pytest.approx(4 / 6),
        "cat": 1.0,
    }
    assert report.changed_most == [("x", 0.25)]
    changes = pq.read_table(Path(report.folder) / "images.parquet").to_pylist()
    assert {(r["image_id"], r["disagreement"], r["label_a"], r["label_b"]) for r in changes} == {
        ("x", 0.25, "background", "dog"),
        ("same", 0.0, None, None),
    }
    assert json.loads((Path(report.folder) / "diff.json").read_text())["images"] == 2


def test_what_cannot_be_compared_is_refused(tmp_path):
    mask = np.full((2, 2), 1, np.uint8)
    write_run(str(tmp_path), "a1", rows_of({"x": mask}))
    write_run(str(tmp_path), "b2", rows_of({"x": mask}, names=("background", "zebra")))
    write_run(str(tmp_path), "c3", rows_of({"y": mask}))
    with pytest.raises(JobError, match=r"Label 1 is 'aeroplane' in .* 'zebra' in the other"):
        diff_runs(str(tmp_path), "a1", "b2")
    with pytest.raises(JobError, match=r"no image with a mask in common"):
        diff_runs(str(tmp_path), "a1", "c3")
    with pytest.raises(JobError, match=r"are the same run"):
        diff_runs(str(tmp_path), "a1", "a1")


def test_the_gallery_of_differences_shows_those_that_changed(small_output):
    report, gallery = build_diff_report(small_output, "aaaa", "bbbb", images=5)
    assert report.images == 30 and report.equal >= 10
    assert gallery is not None and gallery.shown == 5 and Path(gallery.index).is_file()
    data = next(Path(gallery.index).parent.glob("data-*"))
    index = json.loads((data / "index-000.js").read_text().partition(",")[2].rstrip(");\n"))
    assert [row[0] for row in index] == [image_id for image_id, _ in report.changed_most[:5]]
    assert [row[4] for row in index] == sorted((row[4] for row in index), reverse=True)
