"""The nightly from its deployment, on a real server and worker, with an automation that hears of it."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.evaluation_data import INFERENCE, save_model, small_dataset
from tests.test_local_servers import Operator, local

# One after the other: both look for free ports from the same numbers on
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.xdist_group("up")]


class Pager(http.server.BaseHTTPRequestHandler):
    """Where the automation calls: keeps what it was told."""

    heard: list[str] = []  # noqa: RUF012

    def do_POST(self) -> None:
        self.heard.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


WATCH = """
import asyncio, sys
from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import EventTrigger, Posture

async def watch(url):
    block = await Webhook(url=url).save("pager", overwrite=True)
    trigger = EventTrigger(expect={"segment-archive.regression"}, posture=Posture.Reactive, threshold=1)
    call = CallWebhook(block_document_id=block, payload="{{ event.event }}: {{ event.payload['sentence'] }}")
    await Automation(name="wake somebody", trigger=trigger, actions=[call]).acreate()

asyncio.run(watch(sys.argv[1]))
"""

RUN = """
import json, sys
from prefect.deployments import run_deployment
from datetime import datetime

due = datetime.fromisoformat(sys.argv[3]) if sys.argv[3] else None
run = run_deployment(sys.argv[1], parameters={"job": json.loads(sys.argv[2])}, scheduled_time=due, timeout=600,
                     poll_interval=1, as_subflow=False)
print(json.dumps([run.state.type.value, run.state.name, run.state.message]))
"""


def test_nights_from_the_deployment(tmp_path: Path) -> None:
    models = tmp_path / "models"
    small_dataset(tmp_path / "data", num_images=24)
    save_model(models / "good", 0)
    save_model(models / "other", 1)
    job = {"models": str(models), "dataset": str(tmp_path / "data"), "output": str(tmp_path / "out")}
    job |= {"inference": INFERENCE, "crf": None}
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PREFECT_", "RAY_"))}
    environment = clean | {"SEGMENT_ARCHIVE_RUN": str(tmp_path / "run")}

    def python(code: str, *arguments: str) -> str:
        told = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)
        assert told.returncode == 0, told.stdout + told.stderr
        return told.stdout

    def night(deployment: str, due: str = "") -> tuple[str, str, str]:
        return tuple(json.loads(python(RUN, f"reevaluate/{deployment}", json.dumps(job), due).splitlines()[-1]))

    pager = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pager)
    threading.Thread(target=pager.serve_forever, daemon=True).start()
    try:
        local("up", environment)
        environment |= Operator(tmp_path / "run").environment
        python(WATCH, f"http://127.0.0.1:{pager.server_port}/")

        assert night("nightly")[:2] == ("COMPLETED", "Completed")
        accept = [sys.executable, "-m", "flows.cli", "baseline", "accept", job["output"]]
        assert "good: accepted" in subprocess.run(accept, capture_output=True, text=True, cwd=ROOT).stdout

        # Quiet: another model than the baseline's, and not a worse one
        save_model(models / "other", 0)
        kind, name, message = night("nightly")
        assert (kind, name) == ("COMPLETED", "Completed") and "2 compared with their baseline, none worse" in message
        kind, name, message = night("default")
        assert (kind, name) == ("COMPLETED", "Skipped") and message.startswith("Nothing new since the night")
        due = (datetime.now(UTC) - timedelta(hours=30)).isoformat()
        kind, _, message = night("nightly", due)
        assert kind == "CANCELLED" and message.startswith("Due 30 hours ago")
        assert Pager.heard == []

        # A regression, and a model that is broken: both are told, and the model between them is evaluated
        save_model(models / "good", 1)
        shutil.copytree(models / "other", models / "broken")
        (models / "broken" / "model.safetensors").write_bytes(b"cut short")
        save_model(models / "other", 2)
        kind, _, message = night("nightly")
        assert kind == "FAILED"
        assert "good is worse than its baseline: " in message and "broken could not be evaluated: " in message
        (last,) = sorted((tmp_path / "out" / "nights").iterdir())[-1:]
        evaluated = {m["model"]: len(m["evaluations"]) for m in json.loads(last.read_text())["models"]}
        assert evaluated == {"broken": 0, "good": 1, "other": 1}
        deadline = time.monotonic() + 120
        while len(Pager.heard) < 2 and time.monotonic() < deadline:
            time.sleep(0.5)
        heard = "\n".join(Pager.heard)
        assert "segment-archive.regression: good is worse than its baseline" in heard
        assert "segment-archive.regression: broken could not be evaluated" in heard
    finally:
        local("down", environment)
        pager.shutdown()
