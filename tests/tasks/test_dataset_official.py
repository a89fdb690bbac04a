"""The whole path over the official lists; kills at every step."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from segcore.images.masks import decode_mask
from tasks.datasets import shards
from tasks.datasets.prepare import DatasetJob
from tasks.storage import locate
from tests.datasets import make_dataset
from tests.official_tree import read_list, small_labels, write_sbd, write_voc
from tests.tasks.test_dataset import archives, files_of, prepare

pytestmark = pytest.mark.slow

JOB = """
import sys
from tasks.datasets.prepare import DatasetJob, check_pairs, fetch_archives, unpack_archives, write_shards
job = DatasetJob.model_validate_json(sys.argv[1])
fetched = fetch_archives(job)
print("fetched", flush=True)
sources = unpack_archives(job, fetched)
print("unpacked", flush=True)
check_pairs(job, sources)
print("checked", flush=True)
print("written", write_shards(job, sources).written_now, flush=True)
"""


def test_the_official_lists_with_one_val_image_slipped_into_sbd(voc, tmp_path, local_engine):
    val = read_list(voc, "val")
    write_voc(tmp_path / "VOC2012", voc, small_labels)
    write_sbd(tmp_path / "dataset", voc, small_labels, slip_in=val[0])
    given = {"voc": str(tmp_path / "VOC2012"), "sbd": str(tmp_path / "dataset"), "output": str(tmp_path / "out")}
    report = prepare(**given)
    assert report.splits == {"train": 1464, "val": 1449, "trainval": 2913, "train_aug": 10582, "trainval_aug": 12031}
    assert "in train and in val" not in report.findings and report.left_out == 0
    manifest = shards.read_manifest(locate(given["output"]))
    found = {name: shards.read_index(locate(given["output"]), split)["id"] for name, split in manifest.splits.items()}
    for name in ("train", "val", "trainval", "train_aug"):
        assert sorted(found[name].to_pylist()) == sorted(read_list(voc, name))
    assert not set(found["train_aug"].to_pylist()) & set(val)
    sources = {"VOC2012": 0, "SBD": 0}
    for row in shards.iterate_rows(locate(given["output"]), manifest.split("trainval_aug"), ["id", "mask", "source"]):
        labels = small_labels(row["id"])
        if row["source"] == "SBD":
            labels[labels == 255] = 0
        np.testing.assert_array_equal(decode_mask(row["mask"]), labels)
        sources[row["source"]] += 1
    assert sources == {"VOC2012": 2913, "SBD": 9118}
    assert prepare(**given).unchanged


def run_until(job: DatasetJob, word: str, then_s: float, environment: dict[str, str]) -> str:
    """Start the job in a process group of its own, kill it some time after it has said a word; what it said."""
    process = subprocess.Popen(
        [sys.executable, "-c", JOB, job.model_dump_json()],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith(word):
            time.sleep(then_s)
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return said


def test_a_kill_at_any_step_is_continued_to_the_same_bytes(tmp_path):
    given, _ = archives(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    reference = prepare(**given | {"output": str(tmp_path / "reference"), "work": str(tmp_path / "work-2")})
    job = DatasetJob(**given)
    for word in ("fetched", "unpacked", "checked"):
        run_until(job, word, 0.02, environment)
        assert not (tmp_path / "out/manifest.json").exists() or word == "checked"
    report = prepare(**given)
    assert report.digest == reference.digest
    digests = {
        name: hashlib.sha256((tmp_path / name / "manifest.json").read_bytes()).hexdigest()
        for name in ("out", "reference")
    }
    assert digests["out"] == digests["reference"]
    wanted = {name: digest for name, digest in files_of(tmp_path / "reference").items() if name.startswith("shards/")}
    found = {name: d for name, d in files_of(tmp_path / "out").items() if name.startswith("shards/")}
    # What a killed session left half written is swept after an hour: until then it could be another session's
    assert wanted == {name: d for name, d in found.items() if "/.tmp-" not in name}


def test_a_kill_while_shards_are_written_leaves_whole_files(tmp_path, monkeypatch):
    mine = make_dataset(tmp_path / "mine", 60, num_val=10)
    monkeypatch.setattr(shards, "PART_BYTES", 20_000)
    out = tmp_path / "out"
    reference = prepare(data=str(mine), output=str(tmp_path / "reference"))
    slow = JOB.replace(
        "job =",
        "from tasks import engines\nfrom tasks.datasets import shards, store\n"
        "shards.PART_BYTES, engines.FEW = 20_000, 1000\n"
        "plain = store.write_part\ndef late(*given):\n    import time; time.sleep(0.3); return plain(*given)\n"
        "store.write_part = late\njob =",
        1,
    )
    job = DatasetJob(data=str(mine), output=str(out))
    process = subprocess.Popen(
        [sys.executable, "-c", slow, job.model_dump_json()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(list((out / "shards").rglob("part-*.parquet"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    there = list((out / "shards").rglob("part-*.parquet"))
    assert 2 <= len(there) < reference.files and not (out / "manifest.json").exists()
    stamps = {path: path.stat().st_mtime_ns for path in there}
    report = prepare(data=str(mine), output=str(out))
    assert report.written_now == reference.files - len(there) and report.digest == reference.digest
    assert {path: path.stat().st_mtime_ns for path in there} == stamps
    assert (out / "manifest.json").read_bytes() == (tmp_path / "reference/manifest.json").read_bytes()
