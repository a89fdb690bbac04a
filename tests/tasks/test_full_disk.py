"""A disk that fills up: one sentence, nothing half-written that anybody would read, and the same command goes on."""

import contextlib
import subprocess

import pyarrow.parquet as pq
import pytest
import ray

from tasks import cluster, storage
from tasks.errors import JobError
from tasks.segmentation.archive_job import ArchiveJob, list_archive
from tasks.segmentation.finish import publish_report
from tasks.segmentation.session import segment_remaining
from tasks.storage import locate
from tests.conftest import photograph


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two mebibytes; skips where it may not be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root only")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place, leave_bytes):
    """Fill a file system but for so many bytes."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - leave_bytes)


def test_a_full_disk_is_said_in_one_sentence(small_disk):
    place = locate(str(small_disk))
    fill(small_disk, 64 * 1024)
    for write in (
        lambda: storage.write_whole(place / "a", bytes(2**20)),
        lambda: storage.write_stream(place / "a", [bytes(2**18)] * 4),
    ):
        with pytest.raises(JobError) as caught, storage.explained(place):
            write()
        assert f"No space is left for {small_disk}: make room there" in str(caught.value)
        assert [file.name for file in small_disk.iterdir()] == ["filler"]
    (small_disk / "filler").unlink()
    storage.write_whole(place / "a", bytes(2**20))
    assert (small_disk / "a").stat().st_size == 2**20


@pytest.mark.parametrize(
    "name", ["local", pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.xdist_group("servers")])]
)
def test_a_job_whose_disk_fills_up_goes_on_when_there_is_room(name, small_disk, tmp_path, monkeypatch, request):
    if name == "ray":
        request.getfixturevalue("ray_cluster")
    monkeypatch.setattr("tasks.segmentation.archive_job._unit_images", lambda *_: 2)
    source = tmp_path / "source"
    source.mkdir()
    for number in range(12):
        photograph(number, (96, 72)).save(source / f"{number:02d}.png")
    job = ArchiveJob(
        source=str(source),
        output=str(small_disk / "out"),
        inference={"long_side_px": 97},
        gallery_images=0,
        keep_mask_before_crf=True,
        engine=name,
    )
    plan = list_archive(job)
    fill(small_disk, 40 * 1024)  # Room for some of the files, which take a page each at least
    with pytest.raises(JobError) as caught:
        segment_remaining(job, plan)
    reason = str(caught.value)
    assert f"No space is left for {small_disk}/out" in reason and "run the same command again" in reason
    assert "\n" not in reason and "Errno" not in reason and "JobError" not in reason
    if name == "ray":
        # Nothing of what has failed keeps a worker: the next try in this process would wait for its CPUs
        assert cluster.free_resources((2.0, 0.0))[0] == 2
    kept = {file.name: file.read_bytes() for file in small_disk.rglob("masks/run=*/*")}
    assert len(kept) < 6 and all(name.startswith("part-") for name in kept)
    fill(small_disk, 0)
    with pytest.raises(JobError, match=f"No space is left for {small_disk}/out"):
        list_archive(job)  # What is full already is found before anything starts
    (small_disk / "filler").unlink()
    plan = list_archive(job)
    report = publish_report(job, plan, segment_remaining(job, plan))
    assert (report.images, report.masks) == (12, 12) and plan.remaining_units == 6 - len(kept)
    for file in small_disk.rglob("masks/run=*/*.parquet"):
        assert kept.get(file.name, file.read_bytes()) == file.read_bytes() and pq.read_table(file).num_rows == 2


def test_a_full_disk_of_ray_is_named_with_its_remedy(small_disk, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(small_disk))
    full = cluster.explain(ray.exceptions.OutOfDiskError("Local disk is full"))
    assert full.startswith("Ray has no disk left") and f"{small_disk}/ray" in full and "RAY_TMPDIR" in full

    def start(_):
        (small_disk / "ray").mkdir()
        fill(small_disk, 0)
        (small_disk / "ray" / "session").write_bytes(bytes(2**20))

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "_start_local", start)
    with pytest.raises(JobError, match=f"No space is left for {small_disk}/ray: make room there"), cluster.connected():
        pass
