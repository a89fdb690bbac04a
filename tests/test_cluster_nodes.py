"""A Ray cluster of several nodes, each a process of its own with other CPUs, whose workers do not have the project."""

import collections
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from segcore.models import checkpoint
from tasks.segmentation.archive_job import ArchiveJob, list_archive
from tasks.segmentation.session import segment_remaining
from tests.conftest import ROOT, photograph
from tests.evaluation_data import INFERENCE, save_model, small_dataset
from tests.ray_nodes import Nodes, ray_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_PHOTOGRAPHS = 80
NUM_COMPARED = 12

# The driver, in a process of its own so that it joins this cluster and not that of the other tests
DRIVER = """
import json, sys
from tasks import cluster
from tasks.archive import manifest
from tasks.segmentation import finish, archive_job as archive, session as archive_session
from tasks.engines import ray as engine
archive._unit_images = lambda *_: 1
engine.LOOK_EVERY_S = 1.0
import ray
from tasks.segmentation.archive_job import ArchiveJob

job = ArchiveJob(**json.loads(sys.argv[1]))
plan = archive.list_archive(job)
with cluster.connected():
    if cluster.is_shared():
        @ray.remote(num_cpus=0.1)
        def where():
            import segcore._crf, tasks.stream.worker
            return tasks.stream.worker.__file__, segcore._crf.__file__
        print(json.dumps({"code": ray.get(where.remote())}), flush=True)
    session = archive_session.segment_remaining(job, plan)
    report = finish.publish_report(job, plan, session)
print(json.dumps({"run": report.run_id, "masks": report.masks, "nodes": session.nodes}), flush=True)
"""

# The model's folder is gone as soon as the driver has read it, so that a worker which looks for it fails
JUDGE = """
import json, sys
from pathlib import Path
from flows import execution, jobs
from tasks.engines import ray
from tasks.evaluation.evaluate import ReevaluateJob
from tasks.evaluation.record import read_record
from tasks.storage import locate

hand_over = ray._with_model

def hand_over_and_hide(work):
    handed = hand_over(work)
    Path(sys.argv[2]).rename(sys.argv[3])
    return handed

ray._with_model = hand_over_and_hide
job = ReevaluateJob(**json.loads(sys.argv[1]))
night = jobs.reevaluate(job, execution.directly)
figures = {e: read_record(locate(job.output), e)["figures"] for e in night.evaluations}
failures = [model.failure for model in night.models]
print(json.dumps({"failures": failures, "figures": list(figures.values())}), flush=True)
"""


@pytest.fixture
def nodes(tmp_path, s3_server) -> Iterator[Nodes]:
    """Nodes that reach the S3 server."""
    with ray_nodes(tmp_path) as made:
        yield made


def masks_of(folder: Path) -> dict[str, bytes]:
    rows = [row for file in folder.rglob("masks/run=*/*.parquet") for row in pq.read_table(file).to_pylist()]
    assert len({row["image_id"] for row in rows}) == len(rows)
    return {row["image_id"]: row["mask"] for row in rows}


def test_nodes_of_unequal_size_one_joins_and_one_leaves(nodes, bucket, tmp_path):
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
    noise: list[str] = []
    joined = lost = 0  # How much was committed then
    for line in driver.stderr:
        noise.append(line)
        event = json.loads(line) if line.startswith('{"time"') else {}
        if event.get("stage") != "commit":
            continue
        assert len(event["run"]) == 12 and event["seconds"].keys() == {"read", "score", "refine"}
        committed[event["node"]] += 1
        if not joined:
            nodes.start(num_cpus=1)
            joined = committed.total()
        elif not lost and len(committed) > 1 and committed.total() >= joined + 8:
            nodes.kill(1)  # The one with the most CPUs
            lost = committed.total()
    told = driver.stdout.read()
    assert driver.wait() == 0, "".join(noise)[-3000:]
    # Between them Ray says that it tries again what the lost node had under way
    code, end = (json.loads(line) for line in told.splitlines() if line.startswith("{"))
    # The code came with the job: these nodes do not have it
    assert all("working_dir_files" in path for path in code["code"]), code
    assert end["masks"] == NUM_PHOTOGRAPHS
    # Every node has taken part, also the one that joined, and the others have done the work of the one that left
    assert 0 < joined < lost < NUM_PHOTOGRAPHS and len(committed) == 3, committed
    assert end["nodes"] == dict(committed)

    alone = ArchiveJob(**job, output=str(tmp_path / "alone"), limit=NUM_COMPARED)
    plan = list_archive(alone)
    segment_remaining(alone, plan)
    several, one = masks_of(bucket.folder / "out"), masks_of(tmp_path / "alone")
    assert len(several) == NUM_PHOTOGRAPHS and len(one) == NUM_COMPARED
    assert {image_id: several[image_id] for image_id in one} == one


@pytest.mark.parametrize("as_uri", [False, True])
def test_an_evaluated_model_travels_with_the_job(nodes: Nodes, bucket, tmp_path: Path, as_uri: bool) -> None:
    dataset = f"s3://{bucket.name}/data"
    small_dataset(tmp_path / "data", num_images=8)
    for file in sorted((tmp_path / "data").rglob("*")):
        if file.is_file():
            bucket.put(f"data/{file.relative_to(tmp_path / 'data')}", file.read_bytes())
    model = save_model(tmp_path / "models" / "mine", 0)
    job = {"models": model.as_uri() if as_uri else str(model), "dataset": dataset, "output": f"s3://{bucket.name}/out"}
    job |= {"inference": INFERENCE, "crf": None, "report": False}
    nodes.start(num_cpus=1)
    environment = os.environ | nodes.environment | {"RAY_ADDRESS": nodes.address}
    command = [sys.executable, "-c", JUDGE, json.dumps(job), str(model), str(tmp_path / "hidden")]
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert (tmp_path / "hidden").is_dir() and not model.exists()
    end = json.loads(told.stdout.splitlines()[-1])
    assert end["failures"] == [None], told.stderr
    (figures,) = end["figures"]  # The truth is what this model sees
    assert figures["without CRF"]["mean_iou"]["value"] == 1.0, end
