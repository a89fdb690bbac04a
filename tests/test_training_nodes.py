"""A training on a cluster of two nodes, one of which is lost for good."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import TypeAdapter

from segcore import models
from segcore.learning.recipes import TrainRecipe
from segcore.learning.training import Trainer, new_network
from tasks import storage
from tasks.datasets.shards import read_manifest
from tasks.training.data import Loader, SplitReader
from tests.conftest import ROOT
from tests.ray_nodes import ray_nodes
from tests.tasks.small_dataset import write_dataset
from tests.tasks.test_training import RECIPE as SMALL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Three images, so that two workers have unequal shares
RECIPE = dataclasses.replace(SMALL, batch_size=3, iterations=60)

# In a process of its own so that it joins this cluster and not that of the other tests
DRIVER = """
import sys
from tasks import progress
from tasks.training.train import train
from tasks.training.training_job import TrainJob

with progress.told_to(progress.Terminal()):
    print(train(TrainJob.model_validate_json(sys.argv[1])).model_dump_json())
"""


def undisturbed(dataset: str) -> list[float]:
    """Loss of each step in one process without Ray."""
    place, preprocessing = storage.locate(dataset), models.variant(RECIPE.model).preprocessing
    loader = Loader(
        SplitReader(place, read_manifest(place).split("train"), cache_bytes=2**24), RECIPE, preprocessing, None, rank=0,
        num_workers=1, images_at_once=0, num_threads=1, device=torch.device("cpu"),
    )  # fmt: skip
    trainer = Trainer(RECIPE, new_network(RECIPE, 3, preprocessing))
    found = [trainer.train_step(loader.batches(step)).loss for step in range(RECIPE.iterations)]
    loader.stop()
    return found


def test_it_goes_on_with_the_nodes_that_are_left(tmp_path: Path) -> None:
    dataset, output = write_dataset(str(tmp_path / "dataset")).uri, tmp_path / "out"
    job = {"dataset": dataset, "output": str(output), "split": "train", "validation_images": 0, "checkpoint_every": 5}
    job |= {"num_workers": 2, "min_workers": 1, "num_threads": 1}
    job |= {"recipe": TypeAdapter(TrainRecipe).dump_python(RECIPE, mode="json")}
    with ray_nodes(tmp_path) as nodes, (tmp_path / "said").open("w+") as said:
        for _ in range(2):
            nodes.start(num_cpus=1)
        environment = os.environ | nodes.environment | {"RAY_ADDRESS": nodes.address}
        command = [sys.executable, "-c", DRIVER, json.dumps(job)]
        driver = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=said, text=True)
        while not (output / "checkpoints/step-00000010.pt").exists() and driver.poll() is None:
            time.sleep(0.1)
        nodes.kill(1)
        told, _ = driver.communicate()
        said.seek(0)
        complaints = said.read()
    assert driver.returncode == 0, complaints
    report = json.loads(told.splitlines()[-1])
    assert (report["steps"], report["restarts"]) == (60, 1), complaints
    assert re.findall(r"Going on from the checkpoint of step \d+, with (.*)\.", complaints) == ["1 worker"]
    metrics = pq.read_table(output / "metrics.parquet")
    assert metrics.column("step").to_pylist() == list(range(60))
    # Nothing of it can be seen in what was learnt: two workers and one differ by rounding alone
    assert metrics.column("loss").to_pylist() == pytest.approx(undisturbed(dataset), rel=1e-3)
