import io
import os
import socket
import tarfile
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segcore.images.errors import ErrorKind, ImageError
from tasks import storage_client
from tasks.archive.entry_bytes import read_entries
from tasks.archive.sources import LeftAside, Source, list_source
from tasks.errors import JobError
from tasks.storage import locate


def listed(place, **columns):
    return list(list_source(Source(locate(str(place)), **columns)))


def contents(entries, root="/"):
    return {entry.image_id: data for entry, data in read_entries(locate(str(root)), entries)}


def write_tar(place, members):
    with tarfile.open(place, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_every_file_of_a_folder_is_an_entry(tmp_path):
    (tmp_path / "été 🌄").mkdir()
    (tmp_path / "été 🌄" / "ünï\ncode.JPG").write_bytes(b"1")
    (tmp_path / "notes.txt").write_bytes(b"2")
    (tmp_path / "Thumbs.db").write_bytes(b"3")
    (tmp_path / ".DS_Store").write_bytes(b"4")
    assert contents(listed(tmp_path)) == {"notes.txt": b"2", "été 🌄/ünï\ncode.JPG": b"1"}


def test_names_that_are_not_utf8_stay_apart(tmp_path):
    for name, data in ((b"a\xff.jpg", b"1"), (b"a\xfe.jpg", b"2"), (b"a\\xff.jpg", b"3")):
        (tmp_path / os.fsdecode(name)).write_bytes(data)
    entries = listed(tmp_path)
    assert len({e.image_id for e in entries}) == 3
    assert sorted(contents(entries).values()) == [b"1", b"2", b"3"]


def test_links_pipes_and_circles_in_a_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(b"a")
    (tmp_path / "real" / "again").symlink_to(tmp_path)  # A folder that contains itself
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    (tmp_path / "link.jpg").symlink_to("real/a.jpg")
    (tmp_path / "gone.jpg").symlink_to("no/where.jpg")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "gone-folder").symlink_to("no/folder")
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
        found = contents(listed(tmp_path), tmp_path)
    errors = {name: str(found.pop(name)) for name in list(found) if isinstance(found[name], ImageError)}
    assert found == {"folder/a.jpg": b"a", "link.jpg": b"a", "real/a.jpg": b"a"}
    assert errors == {
        "gone.jpg": "the link leads to 'no/where.jpg', which cannot be opened: No such file or directory",
        "gone-folder": "the link leads to 'no/folder', which cannot be opened: No such file or directory",
        "self.jpg": "the link leads to 'self.jpg', which cannot be opened: Too many levels of symbolic links",
        "pipe.jpg": "it is a pipe, a socket or a device, and no file",
        "socket.png": "it is a pipe, a socket or a device, and no file",
    }


def test_what_may_not_be_read_stops_nothing():
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody who may not read")
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        place.chmod(0o755)
        (place / "locked").mkdir()
        for name in ("a.jpg", "private.jpg", "locked/b.jpg"):
            (place / name).write_bytes(b"x")
        (place / "private.jpg").chmod(0)
        (place / "locked").chmod(0)
        os.seteuid(65534)
        try:
            found = contents(listed(place), place)
        finally:
            os.seteuid(0)
    assert found.pop("a.jpg") == b"x"
    assert str(found["locked"]) == "the folder cannot be opened: Permission denied"
    assert "Permission denied" in str(found["private.jpg"]) and len(found) == 2


def test_a_single_file_is_a_source(tmp_path):
    (tmp_path / "one.jpg").write_bytes(b"x")
    assert contents(listed(tmp_path / "one.jpg")) == {"one.jpg": b"x"}


