"""Photographs that crash, hang or fill the process that touches them; the others are as they were without them."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, photograph
from tests.poison.sitecustomize import PAINT
from tests.processes import end_all

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KINDS = {"crash": "crashed", "hang": "timeout", "grow": "memory"}

# The job without Prefect, in a process of its own: its workers must have the poison, and the other tests' must not
DRIVER = """
import sys
from tasks.segmentation.archive_job import ArchiveJob, list_archive
from tasks.segmentation.session import segment_remaining
from tasks.segmentation.finish import publish_report
job = ArchiveJob(source=sys.argv[1], output=sys.argv[2], inference={"long_side_px": 97}, gallery_images=0,
                 image_seconds=8, image_memory_mib=400, engine=sys.argv[3])
plan = list_archive(job)
session = segment_remaining(job, plan)
report = publish_report(job, plan, session)
print(report.images, report.masks, report.errors)
"""


def paint(place: Path, seed: int, stage: str, deed: str) -> None:
    poisoned = photograph(seed, (96, 72))
    poisoned.paste(PAINT[stage, deed], (0, 0, 24, 24))
    poisoned.save(place)


def rows_after(source: Path, output: Path, engine: str, **environment: str) -> dict[str, dict]:
    mark = f"{output.name}-{os.getpid()}"
    environment |= {"SEGMENT_ARCHIVE_POISON": mark, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DRIVER, str(source), str(output), engine]
    try:
        told = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    finally:
        end_all("SEGMENT_ARCHIVE_POISON", mark)
    assert told.returncode == 0, told.stderr[-3000:]
    rows = [row for file in output.rglob("masks/run=*/*.parquet") for row in pq.read_table(file).to_pylist()]
    assert len({row["image_id"] for row in rows}) == len(rows)
    return {row["image_id"]: row for row in rows}


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_poison_becomes_error_rows_and_changes_no_other_mask(tmp_path, engine):
    source = tmp_path / "source"
    source.mkdir()
    poison = {}
    # The first unit of 64 holds every poison of every stage, the second nothing but poison
    for number in range(64 - len(PAINT)):
        photograph(number, (96, 72) if number % 3 else (72, 96)).save(source / f"a-{number:03d}.png")
    for number, (stage, deed) in enumerate([*PAINT, ("decode", "crash"), ("score", "crash"), ("refine", "crash")]):
        name = f"b-{number:03d}-{stage}-{deed}.png"
        paint(source / name, 100 + number, stage, deed)
        poison[name] = KINDS[deed]

    undisturbed = rows_after(source, tmp_path / "undisturbed", "local")
    assert all(row["error_kind"] is None for row in undisturbed.values())
    found = rows_after(source, tmp_path / "poisoned", engine, PYTHONPATH=str(ROOT / "tests" / "poison"))
    assert found.keys() == undisturbed.keys()
    for image_id, row in found.items():
        if image_id in poison:
            assert (row["mask"], row["error_kind"]) == (None, poison[image_id]), row["error"]
        else:
            assert (row["mask"], row["error_kind"]) == (undisturbed[image_id]["mask"], None), row["error"]
    reasons = {row["error"] for row in found.values() if row["error"]}
    assert "reading crashed the process 2 times (SIGSEGV)" in reasons
    assert "scoring needs more than the allowed 400 MiB" in reasons
    assert "refinement took longer than 8 s" in reasons
