"""Units without an engine: done whole, in stages, or isolated, they have the same rows."""

import dataclasses
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import segcore
from segcore.crf import gpu
from segcore.images import masks
from segcore.images.errors import ErrorKind
from segcore.predictor import PredictParams
from segcore.scoring import hardware
from segcore.scoring.inference import InferenceParams
from tasks.archive.sources import Source, list_source
from tasks.errors import JobError
from tasks.evaluation.judging import Judge, JudgeDestination
from tasks.segmentation.archive_job import DEFAULT_MODEL, ArchiveJob, identify, mask_params
from tasks.storage import locate
from tasks.stream.staged import StagedWorker
from tasks.stream.units import Destination, Unit
from tasks.stream.worker import UnitWork
from tests.conftest import photograph
from tests.gpu_kernels_on_cpu import put_in_place
from tests.odd_images import cut_files, odd_files, sound_files


@pytest.fixture
def unit(tmp_path):
    """Photographs, files that are none, and rows of a Parquet file, as one unit."""
    folder = tmp_path / "source"
    (folder / "table").mkdir(parents=True)
    for number in range(3):
        photograph(number, (96, 72) if number else (40, 60)).save(folder / f"{number}.png")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_bytes(b"no image")
    buffer = io.BytesIO()
    photograph(7, (50, 40)).save(buffer, format="PNG")
    rows = {"id": ["x", "y"], "image": [buffer.getvalue(), b"no image"]}
    pq.write_table(pa.table(rows), folder / "table" / "t.parquet")
    entries = list(list_source(Source(locate(str(folder)))))
    entries = [entry for entry in entries if entry.kind == "file"]
    return folder, Unit("1", (*entries, *list_source(Source(locate(str(folder / "table"))))))


def unwatched(stage):
    pass


def worker_of(folder, output, **job):
    job = ArchiveJob(source=str(folder), output=str(output), inference={"long_side_px": 97}, **job)
    destination = Destination(locate(str(output)), "run", locate(str(folder)))
    return StagedWorker(UnitWork(mask_params(job, identify(job)), destination))


def rows_of(unit, output, how, **job):
    folder, unit = unit
    worker = worker_of(folder, output, **job)
    if how == "staged":
        read = worker.read_unit(unit, unwatched)
        report = worker.finish_unit(read, worker.score_unit(read, unwatched), unwatched)
    else:
        report = worker(unit, unwatched, isolated=how == "isolated")
    assert report.images == 7 and report.errors == {"empty": 1, "not_an_image": 2}
    assert report.seconds.keys() == {"read", "score", "refine"}
    return pq.read_table(worker.work.destination.file_of("1").path).to_pylist()


def test_whole_staged_and_isolated_units_have_the_same_rows(unit, tmp_path):
    expected = rows_of(unit, tmp_path / "whole", "whole")
    assert sum(row["mask"] is not None for row in expected) == 4 and len(expected) == 7
    assert {row["error_kind"] for row in expected} == {None, ErrorKind.EMPTY, ErrorKind.NOT_AN_IMAGE}
    assert rows_of(unit, tmp_path / "isolated", "isolated") == expected
    assert rows_of(unit, tmp_path / "staged", "staged") == expected


def test_with_the_crf_on_the_gpu_too(unit, tmp_path, monkeypatch):
    """Labels travel instead of scores; here the GPU is this CPU."""
    put_in_place(monkeypatch)
    expected = rows_of(unit, tmp_path / "native", "whole")
    staged, whole = (rows_of(unit, tmp_path / how, how, crf_engine="cuda") for how in ("staged", "whole"))
    assert staged == whole
    for ours, native in zip(staged, expected, strict=True):
        assert ours["error_kind"] == native["error_kind"] and (ours["mask"] is None) == (native["mask"] is None)
        if ours["mask"] is not None:
            assert (masks.decode_mask(ours["mask"]) == masks.decode_mask(native["mask"])).mean() > 0.999
            assert ours["entropy"] == pytest.approx(native["entropy"], abs=1e-5)

    worker = worker_of(unit[0], tmp_path / "spoilt", crf_engine="cuda")
    refine = gpu.refine_scores

    def spoilt(images, *others):
        if any(image.shape[:2] == (60, 40) for image in images):
            raise RuntimeError("a broken kernel")
        return refine(images, *others)

    monkeypatch.setattr(gpu, "refine_scores", spoilt)
    read = worker.read_unit(unit[1], unwatched)
    report = worker.finish_unit(read, worker.score_unit(read, unwatched), unwatched)
    assert report.images == 7 and report.errors == {"empty": 1, "not_an_image": 2, "failed": 1}


@pytest.mark.skipif(hardware.shows_gpu(), reason="there is a GPU")
def test_without_a_gpu_the_crf_on_it_is_refused_before_anything_starts(unit, tmp_path):
    asked = {"source": str(unit[0]), "output": str(tmp_path / "out"), "crf_engine": "cuda"}
    with pytest.raises(JobError, match=r"needs a GPU.*leave the engine out"):
        identify(ArchiveJob(**asked))
    # What needs none goes on without
    assert rows_of(unit, tmp_path / "no-crf", "staged", crf=None, crf_engine="cuda")
    # On a cluster, whose driver may have none, each worker says it
    job = ArchiveJob(**asked, engine="ray")
    destination = Destination(locate(str(tmp_path / "out")), "run", locate(str(unit[0])))
    with pytest.raises(JobError, match=r"Not every node can do this job\. The CRF engine cuda needs a GPU"):
        StagedWorker(UnitWork(mask_params(job, identify(job)), destination)).warm()


