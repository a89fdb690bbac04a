"""Sources that are written to while they are read: real writers beside real readers, thousands of times."""

import contextlib
import dataclasses
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

from segcore.images.errors import ErrorKind, ImageError
from tasks import storage
from tasks.archive import sources
from tasks.archive.entries import Entry
from tasks.archive.entry_bytes import read_entries
from tasks.archive.manifest import Manifest, extend
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


def time_of(entry):
    return int(entry.version.partition("-")[0])


def replace(place, data):
    beside = place.with_name(".beside")
    beside.write_bytes(data)
    beside.replace(place)


def test_a_file_that_is_replaced_comes_with_the_identity_of_its_bytes(tmp_path):
    photo = tmp_path / "a.jpg"
    photo.write_bytes(OLD)
    entries = list(list_source(Source(locate(str(tmp_path)))))
    known = {}  # By modification time: what was put under it

    def change(turn):
        data = (OLD, NEW)[turn % 2]
        beside = tmp_path / ".beside"
        beside.write_bytes(data)
        os.utime(beside, ns=(turn * 10**9, turn * 10**9))
        known[turn * 10**9] = data
        beside.replace(photo)

    known[time_of(entries[0])] = OLD
    with meanwhile(change):
        seen = [(entry, data) for entry, data in read_often(locate(str(tmp_path)), entries, 800)]
    for entry, data in seen:
        assert known[time_of(entry)] == data and entry.size == len(data)


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
    assert data == NEW and (entry.size, time_of(entry)) == (len(NEW), photo.stat().st_mtime_ns)
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


@pytest.mark.parametrize("told_by", ["inode and change time", "bytes"])
def test_a_file_that_is_replaced_within_one_tick_of_the_clock_is_noticed(told_by, tmp_path, monkeypatch):
    folder, place = tmp_path / "photographs", locate(str(tmp_path / "manifest"))
    folder.mkdir()
    if told_by == "bytes":  # Written in place, on a server whose clock is coarse
        monkeypatch.setattr(storage, "_mark", lambda status: "00000000")
    else:
        monkeypatch.setattr(sources, "YOUNG_NS", 0)
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(b"first")
    times = (folder / "a.jpg").stat()

    def listing():
        return extend(Manifest(place), list_source(Source(locate(str(folder)))), refresh_changed=True)

    assert listing().added == 2
    (folder / "a.jpg").write_bytes(b"other")
    os.utime(folder / "a.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))
    monkeypatch.setattr(sources, "YOUNG_NS", 0)  # Some seconds later
    found = listing()
    assert (found.added, found.changed, found.refreshed) == (0, 1, 1)
    again = listing()
    assert (again.added, again.changed) == (0, 0)


def test_what_a_worker_reads_within_the_tick_of_the_listing_is_not_taken_for_what_was_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_mark", lambda status: "00000000")
    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"first")
    [listed] = list_source(Source(locate(str(tmp_path))))
    ((entry, _),) = read_entries(locate(str(tmp_path)), [listed])
    assert entry == listed and "#" in listed.version
    times = photo.stat()
    photo.write_bytes(b"other")
    os.utime(photo, ns=(times.st_atime_ns, times.st_mtime_ns))
    ((entry, data),) = read_entries(locate(str(tmp_path)), [listed])
    assert data == b"other" and entry.version != listed.version


def test_what_an_earlier_program_listed_by_its_time_alone_is_no_other_file(tmp_path):
    photo, place = tmp_path / "photographs" / "a.jpg", locate(str(tmp_path / "manifest"))
    photo.parent.mkdir()
    photo.write_bytes(b"first")
    [entry] = list_source(Source(locate(str(photo.parent))))
    earlier = dataclasses.replace(entry, version=str(photo.stat().st_mtime_ns))
    extend(Manifest(place), iter([earlier]))
    found = extend(Manifest(place), list_source(Source(locate(str(photo.parent)))), refresh_changed=True)
    assert (found.added, found.changed) == (0, 0)
    ((read, _),) = read_entries(locate(str(photo.parent)), [earlier])
    assert read == earlier


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
