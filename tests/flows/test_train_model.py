"""The flow that trains, once through: what it writes, and that it does nothing twice."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from flows.cli import app
from flows.prefect_runs import train_model
from segcore.models import checkpoint
from tasks.training.training_job import TrainJob
from tests.console import invoke
from tests.tasks.small_dataset import CLASSES, write_dataset


@pytest.mark.slow
def test_a_training_from_data_to_model(ray_cluster, prefect_server, tmp_path: Path):
    dataset, output = tmp_path / "data", tmp_path / "out"
    write_dataset(str(dataset))
    job = TrainJob(
        dataset=str(dataset),
        output=str(output),
        recipe="fast_pspnet18",
        split="train",
        iterations=4,
        batch_size=4,
        crop_px=33,
        precision="fp32",
        validation_images=3,
        validate_every=2,
        checkpoint_every=3,
        keep_checkpoints=1,
        num_threads=1,
    )
    state = train_model(job, return_state=True)
    assert state.is_completed(), state.message
    report = state.result()
    assert (report.steps, report.steps_now, report.restarts) == (4, 4, 0)
    assert 0 <= report.mean_iou <= report.best_mean_iou <= 1

    rows = pq.read_table(output / "metrics.parquet").to_pylist()
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row["mean_iou"] is not None for row in rows] == [False, True, False, True]
    assert all(len(row["iou"] or CLASSES) == 3 for row in rows)
    assert dict(rows[0]["losses"]).keys() == {"main", "auxiliary"}
    assert Image.open(output / "curves.png").width > 1000
    assert [path.name for path in sorted((output / "checkpoints").iterdir())][-1] == "step-00000004.pt"

    model = checkpoint.load(output / "model")
    assert model.card.classes == tuple(CLASSES)
    assert model.card.training_split == "small-train"
    assert model.card.metrics["small-val/miou_percent"] == pytest.approx(100 * report.mean_iou)
    assert "digest" in model.card.notes and not model.card.untrained
    assert json.loads((output / "training.json").read_text())["status"] == "finished"

    again = train_model(job, return_state=True)
    assert again.is_completed() and again.message == "nothing to do: all 4 steps are done"
    other = train_model(job.model_copy(update={"seed": 1}), return_state=True)
    assert other.is_failed()
    assert "holds another training, which differs in recipe.seed" in other.message


def test_recipes_are_listed():
    result = invoke(app, "recipes")
    assert result.exit_code == 0
    assert "deeplab_v2_resnet101" in result.output


def test_mistakes_at_the_door_name_the_culprit(tmp_path: Path):
    result = invoke(app, "train", tmp_path, tmp_path / "out", "--recipe", "pspnet")
    assert result.exit_code == 2
    assert "There is no recipe 'pspnet'" in result.output