def test_tar_shards_give_their_image_members(tmp_path):
    members = [("000.jpg", b"a"), ("000.json", b"{}"), ("x/001.png", b"bb"), (".hidden.jpg", b"h"), ("000.jpg", b"c")]
    write_tar(tmp_path / "shard-0.tar", members)
    (tmp_path / "plain.jpg").write_bytes(b"p")
    entries = listed(tmp_path)
    assert contents(entries) == {
        "plain.jpg": b"p",
        "shard-0.tar!/000.jpg": b"a",
        "shard-0.tar!/x/001.png": b"bb",
        "shard-0.tar!/000.jpg!#4608": b"c",  # A shard may hold a name twice; the second is known by its offset
    }
    assert next(e for e in entries if e.kind == "tar").size == 1


def test_a_folder_that_looks_like_a_shard_shares_no_identity(tmp_path):
    write_tar(tmp_path / "a.tar", [("m.jpg", b"in the shard")])
    (tmp_path / "a.tar!").mkdir()
    (tmp_path / "a.tar!" / "m.jpg").write_bytes(b"in the folder")
    assert sorted(contents(listed(tmp_path)).values()) == [b"in the folder", b"in the shard"]


def test_members_that_lie_about_their_size_or_are_sparse_are_errors(tmp_path):
    members = [("a.jpg", b"a" * 600), ("b.jpg", b"b" * 600), ("c.jpg", b"c")]
    write_tar(tmp_path / "whole.tar", members)
    whole = (tmp_path / "whole.tar").read_bytes()
    for lie in (b"%011o\0" % (1 << 30), b"\x80" + (1 << 80).to_bytes(11, "big"), b"\xff" * 11 + b"\x00", b"9" * 12):
        data = bytearray(whole)
        data[1536 + 124 : 1536 + 136] = lie
        data[1536 + 148 : 1536 + 156] = b" " * 8
        data[1536 + 148 : 1536 + 156] = b"%06o\0 " % sum(data[1536 : 1536 + 512])
        (tmp_path / "lie.tar").write_bytes(data)
        found = contents(listed(tmp_path / "lie.tar"))
        assert found.pop("lie.tar!/a.jpg") == b"a" * 600
        assert {outcome.kind for outcome in found.values()} == {ErrorKind.UNREADABLE}
    broken = bytearray(whole)
    broken[1536:1546] = b"\xff" * 10  # The checksum of the second header: Python's own reader ends in silence
    (tmp_path / "lie.tar").write_bytes(broken)
    assert "cannot be listed to its end" in str(contents(listed(tmp_path / "lie.tar"))["lie.tar"])


def test_parquet_columns_that_hold_something_else(tmp_path):
    place = tmp_path / "p.parquet"
    for values in ([10**12], [[1, 2]], [1.5], [{"bytes": 7}]):
        pq.write_table(pa.table({"id": ["a"], "image": values}), place)
        assert contents(listed(place))["a"].kind is ErrorKind.NOT_AN_IMAGE
    for ids, reason in (([["a"]], "cannot identify images"), (["x" * 5000], "an identity of 5000 bytes")):
        pq.write_table(pa.table({"id": ids, "image": [b""]}), place)
        with pytest.raises(JobError, match=rf"p.parquet.*{reason}.*--id-column"):
            listed(place, id_column="id")
        assert contents(listed(place)) == {"p.parquet!/row 0": b""}


def test_a_broken_shard_keeps_what_it_gave_and_says_what_is_wrong(tmp_path):
    write_tar(tmp_path / "whole.tar", [(f"{n}.jpg", bytes(2000)) for n in range(9)])
    cut = (tmp_path / "whole.tar").read_bytes()[:5000]
    (tmp_path / "cut.tar").write_bytes(cut)
    (tmp_path / "no.tar").write_bytes(b"this is no tar file, whatever its name says" * 50)
    found = contents(listed(tmp_path))
    assert len([i for i in found if i.startswith("whole.tar!/")]) == 9
    assert found["cut.tar!/0.jpg"] == bytes(2000)
    broken = [d for d in found.values() if isinstance(d, ImageError)]
    assert {d.kind for d in broken} <= {ErrorKind.UNREADABLE, ErrorKind.TRUNCATED} and len(broken) >= 2
    assert any("no.tar" in i for i, d in found.items() if isinstance(d, ImageError))


