"""A dataset from folders and archives to shards: complete, exact, repeatable, without a leak."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segcore.datasets.sbd import decode_annotation
from segcore.images.masks import decode_mask, encode_mask
from segcore.voc import palette
from tasks.datasets import shards
from tasks.datasets import store as dataset_store
from tasks.datasets.prepare import (
    DatasetJob,
    DatasetReport,
    check_pairs,
    fetch_archives,
    unpack_archives,
    write_shards,
)
from tasks.datasets.store import partitions
from tasks.errors import JobError
from tasks.storage import locate
from tests.datasets import CLASSES, jpeg, labels_of, make_dataset, write_list
from tests.sbd_files import tar_of
from tests.tasks.test_layout import voc_and_sbd


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def prepare(**given) -> DatasetReport:
    """The flow without Prefect."""
    job = DatasetJob(**given)
    sources = unpack_archives(job, fetch_archives(job))
    check_pairs(job, sources)
    return write_shards(job, sources)


def files_of(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def rows_of(output: str, split: str) -> dict[str, dict]:
    place = locate(output)
    rows = list(shards.iterate_rows(place, shards.read_manifest(place).split(split)))
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def test_a_dataset_of_ones_own_comes_out_bit_for_bit(tmp_path):
    mine, out = make_dataset(tmp_path / "mine"), str(tmp_path / "out")
    report = prepare(output=out, data=str(mine))
    assert report.splits == {"train": 6, "val": 2} and report.findings == {} and report.left_out == 0
    manifest = shards.read_manifest(locate(out))
    assert (manifest.name, manifest.classes) == ("mine", list(CLASSES))
    train = manifest.split("train")
    assert train.class_images == [6, 3, 3] and train.void_pixels > 0
    assert sum(train.class_pixels) + train.void_pixels == 3 * 60 * 44 + 3 * 45 * 61
    for split, number in (("train", 6), ("val", 2)):
        rows = rows_of(out, split)
        assert len(rows) == number
        for image_id, row in rows.items():
            assert row["image"] == (mine / f"JPEGImages/{image_id}.jpg").read_bytes()
            assert row["mask"] == (mine / f"SegmentationClass/{image_id}.png").read_bytes()
            assert decode_mask(row["mask"]).shape == (row["height"], row["width"])
            assert row["digest"] == shards.row_digest(row["image"], row["mask"])
    with Image.open(tmp_path / "out/gallery.png") as picture:
        assert picture.width > 300 and picture.height > 5 * 200


def test_the_same_inputs_give_the_same_bytes_and_again_does_nothing(tmp_path):
    prepare(output=str(tmp_path / "a"), data=str(make_dataset(tmp_path / "1/mine")))
    prepare(output=str(tmp_path / "b"), data=str(make_dataset(tmp_path / "2/mine")))
    first, second = files_of(tmp_path / "a"), files_of(tmp_path / "b")
    names = {name for name in first if not name.startswith("checks/")}
    assert {name: first[name] for name in names} == {n: d for n, d in second.items() if not n.startswith("checks/")}
    again = prepare(output=str(tmp_path / "a"), data=str(tmp_path / "1/mine"))
    assert again.unchanged and again.written_now == 0 and files_of(tmp_path / "a") == first


def test_a_change_of_the_inputs_replaces_just_what_it_touches(tmp_path, monkeypatch, local_engine):
    monkeypatch.setattr(shards, "PART_BYTES", 4000)
    mine, out = make_dataset(tmp_path / "mine", 12), str(tmp_path / "out")
    prepare(output=out, data=str(mine))
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out/shards").rglob("*.parquet")}
    (mine / "SegmentationClass/img-2.png").write_bytes(encode_mask(labels_of(99, (45, 61))))
    report = prepare(output=out, data=str(mine))
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out/shards").rglob("*.parquet")}
    assert not report.unchanged and report.written_now == len(after.keys() - before.keys()) == 1
    assert len(after) == len(before) > 3  # What no longer belongs to it is gone
    assert all(before[name] == stamp for name, stamp in after.items() if name in before)
    np.testing.assert_array_equal(decode_mask(rows_of(out, "train")["img-2"]["mask"]), labels_of(99, (45, 61)))


def test_into_a_bucket(tmp_path, bucket):
    mine, out = make_dataset(tmp_path / "mine"), f"s3://{bucket.name}/sets/mine"
    assert prepare(output=out, data=str(mine)).splits == {"train": 6, "val": 2}
    prepare(output=str(tmp_path / "local"), data=str(mine))
    local, remote = (shards.read_manifest(locate(o)) for o in (str(tmp_path / "local"), out))
    assert local == remote
    assert rows_of(out, "val") == rows_of(str(tmp_path / "local"), "val")
    assert prepare(output=out, data=str(mine)).unchanged


def test_out_of_a_zip_archive(tmp_path):
    mine = make_dataset(tmp_path / "mine")
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for file in mine.rglob("*.*"):
            archive.write(file, f"export/{file.relative_to(mine)}")
        archive.writestr("__MACOSX/._x.jpg", b"x")
    report = prepare(output=str(tmp_path / "out"), data=str(tmp_path / "export.zip"))
    assert report.name == "export" and report.splits == {"train": 6, "val": 2} and report.findings == {}


def test_masks_are_mended_on_the_way_and_the_source_stays(tmp_path):
    mine, out = make_dataset(tmp_path / "mine"), str(tmp_path / "out")
    (mine / "classes.txt").unlink()
    (mine / "labelmap.txt").write_text("background:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n")
    coloured = io.BytesIO()
    Image.fromarray(palette()[labels_of(0, (45, 61))]).save(coloured, format="PNG")
    (mine / "SegmentationClass/img-0.png").write_bytes(coloured.getvalue())
    (mine / "JPEGImages/img-1.jpg").write_bytes(jpeg(1, (60, 44), orientation=8))
    before = files_of(mine)
    assert prepare(output=out, data=str(mine)).mended == 2
    assert files_of(mine) == before
    rows = rows_of(out, "train")
    np.testing.assert_array_equal(decode_mask(rows["img-0"]["mask"]), labels_of(0, (45, 61)))
    assert (rows["img-1"]["width"], rows["img-1"]["height"]) == (44, 60)
    np.testing.assert_array_equal(decode_mask(rows["img-1"]["mask"]), np.rot90(labels_of(1, (60, 44))))


def test_what_is_wrong_stops_it_or_is_left_out(tmp_path):
    mine, out = make_dataset(tmp_path / "mine"), tmp_path / "out"
    (mine / "SegmentationClass/img-1.png").unlink()
    (mine / "JPEGImages/img-3.jpg").write_bytes(b"")
    (mine / "JPEGImages/img-5.jpg").write_bytes((mine / "JPEGImages/img-7.jpg").read_bytes())
    write_list(mine, "train", [f"img-{k}" for k in range(7)])  # 6 is in val too
    with pytest.raises(JobError, match=r"mine cannot be prepared as it is: .*findings\.csv.*--leave-out"):
        prepare(output=str(out), data=str(mine))
    assert not (out / "manifest.json").exists() and len((out / "findings.csv").read_text().splitlines()) == 5
    report = prepare(output=str(out), data=str(mine), leave_out=True)
    assert report.splits == {"train": 3, "val": 2} and report.left_out == 3
    assert set(rows_of(str(out), "train")) == {"img-0", "img-2", "img-4"}
    left_out = json.loads((out / "manifest.json").read_text())["provenance"]["left_out"]
    assert left_out == ["img-1", "img-3", "img-5"]


def archives(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """VOC and SBD as archives with a list of mirrors that knows their checksums."""
    voc, sbd = voc_and_sbd(tmp_path)
    voc_tar = tar_of(voc, tmp_path / "VOC.tar", "VOCdevkit/VOC2012")
    sbd_tar = tar_of(sbd, tmp_path / "benchmark.tgz", "benchmark_RELEASE/dataset")
    text = ""
    for name, file in (("voc", voc_tar), ("sbd", sbd_tar)):
        md5 = hashlib.md5(file.read_bytes()).hexdigest()
        text += f'[{name}]\nname = "{name}"\nfile = "{file.name}"\nmd5 = "{md5}"\nmirrors = []\n'
    (tmp_path / "mirrors.toml").write_text(text)
    given = {"voc": str(voc_tar), "sbd": str(sbd_tar), "mirrors": str(tmp_path / "mirrors.toml")}
    return given | {"output": str(tmp_path / "out"), "work": str(tmp_path / "work")}, sbd


def test_voc_with_sbd_out_of_archives(tmp_path):
    given, sbd = archives(tmp_path)
    report = prepare(**given)
    assert report.splits == {"train": 4, "val": 2, "trainval": 6, "train_aug": 8, "trainval_aug": 10}
    manifest = shards.read_manifest(locate(given["output"]))
    folders = {f.path.split("/")[1] for split in manifest.splits.values() for f in split.files}
    assert folders == {"split=train", "split=train_aug_only", "split=val"}  # Nothing is stored twice
    augmented = rows_of(given["output"], "train_aug")
    assert set(augmented) == {f"2007_{k}" for k in (0, 1, 2, 3, 6, 7, 8, 9)}
    for image_id, row in augmented.items():
        labels = decode_mask(row["mask"])
        assert row["source"] == ("SBD" if image_id >= "2007_6" else "VOC2012")
        assert (labels == 255).any() == (row["source"] == "VOC2012")
        if row["source"] == "SBD":
            np.testing.assert_array_equal(labels, decode_annotation((sbd / f"cls/{image_id}.mat").read_bytes()))
    assert manifest.provenance["masks_by_source"] == {"SBD": 4, "VOC2012": 6}
    assert set(manifest.provenance["sources"]["voc"]) == {"archive", "md5"}
    assert prepare(**given).unchanged
    other = prepare(**given | {"prefer": "sbd"})
    assert other.digest != report.digest and other.splits == report.splits
    assert rows_of(given["output"], "train")["2007_2"]["source"] == "SBD"
    assert rows_of(given["output"], "val")["2007_5"]["source"] == "VOC2012"


def test_an_annotation_that_cannot_be_read_is_named(tmp_path):
    voc, sbd = voc_and_sbd(tmp_path)
    (sbd / "cls/2007_7.mat").write_bytes(b"MATLAB 7.3 MAT-file" + bytes(600))
    given = {"voc": str(voc), "sbd": str(sbd), "output": str(tmp_path / "out")}
    with pytest.raises(JobError, match=r"1 x mask cannot be read; first .*2007_7\.mat .*7\.3"):
        prepare(**given)


def test_lists_become_whole_folders():
    lists = {"train": ["a", "b"], "aug": ["a", "b", "c"], "val": ["d"], "all": ["a", "b", "c", "d"], "odd": ["a", "d"]}
    folders, of = partitions(lists)
    assert sorted(sum(folders.values(), [])) == ["a", "b", "c", "d"]  # noqa: RUF017 - a few names
    for name, ids in lists.items():
        assert sorted(i for folder in of[name] for i in folders[folder]) == sorted(ids)
    assert partitions({"train": ["x"]}) == ({"train": ["x"]}, {"train": ["train"]})


def test_a_pair_that_changes_meanwhile_stops_it(tmp_path, monkeypatch):
    mine = make_dataset(tmp_path / "mine")
    job = DatasetJob(output=str(tmp_path / "out"), data=str(mine))
    sources = unpack_archives(job, fetch_archives(job))
    write = dataset_store.write_part

    def late(part, *rest):
        (mine / "JPEGImages/img-2.jpg").write_bytes(jpeg(50, (45, 61)))
        return write(part, *rest)

    monkeypatch.setattr(dataset_store, "write_part", late)
    with pytest.raises(JobError, match="img-2 was changed while the dataset was prepared: run again"):
        write_shards(job, sources)
    assert not (tmp_path / "out/manifest.json").exists()


def test_jobs_that_make_no_sense(tmp_path):
    out = str(tmp_path / "out")
    for given, message in (
        ({"data": "x", "voc": "y"}, "either your own data"),
        ({"masks": "x"}, "are for your own data"),
        ({"data": str(tmp_path / "none")}, "does not exist"),
        ({"voc": str(tmp_path / "none")}, "does not exist"),
        ({"work": "s3://bucket/work"}, "no local folder"),
    ):
        with pytest.raises(JobError, match=message):
            prepare(output=out, **given)
