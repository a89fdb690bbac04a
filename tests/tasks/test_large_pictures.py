"""Pictures that are too large for the memory, through the archive: one row each, the mask in a file beside it."""

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segcore.images.errors import ImageError
from segcore.images.label_tiff import LabelTiff
from tasks import engines
from tasks.archive import stored_content
from tasks.archive.output import Output
from tasks.archive.stored_content import StoredContent
from tasks.errors import JobError
from tasks.results.export import ExportJob, export_run
from tasks.results.query import ask
from tasks.results.reading import open_results
from tasks.results.sealing import CompactJob, compact
from tasks.segmentation.archive_job import ArchiveJob, identify, list_archive, remaining_units, unit_work
from tasks.segmentation.finish import publish_gallery, publish_report
from tasks.segmentation.outcome import ArchiveReport
from tasks.segmentation.session import SessionReport, segment_remaining
from tasks.storage import locate
from tasks.stream.staged import StagedWorker
from tests.segcore.models.test_onnx_file import described

tifffile = pytest.importorskip("tifffile")
pytestmark = pytest.mark.usefixtures("local_engine")

HEIGHT, WIDTH = 620, 740


def picture() -> np.ndarray:
    dice = np.random.default_rng(0)
    small = Image.fromarray(dice.integers(0, 255, (9, 11, 3), dtype=np.uint8))
    return np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    scale = [(33550, 12, 3, (0.5, 0.5, 0.0), True)]
    tifffile.imwrite(folder / "large.tif", picture(), tile=(128, 128), photometric="rgb", extratags=scale)
    Image.fromarray(picture()).save(folder / "large.png")
    Image.fromarray(picture()[:200, :300]).save(folder / "small.png")
    return folder


def job_of(source: Path, tmp_path: Path, name: str = "out", **options: object) -> ArchiveJob:
    (tmp_path / "net").mkdir(exist_ok=True)
    model = tmp_path / "net" / "net.onnx"
    model = model if model.exists() else described(tmp_path / "net", 5)
    inference = {"long_side_px": None, "crop_px": 257}
    asked = {"max_pixels": 300_000, "crf": {"bilateral_xy_std_px": 20}, "engine": "local"} | options
    return ArchiveJob(source=str(source), output=str(tmp_path / name), model=str(model), inference=inference, **asked)


def run(job: ArchiveJob) -> ArchiveReport:
    plan = list_archive(job)
    return publish_report(job, plan, segment_remaining(job, plan))


def test_the_mask_lies_beside_its_row_and_is_that_of_a_picture_in_memory(source: Path, tmp_path: Path) -> None:
    report = run(job_of(source, tmp_path))
    assert (report.images, report.masks, report.errors, report.label_files) == (3, 2, {"too_large": 1}, 1)
    results = open_results(str(tmp_path / "out"))
    row = results.row("large.tif")
    assert row["mask_file"] is not None and (row["mask_width"], row["mask_height"]) == (WIDTH, HEIGHT)
    assert "--long-side none" in results.row("large.png")["error"]
    labels = results.mask("large.tif")
    assert sum(c["pixels"] for c in row["classes"]) == labels.size == WIDTH * HEIGHT
    file = tmp_path / "out" / row["mask_file"]
    with tifffile.TiffFile(file) as written:
        assert written.pages[0].is_tiled and written.pages[0].tags[33550].value == (0.5, 0.5, 0.0)
        assert np.array_equal(written.pages[0].asarray(), labels)

    in_memory = open_results(run(job_of(source, tmp_path, "other", max_pixels=1_000_000)).output)
    other = in_memory.row("large.png", ["mask_file", "classes", "confidence", "entropy", "changed_by_crf"])
    assert other["mask_file"] is None and np.array_equal(in_memory.mask("large.png"), labels)
    assert other["classes"] == row["classes"] and other["changed_by_crf"] == row["changed_by_crf"]
    assert dict(results.masks()).keys() == {"large.tif", "small.png"}
    assert [name for name, _ in results.to_torch()] == ["large.tif", "small.png"]


