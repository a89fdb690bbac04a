"""Prefect dies under a job: its worker, the worker together with the flow run, its server.

All servers are those of `make up`, in a folder of their own; the flow run is one of `segment-archive/default`.
"""

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tasks.storage import locate
from tests.conftest import ROOT
from tests.faults.bench import LONG_SIDE_PX, PATIENCE_S, Bench, kill, mask_files
from tests.faults.fault import Fault, Outcome
from tests.processes import marked
from tests.test_local_servers import DEPLOYMENT, Operator, local

SERVER_IS_BACK_AFTER_S = 10.0


class Servers(Operator):
    """What `make up` has started, and who uses it."""

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        known = json.loads((run / "processes.json").read_text())
        self.mark = known["mark"]
        self.environment["SEGMENT_ARCHIVE_UP"] = self.mark  # So that what is started anew is ended with the others
        self.pids = {process["name"]: process["pid"] for process in known["processes"]}
        self.restarts: list[subprocess.Popen] = []

    def restart(self, name: str, *command: str) -> None:
        with (self.run / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self.restarts.append(process)
        self.pids[name] = process.pid

    def restart_worker(self) -> None:
        pool = self.environment["SEGMENT_ARCHIVE_POOL"]
        self.restart("worker", "prefect", "worker", "start", "--pool", pool, "--name", "local-worker")

    def restart_server(self) -> None:
        port = self.environment["PREFECT_API_URL"].rpartition(":")[2].partition("/")[0]
        self.restart("prefect-server", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port)

    def kill_server(self) -> None:
        """With the web server that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pids["prefect-server"], signal.SIGKILL)

    def flow_processes(self) -> list[int]:
        """The flow runs that the worker has started."""
        found = []
        for pid in marked("SEGMENT_ARCHIVE_UP", self.mark):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if any(name in command for name in (b"prefect.engine", b"prefect.flow_engine", b"flow-run\0execute")):
                    found.append(pid)
        return found

    def state_of(self, flow_run: str) -> str:
        """Type of its state; empty where the server does not answer."""
        with contextlib.suppress(OSError, ValueError):
            url = f"{self.environment['PREFECT_API_URL']}/flow_runs/{flow_run}"
            with urllib.request.urlopen(url, timeout=5) as response:
                return str(json.load(response)["state_type"])
        return ""

    def give_up(self, flow_run: str) -> None:
        """What "Change state" on Prefect's pages does to a flow run whose process is gone: gives its slot back."""
        body = json.dumps({"state": {"type": "CANCELLED", "name": "Cancelled"}, "force": True}).encode()
        url = f"{self.environment['PREFECT_API_URL']}/flow_runs/{flow_run}/set_state"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=30).close()

    def ends(self, flow_run: str, patience_s: float = PATIENCE_S) -> str:
        """State in which a flow run ends, or is after so long, or when its process has gone and nobody says so."""
        deadline = time.monotonic() + patience_s
        while (state := self.state_of(flow_run)) not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            nobody = state == "RUNNING" and not self.flow_processes()
            if nobody or time.monotonic() > deadline:
                break
            time.sleep(1.0)
        return state


@contextlib.contextmanager
def up(place: Path) -> Iterator[Servers]:
    """`make up` in a folder of its own, ended at the end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PREFECT_", "RAY_"))}
    clean["SEGMENT_ARCHIVE_RUN"] = str(place / "run")
    try:
        local("up", clean)
        yield Servers(place / "run")
    finally:
        local("down", clean)


_opened = contextlib.ExitStack()
_kept: dict[Path, Servers] = {}
atexit.register(_opened.close)


def servers_of(bench: Bench) -> Servers:
    """One `make up` for all trials of this process, struck again and again: its start takes longer than a trial."""
    if bench.folder not in _kept:
        place = bench.folder / "up"
        shutil.rmtree(place, ignore_errors=True)
        _kept[bench.folder] = _opened.enter_context(up(place))
    return _kept[bench.folder]


def run(bench: Bench, trial: int, name: str) -> Outcome:
    """One job, struck once at a random moment."""
    try:
        return _run(bench, trial, name, servers_of(bench))
    except Exception:
        _kept.clear()
        _opened.close()
        raise


def _run(bench: Bench, trial: int, name: str, servers: Servers) -> Outcome:
    place, dice, outcome = bench.fresh(name, trial), bench.dice(name, trial), Outcome(times=0)
    expected = bench.undisturbed()
    output = str(place / "out")
    job = {"source": str(bench.source), "output": output, "gallery_images": 0}
    job["inference"] = {"long_side_px": LONG_SIDE_PX}
    flow_run = servers.starts(job)
    _wait(lambda: mask_files(locate(output)), servers)
    time.sleep(dice.uniform(0, 3))
    before, struck = len(mask_files(locate(output))), time.monotonic()
    if name == "prefect-server":
        servers.kill_server()
    else:
        kill(servers.pids["worker"])
        if name == "prefect-flow-run":
            flows = servers.flow_processes()
            assert flows, "no process of a flow run was found"
            for pid in flows:
                kill(pid)
    outcome.times += 1
    if name == "prefect-server":
        time.sleep(SERVER_IS_BACK_AFTER_S)
        servers.restart_server()
    else:
        servers.restart_worker()
    state = servers.ends(flow_run)
    if state != "COMPLETED":  # Nothing that was committed is lost; an operator runs it again
        outcome.sentences.append(f"the flow run was {state or 'unknown'}")
        if state == "RUNNING":
            servers.give_up(flow_run)
        flow_run = _starts_again(servers, job)
        assert servers.ends(flow_run) == "COMPLETED", (servers.run / "worker.log").read_text()[-3000:]
    # Committed at the latest by now; the files tell when the first one after the fault was
    later = [file.stat().st_mtime for file in Path(output).rglob("part-*.parquet")]
    since = time.time() - (time.monotonic() - struck)
    if next_ones := [moment - since for moment in later if moment > since]:
        outcome.recovery_s.append(min(next_ones))
    assert before <= len(later)
    outcome += bench.judge(output, expected)
    return outcome


def _starts_again(servers: Servers, job: dict) -> str:
    """The same deployment with the same parameters, as an operator does who finds the flow run not completed."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(AssertionError):
            return servers.starts(job)
        time.sleep(2)
    raise AssertionError(f"{DEPLOYMENT} cannot be started again")


def _wait(ready, servers: Servers) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not ready():
        assert time.monotonic() < deadline, (servers.run / "worker.log").read_text()[-3000:]
        time.sleep(0.2)


def _fault(name: str, what: str) -> Fault:
    return Fault(name, what, lambda bench, trial: run(bench, trial, name), trials=1)


FAULTS = (
    _fault("prefect-worker", "SIGKILL of the Prefect worker"),
    _fault("prefect-flow-run", "SIGKILL of the Prefect worker and its flow run"),
    _fault("prefect-server", "SIGKILL of the Prefect server, back after 10 s"),
)
