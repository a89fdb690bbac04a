"""A Ray cluster of several nodes, each a process of its own with other CPUs, whose workers do not have the project."""

import collections
import dataclasses
import json
import os
import secrets
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from segcore import checkpoint
from tasks.archive import ArchiveJob, list_archive, segment_remaining
from tests.conftest import ROOT, photograph
from tests.processes import end_all, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_PHOTOGRAPHS = 40
NUM_COMPARED = 12

# The driver, in a process of its own so that it joins this cluster and not that of the other tests
DRIVER = """
import json, sys
from tasks import archive, cluster, finish, growth, manifest
archive._unit_images = lambda *_: 1
growth.LOOK_EVERY_S = 1.0
import ray
from tasks.archive import ArchiveJob

job = ArchiveJob(**json.loads(sys.argv[1]))
plan = archive.list_archive.fn(job)
with cluster.connected():
    if cluster.is_shared():
        @ray.remote(num_cpus=0.1)
        def where():
            import segcore._crf, tasks.pipeline
            return tasks.pipeline.__file__, segcore._crf.__file__
        print(json.dumps({"code": ray.get(where.remote())}), flush=True)
    session = archive.segment_remaining.fn(job, plan)
    report = finish.publish_report.fn(job, plan, session)
print(json.dumps({"run": report.run_id, "masks": report.masks, "nodes": session.nodes}), flush=True)
"""


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
        if not self.address:
            command += ["--include-dashboard", "false", "--temp-dir", str(self.folder)]
            self.address = f"127.0.0.1:{where[-1]}"
        for _ in range(3):  # Ray gives its own server 30 s to start, which is not enough on a very busy machine
            number = len(self.processes)
            environment = self.environment | {"SEGMENT_ARCHIVE_NODE": str(number)}
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


@pytest.fixture
def nodes(tmp_path, s3_server) -> Iterator[Nodes]:
    """Nodes whose Python has what the project needs, but not the project; the driver's has both."""
    python = tmp_path / "other" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "other")], check=True)
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    own = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "other")}))
    (own / "libraries.pth").write_text("\n".join(libraries))  # Named so, their own .pth files are not followed
    folder = Path(f"/tmp/sa-{secrets.token_hex(4)}")  # The names of Ray's sockets must be short
    folder.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PREFECT_", "PYTHON"))}
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = clean | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"SEGMENT_ARCHIVE_MARK": secrets.token_hex(8)}
    made = Nodes(folder, python, environment)
    try:
        yield made
    finally:
        end_all("SEGMENT_ARCHIVE_MARK", environment["SEGMENT_ARCHIVE_MARK"])
        subprocess.run(["rm", "-rf", str(folder)], check=False)


def masks_of(folder: Path) -> dict[str, bytes]:
    rows = [row for file in folder.rglob("masks/run=*/*.parquet") for row in pq.read_table(file).to_pylist()]
    assert len({row["image_id"] for row in rows}) == len(rows)
    return {row["image_id"]: row["mask"] for row in rows}


def test_nodes_of_unequal_size_and_one_that_joins(nodes, ray_cluster, bucket, tmp_path):
    for number in range(NUM_PHOTOGRAPHS):
        path = tmp_path / "one.jpg"
        photograph(number, (320, 240) if number % 2 else (241, 321)).save(path)
        bucket.put(f"photographs/{number:03d}.jpg", path.read_bytes())
    # A model that only this machine has: its bytes must reach the nodes
    model = tmp_path / "model"
    untrained = checkpoint.load("deeplab_v1_largefov", untrained=True)
    checkpoint.save(model, untrained.module, untrained.card)
    job = {"source": f"s3://{bucket.name}/photographs", "model": str(model)}
    job |= {"inference": {"long_side_px": 321, "scales": [0.5, 0.75, 1.0]}}

    nodes.start(num_cpus=1)
    nodes.start(num_cpus=2)
    environment = os.environ | nodes.environment | {"RAY_ADDRESS": nodes.address, "SEGMENT_ARCHIVE_LOG": "json"}
    command = [sys.executable, "-c", DRIVER, json.dumps(job | {"output": f"s3://{bucket.name}/out"})]
    driver = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    committed: collections.Counter[str] = collections.Counter()
    noise, joined = [], False
    for line in driver.stderr:
        noise.append(line)
        event = json.loads(line) if line.startswith('{"time"') else {}
        if event.get("stage") != "commit":
            continue
        assert len(event["run"]) == 12 and event["seconds"].keys() == {"read", "score", "refine"}
        committed[event["node"]] += 1
        if not joined and committed.total() >= 3:
            nodes.start(num_cpus=1)
            joined = True
    told = driver.stdout.read()
    assert driver.wait() == 0, "".join(noise)[-3000:]
    code, end = (json.loads(line) for line in told.splitlines())
    # The code came with the job: these nodes do not have it
    assert all("working_dir_files" in path for path in code["code"]), code
    assert joined and end["masks"] == NUM_PHOTOGRAPHS
    assert end["nodes"] == dict(committed)

    alone = ArchiveJob(**job, output=str(tmp_path / "alone"), limit=NUM_COMPARED)
    plan = list_archive.fn(alone)
    segment_remaining.fn(alone, plan)
    several, one = masks_of(bucket.folder / "out"), masks_of(tmp_path / "alone")
    assert len(several) == NUM_PHOTOGRAPHS and len(one) == NUM_COMPARED
    assert {image_id: several[image_id] for image_id in one} == one