def test_a_mask_that_is_gone_is_an_image_that_is_done_again(source: Path, tmp_path: Path) -> None:
    job = job_of(source, tmp_path)
    report = run(job)
    output = Output.at(job.output)
    [name] = output.label_files(report.run_id)
    before = (tmp_path / "out" / name).read_bytes()
    (tmp_path / "out" / name).unlink()
    with pytest.raises(JobError, match=r"The mask of 'large.tif' is gone .*: run the archive job again"):
        open_results(job.output).mask("large.tif")
    with pytest.raises(JobError, match=r"1 image has no row: large.tif\. Run the same command again"):
        run(job)
    assert run(job).masks == 2
    assert output.label_files(report.run_id) == {name} and (tmp_path / "out" / name).read_bytes() == before


def test_a_session_that_was_killed_before_the_row_leaves_what_the_next_writes_again(
    source: Path, tmp_path: Path
) -> None:
    job = job_of(source, tmp_path)
    report = run(job)
    output = Output.at(job.output)
    [name] = output.label_files(report.run_id)
    (tmp_path / "out" / name).write_bytes(b"of another session, whole but without its row")
    for file in (tmp_path / "out" / "masks" / f"run={report.run_id}").iterdir():
        file.unlink()
    again = run(job)
    assert (again.masks, again.label_files) == (2, 1)
    assert LabelTiff(StoredContent.of(locate(str(tmp_path / "out" / name)))).read().shape == (HEIGHT, WIDTH)


def test_a_photograph_that_was_replaced_has_a_mask_of_another_name(source: Path, tmp_path: Path) -> None:
    job = job_of(source, tmp_path)
    report = run(job)
    before = open_results(job.output).row("large.tif", ["mask_file"])
    tifffile.imwrite(source / "large.tif", picture()[::-1], tile=(128, 128), photometric="rgb")
    assert run(job.model_copy(update={"refresh_changed": True})).masks == 2
    after = open_results(job.output).row("large.tif", ["mask_file"])
    assert before != after and after["mask_file"] in Output.at(job.output).label_files(report.run_id)


def test_compaction_and_expiry_leave_it_where_it_is(source: Path, tmp_path: Path) -> None:
    job = job_of(source, tmp_path)
    report = run(job)
    before = open_results(job.output).mask("large.tif")
    compact(CompactJob(output=job.output, expire=True, grace_minutes=0))
    assert np.array_equal(open_results(job.output).mask("large.tif"), before)
    again = run(job)
    assert again.compacted and (again.masks, again.label_files) == (report.masks, 1)


def test_exports_queries_and_the_gallery_know_it(source: Path, tmp_path: Path) -> None:
    job = job_of(source, tmp_path)
    report = run(job)
    labels = open_results(job.output).mask("large.tif")
    found = ask(job.output, "SELECT image_id, mask_file FROM images WHERE mask_file IS NOT NULL")
    assert [name for name, _ in found.rows()] == ["large.tif"]
    assert export_run(ExportJob(output=job.output, to="png", destination=str(tmp_path / "png"))).masks == 2
    [copied] = (tmp_path / "png").glob("*.tif")
    assert np.array_equal(tifffile.imread(copied, key=0), labels)
    assert export_run(ExportJob(output=job.output, to="coco", destination=str(tmp_path / "coco"))).masks == 2
    written = json.loads((tmp_path / "coco" / "annotations.json").read_text())
    [image] = [image for image in written["images"] if image["file_name"] == "large.tif"]
    areas = {a["category_id"]: a["area"] for a in written["annotations"] if a["image_id"] == image["id"]}
    counts = np.bincount(labels.ravel())
    assert areas == {int(k): int(counts[k]) for k in np.flatnonzero(counts)}  # No class of it is the background
    with_gallery = publish_gallery(job.model_copy(update={"gallery_images": 5}), report)
    assert with_gallery.gallery is not None
    items = "".join(p.read_text() for p in Path(tmp_path / "out" / "report").rglob("items/**/*.js"))
    assert f'"mask_size":[{WIDTH},{HEIGHT}]' in items.replace(" ", "")


