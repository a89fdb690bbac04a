import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
import unicodedata

import pyarrow as pa
import pytest

from segcore.images.errors import ErrorKind, ImageError
from tasks import storage_client
from tasks.archive import tar_shards
from tasks.archive.entry_bytes import read_entries
from tasks.archive.sources import Source, list_source
from tasks.storage import locate


def listed(place):
    return list(list_source(Source(locate(str(place)))))


def contents(place):
    entries = listed(place)
    found = {entry.image_id: data for entry, data in read_entries(locate(str(place)), entries)}
    assert len(found) == len(entries)
    return found


def member(name, data=b"", kind=tarfile.REGTYPE, target="", **more):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(data)
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def write(place, *members, **options):
    with tarfile.open(place, "w", **options) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return place


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def lz4(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd, "lz4": lz4}


def test_hard_and_symbolic_links_have_rows_of_their_own(tmp_path, field):
    found = contents(field / "tar_silent_loss")
    assert set(found) == {f"hardlink.tar!/{name}.jpg" for name in ("one", "two", "sym")}
    assert len(set(found.values())) == 1 and len(found["hardlink.tar!/sym.jpg"]) == 7169


def test_links_lead_where_they_would_on_a_disk(tmp_path):
    hard, soft = tarfile.LNKTYPE, tarfile.SYMTYPE
    write(
        tmp_path / "s.tar",
        member("a/real.jpg", b"real"),
        member("a/hard.jpg", kind=hard, target="a/real.jpg"),
        member("./a/dotted.jpg", kind=hard, target="./a/real.jpg"),
        member("b/up.jpg", kind=soft, target="../a/real.jpg"),
        member("b/chain.jpg", kind=soft, target="up.jpg"),
        member("folder", kind=soft, target="a"),
        member("through.jpg", kind=soft, target="folder/real.jpg"),
        member("blob.jpg", kind=soft, target="blobs/0f3a"),
        member("blobs/0f3a", b"without an ending"),  # As in the cache of a hub, and behind its link
        member("a/real.jpg", kind=hard, target="a/real.jpg"),  # What GNU tar writes of a name given twice
    )
    found = {name.removeprefix("s.tar!/"): data for name, data in contents(tmp_path / "s.tar").items()}
    assert found.pop("blob.jpg") == b"without an ending"
    assert set(found.values()) == {b"real"}
    assert {name.partition("!")[0] for name in found} == {
        "a/real.jpg", "a/hard.jpg", "./a/dotted.jpg", "b/up.jpg", "b/chain.jpg", "through.jpg",
    }  # fmt: skip
    assert len(found) == 7


def test_links_that_lead_to_nothing_are_errors_that_say_where(tmp_path):
    soft = tarfile.SYMTYPE
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    targets = {
        "gone.jpg": ("no.jpg", "which is no file of the archive"),
        "out.jpg": ("../secret.jpg", "outside the archive"),
        "absolute.jpg": (str(tmp_path / "secret.jpg"), "outside the archive"),
        "x/deep.jpg": ("../../../secret.jpg", "outside the archive"),
        "self.jpg": ("self.jpg", "in a circle"),
        "ping.jpg": ("pong.jpg", "in a circle"),
        "pong.jpg": ("ping.jpg", "in a circle"),
        "folder.jpg": ("dir", "which is no file of the archive"),
    }
    members = [member(name, kind=soft, target=target) for name, (target, _) in targets.items()]
    hard = member("hard.jpg", kind=tarfile.LNKTYPE, target="../secret.jpg")
    write(tmp_path / "s.tar", member("dir", kind=tarfile.DIRTYPE), *members, hard)
    found = contents(tmp_path / "s.tar")
    assert len(found) == len(targets) + 1
    for name, (target, reason) in targets.items():
        error = found[f"s.tar!/{name}"]
        assert isinstance(error, ImageError) and reason in str(error) and target[:50] in str(error), name
    assert "outside the archive" in str(found["s.tar!/hard.jpg"])


