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
from tests.processes import end_all, marked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

IMAGES = 16

PATIENCE_S = 120
"""After which a command that was told to stop counts as hanging; no measurement."""

MARK = "SEGMENT_ARCHIVE_TEST_SIGNALS"
"""In the environment of a command and so of all that it starts, also of what has lost its parent."""

GOES_ON = re.compile(r"Stopped\. (\d+ of 16 are done; t|T)he same command goes on\.")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals") / "photographs"
    folder.mkdir()
    for number in range(IMAGES):
        photograph(number, (400, 300)).save(folder / f"{number}.jpg")
    return folder


def start(source: Path, output: Path, engine: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "RAY_ADDRESS")}
    environment[MARK] = str(output)
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "run",
        str(source),
        str(output),
        "--engine",
        engine,
        "--long-side",
        "257",
        "--precision",
        "fp32",
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )


def committed(output: Path) -> list[Path]:
    return list(output.glob("masks/run=*/part-*.parquet"))


def listens(output: Path, pid: int) -> bool:
    """Whether the command has its own handler of SIGTERM: until then Python is loading."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) & 1 << (signal.SIGTERM - 1))


def ray_starts(output: Path, pid: int) -> bool:
    return any(b"gcs_server" in Path(f"/proc/{child}/cmdline").read_bytes() for child in marked(MARK, str(output)))


MOMENTS = {
    "start": listens,
    "listing": lambda output, pid: (output / "manifest").exists(),
    "cluster": ray_starts,
    "first unit": lambda output, pid: (output / "runs").exists(),
    "middle": lambda output, pid: len(committed(output)) >= 4,
    "finish": lambda output, pid: len(committed(output)) == IMAGES / 2,
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("engine", "moment"),
    [
        *(("local", moment) for moment in MOMENTS if moment != "cluster"),
        *(("ray", moment) for moment in ("start", "cluster", "first unit", "middle")),
    ],
)
def test_it_stops_at_once_and_goes_on(source, tmp_path, engine, moment, number):
    output = tmp_path / "out"
    process = start(source, output, engine)
    try:
        while process.poll() is None and not MOMENTS[moment](output, process.pid):
            time.sleep(0.02)
        process.send_signal(number)
        time.sleep(0.1)
        if process.poll() is None:
            process.send_signal(number)  # Who is impatient sees no traceback either
        out, err = process.communicate(timeout=PATIENCE_S)
        assert "Traceback" not in err + out
        if process.returncode != 0 or moment != "finish":  # It may have finished by then
            assert process.returncode == 128 + number, err
            last = err.strip().splitlines()[-1]
            # At the start the command may not have read its own words yet
            assert GOES_ON.fullmatch(last) or (moment == "start" and last == "Stopped."), err
        deadline = time.monotonic() + PATIENCE_S  # Ray's own processes notice that their driver is gone
        while marked(MARK, str(output)) and time.monotonic() < deadline:
            time.sleep(0.1)
        left = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in marked(MARK, str(output))]
        assert left == []
    finally:
        end_all(MARK, str(output), gently=False)

    done = {file: file.stat().st_mtime_ns for file in committed(output)}
    again = start(source, output, "local")  # The engine is no part of a run's identity
    out, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    after = {file: file.stat().st_mtime_ns for file in committed(output)}
    assert after | done == after
    ids = [name for file in after for name in pq.read_table(file, columns=["image_id"])[0].to_pylist()]
    assert sorted(ids) == sorted(f"{number}.jpg" for number in range(IMAGES))
