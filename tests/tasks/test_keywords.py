"""Keywords in sidecars beside the photographs: read back by exiftool, merged, taken back byte for byte."""

import hashlib
import json
import shutil
import subprocess

import numpy as np
import pytest

from segcore.annotations.xmp import Keywords, keywords_of
from segcore.voc import CLASSES
from tasks import storage
from tasks.errors import JobError
from tasks.results import keywords as keywords_module
from tasks.results.keywords import AnnotateJob, annotate
from tests.conftest import photograph
from tests.outputs import error_row, mask_row, write_run
from tests.segcore.annotations.test_xmp import DARKTABLE, LIGHTROOM

DOG, CAT = CLASSES.index("dog"), CLASSES.index("cat")


def labels_of(dog, cat=0):
    """A mask of 10 x 10 px with so many pixels of dog and cat."""
    labels = np.zeros(100, np.uint8)
    labels[:dog], labels[dog : dog + cat] = DOG, CAT
    return labels.reshape(10, 10)


@pytest.fixture
def folder(tmp_path):
    """Photographs with sidecars of Lightroom and darktable, and a run over them."""
    place = tmp_path / "photos"
    (place / "more").mkdir(parents=True)
    rows = []
    for name, dog, cat in [("a.jpg", 20, 4), ("b.jpg", 3, 50), ("more/c d.jpg", 90, 5), ("e.jpg", 0, 0)]:
        photograph(len(rows), (10, 10)).save(place / name)
        rows.append(mask_row(name, str(place / name), labels_of(dog, cat)))
    (place / "a.xmp").write_bytes(LIGHTROOM)
    (place / "b.jpg.xmp").write_bytes(DARKTABLE)
    rows += [
        error_row("x.jpg", str(place / "x.jpg")),
        mask_row("z.zip!/y.jpg", str(place / "z.zip!/y.jpg"), labels_of(9)),
    ]
    write_run(str(tmp_path / "out"), "r", rows)
    return place


