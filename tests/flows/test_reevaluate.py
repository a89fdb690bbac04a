"""Nights one after the other: quiet, nothing new, a regression, a broken model, other images, a refused model."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from prefect.client.schemas.objects import State

from flows.prefect_runs import reevaluate
from tasks.errors import JobError
from tasks.evaluation.evaluate import ReevaluateJob, evaluations_of, open_dataset
from tasks.models.registry import list_models
from tasks.nights.baselines import accept_baseline, last_night
from tasks.nights.summary import sheet, sheet_lines, sheet_markdown, summary
from tasks.storage import locate
from tests.conftest import ROOT
from tests.evaluation_data import INFERENCE, judged_in_process, save_model, small_dataset

pytestmark = pytest.mark.usefixtures("prefect_server", "local_engine")


def night(job: ReevaluateJob) -> State:
    """A night whose counts are made in this process; everything else is as it always is."""
    manifest, _ = open_dataset(job)
    for model in list_models(job.models):
        try:
            for asked in evaluations_of(job, model, manifest):
                judged_in_process(job, asked)
        except ValueError:
            continue
    return reevaluate(job, return_state=True)


def artifact(key: str) -> str:
    from prefect.artifacts import Artifact

    found = Artifact.get(key)
    assert found is not None
    return str(found.data)


def test_nights(tmp_path: Path) -> None:
    models, output = tmp_path / "models", locate(str(tmp_path / "out"))
    small_dataset(tmp_path / "data")
    save_model(models / "good", 0)
    save_model(models / "other", 1)
    given = {"models": str(models), "dataset": str(tmp_path / "data"), "output": output.uri, "inference": INFERENCE}
    job = ReevaluateJob(**given, crf=None)

    # Its page, whose charts take the time, is asked for in the one night that is looked at
    quiet = job.model_copy(update={"report": False})
    first = night(quiet)
    assert first.is_completed() and "no baseline yet for good, other" in str(first.message)
    assert accept_baseline(output.uri)["good"].endswith("mean IoU single scale without CRF 100.00 %")
    with pytest.raises(JobError, match="has no model nobody"):
        accept_baseline(output.uri, ["nobody"])
    # The baselines are new, the counts are not
    second = reevaluate(quiet, return_state=True)
    assert second.is_completed() and "2 compared with their baseline, none worse" in str(second.message)
    third = reevaluate(quiet, return_state=True)
    assert third.is_completed() and third.name == "Skipped" and "Nothing new" in str(third.message)
    assert len(list((tmp_path / "out" / "nights").iterdir())) == 2

    save_model(models / "good", 1)
    shutil.copytree(models / "other", models / "broken")
    (models / "broken" / "card.json").write_text("{")
    fourth = night(job)
    assert fourth.is_failed()
    message = str(fourth.message)
    assert "good is worse than its baseline: " in message and "without CRF -" in message
    assert "broken could not be evaluated: " in message and "\n" not in message
    record = last_night(output)
    assert record is not None and {a["model"]: a["kind"] for a in record["alarms"]} == {
        "good": "worse",
        "broken": "failed",
    }
    assert [bool(m["evaluations"]) for m in record["models"]] == [False, True, True]
    told = artifact("segment-archive-night")
    assert "| IoU of " in told and "data:image/jpeg;base64," in told and "good: worse" in told

    # Every night has its rows, and every figure its interval
    rows = pq.read_table(tmp_path / "out" / "metrics").to_pylist()
    assert len({row["run"] for row in rows}) == 3
    mean = [row for row in rows if row["measure"] == "mean_iou" and row["trimap_px"] is None]
    assert len(mean) == 6 and all(row["low"] <= row["value"] <= row["high"] for row in mean)

    # The page carries its pictures itself
    page = Path(str(record["report"])).read_text()
    assert page.count("data:image/png;base64,") >= 8 and "http" not in page and "taken for" in page
    assert "other minus good" in page
    assert (Path(str(record["report"])).parent / "history.png").stat().st_size > 1000
    assert "good" in "\n".join(summary(output.uri))

    # Accepted as it is now, it is quiet again; the broken model alone is tried again every night
    accept_baseline(output.uri, ["good"])
    shutil.rmtree(models / "broken")
    assert night(quiet).is_completed()

    # Fewer images than the baseline had
    small_dataset(tmp_path / "data", num_images=20)
    fewer = night(quiet)
    assert fewer.is_failed() and "was evaluated on 20 images of small-val, its baseline on 24" in str(fewer.message)


def test_a_model_that_learnt_these_images_is_refused_and_says_so(tmp_path: Path) -> None:
    small_dataset(tmp_path / "data", num_images=4)
    save_model(tmp_path / "models" / "learnt", 0, training_split="small-val")
    job = ReevaluateJob(models=str(tmp_path / "models"), dataset=str(tmp_path / "data"), output=str(tmp_path / "out"))
    state = reevaluate(job, return_state=True)
    assert state.is_completed() and "not scored, since trained on these images: learnt" in str(state.message)
    record = last_night(locate(job.output))
    assert record is not None and 'its card says "training_split": "small-val"' in record["models"][0]["refused"]


def test_a_job_that_cannot_run_ends_with_one_sentence(tmp_path: Path) -> None:
    job = ReevaluateJob(models="pspnet50", dataset=str(tmp_path), output=str(tmp_path / "out"))
    state = reevaluate(job, return_state=True)
    assert state.is_failed() and "is no prepared dataset" in str(state.message)


def test_the_deployments_nights_name_the_folders_that_do_not_exist_yet(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    deployments = yaml.safe_load((ROOT / "infra" / "prefect.yaml").read_text())["deployments"]
    jobs = [d["parameters"]["job"] for d in deployments if d["entrypoint"].endswith(":reevaluate")]
    assert len(jobs) == 2
    missing = (
        f"The folder {tmp_path}/models does not exist: put model directories there",
        f"{tmp_path}/datasets/voc2012 is no prepared dataset",
        "Make it with `segment-archive prepare",
    )
    for given in jobs:
        state = reevaluate(ReevaluateJob(**given), return_state=True)
        page = artifact("segment-archive-night")
        assert state.is_failed() and all(words in str(state.message) and words in page for words in missing)
        assert "Traceback" not in page and not (tmp_path / given["output"]).exists()

    # One of the two alone is named alone, and an empty folder is not a missing one
    (tmp_path / "models").mkdir()
    small_dataset(tmp_path / "datasets" / "voc2012", num_images=2)
    message = str(reevaluate(ReevaluateJob(**jobs[0]), return_state=True).message)
    assert f"{tmp_path}/models holds no model: put model directories there" in message and "dataset" not in message
    assert message in artifact("segment-archive-night")


def test_the_sheet_never_compares_other_images_silently(tmp_path: Path) -> None:
    small_dataset(tmp_path / "data", num_images=4)
    save_model(tmp_path / "models" / "large", 0)
    given = {"models": str(tmp_path / "models"), "dataset": str(tmp_path / "data"), "output": str(tmp_path / "out")}
    assert night(ReevaluateJob(**given, inference=INFERENCE, report=False)).is_completed()
    # As if it had been another variant, one that the paper has a number for
    (record,) = (tmp_path / "out" / "evaluations").iterdir()
    content = json.loads(record.read_text())
    content["evaluation"]["variant"] = "deeplab_v2_resnet101"
    record.write_text(json.dumps(content))
    rows = sheet(locate(given["output"]))
    measured = [row for row in rows if row.ours is not None]
    assert [(row.variant, row.stage, row.paper, row.same_images) for row in measured] == [
        ("deeplab_v2_resnet101", "without CRF", 76.35, False),
        ("deeplab_v2_resnet101", "with CRF", 77.69, False),
    ]
    assert "UNTRAINED" in measured[0].conditions and "4 images of small-val" in measured[0].conditions
    for told in (sheet_markdown(rows), "\n".join(sheet_lines(rows))):
        assert told.count("OTHER IMAGES") == 2 and "other images: not comparable" in told
    # What was measured comes first; all others are one line, or folded
    assert rows[: len(measured)] == measured
    first, *_, last = lines = sheet_lines(rows)
    assert first.split()[:3] == ["model", "stage", "ours,"] and len(lines) < 9
    assert max(len(line) for line in lines[:3]) <= 100
    assert "are not measured" in last and "pspnet101" in last
    assert "<details>" in sheet_markdown(rows) and "pspnet101: 82.60 without CRF" in sheet_markdown(rows)
