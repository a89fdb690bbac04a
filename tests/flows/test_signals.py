"""Ctrl-C and SIGTERM at any moment of the main command: words, exit status, nothing left running, and going on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, photograph

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

IMAGES = 24
BOUND_S = 20.0
"""Of a machine that is busy with other tests; on a quiet one it is 3 s."""

GOES_ON = re.compile(r"Stopped\. (\d+ of 24 are done; t|T)he same command goes on\.")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals") / "photographs"
    folder.mkdir()
    for number in range(IMAGES):
        photograph(number, (400, 300)).save(folder / f"{number}.jpg")
    return folder


def start(source: Path, output: Path) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "RAY_ADDRESS")}
    command = [sys.executable, "-m", "flows.cli", "run", str(source), str(output), "--engine", "local"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )


def committed(output: Path) -> list[Path]:
    return list(output.glob("masks/run=*/part-*.parquet"))


MOMENTS = {
    "start": lambda output: True,
    "listing": lambda output: (output / "manifest").exists(),
    "first unit": lambda output: (output / "runs").exists(),
    "middle": lambda output: len(committed(output)) >= 4,
    "finish": lambda output: len(committed(output)) == IMAGES / 2,
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", MOMENTS)
def test_it_stops_at_once_and_goes_on(source, tmp_path, moment, number, record_property):
    output = tmp_path / "out"
    process = start(source, output)
    if moment == "start":
        time.sleep(1.0)
    while not MOMENTS[moment](output) and process.poll() is None:
        time.sleep(0.02)
    children = descendants(process.pid)
    sent = time.monotonic()
    process.send_signal(number)
    time.sleep(0.1)
    if process.poll() is None:
        process.send_signal(number)  # Who is impatient sees no traceback either
    out, err = process.communicate(timeout=60)
    seconds = time.monotonic() - sent
    record_property("seconds", seconds)
    assert "Traceback" not in err + out
    if process.returncode != 0:  # It had finished by then
        assert process.returncode == 128 + number
        last = err.strip().splitlines()[-1]
        # On a busy machine the command may not have read its own words yet
        assert GOES_ON.fullmatch(last) or (moment == "start" and last == "Stopped."), err
    assert seconds < BOUND_S
    deadline = time.monotonic() + 5
    while any(alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [child for child in children if alive(child)] == []

    done = {file: file.stat().st_mtime_ns for file in committed(output)}
    again = start(source, output)
    out, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    assert {file: file.stat().st_mtime_ns for file in committed(output)} | done == {
        file: file.stat().st_mtime_ns for file in committed(output)
    }
    ids = [name for file in committed(output) for name in pq.read_table(file, columns=["image_id"])[0].to_pylist()]
    assert sorted(ids) == sorted(f"{number}.jpg" for number in range(IMAGES))


def descendants(pid: int) -> list[int]:
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if alive(pid) else []:
        found += [int(child), *descendants(int(child))]
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
