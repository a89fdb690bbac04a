"""Outputs that an earlier version of the program wrote, kept in `tests/data/outputs`: read and gone on with.

`plain` has small mask files alone; in `compacted` large files stand for some of them by that version's pointer, beside
small ones that came later; in `expired` the small files that are stood for are gone. All are of one source of ten
images: files, one of them damaged, and a tar shard.
"""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segcore.images.masks import decode_mask
from tasks import storage
from tasks.archive.output import Output
from tasks.errors import JobError
from tasks.results.export import ExportJob, export_run
from tasks.results.query import FindJob, ask, find
from tasks.results.reading import open_results
from tasks.results.report import ReportJob, build_report
from tasks.segmentation.archive_job import ArchiveJob, Identity, identify, remaining_units
from tasks.segmentation.verify import check_run

DATA = Path(__file__).parent.parent / "data" / "outputs"
SOURCE = Path("/tmp/segment-archive-fixture/photographs")
"""Where the source stood: run ids and members of tars follow from it."""

RUN, SOURCE_ID = "270ab5523dcd", "f98c7e17ef5f"
KINDS = ("plain", "compacted", "expired")


@pytest.fixture(scope="module")
def source() -> Path:
    """The photographs, where they stood."""
    SOURCE.mkdir(parents=True, exist_ok=True)
    for photograph in (DATA / "photographs").iterdir():
        whole = SOURCE / f".{photograph.name}-{os.getpid()}"
        shutil.copyfile(photograph, whole)
        os.utime(whole, (1_700_000_000, 1_700_000_000))  # By which the manifest knows them
        whole.replace(SOURCE / photograph.name)
    return SOURCE


@pytest.fixture(params=KINDS)
def output(request, tmp_path, source) -> str:
    """A copy of each output."""
    shutil.copytree(DATA / request.param, tmp_path / "output")
    return str(tmp_path / "output")


def identity_of(output: str) -> Identity:
    """The run as the version that made it knew it; today's program may give the same job another run id."""
    job = ArchiveJob(source=str(SOURCE), output=output)
    return dataclasses.replace(identify(job), run_id=RUN, source_id=SOURCE_ID, unit_images=64)


def test_every_reader_reads_them(output, tmp_path):
    results = open_results(output)
    rows = {row["image_id"]: row for row in results.rows(["image_id", "mask", "error_kind"])}
    want = {r["image_id"]: r for r in open_results(str(DATA / "plain")).rows(["image_id", "mask", "error_kind"])}
    assert len(results) == len(rows) == 10 and results.is_finished and rows.keys() == want.keys()
    assert rows["broken.jpg"]["error_kind"] == "truncated" and rows["broken.jpg"]["mask"] is None
    for image_id, labels in results.masks():
        assert np.array_equal(labels, decode_mask(rows[image_id]["mask"]))
        assert np.array_equal(labels, results.mask(image_id)) and labels.shape == (108, 144)
    assert ask(output, "SELECT count(*), count(DISTINCT image_id) FROM images").arrow().to_pylist()[0] == {
        "count_star()": 10,
        "count(DISTINCT image_id)": 10,
    }
    found = sorted(row[0] for row in find(output, FindJob(classes=("cat",))).rows())
    assert found == ["cat-0.jpg", "cat-1.jpg"]
    report = build_report(ReportJob(output=output, to=str(tmp_path / "gallery")))
    assert report.shown == 10 and report.photographs_missing == 0
    done = export_run(ExportJob(output=output, to="png", destination=str(tmp_path / "png")))
    assert done.masks == 9 and done.without_mask == 1
    exported = sorted((tmp_path / "png").rglob("*.png"))
    assert len(exported) == 9
    with Image.open(next(path for path in exported if path.name.startswith("cat-0"))) as image:
        assert np.array_equal(np.asarray(image), results.mask("cat-0.jpg"))


def test_they_are_whole_and_gone_on_with(output):
    identity = identity_of(output)
    place = Output.at(output)
    manifest = place.manifest(identity.source_id)
    assert manifest.num_images == 10
    assert not list(remaining_units(manifest, place, identity))
    report = check_run(place, identity)
    assert (report.images, report.masks, report.errors) == (10, 9, {"truncated": 1})
    # The last small file holds the newest images: without it, they remain, and nothing else
    small = sorted(storage.list_files(place.masks_folder(RUN)), key=lambda f: f.path)[-1]
    storage.remove(place.masks_folder(RUN) / small.path)
    [unit] = remaining_units(manifest, place, identity)
    lost = {entry.image_id for entry in unit.entries}
    with pytest.raises(JobError, match=f"{len(lost)} images have no row"):
        check_run(place, identity)
    there = set(open_results(output).to_arrow(["image_id"])["image_id"].to_pylist())
    assert there | lost == {entry.image_id for part in manifest.parts() for entry in part.entries()}
    assert not there & lost
