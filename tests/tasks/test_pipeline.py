"""The stages without a cluster: a unit that is done with care gives the rows that it gives without."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import segcore
from segcore import masks
from segcore.images import ErrorKind
from segcore.inference import InferenceParams
from segcore.predictor import PredictParams
from tasks.archive.sources import Source, list_source
from tasks.errors import JobError
from tasks.segmentation.job import ArchiveJob, identify, mask_params
from tasks.storage import locate
from tasks.stream import care
from tasks.stream.pipeline import Refine, Score, read_unit
from tasks.stream.units import Destination, Unit, unit_table
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


def rows_of(unit, output):
    folder, unit = unit
    job = ArchiveJob(source=str(folder), output=str(output), inference={"long_side_px": 97})
    params = mask_params(job, identify(job))
    destination = Destination(locate(str(output)), "run", locate(str(folder)))
    table = read_unit(unit_table(unit), params, destination)
    table = Refine(params, destination)(Score(params)(table))
    assert table.num_rows == 1
    return pq.read_table(destination.file_of("1").path).to_pylist()


def test_what_is_done_apart_is_the_same(unit, tmp_path, monkeypatch):
    expected = rows_of(unit, tmp_path / "plain")
    assert sum(row["mask"] is not None for row in expected) == 4 and len(expected) == 7
    monkeypatch.setattr(care, "times_begun_before", lambda: 1)
    assert rows_of(unit, tmp_path / "apart") == expected
    assert {row["error_kind"] for row in expected} == {None, ErrorKind.EMPTY, ErrorKind.NOT_AN_IMAGE}


def test_the_library_gives_the_mask_that_the_archive_stores(tmp_path):
    """Byte for byte, of every accepted format and mode, damaged files among them."""
    folder, files = tmp_path / "source", sound_files() | odd_files()
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    rows = rows_of((folder, Unit("1", tuple(list_source(Source(locate(str(folder))))))), tmp_path / "output")
    model = segcore.load("pspnet14", params=PredictParams(InferenceParams(long_side_px=97)), num_threads=1)
    assert {row["image_id"] for row in rows} == files.keys()
    for row in rows:
        result = model.segment(files[row["image_id"]])
        assert row["error"] is None and masks.encode_mask(result.labels) == row["mask"], row["image_id"]
        assert (row["width"], row["height"]) == result.labels.shape[::-1]
        assert (row["note"] or "") == result.photograph.note


def test_an_outage_ends_the_session_also_with_care(unit, tmp_path, monkeypatch):
    monkeypatch.setattr(care, "times_begun_before", lambda: 1)
    folder, _ = unit
    for file in folder.rglob("*"):
        if file.is_file():
            file.unlink()
    with pytest.raises(JobError, match="cannot be read any more"):
        rows_of(unit, tmp_path / "out")
