import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks import storage, storage_client
from tasks.errors import JobError
from tasks.results import gallery
from tasks.results.gallery_files import ASSETS
from tasks.results.report import ReportJob, build_report
from tasks.segmentation.archive_job import ArchiveJob
from tasks.segmentation.finish import publish_gallery
from tasks.segmentation.outcome import ArchiveReport
from tests.outputs import error_row, mask_row, small_rows, write_run


def data_folder(index):
    [folder] = Path(index).parent.glob("data-*")
    return folder


def read_script(place):
    """What a data script hands to the page."""
    text = place.read_text("ascii").rstrip(";\n").removesuffix(")")
    call, _, rest = text.partition("(")
    return json.loads(rest if call == "archive.summary" else rest.partition(",")[2])


def test_a_gallery_is_made_whole_and_made_anew(small_output, tmp_path):
    job = ReportJob(output=small_output, to=str(tmp_path / "gallery"))
    first = build_report(job)
    assert (first.run_id, first.shown, first.matching, first.photographs_missing) == ("bbbb22220000", 32, 32, 0)
    before = data_folder(first.index)
    second = build_report(job)
    after = data_folder(second.index)
    assert before.name != after.name and after.name in Path(second.index).read_text()
    summary = read_script(after / "summary.js")
    assert (summary["images"], summary["masks"], summary["errors"]) == (32, 30, {"empty": 1, "truncated": 1})
    assert summary["notice"] == "" and summary["before_available"] is True
    index = read_script(after / "index-000.js")
    assert len(index) == 32 and [row[0] for row in index][:3] == ["000.jpg", "001.jpg", "002.jpg"]
    item = read_script(after / "items" / "000" / "000004.js")
    assert item["mask"] and item["before"] and item["shown"] == [64, 48]
    with Image.open(str(second.sheet)) as sheet:
        assert sheet.width > 900 and np.asarray(sheet).std() > 10
    assert all(p.is_file() for kind in ("photos", "thumbs") for p in (after / kind / "000").iterdir())


def test_more_images_than_asked_for_are_a_sample_with_its_query(small_output, tmp_path):
    made = build_report(ReportJob(output=small_output, to=str(tmp_path / "g"), images=5, where="error_kind IS NULL"))
    assert (made.shown, made.matching) == (5, 30)
    summary = read_script(data_folder(made.index) / "summary.js")
    assert summary["notice"].startswith("5 of 30 images are shown: a sample")
    from tasks.results.query import ask

    selected = {row[0] for row in ask(small_output, made.query).rows()}
    shown = {row[0] for row in read_script(data_folder(made.index) / "index-000.js")}
    assert shown == selected and len(shown) == 5
    most = build_report(ReportJob(output=small_output, to=str(tmp_path / "h"), images=3, order="entropy DESC"))
    assert [row[0] for row in read_script(data_folder(most.index) / "index-000.js")] == [
        "027.jpg",
        "028.jpg",
        "029.jpg",
    ]


