"""Models of `transformers` through the archive: both engines, the library, 150 classes in rows, gallery and query."""

import json

import numpy as np
import pytest

import segcore
from segcore.images import masks
from segcore.models import checkpoint
from segcore.predictor import PredictParams
from segcore.scoring.inference import InferenceParams
from tasks import engines
from tasks.errors import JobError
from tasks.models.remote import local_model
from tasks.results.query import ask
from tasks.results.report import ReportJob, build_report
from tests.conftest import SERVERS_GROUP
from tests.segcore.models.test_hf_folder import small_model
from tests.tasks.test_archive import job_of, rows_of, run


@pytest.mark.parametrize(
    ("kind", "also"),
    [("segformer", ()), pytest.param("mask2former", ("ray",), marks=[pytest.mark.slow, SERVERS_GROUP])],
)
def test_engines_and_the_library_give_the_same_masks(photographs, tmp_path, request, kind, also):
    if also:
        request.getfixturevalue("ray_cluster")
    folder = small_model(tmp_path / "net", kind)
    options = {"model": str(folder), "untrained": False, "inference": {"long_side_px": 129}, "crf": None}
    found = {}
    for engine in ("local", *also):
        with engines.opened(engine):
            found[engine] = run(job_of(photographs, tmp_path / engine, **options))
    rows = {engine: rows_of(report) for engine, report in found.items()}
    library = segcore.load(folder, params=PredictParams(InferenceParams(long_side_px=129), crf=None))
    seen = set()
    for image_id, row in rows["local"].items():
        assert row["model"] == "net" and row["device"].endswith("/fp32")
        assert all(row["mask"] == rows[engine][image_id]["mask"] is not None for engine in rows)
        labels = masks.decode_mask(row["mask"])
        assert np.array_equal(labels, library.segment(photographs / image_id).labels)
        assert {c["name"] for c in row["classes"]} == {f"thing {label}" for label in np.unique(labels)}
        seen |= {int(label) for label in np.unique(labels)}
    assert max(seen) > 20 and len({report.run_id for report in found.values()}) == 1  # More than VOC has
    asked = ask(str(tmp_path / "local"), "SELECT DISTINCT class FROM objects")
    assert {name for (name,) in asked.rows()} == {f"thing {label}" for label in seen}
    build_report(ReportJob(output=str(tmp_path / "local")))
    [summary] = (tmp_path / "local" / "report").rglob("summary.js")
    assert all(f'"thing {label}"' in summary.read_text() for label in seen)
    record = json.loads(next((tmp_path / "local" / "runs").glob("*.json")).read_text())
    assert record["deciding"]["model"] == library.model.digest


def test_names_of_the_hub_are_found_in_its_cache_or_said_in_one_sentence(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789012345678901234567890123456789"
    place = tmp_path / "models--org--net"
    snapshot = small_model(place / "snapshots" / commit, "segformer", 3)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    assert local_model("hf:org/net") == local_model(f"hf:org/net@{commit}") == str(snapshot)
    assert checkpoint.describe(local_model("hf:org/net"))[0].shown_name == "org/net"
    for name in ("hf:org/none", "hf:../etc", "hf:org", "hf:org/net/more", "hf:org/.."):
        with pytest.raises(JobError, match=r"names no model of Hugging Face|is not in Hugging Face's cache") as caught:
            local_model(name)
        assert "\n" not in str(caught.value)
