import dataclasses
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segcore.images.masks import decode_mask, encode_mask
from segcore.voc import IGNORE_LABEL
from tasks import storage
from tasks.datasets import shards
from tasks.datasets.shards import DatasetManifest, ShardRow, Split
from tasks.errors import JobError
from tasks.storage import Location, locate
from tests.conftest import photograph


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path: Path) -> Location:
    """Where a dataset can be: a local folder, a prefix on the real S3 server."""
    if request.param == "local":
        return locate(str(tmp_path / "dataset"))
    return locate(f"s3://{request.getfixturevalue('bucket').name}/dataset")


def row(number: int, split: str = "train") -> ShardRow:
    buffer = io.BytesIO()
    picture = photograph(number, (40 + number, 30))
    picture.save(buffer, format="JPEG")
    labels = photograph(number, picture.size).convert("L").point(lambda v: v % 4 if v < 200 else IGNORE_LABEL)
    mask = encode_mask(np.asarray(labels))
    image = buffer.getvalue()
    return ShardRow(f"id-{number}", split, image, mask, 40 + number, 30, "made", shards.row_digest(image, mask))


def write(place: Location, num_rows: int, rows_per_file: int) -> tuple[DatasetManifest, dict[str, ShardRow]]:
    rows = {r.id: r for r in (row(number) for number in range(num_rows))}
    order = shards.shard_order(rows)
    files = []
    for start in range(0, num_rows, rows_per_file):
        name = f"shards/split=train/part-{start:05d}.parquet"
        files.append(shards.write_part(place, name, (rows[i] for i in order[start : start + rows_per_file])))
    split = Split(
        images=num_rows,
        files=files,
        class_pixels=[1, 2],
        class_images=[1, 1],
        void_pixels=3,
        digest=shards.split_digest({r.id: r.digest for r in rows.values()}),
    )
    classes = ["background", "thing"]
    manifest = DatasetManifest(
        name="made",
        classes=classes,
        splits={"train": split},
        digest=shards.dataset_digest(classes, {"train": split}),
        provenance={"from": "a test"},
    )
    shards.write_manifest(place, manifest)
    return manifest, rows


def test_what_is_written_is_read_back_bit_for_bit(place):
    manifest, rows = write(place, 7, 3)
    assert shards.read_manifest(place) == manifest
    seen = list(shards.iterate_rows(place, manifest.split("train")))
    assert [r["id"] for r in seen] == shards.shard_order(rows)
    for r in seen:
        assert r == rows[r["id"]].__dict__ | {"image_digest": r["image_digest"]}
        assert decode_mask(r["mask"]).shape == (30, r["width"])
        assert Image.open(io.BytesIO(r["image"])).size == (r["width"], 30)


def test_the_ids_are_known_without_the_bytes(place):
    manifest, rows = write(place, 7, 3)
    index = shards.read_index(place, manifest.split("train"))
    assert set(index.column("id").to_pylist()) == set(rows)
    assert index.column("path").to_pylist()[0] == "shards/split=train/part-00000.parquet"
    for entry in index.to_pylist():
        group = shards.RowGroup(entry["path"], entry["row_group"], 0)
        table = shards.read_row_group(place, group, ["id", "mask"])
        assert table.column_names == ["id", "mask"]
        assert table.column("id")[entry["row"]].as_py() == entry["id"]
        assert entry["digest"] == rows[entry["id"]].digest


def test_workers_share_the_rows(tmp_path):
    rows = [row(number) for number in range(12)]
    data, groups = shards.encode_part(rows, row_group_bytes=2500)
    assert len(groups) > 3 and sum(groups) == 12
    place = locate(str(tmp_path))
    storage.write_whole(place / "shards/a.parquet", data)
    file = shards.read_part(place, "shards/a.parquet")
    assert file.row_groups == groups and file.rows == 12
    split = Split(images=12, files=[file], class_pixels=[], class_images=[], void_pixels=0, digest="")
    shares = [[r["id"] for r in shards.iterate_rows(place, split, ["id"], worker, 3)] for worker in range(3)]
    assert sorted(shares[0] + shares[1] + shares[2]) == sorted(r.id for r in rows)
    assert all(shares)
    assert [r["id"] for r in shards.iterate_rows(place, split, ["id"])] == [r.id for r in rows]