def test_a_parquet_dataset_gives_its_rows(tmp_path):
    for shard in range(2):
        rows = [{"image_id": f"{shard}-{n}", "image": bytes([shard, n])} for n in range(150)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{shard}.parquet", row_group_size=40)
    (tmp_path / "_SUCCESS").write_bytes(b"")
    entries = listed(tmp_path)
    assert len(entries) == 300
    picked = entries[37:45] + entries[170:175]
    assert contents(picked) == {e.image_id: bytes(int(n) for n in e.image_id.split("-")) for e in picked}
    assert len(listed(tmp_path / "1.parquet")) == 150


def test_parquet_columns_are_found_or_named(tmp_path):
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            "key": ["a", "a", None],
            "photo": pa.array([{"bytes": b"1", "path": ""}, {"bytes": b"2", "path": ""}, None], picture),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(JobError, match=r"no column 'nope'; it has key, photo.bytes, photo.path.*--image-column"):
        listed(tmp_path, image_column="nope")
    found = contents(listed(tmp_path))
    assert found["a"] == contents(listed(tmp_path, image_column="photo.bytes"))["a"]
    assert found["a"] == b"1" and found["a!#1"] == b"2"
    assert found["t.parquet!/row 2"].kind is ErrorKind.EMPTY


def test_parquet_beside_images_gives_its_rows_too(tmp_path):
    pq.write_table(pa.table({"id": ["x"], "image": [b"x"]}), tmp_path / "a.parquet")
    (tmp_path / "b.jpg").write_bytes(b"b")
    assert contents(listed(tmp_path)) == {"x": b"x", "b.jpg": b"b"}


def test_the_output_inside_the_source_is_no_part_of_it(tmp_path):
    for name in (
        "a.jpg",
        "out/masks/run=x/part.parquet",
        "manifest/source=x/1.parquet",
        "runs/x.json",
        "png/run=x/a.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    source = Source(locate(str(tmp_path)))
    ids = sorted(e.image_id for e in list_source(source, leave_out=locate(str(tmp_path / "out"))))
    assert ids == ["a.jpg", "manifest/source=x/1.parquet", "png/run=x/a.png", "runs/x.json"]
    (tmp_path.parent / "link").symlink_to(tmp_path)
    spelt_otherwise = locate(str(tmp_path.parent / "link" / "out"))
    assert sorted(e.image_id for e in list_source(source, leave_out=spelt_otherwise)) == ids
    ids = [e.image_id for e in list_source(source, leave_out=locate(str(tmp_path)))]
    assert ids == ["a.jpg", "out/masks/run=x/part.parquet"]


def test_what_went_away_after_the_listing_says_so(tmp_path):
    (tmp_path / "gone.jpg").write_bytes(b"x")
    pq.write_table(pa.table({"id": ["x"], "image": [b"x"]}), tmp_path.parent / "gone.parquet")
    entries = listed(tmp_path) + listed(tmp_path.parent / "gone.parquet")
    (tmp_path / "gone.jpg").unlink()
    (tmp_path.parent / "gone.parquet").unlink()
    assert [d.kind for d in contents(entries).values()] == [ErrorKind.MISSING] * 2


def test_a_container_that_was_replaced_gives_nobody_anothers_image(tmp_path):
    pq.write_table(pa.table({"id": ["cat", "dog"], "image": [b"CAT", b"DOG"]}), tmp_path / "t.parquet")
    write_tar(tmp_path.parent / "s.tar", [("cat.jpg", b"CAT"), ("dog.jpg", b"DOG")])
    entries = listed(tmp_path) + listed(tmp_path.parent / "s.tar")
    assert sorted(contents(entries).values()) == [b"CAT", b"CAT", b"DOG", b"DOG"]
    pq.write_table(pa.table({"id": ["dog", "cat"], "image": [b"DOG", b"CAT"]}), tmp_path / "t.parquet")
    write_tar(tmp_path.parent / "s.tar", [("dog.jpg", b"DOG"), ("cat.jpg", b"CAT")])
    assert [data.kind for data in contents(entries).values()] == [ErrorKind.CHANGED] * 4


def test_a_file_that_was_replaced_comes_with_its_new_version(tmp_path, bucket):
    (tmp_path / "a.jpg").write_bytes(b"old")
    bucket.put("a.jpg", b"old")
    (local,), (remote,) = listed(tmp_path), list_source(Source(locate(f"s3://{bucket.name}")))
    assert [e for e, _ in read_entries(locate(f"s3://{bucket.name}"), [remote])] == [remote]
    (tmp_path / "a.jpg").write_bytes(b"newer")
    bucket.put("a.jpg", b"newer")
    for root, entry in ((locate(str(tmp_path)), local), (locate(f"s3://{bucket.name}"), remote)):
        ((read, data),) = read_entries(root, [entry])
        assert data == b"newer" and read.size == 5
        now = next(list_source(Source(root))).version.partition("#")[0]  # Without the digest of a young file
        assert read.version == now != entry.version.partition("#")[0]


def test_an_outage_is_no_images_fault(tmp_path, bucket, monkeypatch):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.jpg").write_bytes(b"x")
    entries = listed(tmp_path / "source")
    (tmp_path / "source" / "a.jpg").unlink()
    (tmp_path / "source").rmdir()  # As when a network folder is unmounted
    with pytest.raises(JobError, match="cannot be read any more"):
        contents(entries, tmp_path / "source")
    bucket.put("a.jpg", b"x")
    root = locate(f"s3://{bucket.name}")
    entries = list(list_source(Source(root)))
    monkeypatch.setattr("tasks.storage_client.ATTEMPTS", 1)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "expired")
    storage_client.refresh()
    try:
        with pytest.raises(JobError, match="cannot be read any more"):
            list(read_entries(root, entries))
    finally:
        monkeypatch.undo()
        storage_client.refresh()


def test_identities_that_repeat_over_parquet_files_give_way_to_row_numbers(tmp_path):
    for name in "ab":
        pq.write_table(pa.table({"id": ["x", "y"], "image": [b"x", b"y"]}), tmp_path / f"{name}.parquet")
    aside = LeftAside()
    entries = list(list_source(Source(locate(str(tmp_path))), aside=aside))
    assert [entry.image_id for entry in entries] == [f"{n}.parquet!/row {row}" for n in "ab" for row in (0, 1)]
    assert aside.sentences() == (
        "Values of the column id stand in more than one Parquet file: rows are known by their file and number."
    )
    with pytest.raises(JobError, match=r"'x' in .*b\.parquet stands in another file"):
        listed(tmp_path, id_column="id")


def test_made_up_identities_meet_no_real_one(tmp_path):
    ids = ["a", "a", "a!#1", "a!#1"]
    pq.write_table(pa.table({"id": ids, "image": [b"0", b"1", b"2", b"3"]}), tmp_path / "t.parquet")
    assert sorted(contents(listed(tmp_path)).values()) == [b"0", b"1", b"2", b"3"]


def test_a_source_that_is_not_there(tmp_path, s3_server):
    with pytest.raises(JobError, match="does not exist"):
        listed(tmp_path / "nowhere")
    with pytest.raises(JobError, match="does not exist"):
        list(list_source(Source(locate("s3://no-such-bucket/x"))))


def test_all_of_it_from_s3(bucket, tmp_path):
    write_tar(tmp_path / "s.tar", [("1.jpg", b"one"), ("2.jpg", b"two")])
    bucket.put("s.tar", (tmp_path / "s.tar").read_bytes())
    bucket.put("deep/ä.jpg", b"three")
    entries = list(list_source(Source(locate(f"s3://{bucket.name}"))))
    read = {e.image_id: d for e, d in read_entries(locate(f"s3://{bucket.name}"), entries)}
    assert read == {"deep/ä.jpg": b"three", "s.tar!/1.jpg": b"one", "s.tar!/2.jpg": b"two"}