def test_archives_behind_each_other_are_read_to_the_end(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.tar", member(f"{name}.jpg", name.encode() * 700))
    both = (tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes()
    for number, data in enumerate((both, both + bytes(2**20) + both, both + b"\n", both[:-5120] + both)):
        place = tmp_path / f"{number}" / "both.tar"
        place.parent.mkdir()
        place.write_bytes(data)
        found = contents(place.parent)
        assert {name[10:15]: value for name, value in found.items()} == {"a.jpg": b"a" * 700, "b.jpg": b"b" * 700}
        assert len(found) == (4 if number in (1, 3) else 2)
    (tmp_path / "0" / "both.tar").write_bytes(both + b"no header, but as long as one" * 50)
    found = contents(tmp_path / "0")
    assert len(found) == 3 and "behind zeros, at byte 20480" in str(found["both.tar"])


def test_names_of_any_length_form_and_number(tmp_path):
    nfc, nfd = (unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD"))
    names = ["x/" * 120 + "long.jpg", "é" * 150 + ".png", nfc, nfd, "same.jpg", "same.jpg", "same.jpg", "UPPER.JPG"]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        place = write(tmp_path / "s.tar", *(member(name, str(n).encode()) for n, name in enumerate(names)), format=form)
        found = contents(place)
        assert sorted(found.values()) == [str(n).encode() for n in range(len(names))]
        assert found[f"s.tar!/{nfc}"] == b"2" and found[f"s.tar!/{nfd}"] == b"3"


def test_headers_of_1979_and_members_without_an_ending(tmp_path):
    info, data = member("old.jpg", b"old")
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[156:512] = b"\0" + bytes(355)  # V7 has no type, no magic
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    jpeg = b"\xff\xd8\xff\xe0 a photograph without an ending"
    rest = write(tmp_path / "rest.tar", member("000017", jpeg), member("x.cr2", b"II*\0raw"), member("000018", b"text"))
    (tmp_path / "v7.tar").write_bytes(bytes(block) + data.ljust(512, b"\0") + rest.read_bytes())
    rest.unlink()
    assert contents(tmp_path) == {
        "v7.tar!/old.jpg": b"old",
        "v7.tar!/000017": jpeg,
        "v7.tar!/x.cr2": b"II*\0raw",
    }


def test_links_and_sparse_files_without_an_ending_are_images_by_their_bytes(tmp_path):
    jpeg = b"\xff\xd8\xff\xe0 a photograph without an ending"
    links = []
    for name, kind, target in (("a/17", tarfile.SYMTYPE, "../000017"), ("18", tarfile.LNKTYPE, "000017"),
                               ("LATEST", tarfile.SYMTYPE, "text"), ("HEAD", tarfile.SYMTYPE, "nowhere"),
                               ("17.json", tarfile.SYMTYPE, "000017")):  # fmt: skip
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        links.append((info, b""))
    write(tmp_path / "a.tar", member("000017", jpeg), member("text", b"text"), *links)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    assert contents(tmp_path) == {
        f"{tar}!/{name}": jpeg for tar in ("a.tar", "a.tar.gz") for name in ("000017", "a/17", "18")
    }
    if shutil.which("tar"):
        (tmp_path / "s").mkdir()
        with (tmp_path / "sparse").open("wb") as file:
            file.write(jpeg)
            file.truncate(2**20)
        subprocess.run(["tar", "-cSf", str(tmp_path / "s" / "s.tar"), "-C", str(tmp_path), "sparse"], check=True)
        assert contents(tmp_path / "s") == {"s.tar!/sparse": jpeg.ljust(2**20, b"\0")}


def test_sparse_members_are_read_with_their_holes(tmp_path):
    tar = shutil.which("tar")
    if tar is None or "GNU" not in subprocess.run([tar, "--version"], capture_output=True, text=True).stdout:
        pytest.skip("GNU tar is missing")
    with (tmp_path / "holes.jpg").open("wb") as file:
        file.write(b"begin")
        file.seek(2**20)
        file.write(b"end")
    expected = (tmp_path / "holes.jpg").read_bytes()
    for number, form in enumerate((["--format=gnu"], ["--format=posix", "--sparse-version=1.0"], ["--format=posix"])):
        place = tmp_path / str(number)
        place.mkdir()
        for name, how in (("s.tar", []), ("s.tar.gz", ["-z"])):
            command = [tar, *how, "-cSf", str(place / name), *form, "-C", str(tmp_path), "holes.jpg"]
            subprocess.run(command, check=True)
        assert contents(place) == {"s.tar!/holes.jpg": expected, "s.tar.gz!/holes.jpg": expected}


def test_an_incremental_archive_and_what_is_no_file(tmp_path):
    place = write(
        tmp_path / "s.tar",
        member("photos/", b"Ya.jpg\0\0", kind=b"D"),
        member("photos/a.jpg", b"a"),
        member("pipe.jpg", kind=tarfile.FIFOTYPE),
        member("device.jpg", kind=tarfile.CHRTYPE),
        member("second.jpg", b"rest", kind=b"M"),
        member("album.jpg", kind=tarfile.DIRTYPE),
        member("tty", kind=tarfile.CHRTYPE),
    )
    found = contents(place)
    assert found.pop("s.tar!/photos/a.jpg") == b"a"
    assert {name: str(error) for name, error in found.items()} == {
        "s.tar!/pipe.jpg": "the member is a pipe, and no file",
        "s.tar!/device.jpg": "the member is a device, and no file",
        "s.tar!/second.jpg": "the member is the rest of a file that begins in another volume, and no file",
    }


def test_a_compressed_shard_of_the_field_is_read(field):
    found = contents(field / "tar_compressed")
    assert set(found) == {"really_gz.tar!/g.jpg"} and found["really_gz.tar!/g.jpg"][:3] == b"\xff\xd8\xff"


@pytest.mark.parametrize("packer", PACKERS)
def test_compressed_shards_are_read_whatever_their_name(tmp_path, packer):
    link = member("link.jpg", kind=tarfile.SYMTYPE, target="3.jpg")
    members = [member(f"{n}.jpg", bytes([n]) * 300_000) for n in range(9)]
    plain = write(tmp_path / "plain.tar", *members, member("0.json", b"{}"), link).read_bytes()
    (tmp_path / "plain.tar").unlink()
    pack = PACKERS[packer]
    (tmp_path / f"s.tar.{packer}").write_bytes(pack(plain))
    (tmp_path / "hidden in.tar").write_bytes(pack(plain[: len(plain) // 2]) + pack(plain[len(plain) // 2 :]))
    found = contents(tmp_path)
    assert len(found) == 20
    for shard in (f"s.tar.{packer}", "hidden in.tar"):
        assert all(found[f"{shard}!/{n}.jpg"] == bytes([n]) * 300_000 for n in range(9))
        assert found[f"{shard}!/link.jpg"] == bytes([3]) * 300_000
    backwards = listed(tmp_path / f"s.tar.{packer}")[::-1]  # As a gallery asks, in any order and one at a time
    for entry in backwards:
        ((_, data),) = read_entries(locate(str(tmp_path)), [entry])
        assert data == found[entry.image_id]


@pytest.mark.parametrize("packer", PACKERS)
def test_a_damaged_compressed_shard_keeps_what_it_gave(tmp_path, packer):
    import random

    noise = random.Random(0)
    members = [member(f"{n}.jpg", noise.randbytes(200_000)) for n in range(20)]
    whole = PACKERS[packer](write(tmp_path / "plain.tar", *members).read_bytes())
    (tmp_path / "plain.tar").unlink()
    (tmp_path / "s.tar").write_bytes(whole[: len(whole) // 2])
    found = contents(tmp_path)
    good = [name for name, data in found.items() if isinstance(data, bytes)]
    errors = {name: data for name, data in found.items() if isinstance(data, ImageError)}
    assert len(good) >= 5 and "s.tar" in errors
    assert all(data.kind in (ErrorKind.UNREADABLE, ErrorKind.TRUNCATED) for data in errors.values())


def test_units_in_order_unpack_a_shard_once(tmp_path, monkeypatch):
    members = [member(f"{n}.jpg", bytes([n]) * 100_000) for n in range(64)]
    write(tmp_path / "plain.tar", *members)
    (tmp_path / "s.tgz").write_bytes(gzip.compress((tmp_path / "plain.tar").read_bytes()))
    (tmp_path / "plain.tar").unlink()
    entries = listed(tmp_path)
    unpacked = 0
    real = tar_shards._Unpacked._more

    def counted(self, count):
        nonlocal unpacked
        chunk = real(self, count)
        unpacked += len(chunk)
        return chunk

    monkeypatch.setattr(tar_shards._Unpacked, "_more", counted)
    for start in range(0, 64, 4):
        assert all(isinstance(d, bytes) for _, d in read_entries(locate(str(tmp_path)), entries[start : start + 4]))
    assert unpacked < 1.2 * 64 * 100_000


def test_what_is_packed_otherwise_says_so(tmp_path):
    starts = {"a.tar": b"PK\x03\x04", "b.tar": b"\x1f\x9d\x90", "c.tar.lz": b"LZIP\1", "d.tar": b"7z\xbc\xaf\x27\x1c"}
    for name, start in starts.items():
        (tmp_path / name).write_bytes(start + bytes(2000))
    found = contents(tmp_path)
    assert set(found) == set(starts)
    assert all("packed by" in str(error) and "unpack it first" in str(error) for error in found.values())


def test_an_xz_stream_that_wants_a_gigabyte_is_refused(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    (tmp_path / "s.tar.xz").write_bytes(lzma.compress(bytes(10240), filters=filters))
    assert "its xz compression is damaged: Memory usage limit" in str(contents(tmp_path)["s.tar.xz"])


def test_compressed_shards_and_links_from_s3(bucket, tmp_path):
    write(tmp_path / "s.tar", member("a.jpg", b"a" * 5000), member("l.jpg", kind=tarfile.SYMTYPE, target="a.jpg"))
    plain = (tmp_path / "s.tar").read_bytes()
    bucket.put("s.tar", plain + plain)
    bucket.put("t.tar.zst", zstd(plain))
    bucket.put("cut.tgz", gzip.compress(plain)[:-30])
    root = locate(f"s3://{bucket.name}")
    found = {e.image_id: d for e, d in read_entries(root, list(list_source(Source(root))))}
    cut = {name: found.pop(name) for name in list(found) if name.startswith("cut")}
    assert set(found.values()) == {b"a" * 5000} and len(found) == 6
    assert isinstance(cut["cut.tgz"], ImageError)
    storage_client.refresh()
