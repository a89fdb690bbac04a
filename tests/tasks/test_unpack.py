import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from tasks.datasets import unpack as unpacking
from tasks.datasets.unpack import unpack
from tasks.errors import JobError


def everything(name: str) -> str:
    return name


def tar(place: Path, members: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> Path:
    with tarfile.open(place, mode) as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return place


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def files_of(folder: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    found.pop(".unpacked", None)
    return found


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_what_is_wanted_comes_out_once(tmp_path, mode):
    archive = tar(tmp_path / "a.tar", {"top/keep/a.jpg": b"a" * 3000, "top/drop/b.jpg": b"b", "top/keep/c": b""}, mode)
    assert unpack(archive, tmp_path / "out", lambda n: n[4:] if "keep" in n else None, key="1", title="x") == 2
    assert files_of(tmp_path / "out") == {"keep/a.jpg": b"a" * 3000, "keep/c": b""}
    archive.unlink()  # A finished folder needs no archive
    assert unpack(archive, tmp_path / "out", everything, key="1", title="x") == 2


def test_zip_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("JPEGImages/a.jpg", b"a" * 5000)
        archive.writestr("JPEGImages/", b"")
    assert unpack(tmp_path / "a.zip", tmp_path / "out", everything, key="1", title="x") == 1
    assert files_of(tmp_path / "out") == {"JPEGImages/a.jpg": b"a" * 5000}


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil", "c:/evil"])
def test_paths_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(JobError, match="leads out of its folder"):
        unpack(tar(tmp_path / "a.tar", {name: b"evil"}), tmp_path / "out/deep", everything, key="1", title="x")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"evil")
    with pytest.raises(JobError, match="leads out of its folder"):
        unpack(tmp_path / "a.zip", tmp_path / "out/deep", everything, key="1", title="x")
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    archive = tar(tmp_path / "a.tar", {"x": b"x", "y": special("y", kind, "/etc/passwd")})
    with pytest.raises(JobError, match="y, a link or a device"):
        unpack(archive, tmp_path / "out", everything, key="1", title="x")
    assert not (tmp_path / "out/y").exists() and not (tmp_path / "out/y").is_symlink()
    # Among what nobody wants it is passed over
    assert unpack(archive, tmp_path / "out2", lambda n: n if n == "x" else None, key="1", title="x") == 1


def test_links_in_zip_archives_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(JobError, match="a link or a device"):
        unpack(tmp_path / "a.zip", tmp_path / "out", everything, key="1", title="x")


def test_sizes_are_bounded(tmp_path, monkeypatch):
    archive = tar(tmp_path / "a.tgz", {"a": bytes(3000), "b": bytes(3000)}, "w:gz")
    monkeypatch.setattr(unpacking, "MAX_FILE_BYTES", 2999)
    with pytest.raises(JobError, match="holds a of 3000 bytes, more than 2999"):
        unpack(archive, tmp_path / "out", everything, key="1", title="x")
    monkeypatch.setattr(unpacking, "MAX_FILE_BYTES", 1 << 20)
    monkeypatch.setattr(unpacking, "MAX_TOTAL_BYTES", 5000)
    with pytest.raises(JobError, match="unpacks to more than"):
        unpack(archive, tmp_path / "out2", lambda _: None, key="1", title="x")
    monkeypatch.setattr(unpacking, "MAX_TOTAL_BYTES", 1 << 20)
    monkeypatch.setattr(unpacking, "MAX_FILES", 1)
    with pytest.raises(JobError, match="or 1 files"):
        unpack(archive, tmp_path / "out3", everything, key="1", title="x")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_cut_archive_is_noticed_and_the_whole_one_continues(tmp_path, mode):
    members = {f"{k}.jpg": os.urandom(20_000) for k in range(6)}
    whole = tar(tmp_path / "a.tar", members, mode).read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(JobError, match=r"cut|damaged"):
        unpack(cut, tmp_path / "out", everything, key="1", title="x")
    there = files_of(tmp_path / "out")
    assert 0 < len(there) < 6 and all(members[name] == data for name, data in there.items())
    first = tmp_path / "out/0.jpg"
    before = first.stat().st_mtime_ns
    assert unpack(tmp_path / "a.tar", tmp_path / "out", everything, key="1", title="x") == 6
    assert files_of(tmp_path / "out") == members and first.stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_a_full_disk_is_known_before_the_file_that_would_not_fit(tmp_path, monkeypatch, kind):
    members = {f"{k}.jpg": os.urandom(5_000_000) for k in range(3)}
    archive = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as opened:
            for name, content in members.items():
                opened.writestr(name, content)
    else:
        tar(archive, members, "w:gz" if kind == "tgz" else "w")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=203_000_000))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/0.jpg").write_bytes(members["0.jpg"])  # Of before a stop: it needs no room again
    needed = "205 MB" if kind == "tgz" else "210 MB"  # 200 to spare; a tar that is compressed tells just the next file
    with pytest.raises(
        JobError, match=rf"Unpacking a.{kind} needs {needed}, the disk of .* has 203 MB free: make room"
    ):
        unpack(archive, tmp_path / "out", everything, key="1", title="x")
    assert set(files_of(tmp_path / "out")) == {"0.jpg"}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert unpack(archive, tmp_path / "out", everything, key="1", title="x") == 3


