"""Photographs that look alike are scored once: what is a copy, what its row says, and that this stays so."""

import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segcore.images import masks
from tasks import storage
from tasks.archive.schema import ROWS, SCHEMA_VERSION, written
from tasks.archive.sources import LeftAside, Source, list_source
from tasks.errors import JobError
from tasks.results import query
from tasks.results.export import ExportJob, export_run
from tasks.results.reading import open_results
from tasks.results.sealing import CompactJob, compact
from tasks.segmentation.archive_job import ArchiveJob, identify, list_archive
from tasks.segmentation.finish import publish_gallery, publish_report
from tasks.segmentation.session import segment_remaining
from tasks.segmentation.verify import check_run
from tests.conftest import photograph
from tests.raw_files import dng, jpeg

pytestmark = pytest.mark.usefixtures("local_engine")

SHOTS = 5


def job_of(source, output, **options):
    options = {
        "model": "deeplab_v1_largefov",
        "untrained": True,
        "inference": {"long_side_px": 65, "precision": "fp32"},
        "crf": None,
        "skip_duplicates": True,
        "gallery_images": 0,
    } | options
    return ArchiveJob(source=str(source), output=str(output), **options)


def run(job):
    plan = list_archive(job)
    return publish_gallery(job, publish_report(job, plan, segment_remaining(job, plan)))


def rows_of(report):
    return {row["image_id"]: row for row in open_results(report.output, report.run_id).rows(ROWS.names)}


def shot(seed, size=(300, 200)):
    return photograph(seed, size)


@pytest.fixture
def thrice(tmp_path):
    """Shots as RAW, as JPEG of the camera, and resized."""
    folder = tmp_path / "shots"
    (folder / "web").mkdir(parents=True)
    for seed in range(SHOTS):
        image = np.asarray(shot(seed))
        (folder / f"IMG_{seed}.DNG").write_bytes(dng(image, jpeg(image)))
        (folder / f"IMG_{seed}.jpg").write_bytes(jpeg(image))
        (folder / "web" / f"IMG_{seed}-small.jpg").write_bytes(jpeg(image, 150))
    return folder


def test_an_archive_with_each_shot_thrice_is_scored_by_a_third(thrice, tmp_path):
    pytest.importorskip("rawpy", reason="the extra [raw] is not installed")
    report = run(job_of(thrice, tmp_path / "out", pairs=True, gallery_images=100))
    # Of 15 files 5 are RAW files of a pair; of the 10 pictures 5 are scored
    assert (report.images, report.masks, report.duplicates, report.errors) == (2 * SHOTS, 2 * SHOTS, SHOTS, {})
    rows = rows_of(report)
    scored = [row for row in rows.values() if row["duplicate_of"] is None]
    assert len(scored) == SHOTS == 3 * SHOTS / 3
    for seed in range(SHOTS):
        original, copy = rows[f"IMG_{seed}.jpg"], rows[f"web/IMG_{seed}-small.jpg"]
        assert copy["duplicate_of"] == f"IMG_{seed}.jpg" and original["duplicate_of"] is None
        assert (copy["width"], copy["height"]) == (copy["mask_width"], copy["mask_height"]) == (150, 100)
        labels, large = masks.decode_mask(copy["mask"]), masks.decode_mask(original["mask"])
        assert labels.shape == (100, 150) and np.array_equal(labels, large[1::2, 1::2])
        assert sum(c["pixels"] for c in copy["classes"]) == labels.size
        for found in copy["classes"]:
            y, x = np.nonzero(labels == found["index"])
            box = (found["box"][side] for side in ("x0", "y0", "x1", "y1"))
            assert tuple(box) == (x.min(), y.min(), x.max() + 1, y.max() + 1) and found["pixels"] == len(x)
        for name in ("confidence", "entropy", "device", "model", "run_id"):
            assert copy[name] == original[name]
        assert copy["uri"].endswith(f"web/IMG_{seed}-small.jpg") and copy["source_size"] != original["source_size"]
    assert "10 images: 10 masks (5 duplicates among them), 0 errors" in report.sentence
    # All who read rows
    assert len(query.ask(report.output, "SELECT * FROM images WHERE duplicate_of IS NOT NULL").arrow()) == SHOTS
    assert len(query.find(report.output, query.FindJob()).arrow()) == 2 * SHOTS
    exported = export_run(ExportJob(output=report.output, destination=str(tmp_path / "coco"), to="coco"))
    assert exported.masks == 2 * SHOTS
    assert report.gallery is not None
    # Without pairs the RAW files are copies too
    every = run(job_of(thrice, tmp_path / "every"))
    assert (every.images, every.duplicates, every.errors) == (3 * SHOTS, 2 * SHOTS, {})
    plain = run(job_of(thrice, tmp_path / "out", skip_duplicates=False))
    assert (plain.images, plain.duplicates) == (3 * SHOTS, 0) and plain.run_id != report.run_id


