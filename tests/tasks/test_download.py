import hashlib
import random

import pytest

from tasks.download import Expected, download
from tests.tasks.file_server import serve

CONTENT = random.Random(0).randbytes(300_000)
PROVEN = Expected(hashlib.md5(CONTENT).hexdigest(), len(CONTENT))


@pytest.fixture
def server(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/w").write_bytes(CONTENT)
    with serve(tmp_path / "root") as running:
        yield running


def interrupted(server, target):
    server.stop_after = 100_000
    with pytest.raises(ValueError, match=r"stopped after 100000 of 300000|could not be fetched"):
        download(f"{server.url}/w", target)
    server.stop_after = 1 << 40
    assert not target.exists()


def test_a_file_arrives_whole_with_progress(server, tmp_path):
    seen = []
    download(f"{server.url}/w", tmp_path / "d/w", progress=lambda *sizes: seen.append(sizes))
    assert (tmp_path / "d/w").read_bytes() == CONTENT
    assert seen[-1] == (300_000, 300_000)
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["w"]


def test_it_goes_on_where_it_stopped(server, tmp_path):
    interrupted(server, tmp_path / "w")
    download(f"{server.url}/w", tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]


def test_two_versions_are_never_joined(server, tmp_path):
    interrupted(server, tmp_path / "w")
    server.version = '"2"'
    (server.root / "w").write_bytes(CONTENT[::-1])
    download(f"{server.url}/w", tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == CONTENT[::-1]


def test_a_server_without_versions_begins_anew(server, tmp_path):
    server.version = ""
    interrupted(server, tmp_path / "w")
    download(f"{server.url}/w", tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == CONTENT
    assert server.asked == [None, None]


def test_a_partial_file_longer_than_the_whole_begins_anew(server, tmp_path):
    (tmp_path / "w.part").write_bytes(bytes(300_005))
    (tmp_path / "w.tag").write_text(f"{server.url}/w\n{server.version}")
    download(f"{server.url}/w", tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == CONTENT


def test_what_is_not_there_is_one_sentence(server, tmp_path):
    with pytest.raises(ValueError, match="could not be fetched"):
        download("http://127.0.0.1:9/w", tmp_path / "w")
    with pytest.raises(ValueError, match=r"could not be fetched|refused"):
        download(f"{server.url}/none", tmp_path / "w")
    with pytest.raises(ValueError, match="nonsense"):
        download("nonsense:/w", tmp_path / "w")


def test_a_server_that_ignores_ranges_begins_anew(server, tmp_path):
    interrupted(server, tmp_path / "w")
    server.ignores_ranges = True
    download(f"{server.url}/w", tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == CONTENT


def test_a_part_that_was_not_asked_for_is_not_joined(server, tmp_path):
    interrupted(server, tmp_path / "w")
    server.shift = 7
    download(f"{server.url}/w", tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", None]


def test_a_part_of_another_version_is_not_joined(server, tmp_path):
    interrupted(server, tmp_path / "w")
    server.version, server.ignores_if_range = '"2"', True
    (server.root / "w").write_bytes(CONTENT[::-1])
    download(f"{server.url}/w", tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == CONTENT[::-1]


def test_pieces_of_two_mirrors_are_joined_where_a_checksum_proves_the_whole(server, tmp_path):
    server.version = ""
    interrupted(server, tmp_path / "w")
    (server.root / "again").write_bytes(CONTENT)
    download(f"{server.url}/again", tmp_path / "w", expected=PROVEN)
    assert (tmp_path / "w").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]


def test_what_is_not_the_published_file_never_gets_its_name(server, tmp_path):
    (server.root / "other").write_bytes(CONTENT[::-1])
    with pytest.raises(ValueError, match=r"md5 \w{32}, \w{32} was published: damaged or exchanged"):
        download(f"{server.url}/other", tmp_path / "w", expected=PROVEN)
    (server.root / "cut").write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=r"has 299999 bytes, 300000 were published"):
        download(f"{server.url}/cut", tmp_path / "w", expected=PROVEN)
    server.page = b"\n<!DOCTYPE html><html>403 Forbidden</html>"
    with pytest.raises(ValueError, match="answers with a web page instead of the file"):
        download(f"{server.url}/w", tmp_path / "w", expected=PROVEN)
    assert not (tmp_path / "w").exists() and not (tmp_path / "w.part").exists()


def test_a_finished_part_needs_no_server(server, tmp_path):
    (tmp_path / "w.part").write_bytes(CONTENT)
    (tmp_path / "w.tag").write_text(f"{server.url}/w\n")
    download(f"{server.url}/w", tmp_path / "w", expected=PROVEN)
    assert (tmp_path / "w").read_bytes() == CONTENT and server.asked == []
