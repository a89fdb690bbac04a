"""Logs under the user's folder: empty ones of runs that were killed are swept, those of living ones stay."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tasks import cache


@pytest.fixture
def logs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "segment-archive" / "logs"


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_an_empty_log_goes_and_a_written_one_stays(logs):
    empty, written = cache.new_log("workers"), cache.new_log("workers")
    written.write(b"a warning")
    cache.close_log(empty)
    cache.close_log(written)
    (left,) = logs.iterdir()
    assert left.read_bytes() == b"a warning" and str(left) == written.name
    assert f"-{os.getpid()}-" in left.name


def test_what_killed_runs_left_is_swept(logs):
    code = "import os, signal\nfrom tasks import cache\ncache.new_log('workers')\nos.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    (left,) = logs.iterdir()
    assert left.stat().st_size == 0
    old = logs / f"segment-archive-workers-{ended_process()}-old.log"
    new = logs / f"segment-archive-workers-{ended_process()}-new.log"
    living = logs / f"segment-archive-workers-{os.getpid()}-living.log"
    foreign = logs / "notes.log"
    for file in (old, new, foreign):
        file.write_text("words")
    living.write_text("")
    month_ago = time.time() - 30 * 24 * 3600
    os.utime(old, (month_ago, month_ago))
    cache.close_log(cache.new_log("workers"))
    assert sorted(logs.iterdir()) == sorted([new, living, foreign])


def test_where_the_folder_cannot_be_written_it_is_a_temporary_file(logs, monkeypatch, tmp_path):
    (tmp_path / "segment-archive").write_text("a file in the way")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    log = cache.new_log("workers")
    assert Path(log.name).parent == tmp_path
    cache.close_log(log)
    assert not Path(log.name).exists()
