import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segcore.images.masks import decode_mask
from tasks import storage
from tasks.archive.schema import MASKS
from tasks.errors import JobError
from tasks.results import reading
from tasks.results.reading import FACTS, open_results
from tasks.storage import locate
from tasks.stream.rows import write_rows
from tests.outputs import error_row, mask_row, small_rows, write_run


def test_the_run_that_finished_last_is_opened_and_never_two(small_output):
    opened = open_results(small_output)
    assert opened.run_id == "bbbb22220000" and len(opened) == 32
    assert {row["run_id"] for row in opened.rows(["run_id"])} == {"bbbb22220000"}
    assert open_results(small_output, "aaaa").run_id == "aaaa11110000"
    assert not open_results(small_output, "cccc33330000").is_finished


def test_what_cannot_be_opened_is_named(small_output, tmp_path):
    with pytest.raises(JobError, match=r"holds no run"):
        open_results(str(tmp_path))
    with pytest.raises(JobError, match=r"no run 'dddd'; there are bbbb22220000 .finished."):
        open_results(small_output, "dddd")
    write_run(str(tmp_path / "out"), "eeee", [error_row("a", "a")], status="running")
    with pytest.raises(JobError, match=r"No run .* has finished; name one with --run .*: eeee .running."):
        open_results(str(tmp_path / "out"))
    write_run(str(tmp_path / "out"), "ffff", [], status="failed")
    with pytest.raises(JobError, match=r"ffff .* has no rows yet; its status is failed"):
        open_results(str(tmp_path / "out"), "ffff")
    with pytest.raises(JobError, match=r"no column 'msk'"):
        list(open_results(small_output).rows(["msk"]))


def test_every_way_of_reading_gives_the_same_masks(small_output):
    opened = open_results(small_output)
    masks = dict(opened)
    assert len(masks) == 30 and all(labels.dtype == np.uint8 for labels in masks.values())
    assert list(masks) == sorted(masks)
    for image_id in list(masks)[::7]:
        assert np.array_equal(opened.mask(image_id), masks[image_id])
    before = dict(opened.masks(before_crf=True))
    assert np.array_equal(opened.mask("004.jpg", before_crf=True), before["004.jpg"])
    assert not np.array_equal(before["004.jpg"], masks["004.jpg"])
    torch_items = opened.to_torch()
    assert len(torch_items) == 30
    assert {i: labels.numpy().tobytes() for i, labels in torch_items} == {i: m.tobytes() for i, m in masks.items()}


def test_tables_hold_every_row_and_no_mask_unless_asked(small_output):
    opened = open_results(small_output)
    arrow, pandas, polars = opened.to_arrow(), opened.to_pandas(), opened.to_polars()
    assert arrow.column_names == FACTS and len(arrow) == len(pandas) == len(polars) == 32
    assert polars["image_id"].to_list() == pandas["image_id"].tolist() == arrow["image_id"].to_pylist()
    assert polars.filter(polars["error_kind"].is_not_null()).height == 2
    with_masks = opened.to_arrow(["image_id", "mask"])
    assert sum(data is not None for data in with_masks["mask"].to_pylist()) == 30
    assert sum(piece.rows for piece in opened.pieces) == 32


def test_a_missing_image_and_an_error_row_are_told_apart(small_output):
    opened = open_results(small_output)
    with pytest.raises(JobError, match=r"has no image 'nobody.jpg'"):
        opened.row("nobody.jpg")
    with pytest.raises(JobError, match=r"bad/empty.jpg has no mask: the file is empty \(empty\)"):
        opened.mask("bad/empty.jpg")
    assert opened.row("bad/empty.jpg", ["error_kind", "mask"]) == {"error_kind": "empty", "mask": None}


def test_one_image_is_fetched_without_reading_the_files(tmp_path, monkeypatch):
    rows = [error_row(f"{number:05d}.jpg", "x") for number in range(800)]
    rows[333] = mask_row("00333.jpg", "x", np.ones((3, 4), np.uint8))
    write_run(str(tmp_path), "sorted", rows, per_file=10)
    opened = open_results(str(tmp_path))
    assert len(opened.files) == 80
    footers, looks = [], []
    read_footer, look = reading._read_footer, reading._look
    monkeypatch.setattr(reading, "_read_footer", lambda place: footers.append(place) or read_footer(place))
    monkeypatch.setattr(reading, "_look", lambda *arguments: looks.append(arguments) or look(*arguments))
    assert np.array_equal(opened.mask("00333.jpg"), np.ones((3, 4)))
    assert len(footers) <= 8 and len(looks) == 1


