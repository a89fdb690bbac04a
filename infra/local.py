"""`make up` and `make down`: a Prefect server with a worker, an S3 server and Ray on this machine.

Everything lives in one folder (`.run/`, or SEGMENT_ARCHIVE_RUN): logs, the Prefect database, the buckets, the settings
for a shell that is to use it, and the mark by which `down` knows the processes to end. Nothing else is touched.
"""

import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = Path(os.environ.get("SEGMENT_ARCHIVE_RUN", ROOT / ".run")).resolve()
STATE = RUN / "processes.json"
SETTINGS = RUN / "settings.sh"
MARK = "SEGMENT_ARCHIVE_UP"
"""In the environment of every process that `up` starts and of all their children, also of those that lose their parent
(Ray's servers leave the process group of who starts them)."""

BIN = Path(sys.executable).parent
POOL = "local"


def up() -> None:
    """Start what is not running, deploy, and print how to use it."""
    if any(alive(process) for process in state()["processes"]):
        print("Already up.")
        tell()
        return
    RUN.mkdir(parents=True, exist_ok=True)
    (RUN / "s3" / "photographs").mkdir(parents=True, exist_ok=True)
    (RUN / "s3" / "masks").mkdir(parents=True, exist_ok=True)
    for photograph in (ROOT / "examples" / "photographs").iterdir():
        shutil.copy(photograph, RUN / "s3" / "photographs")
    prefect_port, s3_port, ray_port = free_port(4200), free_port(9000), free_port(6379)
    # Ray's sockets have names of 107 characters at most, so they cannot lie in a folder that may be deep
    ray_folder = tempfile.mkdtemp(prefix="segment-archive-ray-")
    settings = {
        "PREFECT_HOME": str(RUN / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{prefect_port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "segment_archive",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}",
        "AWS_ACCESS_KEY_ID": f"local-{secrets.token_hex(8)}",
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
        "AWS_REGION": "us-east-1",
        "RAY_ADDRESS": f"127.0.0.1:{ray_port}",
        # Ray listens on every address of the machine: only who has the token is let in
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(RUN / "ray-token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "SEGMENT_ARCHIVE_HOME": str(ROOT),
        "SEGMENT_ARCHIVE_POOL": POOL,
    }
    mark = secrets.token_hex(16)
    write_private(RUN / "ray-token", secrets.token_hex(32))
    lines = [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]
    path = f'export PATH={shlex.quote(str(BIN))}:"$PATH"'
    write_private(SETTINGS, "\n".join([*lines, path, ""]))
    write_private(STATE, json.dumps({"mark": mark, "ray_folder": ray_folder, "processes": []}))
    os.environ.update(settings | {MARK: mark})
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    # On the command line it would stand in the list of processes
    os.environ["RCLONE_AUTH_KEY"] = f'"{settings["AWS_ACCESS_KEY_ID"]},{settings["AWS_SECRET_ACCESS_KEY"]}"'
    try:
        start("prefect-server", ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(prefect_port)])
        start("s3", ["rclone", "serve", "s3", str(RUN / "s3"), "--addr", f"127.0.0.1:{s3_port}"])
        del os.environ["RCLONE_AUTH_KEY"]
        ray = ["ray", "start", "--head", "--block", "--port", str(ray_port), "--temp-dir", ray_folder]
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        store = int(min(2 * 2**30, 0.1 * memory))
        start("ray", [*ray, "--include-dashboard", "false", "--object-store-memory", str(store)])
        wait_for("the Prefect server", lambda: answers(f"{settings['PREFECT_API_URL']}/health"))
        wait_for("Ray", lambda: listens(ray_port))
        wait_for("the S3 server", lambda: listens(s3_port))
        call("work pool", ["prefect", "work-pool", "create", "--type", "process", "--overwrite", POOL])
        call("deployment", ["prefect", "--no-prompt", "deploy", "--prefect-file", "infra/prefect.yaml", "--all"])
        start("worker", ["prefect", "worker", "start", "--pool", POOL, "--name", "local-worker"])
    except BaseException:
        down()
        raise
    tell()


def down() -> None:
    """End the processes that `up` started, and all that these have started."""
    known = state()
    named = [process["name"] for process in known["processes"] if alive(process)]
    first = [process["pid"] for process in known["processes"] if alive(process)]
    # First those who end what they have started: Ray waits for servers of its own that were told at the same time
    for number, patience, pids in ((signal.SIGTERM, 10, first), (signal.SIGTERM, 10, None), (signal.SIGKILL, 30, None)):
        for pid in marked(known["mark"]) if pids is None else pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        # A killed process with much memory takes its time to go: who is told that it is down may rely on it
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and marked(known["mark"]):
            time.sleep(0.2)
    if known["ray_folder"]:
        logs = Path(known["ray_folder"]) / "session_latest" / "logs"
        if logs.is_dir():
            shutil.copytree(logs, RUN / "ray-logs", dirs_exist_ok=True, symlinks=True)
        shutil.rmtree(known["ray_folder"], ignore_errors=True)
    for file in (STATE, SETTINGS, RUN / "ray-token"):
        file.unlink(missing_ok=True)
    left = marked(known["mark"])
    print(f"Down: {', '.join(named) or 'nothing was running'}.")
    if left:
        raise SystemExit(f"These processes do not end: {', '.join(map(str, left))}.")


def tell() -> None:
    """How to use what is up."""
    settings = SETTINGS.read_text()
    api = next(line.partition("=")[2] for line in settings.splitlines() if line.startswith("export PREFECT_API_URL="))
    print(f"Prefect's pages: {api.removesuffix('/api')}")
    print(f"Logs, database and buckets: {RUN}")
    print("In a shell that is to use it:")
    print(f"  . {shlex.quote(str(SETTINGS))}")
    print("  prefect deployment run segment-archive/default --watch")


def state() -> dict:
    try:
        return json.loads(STATE.read_text())
    except (OSError, ValueError):
        return {"mark": "", "ray_folder": "", "processes": []}


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner reads."""
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text(text)


def marked(mark: str) -> list[int]:
    """Living processes with our mark in their environment."""
    if not mark:
        return []
    found, wanted = [], f"{MARK}={mark}".encode()
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (place / "environ").read_bytes().split(b"\0") and int(place.name) != os.getpid():
                found.append(int(place.name))
    return [pid for pid in found if alive({"pid": pid, "born": born(pid)})]


def start(name: str, command: list[str]) -> None:
    """Start a server as the head of a process group, and remember it."""
    with (RUN / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    now = state()
    now["processes"].append({"name": name, "pid": process.pid, "born": born(process.pid)})
    write_private(STATE, json.dumps(now))


def call(name: str, command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"The {name} could not be made:\n{done.stdout}{done.stderr}")


def wait_for(name: str, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not ready():
        dead = [process["name"] for process in state()["processes"] if not alive(process)]
        if dead or time.monotonic() > deadline:
            raise SystemExit(f"{name} did not start; see the logs in {RUN}.")
        time.sleep(0.3)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port(wanted: int) -> int:
    """The wanted port, or any other where it is taken."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SystemExit("No free port on 127.0.0.1.")


def born(pid: int) -> str:
    """Start time of a process, so that a number that was given to another process later is not mistaken for ours."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def alive(process: dict) -> bool:
    if not process["born"] or born(process["pid"]) != process["born"]:
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process['pid']}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


if __name__ == "__main__":
    {"up": up, "down": down}[sys.argv[1]]()
