"""The search on a few small images: it finishes, repeats, goes on where it was stopped, and never loses to a preset."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from segcore import models
from segcore.metrics import evaluation
from segcore.models import checkpoint
from segcore.models.card import ModelCard
from segcore.predictor import Predictor, PredictParams
from tasks.errors import JobError
from tasks.evaluation import tuning
from tasks.evaluation.tuning import TuneJob, TuneReport, search_crf


@pytest.fixture(autouse=True)
def _few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    some = ("deeplab_v1", "deeplab_v2_resnet101")
    monkeypatch.setattr(tuning, "CRF_PRESETS", {name: tuning.CRF_PRESETS[name] for name in some})
    monkeypatch.setattr(tuning, "COARSE_GRID", {"bilateral_xy_std_px": (10, 40), "bilateral_rgb_std": (5,)})


@pytest.fixture
def job(tmp_path: Path) -> TuneJob:
    """Ten images of a bright disc on dark ground, with blurred and noisy scores."""
    rng = np.random.default_rng(0)
    ids, logits = [], []
    for folder in ("images", "truth"):
        (tmp_path / folder).mkdir()
    for number in range(10):
        y, x = np.mgrid[:48, :64]
        disc = (y - rng.integers(16, 32)) ** 2 + (x - rng.integers(16, 48)) ** 2 < 144
        image = np.clip(disc[..., None] * 120 + 60 + rng.normal(0, 4, (48, 64, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"p{number}.jpg", quality=95)
        Image.fromarray(disc.astype(np.uint8)).save(tmp_path / "truth" / f"p{number}.png")
        coarse = np.array(Image.fromarray(disc.astype(np.float32)).resize((9, 7), Image.Resampling.BOX))
        scores = np.stack([0.5 - coarse, coarse - 0.5, np.full_like(coarse, -3)]) * 4
        ids.append(f"p{number}")
        logits.append((scores + rng.normal(0, 0.7, scores.shape)).astype(np.float16))
    np.savez(tmp_path / "scores.npz", ids=np.array(ids), logits=np.stack(logits))
    return TuneJob(
        scores=str(tmp_path / "scores.npz"),
        images=str(tmp_path / "images"),
        truth=str(tmp_path / "truth"),
        output=str(tmp_path / "out"),
        num_images=6,
        num_held_out=4,
        rounds=1,
        least_images=2,
    )


def same_but_work(a: TuneReport, b: TuneReport) -> bool:
    left_out = {"new_points", "output"}
    return a.model_dump(exclude=left_out) == b.model_dump(exclude=left_out)


def test_search_stops_goes_on_and_repeats(job: TuneJob) -> None:
    report = search_crf(job)
    output = Path(job.output)
    assert report.mean_iou >= report.preset_mean_iou
    assert report.mean_iou > report.without_crf
    assert report.interval[0] <= report.mean_iou <= report.interval[1]
    assert report.classes == ["0", "1"]  # nothing is of the third
    assert report.num_points == report.new_points > 4
    assert report.held_out is not None
    assert 0 < report.held_out["best"] <= 1
    table = pq.read_table(output / "points.parquet").to_pylist()
    assert len(table) == report.num_points
    assert json.loads((output / "best.json").read_text())["mean_iou"] == report.mean_iou
    assert Image.open(output / "heatmap.png").size[0] > 100

    again = search_crf(job)
    assert again.new_points == 0
    assert same_but_work(again, report)

    # As after a kill: some points are not there yet
    for path in sorted((output / "points").iterdir())[::3]:
        path.unlink()
    resumed = search_crf(job)
    assert 0 < resumed.new_points < report.num_points
    assert same_but_work(resumed, report)


def test_both_engines_find_the_same(job: TuneJob, ray_cluster: None) -> None:
    job = job.model_copy(update={"rounds": 0, "num_images": 10, "num_held_out": 0})  # More pieces than one process does
    local, on_ray = (
        search_crf(job.model_copy(update={"engine": engine, "output": f"{job.output}-{engine}"}))
        for engine in ("local", "ray")
    )
    assert same_but_work(local, on_ray)


def test_a_model_scores_what_it_is_tuned_on(job: TuneJob, tmp_path: Path) -> None:
    torch.manual_seed(0)
    card = ModelCard("pspnet14", ("ground", "disc", "other"), models.variant("pspnet14").preprocessing)
    checkpoint.save(tmp_path / "model", models.build("pspnet14", 3), card)
    (tmp_path / "ids.txt").write_text("\n".join(f"p{number}" for number in range(8)))
    job = job.model_copy(
        update={"scores": str(tmp_path / "model"), "ids": str(tmp_path / "ids.txt"), "num_held_out": 2, "rounds": 0}
    )
    report = search_crf(job)
    predictor = Predictor(checkpoint.load(tmp_path / "model"), PredictParams(crf=report.best))
    order = np.sort(np.random.default_rng(job.seed).permutation(8)[:6])
    counts = []
    for number in order:
        labels = predictor.segment(predictor.decode((tmp_path / f"images/p{number}.jpg").read_bytes())).mask
        counts.append(evaluation.count_pixels(np.array(Image.open(tmp_path / f"truth/p{number}.png")), labels, 3))
    classes = np.array([0, 1])
    assert report.classes == ["ground", "disc"]
    assert report.mean_iou == pytest.approx(evaluation.mean_iou(np.stack(counts).sum(0), classes), abs=1e-3)
    with pytest.raises(JobError, match=r"lists p7, which .*truth has not"):
        (tmp_path / "truth/p7.png").unlink()
        search_crf(job)
    with pytest.raises(JobError, match="no_such"):
        search_crf(job.model_copy(update={"scores": "no_such"}))


def test_what_cannot_be_searched_is_said(job: TuneJob) -> None:
    with pytest.raises(JobError, match="has 10 images, 24 are asked for"):
        search_crf(job.model_copy(update={"num_images": 20}))
    with pytest.raises(JobError, match="No class is in 7 of the 6 images"):
        search_crf(job.model_copy(update={"least_images": 7, "num_held_out": 0}))
    (Path(job.images) / "p3.jpg").unlink()
    with pytest.raises(JobError, match=r"p\d.jpg"):
        search_crf(job.model_copy(update={"num_images": 10, "num_held_out": 0}))
    with pytest.raises(JobError, match="does not exist"):
        search_crf(job.model_copy(update={"scores": job.scores + "-gone.npz"}))
