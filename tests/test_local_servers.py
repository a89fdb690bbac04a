"""What the README says of `make up`: run bare, bucket to bucket, by schedule; cancel, resume; down ends all of it."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, photograph
from tests.datasets import make_dataset
from tests.poison.sitecustomize import SLOW
from tests.processes import marked

# One after the other: both look for free ports from the same numbers on
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("up")]

DEPLOYMENT = "segment-archive/default"
NUM_PHOTOGRAPHS = 28
"""Of which each takes SLOW_S: a minute on two cores, in which nothing is computed."""

FILL = """
import sys
from pathlib import Path
from tasks import storage
for file in Path(sys.argv[1]).iterdir():
    storage.write_whole(storage.locate("s3://photographs/many") / file.name, file.read_bytes())
"""


def local(command: str, environment: dict[str, str]) -> str:
    told = subprocess.run(
        [sys.executable, str(ROOT / "infra" / "local.py"), command], capture_output=True, text=True, env=environment
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


class Operator:
    """Who types the commands of the README after `. .run/settings.sh`."""

    def __init__(self, run: Path) -> None:
        shell = subprocess.run(
            ["sh", "-c", f". {run}/settings.sh && env -0"], capture_output=True, text=True, check=True
        )
        self.environment = dict(pair.split("=", 1) for pair in shell.stdout.split("\0") if pair)
        self.run = run

    def types(self, *command: str) -> str:
        told = subprocess.run(command, capture_output=True, text=True, env=self.environment, cwd=ROOT)
        log = (self.run / "worker.log").read_text()
        assert told.returncode == 0, told.stdout + told.stderr + log[-3000:]
        return told.stdout

    def starts(self, job: dict) -> str:
        """Identity of a new flow run."""
        told = self.types("prefect", "deployment", "run", DEPLOYMENT, "-p", f"job={json.dumps(job)}")
        return re.search(r"UUID: (\S+)", told)[1]

    def asks(self, path: str, **body: object) -> Any:
        """What the server answers; asked again and again, as a command of seconds should not be."""
        request = urllib.request.Request(
            f"{self.environment['PREFECT_API_URL']}/{path}",
            json.dumps(body).encode() if body else None,
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def state(self, flow_run: str) -> str:
        return self.asks(f"flow_runs/{flow_run}")["state_type"]

    def record(self, output: str) -> dict:
        """Of the one run of an output in the bucket masks; empty where there is none yet."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads(next((self.run / "s3" / "masks" / output / "runs").iterdir()).read_text())
        return {}


def wait(ready, patience_s: float = 240.0) -> None:
    deadline = time.monotonic() + patience_s
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_up_run_cancel_resume_down(tmp_path):
    run = tmp_path / "run"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PREFECT_", "RAY_"))}
    clean |= {"SEGMENT_ARCHIVE_RUN": str(run), "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5"}
    clean["PYTHONPATH"] = str(ROOT / "tests" / "poison")
    many = tmp_path / "many"
    many.mkdir()
    for number in range(NUM_PHOTOGRAPHS):
        slow = photograph(number, (320, 240))
        slow.paste(SLOW, (0, 0, 24, 24))
        slow.save(many / f"{number:02d}.jpg", quality=95)
    try:
        told = local("up", clean)
        operator = Operator(run)
        secret = operator.environment["AWS_SECRET_ACCESS_KEY"]
        mark = json.loads((run / "processes.json").read_text())["mark"]
        assert len(secret) == 40 and secret not in told
        assert "Already up" in local("up", clean)
        # The process list is everybody's
        assert not any(secret.encode() in command_line(pid) for pid in marked("SEGMENT_ARCHIVE_UP", mark))

        watch = ("prefect", "deployment", "run", DEPLOYMENT, "--watch", "--watch-timeout", "400")
        operator.types(*watch)  # Bare: the photographs of the demo

        # From bucket to bucket, and slow enough to be met at work: a cancellation takes its time on a busy machine
        operator.types(sys.executable, "-c", FILL, str(many))
        job = {"source": "s3://photographs/many", "output": "s3://masks/many", "crf": None, "gallery_images": 0}
        job["inference"] = {"long_side_px": 321}
        masks = run / "s3" / "masks" / "many" / "masks"
        flow_run = operator.starts(job)
        wait(lambda: list(masks.rglob("*.parquet")))
        operator.types("prefect", "flow-run", "cancel", flow_run)
        wait(lambda: operator.state(flow_run) == "CANCELLED")
        assert not any(b"ray::ArchiveWorker" in command_line(pid) for pid in marked("SEGMENT_ARCHIVE_UP", mark))
        assert operator.record("many")["status"] == "stopped"
        kept = {file: file.stat().st_mtime_ns for file in masks.rglob("*.parquet")}
        assert 0 < sum(session["images"] for session in operator.record("many")["sessions"]) < NUM_PHOTOGRAPHS

        operator.types(*watch, "-p", f"job={json.dumps(job)}")
        record = operator.record("many")
        assert (record["status"], record["masks"]) == ("finished", NUM_PHOTOGRAPHS)
        stages = [session["stages"]["score"].keys() for session in record["sessions"]]
        assert stages == 2 * [{"busy_s", "busy_share", "images_per_s", "queue_units"}]
        assert kept.items() <= {file: file.stat().st_mtime_ns for file in masks.rglob("*.parquet")}.items()

        # Another deployment of the same worker: a dataset, from a folder into a bucket
        job = {"data": str(make_dataset(tmp_path / "mine")), "output": "s3://masks/mine"}
        operator.types(
            "prefect", "deployment", "run", "prepare-dataset/default", *watch[4:], "-p", f"job={json.dumps(job)}"
        )
        splits = json.loads((run / "s3/masks/mine/manifest.json").read_text())["splits"]
        assert {name: split["images"] for name, split in splits.items()} == {"train": 6, "val": 2}

        # A schedule fires; what is done already is seen to be done
        before = num_runs(operator)
        operator.types("prefect", "deployment", "schedule", "create", DEPLOYMENT, "--interval", "20")
        wait(lambda: num_runs(operator) > before)
        operator.types("prefect", "deployment", "schedule", "clear", DEPLOYMENT, "-y")
    finally:
        told = local("down", clean)
    assert "worker" in told
    assert marked("SEGMENT_ARCHIVE_UP", mark) == []
    assert "nothing was running" in local("down", clean)
    # Nothing that was left behind knows the secret: logs of all servers and workers, database, records, masks
    left = [file for file in run.rglob("*") if file.is_file()]
    assert any("ray-logs" in file.parts for file in left) and any(file.suffix == ".db" for file in left)
    assert [file for file in left if secret.encode() in file.read_bytes()] == []


def num_runs(operator: Operator) -> int:
    """Completed runs of the deployment."""
    return operator.asks("flow_runs/count", flow_runs={"state": {"type": {"any_": ["COMPLETED"]}}})


def command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
