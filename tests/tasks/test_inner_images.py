"""Pages of TIFFs, frames of animations and videos as images of an archive: identities, bytes, rows, galleries."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from segcore import extras
from segcore.images import masks
from segcore.images.decoding import decode
from segcore.images.errors import ImageError
from segcore.images.inner import InnerImage
from tasks import storage
from tasks.archive.entries import Entry
from tasks.archive.entry_bytes import read_entries
from tasks.archive.manifest import SCHEMA, entries_of
from tasks.errors import JobError
from tasks.results.export import ExportJob, export_run
from tasks.results.photographs import Photographs
from tasks.results.reading import open_results
from tasks.segmentation.archive_job import ArchiveJob, identify, list_archive, list_images
from tasks.segmentation.finish import publish_gallery, publish_report
from tasks.segmentation.session import segment_remaining
from tests.conftest import photograph
from tests.video_files import clip

SIZE = (96, 60)


def job_of(source, output, **options):
    options = {
        "model": "deeplab_v1_largefov",
        "untrained": True,
        "inference": {"long_side_px": 65, "precision": "fp32"},
        "crf": None,
        "gallery_images": 0,
    } | options
    return ArchiveJob(source=str(source), output=str(output), **options)


def run(job):
    plan = list_archive(job)
    return publish_gallery(job, publish_report(job, plan, segment_remaining(job, plan)))


def shots(number, first=0):
    return [photograph(seed, SIZE) for seed in range(first, first + number)]


def document(*images, form="TIFF", **options) -> bytes:
    buffer = io.BytesIO()
    images[0].save(buffer, form, save_all=True, append_images=images[1:], **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """A document of three pages, an animation of two frames, one page alone, in containers too."""
    folder = tmp_path / "scans"
    folder.mkdir()
    three = document(*shots(3))
    (folder / "three.tif").write_bytes(three)
    (folder / "two.webp").write_bytes(document(*shots(2, 5), form="WEBP", lossless=True, duration=100))
    (folder / "one.tiff").write_bytes(document(*shots(1, 8)))
    (folder / "broken.tif").write_bytes(b"II*\0")
    shots(1, 9)[0].save(folder / "plain.png")
    with tarfile.open(folder / "packed.tar.gz", "w:gz") as tar:
        for name in ("a/three.tif", "b/three.tif"):
            member = tarfile.TarInfo(name)
            member.size = len(three)
            tar.addfile(member, io.BytesIO(three))
    with zipfile.ZipFile(folder / "packed.zip", "w") as archive:
        archive.writestr("three.tif", three)
    return folder


def test_every_page_has_an_identity_and_bytes_of_its_own(folder, tmp_path):
    entries = list(list_images(job_of(folder, tmp_path / "out", pages="all")))
    ids = [entry.image_id for entry in entries]
    assert len(set(ids)) == len(ids)
    plain = [entry.image_id for entry in list_images(job_of(folder, tmp_path / "out"))]
    more = {f"{name}#{page}" for name in ("three.tif", "packed.zip!/three.tif") for page in (2, 3)}
    more |= {f"packed.tar.gz!/{place}/three.tif#{page}" for place in "ab" for page in (2, 3)}
    assert set(ids) - set(plain) == more | {"two.webp#2"} and set(plain) < set(ids)
    root = storage.locate(str(folder))
    together = {entry.image_id: data for entry, data in read_entries(root, entries)}
    alone = {entry.image_id: data for entry in entries for _, data in read_entries(root, [entry])}
    for found in (together, alone):
        for image_id, data in found.items():
            if "three.tif" in image_id:
                page = int(image_id.partition("#")[2] or 1)
                assert isinstance(data, InnerImage) == (page > 1)
                assert np.array_equal(decode(data).image, np.asarray(photograph(page - 1, SIZE)))
        assert np.array_equal(decode(found["two.webp#2"]).image, np.asarray(photograph(6, SIZE)))


@pytest.mark.usefixtures("local_engine")
def test_an_archive_of_pages(folder, tmp_path):
    job = job_of(folder, tmp_path / "out", pages="all", gallery_images=50)
    report = run(job)
    assert (report.images, report.masks, report.errors) == (17, 16, {"not_an_image": 1})
    results = open_results(job.output)
    rows = {row["image_id"]: row for row in results.rows()}
    assert rows["three.tif#2"]["uri"].endswith("/three.tif#2")
    assert (rows["three.tif#2"]["width"], rows["three.tif#2"]["height"]) == SIZE
    # The mask of a page is that of the page as a file of its own
    single = tmp_path / "single"
    single.mkdir()
    photograph(1, SIZE).save(single / "page.png")
    alone = run(job_of(single, tmp_path / "single-out"))
    assert np.array_equal(open_results(alone.output).mask("page.png"), results.mask("three.tif#2"))
    assert np.array_equal(results.mask("packed.tar.gz!/b/three.tif#2"), results.mask("three.tif#2"))
    for row, data in Photographs(results).read(list(rows.values())):
        if row["error_kind"] is None:
            assert not isinstance(data, ImageError) and decode(data).image.shape == (60, 96, 3)
    for form in ("coco", "voc"):
        made = export_run(ExportJob(output=job.output, destination=str(tmp_path / form), to=form, photographs=True))
        assert (made.masks, made.photographs, made.photographs_missing) == (16, 16, 0)
    [copied] = (tmp_path / "coco" / "images").glob("three.tif#2*")
    assert np.abs(np.asarray(Image.open(copied)).astype(int) - np.asarray(photograph(1, SIZE))).mean() < 8
    assert report.gallery is not None
    assert run(job).done_now == 0
    # A run of first pages alone is another, beside it
    plain = job_of(folder, tmp_path / "out")
    assert identify(plain).deciding["columns"] == [None, None] and identify(plain).run_id != report.run_id
    assert run(plain).images == 17 - 9


@pytest.mark.usefixtures("local_engine")
def test_an_archive_of_videos(tmp_path):
    pytest.importorskip("av", reason="the extra [video] is not installed")
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "clip.mp4").write_bytes(clip())
    (folder / "Other.MKV").write_bytes(clip("matroska"))
    (folder / "cut.mov").write_bytes(clip("mov")[:3000])
    (folder / "no.avi").write_bytes(b"no video")
    (folder / "empty.webm").write_bytes(b"")
    photograph(1, SIZE).save(folder / "photograph.jpg")
    job = job_of(folder, tmp_path / "out", frames=5.0, gallery_images=10)
    report = run(job)
    assert (report.images, report.masks, report.num_errors) == (8, 5, 3)
    rows = {row["image_id"]: row for row in open_results(job.output).rows()}
    assert {"clip.mp4#t=0.0", "clip.mp4#t=5.0", "Other.MKV#t=5.0", "cut.mov", "no.avi"} < set(rows)
    assert (rows["clip.mp4#t=5.0"]["width"], rows["clip.mp4#t=5.0"]["height"]) == (320, 180)
    assert masks.decode_mask(open_results(job.output).row("clip.mp4#t=5.0", ["mask"])["mask"]).shape == (180, 320)
    assert rows["cut.mov"]["error_kind"] == "unreadable" and "video" in rows["cut.mov"]["error"]
    assert report.gallery is not None and run(job).done_now == 0
    scenes = run(job_of(folder, tmp_path / "out", frames="scenes"))
    assert scenes.run_id != report.run_id and scenes.images > report.images
    # Off by default: a video is a file that is no image
    assert run(job_of(folder, tmp_path / "out")).images == 6


def test_frames_without_the_reader_are_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "films").mkdir()
    monkeypatch.setattr(extras, "is_here", lambda package: package != "av")
    with pytest.raises(JobError, match=r"--frames needs PyAV.*segment-archive\[video\]"):
        list_archive(job_of(tmp_path / "films", tmp_path / "out", frames=1.0))


def test_manifests_of_before_are_read():
    import pyarrow as pa

    row = {"part": 0, "image_id": "a.tif", "uri": "/a.tif", "kind": "file", "path": b"/a.tif", "position": 0}
    row |= {"size": 3, "version": "1", "note": "", "fragment": "2"}
    new = pa.Table.from_pylist([row], schema=SCHEMA)
    assert entries_of(new)[0] == Entry("a.tif", "/a.tif", "file", b"/a.tif", 0, 3, "1", "", "2")
    assert entries_of(new.drop_columns(["fragment"]))[0].fragment == ""
