"""An ONNX file of somebody else through the archive: both engines, from a bucket, with 150 classes."""

import json

import numpy as np

import segcore
from segcore.images import masks
from segcore.predictor import PredictParams
from tasks import engines
from tests.segcore.models.test_onnx_file import described
from tests.tasks.test_archive import job_of, rows_of, run


def test_both_engines_and_the_library_give_the_same_masks(photographs, bucket, tmp_path, monkeypatch, ray_cluster):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    path = described(tmp_path / "model")
    for name in ("net.onnx", "card.json"):
        bucket.put(f"models/{name}", (path.parent / name).read_bytes())
    options = {"model": f"s3://{bucket.name}/models/net.onnx", "untrained": False, "inference": {}, "crf": None}
    found = {}
    for engine in ("local", "ray"):
        with engines.opened(engine):
            found[engine] = run(job_of(photographs, tmp_path / engine, **options))
    rows = {engine: rows_of(report) for engine, report in found.items()}
    library = segcore.load(str(path), params=PredictParams(crf=None))
    largest = 0
    for image_id, row in rows["local"].items():
        assert row["model"] == "net"
        assert row["mask"] == rows["ray"][image_id]["mask"] is not None
        labels = masks.decode_mask(row["mask"])
        assert np.array_equal(labels, library.segment(photographs / image_id).labels)
        assert {c["name"] for c in row["classes"]} == {f"thing {label}" for label in np.unique(labels)}
        largest = max(largest, int(labels.max()))
    assert largest > 20  # More than VOC has
    assert found["local"].run_id == found["ray"].run_id
    card = json.loads((path.parent / "card.json").read_text())
    assert len(card["classes"]) == 150
