"""The search as a flow."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.prefect_runs import tune_crf
from tasks.evaluation import tuning
from tasks.evaluation.tuning import TuneJob


def test_flow_ends_with_words(
    tmp_path: Path, ray_cluster: None, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "COARSE_GRID", {"bilateral_weight": (3,)})
    rng = np.random.default_rng(0)
    ids = [f"p{i}" for i in range(3)]
    for image_id in ids:
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / f"{image_id}.jpg")
        Image.fromarray(rng.integers(0, 2, (20, 30)).astype(np.uint8)).save(tmp_path / f"{image_id}.png")
    np.savez(tmp_path / "scores.npz", ids=ids, logits=rng.normal(0, 1, (3, 2, 3, 4)).astype(np.float16))
    job = TuneJob(
        scores=str(tmp_path / "scores.npz"),
        images=str(tmp_path),
        truth=str(tmp_path),
        output=str(tmp_path / "out"),
        num_images=3,
        rounds=0,
        least_images=1,
    )
    state = tune_crf(job, return_state=True)
    assert state.is_completed()
    assert "mean IoU" in str(state.message)

    refused = tune_crf(job.model_copy(update={"num_images": 4}), return_state=True)
    assert refused.is_failed()
    assert "has 3 images, 4 are asked for" in str(refused.message)