def test_library_archive_and_evaluation_have_the_same_mask(tmp_path):
    """Byte for byte, of every accepted format and mode, damaged and cut files too; in stages as well."""
    folder, files = tmp_path / "source", sound_files() | odd_files() | {n: cut for n, (_, cut) in cut_files().items()}
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    unit = Unit("1", tuple(list_source(Source(locate(str(folder))))))
    worker = worker_of(folder, tmp_path / "output")
    worker(unit, unwatched)
    rows = pq.read_table(worker.work.destination.file_of("1").path).to_pylist()
    assert {row["image_id"] for row in rows} == files.keys() and not any(row["error"] for row in rows)

    staged = worker_of(folder, tmp_path / "staged")
    read = staged.read_unit(unit, unwatched)
    staged.finish_unit(read, staged.score_unit(read, unwatched), unwatched)
    assert pq.read_table(staged.work.destination.file_of("1").path).to_pylist() == rows

    model = segcore.load(DEFAULT_MODEL, params=PredictParams(InferenceParams(long_side_px=97)), num_threads=1)
    for row in rows:
        result = model.segment(files[row["image_id"]])
        assert masks.encode_mask(result.labels) == row["mask"], row["image_id"]
        assert (row["width"], row["height"]) == result.labels.shape[::-1]
        assert (row["note"] or "") == result.photograph.note

    # As a shard of a dataset whose true masks are the archive's: every pixel is right
    shard = tmp_path / "shard.parquet"
    columns = {"id": "image_id", "mask": "mask"}
    table = {name: [row[column] for row in rows] for name, column in columns.items()}
    pq.write_table(pa.table(table | {"image": [files[row["image_id"]] for row in rows]}), shard)
    params = dataclasses.replace(worker.work.params, keep_mask_before_crf=True)
    destination = JudgeDestination(locate(str(tmp_path / "counts")), "run", locate(str(tmp_path)))
    judge = StagedWorker(UnitWork(params, destination, Judge))
    judge(Unit("1", tuple(list_source(Source(locate(str(shard)), "id", "image")))), unwatched)
    judged = {row["image_id"]: row for row in pq.read_table(destination.file_of("1").path).to_pylist()}
    assert judged.keys() == files.keys()
    assert [row["image_id"] for row in rows if judged[row["image_id"]]["mask_with_crf"] != row["mask"]] == []
    wrong = [c for row in judged.values() for c in row["confusion_with_crf"] if c["truth"] != c["predicted"]]
    assert not wrong


def test_an_outage_ends_the_session_also_in_isolation(unit, tmp_path):
    folder, one = unit
    for file in folder.rglob("*"):
        if file.is_file():
            file.unlink()
    worker = worker_of(folder, tmp_path / "out")
    with pytest.raises(JobError, match="cannot be read any more"):
        worker(one, unwatched, isolated=True)
    with pytest.raises(JobError, match="cannot be read any more"):
        worker.read_unit(one, unwatched)


def test_a_committed_unit_is_passed_by(unit, tmp_path):
    worker = worker_of(unit[0], tmp_path / "out")
    worker(unit[1], unwatched)
    assert not worker(unit[1], unwatched).images
    read = worker.read_unit(unit[1], unwatched)
    report = worker.finish_unit(read, worker.score_unit(read, unwatched), unwatched)
    assert not report.images


def test_one_image_that_spoils_its_batch_is_one_error_row(unit, tmp_path, monkeypatch):
    worker = worker_of(unit[0], tmp_path / "out")
    worker.warm()
    score = worker.predictor.score

    def spoilt(images, each_batch=None):
        if any(image.shape[:2] == (60, 40) for image in images):
            raise RuntimeError("a broken kernel")
        return score(images)

    monkeypatch.setattr(worker.predictor, "score", spoilt)
    read = worker.read_unit(unit[1], unwatched)
    report = worker.finish_unit(read, worker.score_unit(read, unwatched), unwatched)
    assert report.images == 7 and report.errors == {"empty": 1, "not_an_image": 2, "failed": 1}


@pytest.mark.parametrize("how", ["whole", "staged"])
def test_nothing_is_done_to_an_image_while_nobody_watches(unit, tmp_path, monkeypatch, how):
    """A library that hangs is met in whichever stage: in each, the watch has begun before."""
    worker = worker_of(unit[0], tmp_path / "out")
    worker.warm()
    beats: list[str] = []
    at: dict[str, set[str]] = {}

    def watch(of, name):
        does = getattr(of, name)

        def watched(*arguments):
            at.setdefault(name, set()).add(beats[-1])
            return does(*arguments)

        monkeypatch.setattr(of, name, watched)

    watch(worker.predictor, "open")
    watch(worker.predictor, "score")
    watch(worker.last, "columns")
    if how == "whole":
        worker(unit[1], beats.append)
    else:
        read = worker.read_unit(unit[1], beats.append)
        beats.append("")  # Each stage has a process of its own
        scored = worker.score_unit(read, beats.append)
        beats.append("")
        worker.finish_unit(read, scored, beats.append)
    assert at == {"open": {"read"}, "score": {"score"}, "columns": {"refine"}}
