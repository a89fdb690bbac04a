"""Units without an engine: done whole, in stages, or isolated, they have the same rows."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import segcore
from segcore.images import masks
from segcore.images.decoding import ErrorKind
from segcore.predictor import PredictParams
from segcore.scoring.inference import InferenceParams
from tasks.archive.sources import Source, list_source
from tasks.errors import JobError
from tasks.segmentation.job import DEFAULT_MODEL, ArchiveJob, identify, mask_params
from tasks.storage import locate
from tasks.stream.staged import StagedWorker
from tasks.stream.units import Destination, Unit
from tasks.stream.worker import UnitWork
from tests.conftest import photograph
from tests.odd_images import odd_files, sound_files


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


def worker_of(folder, output):
    job = ArchiveJob(source=str(folder), output=str(output), inference={"long_side_px": 97})
    destination = Destination(locate(str(output)), "run", locate(str(folder)))
    return StagedWorker(UnitWork(mask_params(job, identify(job)), destination))


def rows_of(unit, output, how):
    folder, unit = unit
    worker = worker_of(folder, output)
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


def test_the_library_gives_the_mask_that_the_archive_stores(tmp_path):
    """Byte for byte, of every accepted format and mode, damaged files among them."""
    folder, files = tmp_path / "source", sound_files() | odd_files()
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    worker = worker_of(folder, tmp_path / "output")
    worker(Unit("1", tuple(list_source(Source(locate(str(folder)))))), unwatched)
    rows = pq.read_table(worker.work.destination.file_of("1").path).to_pylist()
    model = segcore.load(DEFAULT_MODEL, params=PredictParams(InferenceParams(long_side_px=97)), num_threads=1)
    assert {row["image_id"] for row in rows} == files.keys()
    for row in rows:
        result = model.segment(files[row["image_id"]])
        assert row["error"] is None and masks.encode_mask(result.labels) == row["mask"], row["image_id"]
        assert (row["width"], row["height"]) == result.labels.shape[::-1]
        assert (row["note"] or "") == result.photograph.note


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
