"""A Ray cluster of several nodes on this machine, each a process of its own with other CPUs and without the project."""

import contextlib
import dataclasses
import os
import secrets
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from tests.processes import end_all, free_port, marked

MARK = "SEGMENT_ARCHIVE_MARK"
"""In the environment of every process of a cluster, and of whoever is given `Nodes.environment`."""

NODE = "SEGMENT_ARCHIVE_NODE"
"""In the environment of every process of one node, its workers included."""


@dataclasses.dataclass
class Nodes:
    """The nodes of a cluster, by number."""

    folder: Path
    python: Path
    environment: dict[str, str]
    address: str = ""
    processes: list[subprocess.Popen] = dataclasses.field(default_factory=list)

    def start(self, num_cpus: int) -> subprocess.Popen:
        """A node more; the first is the head."""
        where = ["--address", self.address] if self.address else ["--head", "--port", str(free_port())]
        command = [str(self.python), "-m", "ray.scripts.scripts", "start", "--block", *where]
        command += ["--num-cpus", str(num_cpus), "--object-store-memory", str(160 * 2**20)]
        # Each its own, as on machines of their own: in a shared one they take the project's code from under each other
        command += ["--temp-dir", str(self.folder / str(len(self.processes)))]
        if not self.address:
            command += ["--include-dashboard", "false"]
            self.address = f"127.0.0.1:{where[-1]}"
        for _ in range(3):  # Ray gives its own server 30 s to start, which is not enough on a very busy machine
            number = len(self.processes)
            environment = self.environment | {NODE: f"{self.environment[MARK]}-{number}"}
            log = self.folder / f"node-{number}.log"
            with log.open("wb") as opened:
                process = subprocess.Popen(
                    command, cwd=self.folder, env=environment, stdout=opened, stderr=opened, start_new_session=True
                )
            self.processes.append(process)
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and process.poll() is None:
                if "Ray runtime started" in log.read_text():
                    return process
                time.sleep(0.2)
        raise AssertionError(log.read_text())

    def kill(self, number: int) -> None:
        """SIGKILL to all processes of a node at once: the machine has gone."""
        for pid in marked(NODE, f"{self.environment[MARK]}-{number}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def ray_nodes(folder: Path) -> Iterator[Nodes]:
    """No node yet; at the end all are ended.

    folder: takes the Python of the nodes, which has what the project needs, but not the project.
    """
    python = folder / "other" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "other")], check=True)
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "other")}))
    (own / "libraries.pth").write_text("\n".join(libraries))  # Named so, their own .pth files are not followed
    sockets = Path(f"/tmp/sa-{secrets.token_hex(4)}")  # The names of Ray's sockets must be short
    sockets.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PREFECT_", "PYTHON"))}
    token = sockets / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = clean | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {MARK: secrets.token_hex(8)}
    made = Nodes(sockets, python, environment)
    try:
        yield made
    finally:
        end_all(MARK, environment[MARK], gently=False)
        subprocess.run(["rm", "-rf", str(sockets)], check=False)