def test_row_groups_are_bounded_by_bytes():
    rows = [row(number) for number in range(12)]
    largest = max(len(r.image) + len(r.mask) for r in rows)
    data, groups = shards.encode_part(rows, row_group_bytes=4 * largest)
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    assert [metadata.row_group(k).num_rows for k in range(len(groups))] == groups
    assert all(metadata.row_group(k).total_byte_size < 6 * largest for k in range(len(groups)))
    # A row larger than the bound has a row group of its own
    assert shards.encode_part(rows, row_group_bytes=1)[1] == [1] * 12
    assert shards.encode_part([])[1] == []


def test_the_same_rows_give_the_same_bytes():
    rows = [row(number) for number in range(5)]
    assert shards.encode_part(rows) == shards.encode_part(iter(rows))


def test_digests_know_every_byte_and_no_order():
    assert shards.row_digest(b"ab", b"c") != shards.row_digest(b"a", b"bc")
    assert shards.split_digest({"a": "1", "b": "2"}) == shards.split_digest({"b": "2", "a": "1"})
    assert shards.split_digest({"a": "1"}) != shards.split_digest({"a": "2"})


def test_what_is_no_dataset_is_one_sentence(tmp_path):
    place = locate(str(tmp_path))
    with pytest.raises(JobError, match=r"no prepared dataset.*segment-archive prepare"):
        shards.read_manifest(place)
    (tmp_path / "manifest.json").write_text("not json")
    with pytest.raises(JobError, match="not the manifest"):
        shards.read_manifest(place)
    (tmp_path / "manifest.json").write_text('{"format_version": 99}')
    with pytest.raises(JobError, match=r"format version 99.*reads 1"):
        shards.read_manifest(place)
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 1, "name": "x"}))
    with pytest.raises(JobError, match="not the manifest"):
        shards.read_manifest(place)
    manifest, _ = write(place, 1, 1)
    with pytest.raises(JobError, match=r"no split 'val'; it has train"):
        manifest.split("val")
    (tmp_path / manifest.split("train").files[0].path).write_bytes(b"cut")
    with pytest.raises(JobError, match="no whole Parquet file"):
        list(shards.iterate_rows(place, manifest.split("train")))
    (tmp_path / manifest.split("train").files[0].path).unlink()
    with pytest.raises(JobError, match="does not exist"):
        list(shards.iterate_rows(place, manifest.split("train")))


def test_the_split_to_learn_from_is_train_aug_or_train_or_the_only_one():
    def manifest(*names):
        split = Split(images=0, files=[], class_pixels=[], class_images=[], void_pixels=0, digest="")
        return DatasetManifest(name="m", classes=["a"], splits=dict.fromkeys(names, split), digest="", provenance={})

    assert manifest("train", "train_aug", "val").training_split("auto") == "train_aug"
    assert manifest("train", "trainval", "val").training_split("auto") == "train"
    assert manifest("train-few", "val").training_split("auto") == "train-few"
    assert manifest("train", "auto").training_split("auto") == "auto"
    assert manifest("train", "val").training_split("val") == "val"
    for names in (("all", "trainval"), ("train-a", "train-b")):
        with pytest.raises(JobError, match=f"no split train; name the one to learn from: {', '.join(names)}"):
            manifest(*names).training_split("auto")


def test_what_images_look_like_is_stored_and_read_without_them(tmp_path):
    place = locate(str(tmp_path))
    rows = [dataclasses.replace(row(k), fingerprint=look) for k, look in enumerate((7, 0))]
    file = shards.write_part(place, "a.parquet", rows)
    ids, looks = shards.stored_looks(place, shards.RowGroup("a.parquet", 0, 2))
    assert file.rows == 2 and ids == [r.id for r in rows] and looks.fingerprints.tolist() == [7, 0]
    assert looks.digests.tolist() == [int(hashlib.sha256(r.image).hexdigest()[:16], 16) for r in rows]
    # Nobody has looked at one; a shard of early versions
    shards.write_part(place, "b.parquet", [rows[0], row(1)])
    assert shards.stored_looks(place, shards.RowGroup("b.parquet", 0, 2)) is None
    early = shards.read_row_group(place, shards.RowGroup("a.parquet", 0, 2)).drop_columns(
        ["image_digest", "fingerprint"]
    )
    pq.write_table(early, tmp_path / "c.parquet")
    assert shards.stored_looks(place, shards.RowGroup("c.parquet", 0, 2)) is None
    assert shards.read_row_group(place, shards.RowGroup("c.parquet", 0, 2)).num_rows == 2