def test_a_million_images_are_capped_with_a_clear_word(small_output, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.results.report.MOST_IMAGES", 20)
    made = build_report(ReportJob(output=small_output, to=str(tmp_path / "g"), images=1_000_000))
    assert made.shown == 20
    summary = read_script(data_folder(made.index) / "summary.js")
    assert "20 of 32 images are shown" in summary["notice"] and "A gallery holds 20 at most." in summary["notice"]


def test_what_cannot_be_made_is_one_sentence(small_output, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("also mine, but the next is not a gallery's")
    (tmp_path / "mine" / "holiday.jpg").write_text("precious")
    with pytest.raises(JobError, match=r"holds holiday.jpg, which is no part of a gallery"):
        build_report(ReportJob(output=small_output, to=str(tmp_path / "mine")))
    with pytest.raises(JobError, match=r"No image .* fits the condition"):
        build_report(ReportJob(output=small_output, where="confidence > 7"))
    with pytest.raises(JobError, match=r"DuckDB cannot answer"):
        build_report(ReportJob(output=small_output, where="confidence >"))


def test_photographs_that_are_gone_leave_their_masks(tmp_path):
    labels = np.ones((30, 40), np.uint8)
    rows = [mask_row("gone.jpg", str(tmp_path / "gone.jpg"), labels), mask_row("broken.jpg", __file__, labels)]
    write_run(str(tmp_path / "out"), "r", rows)
    made = build_report(ReportJob(output=str(tmp_path / "out")))
    assert made.photographs_missing == 2 and made.sheet is None
    item = read_script(data_folder(made.index) / "items" / "000" / "000000.js")
    assert item["photo"] == "the photograph is not there any more" and item["mask"] and item["shown"] == [40, 30]


def test_photographs_are_read_out_of_containers(photographs, tmp_path):
    import io
    import tarfile

    from tasks.archive.manifest import Manifest, extend
    from tasks.archive.sources import Source, list_source
    from tasks.results.photographs import Photographs
    from tasks.results.reading import open_results

    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for place in sorted(photographs.rglob("*.jpg"), key=lambda p: p.name):
            tar.add(place, place.name)
    source = storage.locate(str(tmp_path / "shard.tar"))
    entries = list(list_source(Source(source)))
    extend(Manifest(storage.locate(str(tmp_path / "out" / "manifest" / "source=x"))), iter(entries))
    rows = [mask_row(entry.image_id, entry.uri, np.ones((4, 4), np.uint8)) for entry in entries]
    write_run(str(tmp_path / "out"), "r", rows, job={"source": str(tmp_path / "shard.tar")})
    found = list(Photographs(open_results(str(tmp_path / "out"))).read(rows))
    assert len(found) == 6
    for (row, data), place in zip(found, sorted(photographs.rglob("*.jpg"), key=lambda p: p.name), strict=True):
        assert row["image_id"].endswith(place.name) and data == place.read_bytes()
        with Image.open(io.BytesIO(data)) as opened:
            assert opened.format == "JPEG"


def test_a_gallery_in_a_bucket_says_what_its_files_are(bucket, tmp_path):
    write_run(f"s3://{bucket.name}/out", "r", small_rows(tmp_path / "p", num_images=6))
    made = build_report(ReportJob(output=f"s3://{bucket.name}/out"))
    build_report(ReportJob(output=f"s3://{bucket.name}/out"))
    assert made.address.startswith("http://127.0.0.1:") and made.address.endswith("/report/run=r/index.html")
    place = storage.locate(made.index)
    info = storage_client.filesystem(place).info(place.path)
    assert info["ContentType"].startswith("text/html")
    names = {
        f.path.partition("/")[0] for f in storage.list_files(storage.locate(f"s3://{bucket.name}/out/report/run=r"))
    }
    assert len(names) == 4  # The older data are gone


def test_a_gallery_that_fails_fails_no_run(small_output, monkeypatch):
    job = ArchiveJob(source="x", output=small_output)
    report = ArchiveReport("aaaa11110000", small_output, "test", images=32, masks=30, done_now=32)

    def broken(*_):
        raise ZeroDivisionError("no disk")

    with monkeypatch.context() as patched:
        patched.setattr("tasks.segmentation.finish.build_report", broken)
        assert publish_gallery(job, report) == report
    assert publish_gallery(job.model_copy(update={"gallery_images": 0}), report).gallery is None
    made = publish_gallery(job, report)
    assert made.gallery and Path(made.gallery).is_file() and Path(str(made.contact_sheet)).is_file()
    made_at = Path(made.gallery).stat().st_mtime_ns
    report.done_now = 0  # Nothing was done: the gallery stands
    assert publish_gallery(job, report).gallery == made.gallery
    assert Path(made.gallery).stat().st_mtime_ns == made_at


def test_the_assets_are_part_of_what_is_installed():
    """The page ships beside its module, and names nothing outside its folder."""
    for name in ("index.html", "report.css", "report.js"):
        text = (ASSETS / name).read_text("utf-8")
        assert "http://" not in text and "https://" not in text and "innerHTML" not in text


def test_error_rows_alone_make_a_gallery(tmp_path):
    write_run(str(tmp_path / "out"), "r", [error_row(f"{n}.jpg", "/nowhere") for n in range(3)])
    made = build_report(ReportJob(output=str(tmp_path / "out")))
    assert made.shown == 3 and made.sheet is None


def test_a_place_that_shows_markdown_shows_the_contact_sheet(small_output, tmp_path, monkeypatch):
    made = build_report(ReportJob(output=small_output, to=str(tmp_path / "gallery")))
    text = gallery.markdown(made.index, 1234)
    assert "1,234 masks" in text and f"`{made.index}`" in text and "](file:" not in text
    [encoded] = re.findall(r"\(data:image/jpeg;base64,([^)]*)\)", text)
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as sheet:
        assert sheet.format == "JPEG" and sheet.width == 900
    # Where a server shows the output, there is a link
    monkeypatch.setattr(storage, "web_address", lambda place: f"https://example.org{place.path}")
    assert f"[{made.index}](https://example.org{made.index})" in gallery.markdown(made.index, 1)
    # A gallery of error rows alone has no sheet
    assert "data:" not in gallery.markdown(str(tmp_path / "nothing" / "index.html"), 0)
