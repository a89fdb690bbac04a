import os
from pathlib import Path

import pytest

from tasks import storage, storage_client
from tasks.errors import JobError
from tasks.storage import Location, locate


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path) -> Location:
    """A writable place: a local folder, a prefix on the real S3 server."""
    if request.param == "local":
        return locate(str(tmp_path / "place"))
    return locate(f"s3://{request.getfixturevalue('bucket').name}/place")


def test_what_a_person_types(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate("photos").path == str(tmp_path / "photos")
    assert locate("file:///a/b").path == "/a/b"
    assert locate("s3://bucket/a/b/") == Location("s3", "bucket/a/b")
    assert (locate("s3://bucket") / "x").uri == "s3://bucket/x"
    assert locate("/a/../b/./c").path == "/b/c"
    for bad in ("", "  ", "s3://", "nonsense://x", "https://user:secret@host/x"):
        with pytest.raises(JobError):
            locate(bad)


def test_write_read_list_remove(place):
    assert not storage.exists(place / "a.bin")
    storage.write_whole(place / "a.bin", b"first")
    storage.write_whole(place / "a.bin", b"0123456789")
    storage.write_whole(place / "deep/er/b.bin", b"b")
    assert storage.read_bytes(place / "a.bin") == b"0123456789"
    assert storage.read_range(place / "a.bin", 3, 4) == b"3456"
    with storage.open_for_reading(place / "a.bin", sparse=True) as opened:
        opened.seek(8)
        assert opened.read() == b"89"
    assert [f.path for f in storage.list_files(place)] == ["a.bin", "deep/er/b.bin"]
    assert storage.stat(place / "a.bin").size == 10
    assert storage.is_file(place / "a.bin") and not storage.is_file(place / "deep")
    storage.remove(place / "a.bin")
    storage.remove(place / "a.bin")
    assert [f.path for f in storage.list_files(place)] == ["deep/er/b.bin"]
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(place / "a.bin")


def test_what_is_written_once_stays(place):
    """Also where the server accepts If-None-Match and ignores it, as the one of the tests does."""
    assert storage.one_winner(place) is (place.protocol == "file")
    assert storage.write_once(place / "deep" / "x", b"first")
    assert not storage.write_once(place / "deep" / "x", b"second")
    assert storage.read_bytes(place / "deep" / "x") == b"first"
    assert [f.path for f in storage.list_files(place)] == ["deep/x"]
    if place.protocol == "file":
        assert [f.name for f in Path(place.path).rglob("*") if f.is_file()] == ["x"]


def test_a_folder_without_hard_links_asks_for_the_name(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", none)
    place = locate(str(tmp_path / "no-links"))
    assert not storage.one_winner(place)
    assert storage.write_once(place / "x", b"first") and not storage.write_once(place / "x", b"second")
    assert storage.read_bytes(place / "x") == b"first"


def test_a_replaced_file_has_another_version(place):
    storage.write_whole(place / "x", b"one")
    before = next(storage.list_files(place))
    storage.write_whole(place / "x", b"two")
    assert next(storage.list_files(place)).version != before.version
    assert storage.stat(place / "x").version == next(storage.list_files(place)).version


def test_a_long_listing_comes_whole_and_in_order(bucket):
    for number in range(1050):  # An S3 page has 1,000
        bucket.put(f"{number:05d}", b"x")
    names = [f.path for f in storage.list_files(locate(f"s3://{bucket.name}"))]
    assert names == [f"{number:05d}" for number in range(1050)]


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    target = locate(str(tmp_path / "x.bin"))
    storage.write_whole(target, b"old")

    def no_space(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        storage.write_whole(target, b"new")
    assert storage.read_bytes(target) == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.bin"]


def test_hidden_files_and_circles_of_links_are_left_out(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "sub" / ".tmp-123").write_text("x")
    (tmp_path / "sub" / "b").write_text("x")
    (tmp_path / "sub" / "circle").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "sub" / "b")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "nowhere-2").symlink_to(tmp_path / "nowhere-2")
    os.mkfifo(tmp_path / "pipe.jpg")  # Reading it would never end
    assert [f.path for f in storage.list_files(locate(str(tmp_path)))] == ["link", "nowhere", "nowhere-2", "sub/b"]


def test_old_temporary_files_are_swept(tmp_path):
    digits = "0123456789abcdef" * 2
    young, old = tmp_path / f".tmp-{digits}", tmp_path / "masks" / f".tmp-{digits}"
    others = [tmp_path / "part.parquet", tmp_path / ".tmp-of-somebody-else"]
    old.parent.mkdir()
    for file in (young, old, *others):
        file.write_bytes(b"x")
    for file in (old, *others):
        os.utime(file, (0, 0))
    storage.sweep_temporary(locate(str(tmp_path)))
    assert young.exists() and all(other.exists() for other in others) and not old.exists()


def test_what_cannot_be_written_is_said_in_one_sentence(tmp_path, s3_server):
    (tmp_path / "file").write_text("x")
    with pytest.raises(JobError, match="a file stands where a folder is needed"):
        storage.require_writable(locate(str(tmp_path / "file" / "below")))
    with pytest.raises(JobError, match="Cannot write the output"):
        storage.require_writable(locate("/proc/nobody"))
    with pytest.raises(JobError, match="s3://no-such-bucket/x does not exist"):
        storage.require_writable(locate("s3://no-such-bucket/x"))
    storage.require_writable(locate(str(tmp_path / "new" / "folder")))
    assert not list((tmp_path / "new").rglob(".tmp*"))


def test_a_name_that_is_not_utf8_is_listed_and_read(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    (Path(os.fsencode(tmp_path).decode()) / name).write_bytes(b"x")
    (found,) = storage.list_files(locate(str(tmp_path)))
    assert storage.read_bytes(locate(str(tmp_path)) / found.path) == b"x"


def test_an_upload_that_arrives_cut_is_sent_again(bucket, monkeypatch):
    monkeypatch.setattr(storage_client.time, "sleep", lambda _: None)
    place = locate(f"s3://{bucket.name}/x")
    store, sent = storage_client.filesystem(place), []
    put = store.pipe_file

    def cut(path, data, **options):
        sent.append(options["ContentMD5"])
        # A store that keeps less than it was sent, and does not look at the digest
        return put(path, data[:3]) if len(sent) == 1 else put(path, data, **options)

    monkeypatch.setattr(store, "pipe_file", cut)
    storage.write_whole(place, b"0123456789")
    assert len(sent) == 2 and storage.read_bytes(place) == b"0123456789"


def test_a_worker_in_another_folder_means_the_drivers_paths(monkeypatch):
    monkeypatch.setenv(storage.FOLDER, "/where/the/driver/stands")
    assert locate("photos").path == "/where/the/driver/stands/photos" and locate("/a").path == "/a"
