"""Real processes killed at any moment of a download and of every step of prepare; what they leave is continued."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.download import CHUNK_BYTES
from tests.conftest import ROOT
from tests.processes import end_all
from tests.sbd_files import tar_of
from tests.tasks.file_server import PIECE_BYTES, serve
from tests.tasks.test_dataset import files_of
from tests.tasks.test_layout import voc_and_sbd

pytestmark = pytest.mark.slow

DOWNLOAD = """
import sys
from pathlib import Path
from tasks.download import Expected, download
download(sys.argv[1], Path(sys.argv[2]), expected=Expected(sys.argv[3], int(sys.argv[4])))
"""

# Everything in this process, and slow enough to be met at work
PREPARE = """
import sys, time
from tasks import download, engines
from tasks.datasets import check, shards, store, unpack
def slow(module, name, seconds):
    plain = getattr(module, name)
    def late(*given):
        done = plain(*given)
        time.sleep(seconds)
        return done
    setattr(module, name, late)
engines.FEW, shards.PART_BYTES, check.CHUNK_PAIRS, download.CHUNK_BYTES = 1000, 2000, 2, 16_000
slow(unpack, "_write", 0.03); slow(check, "check_chunk", 0.2); slow(store, "write_part", 0.2)
from flows import cli
sys.argv = ["segment-archive", "prepare", *sys.argv[1:]]
cli.main()
"""


def test_a_download_killed_at_random_moments(tmp_path):
    content = random.Random(0).randbytes(24 << 20)
    md5 = hashlib.md5(content).hexdigest()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/w").write_bytes(content)
    target, partial = tmp_path / "d/w", tmp_path / "d/w.part"
    draw, begins, kills = random.Random(1), [0], 0
    with serve(tmp_path / "root") as server:
        server.bytes_per_second = 12e6
        command = [sys.executable, "-c", DOWNLOAD, f"{server.url}/w", str(target), md5, str(len(content))]
        for _ in range(6):
            process = subprocess.Popen(command, cwd=ROOT)
            while len(server.sent) < len(begins) and process.poll() is None:
                time.sleep(0.005)
            time.sleep(draw.uniform(0.0, 0.6))
            process.kill()
            process.wait()
            if target.exists():
                break
            kills += 1
            have = partial.stat().st_size if partial.exists() else 0
            assert content.startswith(partial.read_bytes() if have else b"")
            assert server.sent[-1] - (have - begins[-1]) <= CHUNK_BYTES + 8 * PIECE_BYTES  # All that is fetched again
            begins.append(have)
        subprocess.run(command, cwd=ROOT, check=True)
        asked = server.asked
    assert hashlib.md5(target.read_bytes()).hexdigest() == md5
    assert kills >= 3 and begins[-1] > 0
    assert asked == [f"bytes={begin}-" if begin else None for begin in begins]
    assert sum(server.sent) - len(content) <= kills * (CHUNK_BYTES + 8 * PIECE_BYTES)
    assert [file.name for file in target.parent.iterdir()] == ["w"]


def test_prepare_killed_in_every_step_ends_as_if_nothing_had_been(tmp_path):
    voc, sbd = voc_and_sbd(tmp_path)
    (tmp_path / "root").mkdir()
    text = ""
    with serve(tmp_path / "root") as server:
        for name, folder, file in (("voc", voc, "VOC.tar"), ("sbd", sbd, "benchmark.tgz")):
            prefix = "VOCdevkit/VOC2012" if name == "voc" else "benchmark_RELEASE/dataset"
            archive = tar_of(folder, tmp_path / "root" / file, prefix)
            md5, url = hashlib.md5(archive.read_bytes()).hexdigest(), f"{server.url}/{file}"
            text += f'[{name}]\nname = "{name}"\nfile = "{file}"\nmd5 = "{md5}"\nmirrors = ["{url}"]\n'
        (tmp_path / "mirrors.toml").write_text(text)
        reference, out, work = tmp_path / "reference", tmp_path / "out", tmp_path / "work"
        assert prepare(tmp_path, reference, tmp_path / "work-2").wait() == 0
        server.bytes_per_second = 40_000
        steps = {
            "fetch": lambda: any(file.stat().st_size for file in (work / "archives").glob("*.part")),
            "unpack": lambda: any((work / "unpacked").rglob("*.jpg")),
            "check": lambda: any((out / "checks").glob("*.parquet")),
            "convert, store": lambda: len(list((out / "shards").rglob("*.parquet"))) > 1,
        }
        for step, begun in steps.items():
            process = prepare(tmp_path, out, work)
            deadline = time.monotonic() + 60
            while not begun():
                assert process.poll() is None and time.monotonic() < deadline, step
                time.sleep(0.005)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert not (out / "manifest.json").exists(), step
            server.bytes_per_second = 1e9
        there = (*work.rglob("*.jpg"), *(out / "shards").rglob("*.parquet"))
        before = {file: file.stat().st_mtime_ns for file in there}
        assert prepare(tmp_path, out, work).wait() == 0
        assert any(asked for asked in server.asked)  # The rest of an archive, not all of it
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in before.items())  # Nothing was done twice
    same, mine = files_of(reference), files_of(out)
    for name in sorted(same.keys() | mine.keys()):
        if not name.startswith("checks/"):  # They know the times of the files that they are of
            assert mine.get(name) == same.get(name), name
    assert json.loads((out / "manifest.json").read_text())["splits"]["train_aug"]["images"] == 8


def prepare(folder: Path, out: Path, work: Path) -> subprocess.Popen[bytes]:
    """The console command in a process group of its own."""
    options = ["--mirrors", str(folder / "mirrors.toml"), "--work", str(work)]
    command = [sys.executable, "-c", PREPARE, str(out), *options]
    told = (folder / "told").open("ab")
    return subprocess.Popen(command, cwd=ROOT, stdout=told, stderr=told, start_new_session=True)


@pytest.fixture(autouse=True)
def nothing_left_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGMENT_ARCHIVE_TEST", str(tmp_path))
    yield
    end_all("SEGMENT_ARCHIVE_TEST", str(tmp_path))