def test_a_broken_header_is_never_taken_for_the_end(tmp_path):
    whole = tar(tmp_path / "a.tar", {f"{k}.jpg": b"x" * 600 for k in range(4)}).read_bytes()
    for at, injury in ((1536 + 150, b"9"), (1536, bytes(512)), (1536 + 124, b"\xff" * 12)):
        (tmp_path / "b.tar").write_bytes(whole[:at] + injury + whole[at + len(injury) :])
        with pytest.raises(JobError, match="cannot be unpacked"):
            unpack(tmp_path / "b.tar", tmp_path / f"out{at}", everything, key="1", title="x")


def test_what_is_no_archive_is_one_sentence(tmp_path):
    for content in (b"", b"text", b"PK\x03\x04" + bytes(50), b"\x1f\x8b" + bytes(50)):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(JobError, match="cannot be unpacked"):
            unpack(tmp_path / "a", tmp_path / "out", everything, key="1", title="x")
    with pytest.raises(JobError, match="holds nothing of what was looked for"):
        unpack(tar(tmp_path / "b.tar", {"readme": b"x"}), tmp_path / "out", lambda _: None, key="1", title="x")


def test_archives_made_on_windows_have_backslashes(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("mine\\", "mine\\JPEGImages\\a.jpg", "mine/JPEGImages\\b c.jpg"):
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = name, 0
            archive.writestr(info, b"" if name.endswith("\\") else name.encode())
    assert unpack(tmp_path / "a.zip", tmp_path / "out", everything, key="1", title="x") == 2
    assert files_of(tmp_path / "out") == {
        "mine/JPEGImages/a.jpg": b"mine\\JPEGImages\\a.jpg",
        "mine/JPEGImages/b c.jpg": b"mine/JPEGImages\\b c.jpg",
    }
    archive = tar(tmp_path / "a.tar", {"mine\\a.txt": b"a"})
    assert unpack(archive, tmp_path / "tar", everything, key="1", title="x") == 1
    assert files_of(tmp_path / "tar") == {"mine/a.txt": b"a"}


@pytest.mark.parametrize("name", ["..\\evil", "\\evil", "a\\..\\..\\evil", "C:\\evil", "a/..\\..\\evil"])
def test_backslashes_lead_out_no_more_than_slashes(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = name
        archive.writestr(info, b"evil")
    with pytest.raises(JobError, match="leads out of its folder"):
        unpack(tmp_path / "a.zip", tmp_path / "out/deep", everything, key="1", title="x")
    assert not list(tmp_path.rglob("*evil*"))
