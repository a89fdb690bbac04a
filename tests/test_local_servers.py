"""What the README says of `make up`: server, worker, S3 and Ray start, a deployment runs, and down ends just those."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def local(command: str, environment: dict[str, str]) -> str:
    told = subprocess.run(
        [sys.executable, str(ROOT / "infra" / "local.py"), command], capture_output=True, text=True, env=environment
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


def state_of(pid: int) -> str | None:
    """State letter of a process; None where there is none (any more)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def test_up_run_down(tmp_path):
    run = tmp_path / "run"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PREFECT_", "RAY_"))}
    environment = clean | {"SEGMENT_ARCHIVE_RUN": str(run)}
    try:
        told = local("up", environment)
        exports = [line.strip().removeprefix("export ") for line in told.splitlines() if "export " in line]
        environment |= dict(line.split("=", 1) for line in exports)
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        assert "Already up" in local("up", environment)
        job = {"source": "s3://photographs", "output": "s3://masks/out", "untrained": True}
        deployment = ["prefect", "deployment", "run", "segment-archive/default", "--watch", "--watch-timeout", "300"]
        ran = subprocess.run(
            [*deployment, "-p", f"job={json.dumps(job)}"], capture_output=True, text=True, env=environment
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr + (run / "worker.log").read_text()[-3000:]
        (record,) = (run / "s3" / "masks" / "out" / "runs").iterdir()
        assert json.loads(record.read_text())["masks"] == 5
        processes = json.loads((run / "processes.json").read_text())["processes"]
        assert {p["name"] for p in processes} == {"prefect-server", "s3", "ray", "worker"}
    finally:
        told = local("down", environment)
    assert "worker" in told
    for process in processes:
        assert state_of(process["pid"]) in (None, "Z"), process["name"]
    assert "nothing was running" in local("down", environment)