def test_runs_that_do_not_ask_stay_what_they_were(thrice, tmp_path):
    job = job_of(thrice, tmp_path / "out", skip_duplicates=False)
    assert "duplicates" not in identify(job).deciding and identify(job).deciding["columns"] == [None, None]
    assert identify(job_of(thrice, tmp_path / "out")).source_id == identify(job).source_id
    paired = identify(job_of(thrice, tmp_path / "out", pairs=True))
    assert paired.source_id != identify(job).source_id
    for file in (thrice / "web").iterdir():
        file.unlink()
    report = run(job)
    folder = tmp_path / "out" / "masks" / f"run={report.run_id}"
    assert all(pq.read_schema(file).equals(written(SCHEMA_VERSION)) for file in folder.iterdir())
    assert not (tmp_path / "out" / "looks").exists()


def test_a_job_of_copies_goes_on_where_it_was_left(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for seed in range(12):
        shot(seed % 4).save(folder / f"{seed:02d}.png", compress_level=seed % 9)
    job = job_of(folder, tmp_path / "out", limit=12)
    report = run(job)
    assert (report.images, report.duplicates) == (12, 8)
    before = rows_of(report)
    assert {row["duplicate_of"] for row in before.values()} == {None, "00.png", "01.png", "02.png", "03.png"}
    # Any of its files may be lost, with copies or with what they are copies of
    masks_folder = tmp_path / "out" / "masks" / f"run={report.run_id}"
    for file in sorted(masks_folder.iterdir()):
        file.unlink()
        with pytest.raises(JobError, match="no row"):
            check_run(storage_output(job), identify(job))
        again = run(job)
        assert (again.images, again.duplicates) == (12, 8) and rows_of(again) == before
    # Nothing to do; then more copies of what was done long ago, in files that are compacted by now
    assert run(job).done_now == 0
    compact(CompactJob(output=job.output, expire=True, grace_minutes=0))
    shot(1).convert("RGB").resize((150, 100)).save(folder / "later.png")
    shot(9).save(folder / "new.png")
    later = run(job.model_copy(update={"limit": None}))
    rows = rows_of(later)
    assert (later.images, later.duplicates, later.done_now) == (14, 9, 2)
    assert rows["later.png"]["duplicate_of"] == "01.png" and rows["new.png"]["duplicate_of"] is None
    assert {i: rows[i] for i in before} == before
    compact(CompactJob(output=job.output, expire=True, grace_minutes=0))
    assert rows_of(later) == rows


def storage_output(job):
    from tasks.archive.output import Output

    return Output.at(job.output)


def test_what_cannot_be_copied_is_scored(tmp_path):
    """A copy of an image that was replaced since, or that ended as an error, has a mask of its own."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name in ("a", "b", "c"):
        shot(1).save(folder / f"{name}.png", compress_level=ord(name) % 9)
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.jpg").write_bytes(jpeg(np.asarray(shot(1)))[:900])
    job = job_of(folder, tmp_path / "out", refresh_changed=True)
    plan = list_archive(job)
    # Between the comparison and the scoring another picture takes its place
    shot(2).save(folder / "a.png")
    os.utime(folder / "a.png", (1, 1))
    report = publish_report(job, plan, segment_remaining(job, plan))
    rows = rows_of(report)
    assert (report.images, report.masks, report.num_errors, report.duplicates) == (5, 3, 2, 0)
    assert all(row["duplicate_of"] is None for row in rows.values())
    assert not np.array_equal(masks.decode_mask(rows["a.png"]["mask"]), masks.decode_mask(rows["b.png"]["mask"]))
    # Listed again as what it is now, it stays the original of nobody
    second = run(job)
    assert (second.images, second.masks, second.num_errors) == (5, 3, 2)
    # A copy that is replaced by something else is no copy any more, and the other way round
    shot(2).save(folder / "c.png", compress_level=1)
    third = rows_of(run(job))
    assert third["c.png"]["duplicate_of"] == "a.png" and len(third) == 5


def test_mirrored_turned_and_stretched_photographs_are_no_copies(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    image = shot(3)
    image.save(folder / "a.png")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    image.resize((200, 200)).save(folder / "stretched.png")
    Image.new("RGB", (300, 200), (90, 90, 90)).save(folder / "flat-1.png")
    Image.new("RGB", (300, 200), (91, 90, 90)).save(folder / "flat-2.png")
    report = run(job_of(folder, tmp_path / "out"))
    assert (report.images, report.masks, report.duplicates) == (5, 5, 0)


def test_pairs_by_folder_and_name(tmp_path):
    folder = tmp_path / "card"
    for name in (
        *("A/IMG_1.CR2", "A/img_1.JPG", "A/IMG_2.CR2", "B/IMG_2.JPG", "A/IMG_3.nef", "A/IMG_3.heic", "A/IMG_4.tif"),
        *("A/IMG_4.dng", "A/IMG_5.raf", "A/IMG_5.jpg", "A/IMG_5-1.jpg", "A/cafe\u0301.arw", "A/caf\u00e9.jpg"),
    ):
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"x")
    (folder / "A" / "IMG_5.jpg").write_bytes(b"")
    source, aside = Source(storage.locate(str(folder)), pairs=True), LeftAside()
    listed = {entry.image_id for entry in list_source(source, aside=aside)}
    every = {entry.image_id for entry in list_source(Source(source.location))}
    assert every - listed == {"A/IMG_1.CR2", "A/IMG_3.nef", "A/cafe\u0301.arw"}
    assert "3 RAW files beside their JPEG" in aside.sentences()
