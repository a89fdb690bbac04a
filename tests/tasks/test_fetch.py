"""Archives from mirrors that break, lie and refuse; from folders, files and buckets."""

import hashlib
import random
import shutil
from pathlib import Path

import pytest

from tasks.datasets import fetch
from tasks.datasets.fetch import Published
from tasks.errors import JobError
from tests.tasks.file_server import serve

CONTENT = random.Random(1).randbytes(400_000)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(fetch, "_FIRST_WAIT_S", 0.01)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/a.tar").write_bytes(CONTENT)
    with serve(tmp_path / "root") as running:
        yield running


def published(*mirrors: str, **changes) -> Published:
    md5 = hashlib.md5(CONTENT).hexdigest()
    return Published(**{"name": "Data", "file": "a.tar", "md5": md5, "mirrors": list(mirrors)} | changes)


def test_a_connection_that_breaks_again_and_again(server, tmp_path):
    server.stop_after, server.stops = 90_000, 4
    found = fetch.fetch(published(f"{server.url}/a.tar"), None, tmp_path / "work")
    assert found.archive.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=90000-", "bytes=180000-", "bytes=270000-", "bytes=360000-"]


def test_a_finished_fetch_is_not_repeated(server, tmp_path):
    archive = published(f"{server.url}/a.tar")
    fetch.fetch(archive, None, tmp_path / "work")
    fetch.fetch(archive, None, tmp_path / "work")
    assert len(server.asked) == 1
    # What was damaged on the disk is noticed, thrown away, and fetched again
    (tmp_path / "work/a.tar").write_bytes(CONTENT[:-5] + b"12345")
    with pytest.raises(JobError, match="it was removed; run again"):
        fetch.fetch(archive, None, tmp_path / "work")
    assert fetch.fetch(archive, None, tmp_path / "work").archive.read_bytes() == CONTENT


def test_the_next_mirror_goes_on_where_the_last_one_died(server, tmp_path):
    with serve(server.root) as second:
        server.stop_after, server.stops = 150_000, 1 << 30
        server.ignores_ranges = True  # It never gets further
        second.version = '"another"'
        mirrors = published(f"{server.url}/a.tar", f"{second.url}/a.tar", bytes=len(CONTENT))
        assert fetch.fetch(mirrors, None, tmp_path / "work").archive.read_bytes() == CONTENT
        assert second.asked == ["bytes=150000-"]


def test_every_mirror_says_why_it_failed(server, tmp_path):
    (server.root / "wrong.tar").write_bytes(CONTENT[::-1])
    with serve(server.root) as page, serve(server.root) as closed:
        page.page = b"<html><title>403</title></html>"
        closed.refuses = 403
        urls = [f"{page.url}/a.tar", f"{closed.url}/a.tar", f"{server.url}/wrong.tar", "http://127.0.0.1:9/a.tar"]
        with pytest.raises(JobError) as failure:
            fetch.fetch(published(*urls), None, tmp_path / "work")
    said = str(failure.value)
    for reason in (
        "web page instead",
        "was refused: 403",
        "was published: damaged or exchanged",
        "could not be fetched",
    ):
        assert reason in said
    assert all(url in said for url in urls) and "--voc or --sbd" in said and "\n" not in said
    assert not (tmp_path / "work/a.tar").exists()


def test_a_wrong_beginning_of_an_earlier_session_is_begun_anew(server, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work/a.tar.part").write_bytes(bytes(50_000))
    (tmp_path / "work/a.tar.tag").write_text("http://elsewhere/a.tar\n")
    found = fetch.fetch(published(f"{server.url}/a.tar"), None, tmp_path / "work")
    assert found.archive.read_bytes() == CONTENT
    assert server.asked == ["bytes=50000-", None]


def test_a_url_that_a_person_gives_is_the_only_mirror(server, tmp_path):
    found = fetch.fetch(published("http://127.0.0.1:9/a.tar"), f"{server.url}/a.tar", tmp_path / "work")
    assert found.archive.read_bytes() == CONTENT


def test_an_archive_at_hand_is_proven_and_stays_where_it_is(tmp_path):
    here = tmp_path / "brought.tar"
    here.write_bytes(CONTENT)
    assert fetch.fetch(published(), str(here), tmp_path / "work").archive == here
    here.write_bytes(CONTENT[:-100])
    with pytest.raises(JobError, match=r"brought.tar has md5 .*cut, damaged or another file; bring it anew"):
        fetch.fetch(published(), str(here), tmp_path / "work")
    assert here.exists()


def test_a_folder_at_hand(tmp_path):
    (tmp_path / "VOC2012").mkdir()
    with pytest.raises(JobError, match="empty folder"):
        fetch.fetch(published(), str(tmp_path / "VOC2012"), tmp_path / "work")
    (tmp_path / "VOC2012/x.jpg").write_bytes(b"x")
    found = fetch.fetch(published(), str(tmp_path / "VOC2012"), tmp_path / "work")
    assert found.archive is None and found.folder.path == str(tmp_path / "VOC2012")
    with pytest.raises(JobError, match="does not exist"):
        fetch.fetch(published(), str(tmp_path / "none"), tmp_path / "work")


def test_an_object_in_a_bucket_is_copied_in_pieces_and_continued(bucket, tmp_path, monkeypatch):
    bucket.put("data/a.tar", CONTENT)
    monkeypatch.setattr(fetch, "_PIECE_BYTES", 100_000)
    uri, work, read = f"s3://{bucket.name}/data/a.tar", tmp_path / "work", fetch.storage.read_range
    pieces = []

    def breaks_off(place, offset, length):
        pieces.append(offset)
        if len(pieces) == 3:
            raise ConnectionError("gone")
        return read(place, offset, length)

    monkeypatch.setattr(fetch.storage, "read_range", breaks_off)
    with pytest.raises(JobError, match="gone"):
        fetch.fetch(published(), uri, work)
    assert fetch.fetch(published(), uri, work).archive.read_bytes() == CONTENT
    assert pieces == [0, 100_000, 200_000, 200_000, 300_000]
    assert sorted(file.name for file in work.iterdir()) == ["a.tar", "a.tar.proven"]
    # An object that is another file is refused
    bucket.put("data/other.tar", CONTENT[::-1])
    with pytest.raises(JobError, match="was published"):
        fetch.fetch(published(), f"s3://{bucket.name}/data/other.tar", tmp_path / "work2")


def test_a_full_disk_is_known_before_the_first_byte(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 * 10**8))
    with pytest.raises(JobError, match=r"needs 800 MB, the disk of .* has 500 MB free"):
        fetch.fetch(published(f"{server.url}/a.tar", about_bytes=6 * 10**8), None, tmp_path / "work")
    assert server.asked == []


def test_the_list_of_mirrors(tmp_path):
    archives = fetch.read_mirrors()
    assert archives["voc"].md5 == "6cd6e144f989b92b3379bac3b3de84fd"
    assert archives["sbd"].md5 == "82b4d87ceb2ed10f6038a1cba92111cb" and archives["sbd"].bytes == 1_419_539_633
    assert all(len(archive.mirrors) > 1 for archive in archives.values())
    place: Path = tmp_path / "mirrors.toml"
    with pytest.raises(JobError, match="does not exist"):
        fetch.read_mirrors(place)
    for text, message in (
        ("voc = [", "no TOML"),
        ("[voc]\nname = 'x'", "voc.file"),
        ("[voc]\nname='x'\nfile='f'\nmd5='0'\nmirrors=[]", "no entry sbd"),
    ):
        place.write_text(text)
        with pytest.raises(JobError, match=message):
            fetch.read_mirrors(place)
