"""Judging images on an engine, the figures from their counts, the registry in a bucket, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segcore.crf.dense_crf import CrfParams, refine_scores
from segcore.metrics import evaluation
from segcore.models import checkpoint
from segcore.voc import CLASSES
from tasks.errors import JobError
from tasks.evaluation.counts import Counts, counts_folder, read_counts
from tasks.evaluation.evaluate import ReevaluateJob, evaluations_of, open_dataset
from tasks.evaluation.judging import evaluate
from tasks.evaluation.metrics import compared_names, figures, mean_iou_over
from tasks.evaluation.record import evaluation_of, read_record, write_record
from tasks.models.registry import RegisteredModel, list_models
from tasks.models.remote import local_model
from tasks.models.weights import export_weights
from tasks.storage import locate
from tests.evaluation_data import INFERENCE, judged_in_process, save_model, small_dataset


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    small_dataset(folder / "data")
    save_model(folder / "models" / "good", 0)
    return folder


def job_of(place: Path, output: Path, **options: object) -> ReevaluateJob:
    given = {"models": str(place / "models"), "dataset": str(place / "data"), "inference": INFERENCE, "report": False}
    return ReevaluateJob(**(given | {"output": str(output)} | options))


def test_every_image_is_judged_once_as_in_one_process(place: Path, tmp_path: Path, local_engine: None) -> None:
    job = job_of(place, tmp_path / "out")
    (model,) = list_models(job.models)
    (asked,) = evaluations_of(job, model, open_dataset(job)[0])
    record = evaluate(job, asked)
    output = locate(job.output)
    counts = read_counts(output, asked)
    assert counts.ids == [f"image-{number:03d}" for number in range(24)]
    other = job_of(place, tmp_path / "other")
    judged_in_process(other, asked)
    expected = read_counts(locate(other.output), asked)
    for stage in ("without CRF", "with CRF"):
        np.testing.assert_array_equal(counts.confusion[stage], expected.confusion[stage])
        np.testing.assert_array_equal(counts.trimap[stage], expected.trimap[stage])
    # Parts add up: what stands in the files is what the whole has
    files = sorted(Path(counts_folder(output, asked.id).path).glob("*.parquet"))
    assert len(files) == 2
    cells = [c for file in files for row in pq.read_table(file).to_pylist() for c in row["confusion_with_crf"]]
    assert sum(cell["pixels"] for cell in cells) == counts.confusion["with CRF"].sum()
    # The truth is what the model sees, so it is right everywhere without CRF
    assert record["figures"]["without CRF"]["mean_iou"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert record["images"] == 24 and evaluation_of(read_record(output, asked.id)) == asked

    # A lost file alone is done again
    before = {file.name: file.stat().st_mtime_ns for file in files}
    files[0].unlink()
    Path(output.path, "evaluations", f"{asked.id}.json").unlink()
    assert evaluate(job, asked) == record
    assert files[1].stat().st_mtime_ns == before[files[1].name]


def test_figures_of_a_subset_are_a_query(place: Path, tmp_path: Path) -> None:
    job = job_of(place, tmp_path / "out")
    (asked,) = evaluations_of(job, list_models(job.models)[0], open_dataset(job)[0])
    judged_in_process(job, asked)
    counts = read_counts(locate(job.output), asked)
    import duckdb

    found = duckdb.sql(
        f"""SELECT c.truth, sum(c.pixels) FROM
        (SELECT unnest(confusion_with_crf) AS c FROM '{tmp_path}/out/counts/*/*.parquet' WHERE image_id < 'image-010')
        GROUP BY ALL"""
    ).fetchall()
    summed = counts.of("with CRF")[:10].sum(axis=0)
    assert dict(found) == {c: int(n) for c, n in enumerate(summed[:, 1]) if n}


def test_intervals_hold_their_figure_and_absent_classes_are_named(place: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    confusion = np.zeros((30, 21, 21), np.int64)
    confusion[:, :3, :3] = random.integers(0, 200, (30, 3, 3)) + 300 * np.eye(3, dtype=np.int64)
    trimap = np.zeros((30, 40, 21, 3), np.int64)
    trimap[:, :, :3] = random.integers(5, 20, (30, 40, 3, 3)).cumsum(axis=-1)[..., ::1]
    trimap[..., 0] = np.minimum(trimap[..., 0], trimap[..., 1])
    counts = Counts([str(k) for k in range(30)], {"without CRF": confusion}, {"without CRF": trimap})
    found = figures(counts, CLASSES)["without CRF"]
    assert set(found["iou"]) == set(CLASSES[:3]) and found["absent"] == list(CLASSES[3:])
    for name in ("mean_iou", "pixel_accuracy", "class_accuracy"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    whole = evaluation.counts_of(confusion.sum(axis=0))
    assert found["mean_iou"]["value"] == pytest.approx(float(evaluation.mean_iou(whole)))
    widest = trimap.sum(axis=(0, 1))
    assert found["trimap"]["pixel_accuracy"][39]["value"] == pytest.approx(float(evaluation.pixel_accuracy(widest)))
    assert len(found["trimap"]["mean_iou"]) == 40
    json.dumps(found, allow_nan=False)

    # Draws of the same few images would make a rare class look certain
    few = Counts(counts.ids[:4], {k: v[:4] for k, v in counts.confusion.items()}, {"without CRF": trimap[:4]})
    rare = figures(few, CLASSES)["without CRF"]["iou"]["aeroplane"]
    assert rare["low"] is rare["high"] is None and rare["images"] == 4


def test_all_stages_and_models_have_one_set_of_classes() -> None:
    before = np.zeros((12, 21, 21), np.int64)
    before[:, 0, 0], before[:, 1, 1], before[:, 0, 7] = 70, 20, 10  # 7 is in no image
    after = before.copy()
    after[:, 0, 0], after[:, 0, 7] = 80, 0
    trimap = np.repeat(evaluation.counts_of(after)[:, None], 40, axis=1)
    both = Counts([str(k) for k in range(12)], {}, {})
    both.confusion = {"without CRF": before, "with CRF": after}
    both.trimap = dict.fromkeys(both.confusion, trimap)
    found = figures(both, CLASSES)
    for stage in found.values():
        assert list(stage["iou"]) == [CLASSES[0], CLASSES[1], CLASSES[7]] and len(stage["absent"]) == 18
    assert found["without CRF"]["mean_iou"]["value"] == pytest.approx((70 / 80 + 1 + 0) / 3)
    assert found["with CRF"]["mean_iou"]["value"] == pytest.approx(2 / 3)
    assert found["with CRF"]["iou"][CLASSES[7]] == {"value": 0.0, "low": None, "high": None, "images": 0}
    # Beside another model that predicts an eighth class, both are over four
    other = Counts(both.ids, {"without CRF": after.copy()}, {"without CRF": trimap})
    other.confusion["without CRF"][:, 0, 9] = 1
    records = [{"figures": found}, {"figures": figures(other, CLASSES)}]
    names = compared_names(records)
    assert names == {CLASSES[c] for c in (0, 1, 7, 9)}
    assert mean_iou_over(found["with CRF"], names)["value"] == pytest.approx(2 / 4)


def test_the_crf_of_a_real_photograph_gains_nothing_by_forgetting_a_class(voc: Path) -> None:
    stored = np.load(voc / "scores_val_have.npz")
    scores = stored["logits"][stored["ids"].tolist().index("2007_005469")]
    image = np.array(Image.open(voc / "JPEGImages" / "2007_005469.jpg").convert("RGB"))
    truth = np.array(Image.open(voc / "SegmentationClassAug" / "2007_005469.png"))
    counts = Counts(["2007_005469"], {}, {})
    for stage, params in (("without CRF", None), ("with CRF", CrfParams())):
        labels = refine_scores(image, scores, params).labels
        counts.confusion[stage] = evaluation.confusion_matrix(truth, labels, 21)[None]
        counts.trimap[stage] = np.repeat(counts.of(stage)[:, None], 40, axis=1)
    # Sheep on grass; the network sees 375 px of a person, the CRF removes them, and much of the sheep with them:
    # hits, truth, prediction
    assert counts.of("without CRF")[0, [0, 15, 17]].tolist() == [
        [93252, 95527, 122326],
        [0, 0, 375],
        [30951, 60025, 32851],
    ]
    assert counts.of("with CRF")[0, [0, 15, 17]].tolist() == [[95190, 95527, 129506], [0, 0, 0], [25709, 60025, 26046]]
    found = figures(counts, CLASSES)
    names = compared_names([{"figures": found}])
    assert names == {"background", "person", "sheep"}
    without, with_crf = (mean_iou_over(found[stage], names)["value"] for stage in ("without CRF", "with CRF"))
    # 95527 + 122326 - 93252 = 124601, 60025 + 32851 - 30951 = 61925; with CRF 129843 and 60362
    assert without == pytest.approx((93252 / 124601 + 0 / 375 + 30951 / 61925) / 3)  # 41.61 %
    assert with_crf == pytest.approx((95190 / 129843 + 0 + 25709 / 60362) / 3)  # 38.63 %
    # Over the two classes that it still predicts, a loss of 2.97 points would be a gain of 16.34
    apart = (95190 / 129843 + 25709 / 60362) / 2
    assert round(100 * (apart - without), 2) == 16.34 and round(100 * (with_crf - without), 2) == -2.97
    for stage in found.values():
        assert stage["iou"].keys() == names and stage["mean_iou"]["low"] == pytest.approx(stage["mean_iou"]["value"])


def test_a_model_of_other_classes_or_none_is_named(place: Path, tmp_path: Path) -> None:
    job = job_of(place, tmp_path / "out")
    manifest, _ = open_dataset(job)
    with pytest.raises(JobError, match="the dataset small has 20"):
        evaluations_of(job, list_models(job.models)[0], manifest.model_copy(update={"classes": manifest.classes[:20]}))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "card.json").write_text("{}")
    (half,) = list_models(str(tmp_path / "half"))
    with pytest.raises(JobError, match="half"):
        evaluations_of(job, half, manifest)
    with pytest.raises(JobError, match="does not exist: put model directories there"):
        list_models(str(tmp_path / "nowhere"))
    with pytest.raises(JobError, match="holds no model"):
        list_models(str(place / "data"))


def test_what_decides_a_count_decides_the_identity(place: Path, tmp_path: Path) -> None:
    job = job_of(place, tmp_path / "out")
    (model,) = list_models(job.models)
    manifest, _ = open_dataset(job)
    ids = [evaluations_of(job, model, manifest)[0].id]
    for options in ({"crf": None}, {"inference": INFERENCE | {"mirror": True}}):
        ids.append(evaluations_of(job_of(place, tmp_path / "out", **options), model, manifest)[0].id)
    both = evaluations_of(job_of(place, tmp_path / "out", multi_scale=True), model, manifest)
    assert [e.protocol for e in both] == ["single scale", "multi-scale"] and both[0].id == ids[0]
    assert both[1].inference.scales == (0.5, 0.75, 1.0)
    assert len({*ids, both[1].id}) == 4


def test_a_registry_in_a_bucket(place: Path, bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for file in (place / "models" / "good").iterdir():
        bucket.put(f"models/good/{file.name}", file.read_bytes())
    (model,) = list_models(f"s3://{bucket.name}/models")
    assert model == RegisteredModel("good", f"s3://{bucket.name}/models/good")
    copy = local_model(model.uri)
    assert checkpoint.digest_of(copy) == checkpoint.digest_of(place / "models" / "good")
    assert local_model(model.uri) == copy
    card = (place / "models" / "good" / "card.json").read_text().replace('"init": "', '"init": "again ')
    bucket.put("models/good/card.json", card.encode())
    assert local_model(model.uri) != copy


def test_a_record_is_read_back(place: Path, tmp_path: Path) -> None:
    job = job_of(place, tmp_path / "out", crf=None)
    (asked,) = evaluations_of(job, list_models(job.models)[0], open_dataset(job)[0])
    judged_in_process(job, asked)
    output = locate(job.output)
    record = write_record(output, asked, read_counts(output, asked))
    assert read_record(output, asked.id) == record and asked.stages == ("without CRF",)
    assert evaluation_of(record) == asked


def test_an_onnx_file_is_judged_as_the_network_that_it_is_of(place: Path, tmp_path: Path, local_engine: None) -> None:
    (tmp_path / "net").mkdir()
    file = tmp_path / "net" / "model.onnx"
    export_weights(str(place / "models" / "good"), file)
    record = {}
    for models in (str(file), str(tmp_path / "net"), str(place / "models")):
        job = job_of(place, tmp_path / "out", models=models)
        (model,) = list_models(job.models)
        (asked,) = evaluations_of(job, model, open_dataset(job)[0])
        record[models] = evaluate(job, asked)["figures"]
    # The truth is what the network sees; graphs round otherwise than torch
    assert record[str(file)]["without CRF"]["mean_iou"]["value"] > 0.99
    assert record[str(file)] == record[str(tmp_path / "net")]
    of_torch = record[str(place / "models")]["with CRF"]["mean_iou"]["value"]
    assert record[str(file)]["with CRF"]["mean_iou"]["value"] == pytest.approx(of_torch, abs=0.01)
