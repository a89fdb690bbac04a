"""Kill it anywhere, run it twice at once, feed it garbage: every image still ends in exactly one row."""

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segcore.images import masks
from tasks import storage
from tasks.storage import Location, locate
from tests.bad_files import write_bad_files
from tests.conftest import photograph

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

NUM_PHOTOGRAPHS = 60
NUM_KILLS = 5  # Each of a folder and of a bucket; `make faults` has more


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Photographs and a few bad files: some twenty parts."""
    folder = tmp_path_factory.mktemp("archive")
    for number in range(NUM_PHOTOGRAPHS):
        photograph(number, (240, 180) if number % 3 else (180, 240)).save(folder / f"{number:03d}.jpg")
    write_bad_files(folder / "bad")
    return folder


def start(source: str, output: str, *options: str) -> subprocess.Popen:
    """The console command, as the head of a process group of its own."""
    # Not the default model, which would be done before it can be killed
    model = ["--untrained", "--model", "deeplab_v1_largefov"]
    command = [sys.executable, "-m", "flows.cli", "run", source, output, *model, "--long-side", "241", *options]
    return subprocess.Popen(
        command,
        env={name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "RAY_ADDRESS"))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_tree(process: subprocess.Popen) -> None:
    """SIGKILL for a process and everything below it, all at once: workers too, and Ray's servers."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(place.name))
    tree, waiting = [], [process.pid]
    while waiting:
        tree.append(waiting.pop())
        waiting += children.get(tree[-1], [])
    for pid in tree:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def mask_files(output: Location) -> dict[str, tuple[int, str]]:
    """Name, size and version of every committed file."""
    return {f.path: (f.size, f.version) for f in storage.list_files(output / "masks") if f.path.endswith(".parquet")}


def rows(output: Location) -> dict[str, dict]:
    found: dict[str, dict] = {}
    for name in mask_files(output):
        data = storage.read_bytes(output / "masks" / name)
        for row in pq.read_table(pa.BufferReader(data), partitioning=None).to_pylist():
            assert row["image_id"] not in found, f"{row['image_id']} has two rows"
            found[row["image_id"]] = row
    return found


@pytest.fixture(scope="module")
def undisturbed(archive, tmp_path_factory) -> dict[str, dict]:
    """Rows of a run that nobody disturbed."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    process = start(str(archive), str(output))
    told, _ = process.communicate()
    assert process.returncode == 0, told
    found = rows(locate(str(output)))
    assert len(found) == sum(1 for p in archive.rglob("*") if not p.is_dir())
    return found


def test_a_job_goes_on_by_itself_when_rays_own_server_dies(archive, undisturbed, tmp_path):
    output = tmp_path / "out"
    process = start(str(archive), str(output), "--engine", "ray", "--gallery-images", "0")
    while not mask_files(locate(str(output))) and process.poll() is None:
        time.sleep(0.05)
    (raylet,) = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "raylet/raylet "], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(raylet), signal.SIGKILL)
    told, _ = process.communicate()
    assert process.returncode == 0 and "Ray's raylet on this machine is gone" in told, told
    after = rows(locate(str(output)))
    assert {i: row["mask"] for i, row in after.items()} == {i: row["mask"] for i, row in undisturbed.items()}


@pytest.mark.parametrize("where", ["local", "s3"])
def test_killed_again_and_again_every_image_has_one_row(where, archive, undisturbed, tmp_path, request):
    output = str(tmp_path / "out") if where == "local" else f"s3://{request.getfixturevalue('bucket').name}/out"
    place = locate(output)
    dice = random.Random(where)
    committed: dict[str, tuple[int, str]] = {}
    unfinished = 0
    for _ in range(NUM_KILLS):
        process = start(str(archive), output)
        wanted, patience = dice.randint(0, 4), time.monotonic() + dice.uniform(5, 60)
        # A random moment: before the first new commit, between two, or in the middle of one
        while process.poll() is None and time.monotonic() < patience:
            if len(mask_files(place)) - len(committed) >= wanted:
                break
            time.sleep(0.05)
        time.sleep(dice.uniform(0, 1.5) if wanted else dice.uniform(0, 8))
        unfinished += process.poll() is None
        kill_tree(process)
        now = mask_files(place)
        assert committed.items() <= now.items(), "a committed part was lost or done again"
        committed = now
        rows(place)  # Whatever is there is whole and has no image twice
    assert unfinished > 0

    last = start(str(archive), output)
    told, _ = last.communicate()
    assert last.returncode == 0, told
    assert committed.items() <= mask_files(place).items()
    after = rows(place)
    assert set(after) == set(undisturbed)
    for image_id, row in undisturbed.items():
        assert (after[image_id]["mask"], after[image_id]["error_kind"]) == (row["mask"], row["error_kind"])


def test_three_runs_at_the_same_time_share_the_work_and_make_no_duplicate(archive, undisturbed, tmp_path):
    output = tmp_path / "out"
    sessions = [start(str(archive), str(output))]
    while not list(output.glob("runs/*.json")) and sessions[0].poll() is None:
        time.sleep(0.05)
    sessions += [start(str(archive), str(output)) for _ in range(2)]
    told = [process.communicate()[0] for process in sessions]
    assert [process.returncode for process in sessions] == [0, 0, 0], told
    # Who came later was told of the first, unless that had finished by then
    at_work = [f"Another session of this job is at work (this machine, process {sessions[0].pid}" in t for t in told]
    finished = ["Nothing to do: all" in words for words in told]
    assert all(said or done for said, done in zip(at_work[1:], finished[1:], strict=True)), told
    after = rows(locate(str(output)))
    assert {i: row["mask"] for i, row in after.items()} == {i: row["mask"] for i, row in undisturbed.items()}
    (record,) = (json.loads(file.read_text()) for file in output.glob("runs/*.json"))
    assert (record["status"], record["at_work"]) == ("finished", [])
    # None has done much that another had done: each has a unit of 4 on each core in hand
    assert sum(session.get("images", 0) for session in record["sessions"]) <= 1.5 * len(undisturbed)


def test_a_hundred_photographs_and_many_bad_files(voc, tmp_path):
    source = tmp_path / "source"
    num_bad = write_bad_files(source / "bad ünd ügly")
    assert num_bad >= 20
    photographs = sorted((voc / "JPEGImages").glob("*.jpg"))[::4]
    assert len(photographs) == 100
    for file in photographs:
        (source / file.name).symlink_to(file)
    command = [sys.executable, "-m", "flows.cli", "run", str(source), str(tmp_path / "out")]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "RAY_ADDRESS"))}
    told = subprocess.run(command, capture_output=True, text=True, env=clean)
    assert told.returncode == 0, told.stderr
    assert f"{100 + num_bad} images: 100 masks, {num_bad} error rows" in told.stdout
    found = rows(locate(str(tmp_path / "out")))
    assert len(found) == 100 + num_bad
    from PIL import Image

    for file in photographs:
        labels = masks.decode_mask(found[file.name]["mask"])
        with Image.open(io.BytesIO(file.read_bytes())) as opened:
            assert labels.shape == (opened.height, opened.width)
        assert labels.max() <= 20
    for image_id, row in found.items():
        if image_id.startswith("bad ünd ügly/"):
            assert row["mask"] is None and row["error_kind"] and row["error"]
    kinds = {row["error_kind"] for row in found.values()} - {None}
    assert {"empty", "not_an_image", "truncated", "too_large", "unreadable"} <= kinds
