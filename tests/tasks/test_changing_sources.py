"""Sources that are written to while they are read: real writers beside real readers, thousands of times."""

import contextlib
import hashlib
import io
import os
import random
import tarfile
import threading
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segcore.images.decoding import ErrorKind, ImageError
from tasks import storage
from tasks.archive.entries import Entry
from tasks.archive.entry_bytes import read_entries
from tasks.archive.sources import Source, list_source
from tasks.storage import locate

OLD, NEW = b"old" * 50_000, b"newer" * 40_000


@contextlib.contextmanager
def meanwhile(change: Callable[[int], None]) -> Iterator[None]:
    """Another hand that changes something all the time."""
    over = threading.Event()

    def work() -> None:
        turn = 0
        while not over.is_set():
            change(turn := turn + 1)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def read_often(root, entries, times):
    for _ in range(times):
        yield from read_entries(root, entries)


def replace(place, data):
    beside = place.with_name(".beside")
    beside.write_bytes(data)
    beside.replace(place)


def test_a_file_that_is_replaced_comes_with_the_identity_of_its_bytes(tmp_path):
    photo = tmp_path / "a.jpg"
    photo.write_bytes(OLD)
    entries = list(list_source(Source(locate(str(tmp_path)))))
    known = {}  # By version: what was put under it

    def change(turn):
        data = (OLD, NEW)[turn % 2]
        beside = tmp_path / ".beside"
        beside.write_bytes(data)
        os.utime(beside, ns=(turn * 10**9, turn * 10**9))
        known[str(turn * 10**9)] = data
        beside.replace(photo)

    known[entries[0].version] = OLD
    with meanwhile(change):
        seen = [(entry, data) for entry, data in read_often(locate(str(tmp_path)), entries, 800)]
    for entry, data in seen:
        assert known[entry.version] == data and entry.size == len(data)


def test_a_file_that_is_written_over_is_taken_when_it_holds_still(tmp_path):
    photo = tmp_path / "a.jpg"
    photo.write_bytes(OLD)
    entries = list(list_source(Source(locate(str(tmp_path)))))

    def change(turn):
        with photo.open("r+b") as file:  # In place, as editors and cameras do
            file.write((OLD, NEW)[turn % 2])
            file.truncate()

    with meanwhile(change):
        seen = list(read_often(locate(str(tmp_path)), entries, 1500))
    steady = [(entry, data) for entry, data in seen if not isinstance(data, ImageError)]
    for entry, data in seen:
        if isinstance(data, ImageError):
            assert data.kind is ErrorKind.UNREADABLE and "is being written to" in str(data)
        else:
            assert entry.size == len(data)
    photo.write_bytes(NEW)
    ((entry, data),) = read_entries(locate(str(tmp_path)), entries)
    assert data == NEW and (entry.size, entry.version) == (len(NEW), str(photo.stat().st_mtime_ns))
    assert len(seen) == 1500 and steady


def test_a_file_of_the_same_time_and_another_size_has_its_own_size(tmp_path):
    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"first")
    entries = list(list_source(Source(locate(str(tmp_path)))))
    times = photo.stat()
    photo.write_bytes(b"the second")
    os.utime(photo, ns=(times.st_atime_ns, times.st_mtime_ns))
    ((entry, data),) = read_entries(locate(str(tmp_path)), entries)
    assert (data, entry.size) == (b"the second", 10)


def test_an_object_that_is_replaced_comes_with_the_etag_of_its_bytes(bucket, monkeypatch):
    bucket.put("a.jpg", OLD)
    bucket.put("z/notes.txt", b"a source without any file would be an outage")
    root = locate(f"s3://{bucket.name}")
    entries = list(list_source(Source(root)))[:1]
    bucket.put("a.jpg", NEW)
    get = storage._read_object

    def overtaken(location):
        answer = get(location)
        bucket.put("a.jpg", b"newest")  # Before anything else can be asked of the store
        return answer

    monkeypatch.setattr(storage, "_read_object", overtaken)
    ((entry, data),) = read_entries(root, entries)
    assert data == NEW and (entry.size, entry.version) == (len(NEW), hashlib.md5(NEW).hexdigest())
    monkeypatch.undo()
    ((entry, data),) = read_entries(root, entries)
    assert data == b"newest" and (entry.size, entry.version) == (6, hashlib.md5(b"newest").hexdigest())
    storage.remove(root / "a.jpg")
    ((_, data),) = read_entries(root, entries)
    assert isinstance(data, ImageError) and data.kind is ErrorKind.MISSING


def shards(turn: int) -> tuple[bytes, bytes]:
    """A Parquet file and a tar shard of ten images, of which each says whose and of which turn it is."""
    names = [f"{n}.jpg" for n in random.Random(turn).sample(range(10), 10)]
    images = [f"{name} {turn} ".encode() * random.Random(turn).randint(50, 3000) for name in names]
    parquet, shard = io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table({"id": names, "image": images}), parquet, row_group_size=3)
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for name, image in zip(names, images, strict=True):
            info = tarfile.TarInfo(name)
            info.size = len(image)
            tar.addfile(info, io.BytesIO(image))
    return parquet.getvalue(), shard.getvalue()


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_container_that_is_replaced_midway_gives_nobody_anothers_image(where, tmp_path, request):
    turns = [shards(turn) for turn in range(8)]
    for kind, name in enumerate(("t.parquet", "s.tar")):
        if where == "local":
            root = tmp_path / name.replace(".", "-")
            root.mkdir()
            put, root = to_file(root / name), locate(str(root))
        else:
            bucket = request.getfixturevalue("bucket")
            root = locate(f"s3://{bucket.name}/{name.replace('.', '-')}")
            put = to_object(bucket, f"{name.replace('.', '-')}/{name}")
        put(turns[0][kind])
        entries = list(list_source(Source(root)))
        assert len(entries) == 10
        seen: list[tuple[Entry, bytes | ImageError]] = []
        if where == "local":  # The S3 server of the tests gives one object's etag with another's bytes when hammered
            with meanwhile(lambda turn, put=put, kind=kind: put(turns[turn % 8][kind])):
                seen = list(read_often(root, entries, 60))
        for entry, data in seen:
            if isinstance(data, ImageError):
                assert data.kind in (ErrorKind.CHANGED, ErrorKind.MISSING, ErrorKind.UNREADABLE)
            else:
                whose, turn, _ = data.decode().split(" ", 2)
                assert entry.image_id.endswith(whose) and turn == "0"
        put(turns[1][kind])
        left = [data for _, data in read_entries(root, entries)]
        assert all(isinstance(data, ImageError) and data.kind is ErrorKind.CHANGED for data in left)


def to_file(place):
    return lambda data: replace(place, data)


def to_object(bucket, path):
    return lambda data: bucket.put(path, data)