def test_one_image_is_found_in_files_of_any_order_and_in_any_row_group(tmp_path):
    random = np.random.default_rng(0)
    names = [f"{number:03d}" for number in random.permutation(60)]
    write_run(str(tmp_path), "mixed", [error_row(name, f"uri-{name}") for name in names], per_file=7)
    # A large file with many row groups, and one whose footer says nothing
    folder = locate(str(tmp_path)) / "masks" / "run=mixed"
    place = folder / "part-000001-0123abcd-0002.parquet"
    table = pq.read_table(pa.BufferReader(storage.read_bytes(place)), partitioning=None)
    pq.write_table(table, place.path, row_group_size=2)
    place = folder / "part-000001-0123abcd-0004.parquet"
    table = pq.read_table(pa.BufferReader(storage.read_bytes(place)), partitioning=None)
    pq.write_table(table, place.path, write_statistics=False)
    for name in names:
        assert open_results(str(tmp_path)).row(name, ["uri"]) == {"uri": f"uri-{name}"}
    assert len(list(open_results(str(tmp_path)).rows_of(names[::5], ["uri"]))) == 12


def test_large_files_are_read_row_group_by_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_WHOLE_FILE_BYTES", 10)
    rows = small_rows(tmp_path / "photographs", num_images=9)
    write_run(str(tmp_path / "out"), "r", rows, per_file=9)
    [file] = open_results(str(tmp_path / "out")).files
    pq.write_table(pa.Table.from_pylist(rows, schema=MASKS), file.place.path, row_group_size=2)
    opened = open_results(str(tmp_path / "out"))
    tables = list(opened.tables(["image_id", "mask"]))
    assert [len(table) for table in tables] == [2, 2, 2, 2, 1]
    assert [row["image_id"] for row in opened.rows_of(["001.jpg", "006.jpg"], ["image_id"])] == ["001.jpg", "006.jpg"]


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_file_that_is_written_again_is_not_read_for_the_one_that_was_listed(where, tmp_path, request):
    output = str(tmp_path / "out") if where == "local" else f"s3://{request.getfixturevalue('bucket').name}/out"
    rows = [error_row(name, name) for name in ("a", "b", "c")]
    write_run(output, "r", rows)
    opened = open_results(output)
    write_rows(opened.files[0].place, rows[1:])
    for read in (lambda: list(opened.rows()), lambda: list(opened.rows(["mask"])), lambda: opened.row("a")):
        with pytest.raises(JobError, match=r"is gone since the run was opened: .*Open it again"):
            read()


def test_a_run_in_a_bucket_is_read_like_one_on_a_disk(bucket, tmp_path):
    rows = small_rows(tmp_path / "photographs", num_images=20)
    write_run(f"s3://{bucket.name}/out", "r", rows, per_file=5)
    opened = open_results(f"s3://{bucket.name}/out")
    assert [row["image_id"] for row in opened.rows(["image_id"])] == [row["image_id"] for row in rows]
    assert np.array_equal(opened.mask("013.jpg"), decode_mask(rows[13]["mask"]))
    assert opened.to_pandas(["image_id", "confidence"])["confidence"].is_monotonic_decreasing
    assert [row["image_id"] for row in opened.rows_of(["003.jpg", "017.jpg"])] == ["003.jpg", "017.jpg"]


def test_ray_data_reads_the_run(small_output, ray_cluster):
    found = open_results(small_output).to_ray(["image_id", "mask", "error_kind"]).take_all()
    assert len(found) == 32
    masks = dict(open_results(small_output))
    for row in found:
        if row["error_kind"] is None:
            assert np.array_equal(decode_mask(row["mask"]), masks[row["image_id"]])


@pytest.mark.parametrize("damage", ["cut", "footer", "pages", "mask"])
def test_a_damaged_mask_file_is_named_with_what_to_do(tmp_path, damage):
    rows = small_rows(tmp_path / "photographs", seed=1)
    if damage == "mask":
        rows[9]["mask"] = rows[9]["mask"][:40]
    write_run(str(tmp_path / "out"), "aaaa11110000", rows)
    place = sorted((tmp_path / "out/masks").rglob("*.parquet"))[1]
    data = bytearray(place.read_bytes())
    if damage == "cut":
        del data[2000:]
    elif damage == "footer":
        data[-60:-20] = b"\xff" * 40
    elif damage == "pages":
        data[4:3000] = bytes(2996)
    place.write_bytes(data)
    results = open_results(str(tmp_path / "out"))
    for read in (lambda: list(results.masks()), lambda: results.mask(rows[9]["image_id"])):
        with pytest.raises(JobError, match=rf"{place.name}.*remove it and run the archive job again"):
            read()
    if damage != "mask":
        with pytest.raises(JobError, match=rf"{place.name}.*remove it and run the archive job again"):
            results.to_arrow()


def test_a_broken_run_record_is_passed_over(tmp_path):
    write_run(str(tmp_path), "good", [error_row("a", "a")])
    storage.write_whole(locate(str(tmp_path)) / "runs" / "broken.json", b"{")
    storage.write_whole(locate(str(tmp_path)) / "runs" / "list.json", json.dumps([1]).encode())
    write_rows(
        locate(str(tmp_path)) / "masks" / "run=other" / "part-0.parquet", [error_row("b", "b") | {"run_id": "o"}]
    )
    assert [row["image_id"] for row in open_results(str(tmp_path)).rows()] == ["a"]
