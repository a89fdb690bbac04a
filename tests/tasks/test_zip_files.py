import io
import stat
import struct
import tarfile
import zipfile

import pytest

from segcore.images.errors import ErrorKind
from tasks.archive import zip_files
from tasks.archive.entry_bytes import read_entries
from tasks.archive.sources import LeftAside, Source, list_source
from tasks.storage import locate

JPEG = b"\xff\xd8\xff\xe0 of a photograph" * 40


def contents(place):
    """Bytes or errors by identity, and the sentences about what was left aside."""
    root, aside = locate(str(place)), LeftAside()
    entries = list(list_source(Source(root), aside=aside))
    found = {entry.image_id: data for entry, data in read_entries(root, entries)}
    assert len(found) == len(entries)
    return found, aside.sentences()


def test_members_are_images_of_the_source(tmp_path):
    for packed in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(tmp_path / f"{packed}.zip", "w", packed) as archive:
            archive.mkdir("x")
            archive.writestr("x/1.jpg", JPEG)
            archive.writestr("x/empty.png", b"")
            archive.writestr("noending", JPEG)
            archive.writestr("labels.json", b"{}")
            archive.writestr("__MACOSX/x/._1.jpg", b"resource fork")
    (tmp_path / "about.txt").write_text("about")
    found, said = contents(tmp_path)
    assert found == {
        f"{packed}.zip!/{name}": data
        for packed in (0, 8, 12)
        for name, data in (("x/1.jpg", JPEG), ("x/empty.png", b""), ("noending", JPEG))
    }
    assert said == "Left aside: 1 .txt file (about.txt)."
    assert contents(tmp_path / "8.zip")[0]["8.zip!/x/1.jpg"] == JPEG


def test_an_archive_without_an_image_is_told_and_hides_no_other_file(tmp_path):
    (tmp_path / "empty.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    with tarfile.open(tmp_path / "texts.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("labels.json"))
    (tmp_path / "table.csv").write_bytes(b"a,b")
    found, said = contents(tmp_path)
    assert found == {"table.csv": b"a,b"}
    assert said == "Left aside: 2 archives without an image (empty.zip, ...)."


def test_a_zip_in_a_bucket(tmp_path, bucket):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}.jpg", JPEG + bytes([number]))
    bucket.put("z.zip", buffer.getvalue())
    root = locate(f"s3://{bucket.name}")
    found = {entry.image_id: data for entry, data in read_entries(root, list(list_source(Source(root))))}
    assert found == {f"z.zip!/{number}.jpg": JPEG + bytes([number]) for number in range(3)}


def test_names_of_windows_and_macos_and_duplicates(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x_1.jpg", JPEG)
        archive.writestr("Caf__.jpg", JPEG)
        archive.writestr("two.jpg", b"first")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("two.jpg", b"second")
    data = (tmp_path / "a.zip").read_bytes().replace(b"x_1.jpg", b"x\\1.jpg").replace(b"Caf__", "Café".encode())
    (tmp_path / "a.zip").write_bytes(data)
    found, _ = contents(tmp_path)
    second = next(name for name in found if name.startswith("a.zip!/two.jpg!#"))
    assert found == {"a.zip!/x/1.jpg": JPEG, "a.zip!/Café.jpg": JPEG, "a.zip!/two.jpg": b"first", second: b"second"}


def test_what_cannot_be_read_says_why(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("link.jpg")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "good.jpg")
        archive.writestr("good.jpg", JPEG)
        archive.writestr("lzma.jpg", JPEG, zipfile.ZIP_LZMA)
        archive.writestr("secret.jpg", JPEG)
        archive.writestr("damaged.jpg", JPEG, zipfile.ZIP_DEFLATED)
        places = {info.filename: info for info in archive.infolist()}
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"PK\1\2", data.rindex(b"PK\1\2", 0, data.rindex(b"secret.jpg"))) + 8] |= 1  # Encrypted
    start = places["damaged.jpg"].header_offset + 30 + len("damaged.jpg")
    data[start : start + 8] = b"\xff" * 8
    (tmp_path / "a.zip").write_bytes(data)
    found, _ = contents(tmp_path)
    assert found.pop("a.zip!/good.jpg") == JPEG
    said = {name.partition("!/")[2]: str(error) for name, error in found.items()}
    assert said.keys() == {"link.jpg", "lzma.jpg", "secret.jpg", "damaged.jpg"}
    assert "symbolic link" in said["link.jpg"] and "method 14" in said["lzma.jpg"]
    assert "password" in said["secret.jpg"] and "damaged" in said["damaged.jpg"]


def test_a_member_without_a_known_ending_that_cannot_be_looked_into_has_its_row(tmp_path):
    names = ("000017", "frame.orig", "labels.json", ".hidden", "photo.raw7")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, JPEG)
        archive.writestr("README", "text")
        archive.writestr("packed", JPEG, zipfile.ZIP_LZMA)
        archive.writestr("also packed", JPEG, zipfile.ZIP_BZIP2)
        places = {info.filename: info for info in archive.infolist()}
    data = bytearray((tmp_path / "a.zip").read_bytes())
    for name in (*names, "also packed"):
        start = places[name].header_offset + 30 + len(name)
        data[start : start + 8] = b"\xff" * 8
    directory = data.index(b"PK\1\2", data.rindex(b"PK\1\2", 0, data.rindex(b"photo.raw7")))
    data[directory + 8] |= 1  # Encrypted
    (tmp_path / "a.zip").write_bytes(data)
    found, _ = contents(tmp_path)
    said = {name.partition("!/")[2]: str(error) for name, error in found.items()}
    assert said.keys() == {"000017", "frame.orig", "photo.raw7", "packed", "also packed"}
    assert all("damaged" in said[name] for name in ("000017", "frame.orig", "also packed"))
    assert "password" in said["photo.raw7"] and "method 14" in said["packed"]


def test_cut_and_lying_archives(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", JPEG)
    whole = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(whole[:-30])
    found, _ = contents(tmp_path)
    assert "cannot be listed" in str(found["a.zip"]) and "is it whole?" in str(found["a.zip"])
    at = whole.index(b"PK\1\2") + 24
    (tmp_path / "a.zip").write_bytes(whole[:at] + struct.pack("<I", len(JPEG) + 9) + whole[at + 4 :])
    assert contents(tmp_path)[0]["a.zip!/a.jpg"].kind is ErrorKind.TRUNCATED
    (tmp_path / "a.zip").write_bytes(whole)
    monkeypatch.setattr(zip_files, "MAX_UNPACKED_BYTES", 99)
    assert contents(tmp_path)[0]["a.zip!/a.jpg"].kind is ErrorKind.TOO_LARGE