def test_a_file_of_many_bytes_is_read_where_it_is(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = locate(str(source / "large.tif"))
    content, data = StoredContent.of(place), (source / "large.tif").read_bytes()
    monkeypatch.setattr(stored_content, "_BLOCK_BYTES", 4096)
    monkeypatch.setattr(stored_content, "_BLOCKS", 3)
    for start, end in ((0, 4), (5, 20_000), (4000, 4200), (len(data) - 5, len(data) + 9), (9, 9), (0, 3 * 10**6)):
        assert content[start:end] == data[start:end]
    tifffile.imwrite(source / "large.tif", picture()[::-1], photometric="rgb")
    with pytest.raises(ImageError, match="replaced while it was read"):
        dataclasses.replace(content, _file=None)[100_000:200_000]
    (source / "large.tif").unlink()
    with pytest.raises(ImageError, match="not there any more"):
        dataclasses.replace(content, _file=None)[300_000:400_000]


def test_runs_of_one_size_are_what_they_were(source: Path, tmp_path: Path) -> None:
    asked = job_of(source, tmp_path)
    job = ArchiveJob(source=asked.source, output=asked.output, model=asked.model)
    assert identify(job).deciding["schema_version"] == 2 and identify(asked).deciding["schema_version"] == 3


def test_stages_of_their_own_give_the_same_rows(source: Path, tmp_path: Path) -> None:
    """As where a GPU scores: read, scored and finished by different processes, between which units are pickled."""
    job = job_of(source, tmp_path, max_pixels=HEIGHT * WIDTH)  # The picture in memory needs windows, too
    tifffile.imwrite(source / "larger.tif", np.tile(picture(), (1, 2, 1)), tile=(128, 128), photometric="rgb")
    expected = open_results(run(job_of(source, tmp_path, "expected", max_pixels=HEIGHT * WIDTH)).output)
    plan, output, identity = list_archive(job), Output.at(job.output), identify(job)
    reader, scorer, finisher = (StagedWorker(unit_work(job, identity)) for _ in range(3))
    for unit in list(remaining_units(output.manifest(identity.source_id), output, identity)):
        read = pickle.loads(pickle.dumps(reader.read_unit(unit, lambda stage: None)))
        scored = pickle.loads(pickle.dumps(scorer.score_unit(read, lambda stage: None)))
        finisher.finish_unit(read, scored, lambda stage: None)
    report = publish_report(job, plan, SessionReport())
    assert (report.masks, report.label_files) == (4, 1)
    found = open_results(job.output)
    columns = ["image_id", "mask", "classes", "confidence", "entropy", "changed_by_crf", "error", "note", "width"]
    by_id = {row["image_id"]: row for row in expected.rows(columns)}
    assert {row["image_id"]: row for row in found.rows(columns)} == by_id
    assert np.array_equal(found.mask("larger.tif"), expected.mask("larger.tif"))


def test_a_process_of_its_own_for_each_image_gives_the_same_rows(source: Path, tmp_path: Path) -> None:
    job = job_of(source, tmp_path)
    expected = open_results(run(job_of(source, tmp_path, "expected")).output)
    plan, output, identity = list_archive(job), Output.at(job.output), identify(job)
    worker = unit_work(job, identity).worker()
    for unit in list(remaining_units(output.manifest(identity.source_id), output, identity)):
        worker(unit, lambda stage: None, isolated=True)
    assert publish_report(job, plan, SessionReport()).masks == 2
    assert np.array_equal(open_results(job.output).mask("large.tif"), expected.mask("large.tif"))


@pytest.mark.slow
def test_ray_gives_the_same_masks(source: Path, tmp_path: Path, ray_cluster: None) -> None:
    expected = open_results(run(job_of(source, tmp_path, "expected")).output)
    with engines.opened("ray"):
        found = open_results(run(job_of(source, tmp_path, engine="ray")).output)
    assert found.run_id == expected.run_id
    assert np.array_equal(found.mask("large.tif"), expected.mask("large.tif"))


def test_a_picture_may_take_longer_than_any_unit(photographs, tmp_path):
    """An hour without a finished unit ends a session, but not one that scores pictures of any size."""
    small, large = (
        unit_work(job, identify(job))
        for job in (
            ArchiveJob(source=str(photographs), output=str(tmp_path), inference=inference)
            for inference in ({}, {"long_side_px": None})
        )
    )
    assert engines.stalled_after_s(None) == engines.stalled_after_s(small) == 3600
    assert engines.stalled_after_s(large) == 24 * 3600