def seen(folder):
    """Digest of every file, with that of its contents."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def job(folder, **options):
    return AnnotateJob(output=str(folder.parent / "out"), **options)


def test_sidecars_are_made_and_merged_and_taken_back(folder):
    before = seen(folder)
    report = annotate(job(folder))
    assert (report.images, report.with_keywords, report.created, report.changed) == (5, 4, 1, 2)
    assert report.without_place == 1 and report.keywords == {"dog": 3, "cat": 2} and not report.failed
    after = seen(folder)
    assert after.keys() - before.keys() == {"more/c d.jpg.xmp"}
    assert {name for name in before if after[name] != before[name]} == {"a.xmp", "b.jpg.xmp"}
    assert keywords_of((folder / "a.xmp").read_bytes()) == Keywords(
        ("Holidays", "dog"), ("Places|Norway", "Segment Archive|dog")
    )
    assert keywords_of((folder / "b.jpg.xmp").read_bytes()) == Keywords(("cat",), ("Segment Archive|cat",))
    assert keywords_of((folder / "more/c d.jpg.xmp").read_bytes()).flat == ("dog", "cat")
    again = annotate(job(folder))
    assert (again.created, again.changed, again.unchanged) == (0, 0, 3) and seen(folder) == after
    undone = annotate(job(folder, undo=True))
    assert (undone.restored, undone.edited, undone.failed) == (3, 0, {}) and seen(folder) == before
    assert annotate(job(folder, undo=True)).restored == 0 and seen(folder) == before


def test_other_options_take_back_what_they_do_not_want(folder):
    before = seen(folder)
    annotate(job(folder))
    narrow = annotate(job(folder, min_share=0.3, root=""))
    assert narrow.keywords == {"dog": 1, "cat": 1} and narrow.changed == 3
    assert (folder / "a.xmp").read_bytes() == LIGHTROOM
    assert keywords_of((folder / "b.jpg.xmp").read_bytes()) == Keywords(("cat",), ("cat",))
    annotate(job(folder, classes=("dog",), min_share=0.01, min_confidence=0.5))
    assert keywords_of((folder / "b.jpg.xmp").read_bytes()).flat == ("dog",)
    assert annotate(job(folder, min_confidence=0.95)).with_keywords == 0
    assert seen(folder) == before
    annotate(job(folder))
    annotate(job(folder, min_share=0.3))
    assert annotate(job(folder, undo=True)).restored == 2 and seen(folder) == before


def test_what_somebody_else_has_changed_since_stays(folder):
    annotate(job(folder))
    place = folder / "a.xmp"
    edited = place.read_bytes().replace(b'Rating="4"', b'Rating="5"').replace(b">Holidays<", b">Summer<")
    place.write_bytes(edited)
    assert annotate(job(folder)).unchanged == 3 and place.read_bytes() == edited
    annotate(job(folder, classes=("cat",), min_share=0.01))
    assert keywords_of(place.read_bytes()) == Keywords(
        ("Summer", "dog", "cat"), ("Places|Norway", "Segment Archive|cat")
    )
    place.write_bytes(place.read_bytes().replace(b'Rating="5"', b'Rating="1"'))
    (folder / "more/c d.jpg.xmp").unlink()
    undone = annotate(job(folder, undo=True))
    assert (undone.edited, undone.restored) == (1, 1)
    assert place.read_bytes() == LIGHTROOM.replace(b'Rating="4"', b'Rating="1"').replace(b">Holidays<", b">Summer<")
    assert not (folder / "more/c d.jpg.xmp").exists() and (folder / "b.jpg.xmp").read_bytes() == DARKTABLE


def test_the_naming_of_lightroom_and_shots_that_share_a_sidecar(tmp_path):
    place = tmp_path / "photos"
    place.mkdir()
    rows = []
    for name, labels in [("a.cr2", labels_of(50)), ("a.jpg", labels_of(0, 50)), ("b.JPG", labels_of(50))]:
        (place / name).write_bytes(b"a photograph")
        rows.append(mask_row(name, str(place / name), labels))
    (place / "b.XMP").write_bytes(DARKTABLE)
    write_run(str(tmp_path / "out"), "r", rows)
    report = annotate(job(place, sidecar="lightroom"))
    assert (report.created, report.changed) == (1, 1)
    assert sorted(p.name for p in place.iterdir()) == ["a.cr2", "a.jpg", "a.xmp", "b.JPG", "b.XMP"]
    assert sorted(keywords_of((place / "a.xmp").read_bytes()).flat) == ["cat", "dog"]
    annotate(job(place, undo=True))
    assert sorted(p.name for p in place.iterdir()) == ["a.cr2", "a.jpg", "b.JPG", "b.XMP"]


def test_a_sidecar_that_cannot_be_written_is_named(folder):
    (folder / "more/c d.jpg.xmp").mkdir()
    report = annotate(job(folder))
    assert report.num_failed == 1 and report.changed == 2
    assert next(iter(report.failed)).endswith("more/c d.jpg.xmp")


def test_one_bad_sidecar_stops_nothing(folder):
    (folder / "a.xmp").write_bytes(b"<!DOCTYPE x []><x/>")
    before = seen(folder)
    report = annotate(job(folder))
    assert report.num_failed == 1 and (report.created, report.changed) == (1, 1)
    [(place, reason)] = report.failed.items()
    assert place.endswith("a.xmp") and "declares a document type" in reason
    assert annotate(job(folder, undo=True)).restored == 2 and seen(folder) == before


def test_a_stop_at_any_sidecar_can_be_undone_and_gone_on_with(folder, monkeypatch):
    before = seen(folder)
    put = keywords_module._put
    for stop_at in range(3):
        calls = []

        def stops(change, calls=calls, stop_at=stop_at):
            calls.append(change)
            if len(calls) > stop_at:
                raise KeyboardInterrupt
            put(change)

        monkeypatch.setattr(keywords_module, "_WORKERS", 1)
        with monkeypatch.context() as patched:
            patched.setattr(keywords_module, "_put", stops)
            with pytest.raises(KeyboardInterrupt):
                annotate(job(folder))
        annotate(job(folder, undo=True))
        assert seen(folder) == before
        with monkeypatch.context() as patched:
            patched.setattr(keywords_module, "_put", stops)
            with pytest.raises(KeyboardInterrupt):
                annotate(job(folder))
        annotate(job(folder))
        assert keywords_of((folder / "a.xmp").read_bytes()).flat == ("Holidays", "dog")
        annotate(job(folder, undo=True))
        assert seen(folder) == before


def test_mistakes_are_one_sentence(folder, tmp_path):
    with pytest.raises(JobError, match="No mask of run r holds 'dgo'; there are cat, dog"):
        annotate(job(folder, classes=("dgo",)))
    with pytest.raises(JobError, match="holds no run"):
        annotate(AnnotateJob(output=str(tmp_path / "nothing")))


def test_sidecars_in_a_bucket(bucket, tmp_path):
    at = f"s3://{bucket.name}"
    bucket.put("photos/a.jpg", b"a photograph")
    bucket.put("photos/b.jpg", b"a photograph")
    bucket.put("photos/b.xmp", LIGHTROOM)
    write_run(f"{at}/out", "r", [mask_row(n, f"{at}/photos/{n}", labels_of(50)) for n in ("a.jpg", "b.jpg")])
    report = annotate(AnnotateJob(output=f"{at}/out"))
    assert (report.created, report.changed) == (1, 1)
    read = lambda name: storage.read_bytes(storage.locate(f"{at}/photos/{name}"))  # noqa: E731
    assert keywords_of(read("a.jpg.xmp")).flat == ("dog",) and b"Norway" in read("b.xmp")
    annotate(AnnotateJob(output=f"{at}/out", undo=True))
    assert read("b.xmp") == LIGHTROOM and not storage.exists(storage.locate(f"{at}/photos/a.jpg.xmp"))


def test_exiftool_reads_the_keywords_and_everything_else(folder):
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool is missing: apt-get install libimage-exiftool-perl")

    def read():
        names = [str(folder / name) for name in ("a.xmp", "b.jpg.xmp")]
        told = subprocess.run(["exiftool", "-j", "-G1", "-struct", *names], capture_output=True, check=True)
        tags = json.loads(told.stdout)
        gone = ("System:", "ExifTool:")
        return [{k: v for k, v in of.items() if not k.startswith(gone) and k != "SourceFile"} for of in tags]

    before = read()
    annotate(job(folder))
    lightroom, darktable = read()
    assert lightroom.pop("XMP-dc:Subject") == ["Holidays", "dog"]
    assert lightroom.pop("XMP-lr:HierarchicalSubject") == ["Places|Norway", "Segment Archive|dog"]
    assert darktable.pop("XMP-dc:Subject") == ["cat"]
    assert darktable.pop("XMP-lr:HierarchicalSubject") == ["Segment Archive|cat"]
    for tag in ("XMP-dc:Subject", "XMP-lr:HierarchicalSubject"):
        before[0].pop(tag)
    assert [lightroom, darktable] == before and len(darktable) >= 3
    told = subprocess.run(
        ["exiftool", "-validate", "-warning", "-a", str(folder / "more/c d.jpg.xmp")], capture_output=True, text=True
    )
    assert "OK" in told.stdout and "Warning" not in told.stdout.replace("Validate", "")
