"""`make up` and `make down`: a Prefect server with a worker, an S3 server and Ray on this machine.

Everything lives in one folder (`.run/`, or SEGMENT_ARCHIVE_RUN): logs, the Prefect database, the buckets, and the
process numbers that `down` ends. Nothing outside these processes is touched.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = Path(os.environ.get("SEGMENT_ARCHIVE_RUN", ROOT / ".run")).resolve()
STATE = RUN / "processes.json"
BIN = Path(sys.executable).parent
POOL = "local"


def up() -> None:
    """Start what is not running, deploy, and print how to use it."""
    if any(alive(process) for process in state()["processes"]):
        print("Already up.")
        tell(state()["settings"])
        return
    RUN.mkdir(parents=True, exist_ok=True)
    (RUN / "s3" / "photographs").mkdir(parents=True, exist_ok=True)
    (RUN / "s3" / "masks").mkdir(parents=True, exist_ok=True)
    for photograph in (ROOT / "examples" / "photographs").iterdir():
        shutil.copy(photograph, RUN / "s3" / "photographs")
    prefect_port, s3_port, ray_port = free_port(4200), free_port(9000), free_port(6379)
    settings = {
        "PREFECT_HOME": str(RUN / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{prefect_port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local-secret",
        "AWS_REGION": "us-east-1",
        "RAY_ADDRESS": f"127.0.0.1:{ray_port}",
        # Ray listens on every address of the machine: only who has the token is let in
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(RUN / "ray-token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "SEGMENT_ARCHIVE_HOME": str(ROOT),
    }
    token = RUN / "ray-token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ.update(settings)
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    STATE.write_text(json.dumps({"processes": [], "settings": settings}))
    try:
        start("prefect-server", ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(prefect_port)])
        s3 = ["rclone", "serve", "s3", str(RUN / "s3"), "--addr", f"127.0.0.1:{s3_port}"]
        start("s3", [*s3, "--auth-key", f"{settings['AWS_ACCESS_KEY_ID']},{settings['AWS_SECRET_ACCESS_KEY']}"])
        ray = ["ray", "start", "--head", "--block", "--port", str(ray_port)]
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
    tell(settings)


def down() -> None:
    """End the processes that `up` started."""
    running = [process for process in state()["processes"] if alive(process)]
    for process in reversed(running):
        signal_group(process["pid"], signal.SIGTERM)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(alive(process) for process in running):
        time.sleep(0.2)
    for process in running:
        signal_group(process["pid"], signal.SIGKILL)
    # A killed process with much memory takes its time to go: who is told that it is down may rely on it
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(alive(process) for process in running):
        time.sleep(0.1)
    STATE.unlink(missing_ok=True)
    print(f"Down: {', '.join(process['name'] for process in running) or 'nothing was running'}.")


def tell(settings: dict[str, str]) -> None:
    """How to use what is up."""
    print(f"Prefect's pages: {settings['PREFECT_API_URL'].removesuffix('/api')}")
    print(f"Logs, database and buckets: {RUN}")
    print("In a shell that is to use it:")
    for name, value in settings.items():
        print(f"  export {name}={value}")
    print("Then: prefect deployment run segment-archive/default --watch")


def state() -> dict:
    try:
        return json.loads(STATE.read_text())
    except (OSError, ValueError):
        return {"processes": [], "settings": {}}


def start(name: str, command: list[str]) -> None:
    """Start a server as the head of a process group, and remember it."""
    with (RUN / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    now = state()
    now["processes"].append({"name": name, "pid": process.pid, "born": born(process.pid)})
    STATE.write_text(json.dumps(now))


def call(name: str, command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"The {name} could not be made:\n{done.stdout}{done.stderr}")


def wait_for(name: str, ready: object) -> None:
    deadline = time.monotonic() + 90
    while not ready():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise SystemExit(f"{name} did not start within 90 s; see the logs in {RUN}.")
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
    return Path(f"/proc/{process['pid']}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


if __name__ == "__main__":
    {"up": up, "down": down}[sys.argv[1]]()
