"""Names of exported files: nothing is lost to another image's file, whatever the identities are."""

import unicodedata
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.results.export_names import file_names, name_bytes
from tasks.storage import locate

PART = st.text(st.sampled_from("aAbéÉ. %:\\~\n你Con1") | st.characters(exclude_categories=["Cs"]), max_size=12)
ENDING = st.sampled_from(["", ".jpg", ".JPG", ".png", ".jpeg"])
LONG = st.builds(lambda c, n, e: c * n + e, st.sampled_from(["a", "你", "%", "é"]), st.integers(60, 400), ENDING)
IDENTITY = st.lists(PART | LONG, min_size=1, max_size=4).map("/".join)


def test_a_name_is_the_identity_without_its_ending():
    ids = [
        "a.jpg",
        "dogs/rex.JPEG",
        "shard.tar!/b.png",
        "no ending",
        "100%.jpg",
        "name.with.dots.jpg",
        "ünïcode 🐕.webp",
    ]
    names = ["a", "dogs/rex", "shard.tar!/b", "no ending", "100%", "name.with.dots", "ünïcode 🐕"]
    assert list(file_names(ids, ".png").values()) == names
    assert list(file_names(ids, None).values()) == ids


def test_images_that_would_share_a_file_keep_their_endings():
    assert file_names(["x.jpg", "x.png", "y.jpg"], ".png") == {"x.jpg": "x.jpg", "x.png": "x.png", "y.jpg": "y"}
    assert file_names(["x.jpg", "x.png"], None) == {"x.jpg": "x.jpg", "x.png": "x.png"}
    # x.jpg.png would be the file of both
    names = file_names(["x.jpg", "x.png", "x.jpg.png"], ".png")
    assert names["x.png"] == "x.png" and len(set(names.values())) == 3


def test_twins_by_case_or_normalisation_get_a_digest():
    composed, decomposed = (unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD"))
    for pair in (("Dog.jpg", "dog.jpg"), ("a/x.jpg", "A/x.jpg"), (composed, decomposed), ("straße.jpg", "STRASSE.jpg")):
        for suffix in (".png", None):
            names = file_names(pair, suffix)
            assert len({key(name) for name in names.values()}) == 2
            assert all("~" in name for name in names.values())
            assert names == file_names(pair[::-1], suffix)  # In any order of the rows


def test_a_file_where_another_image_needs_a_folder():
    names = file_names(["a", "a.png/b.jpg"], ".png")
    assert names["a.png/b.jpg"] == "a.png/b" and names["a"] != "a"


def test_names_that_windows_refuses():
    names = file_names(
        ["con.jpg", "aux/x.jpg", 'a"b<c>|?*.jpg', "back\\slash.jpg", "end. /x.jpg", "..", "", "a//b"], ".png"
    )
    assert list(names.values()) == [
        "_con", "_aux/x", "a%22b%3Cc%3E%7C%3F%2A", "back%5Cslash", "end.%20/x", "%2E%2E", "%", "a/%/b",
    ]  # fmt: skip


def test_long_names_are_cut_for_the_destination_and_stay_apart(tmp_path):
    same = "你" * 200
    ids = [f"{same}{n}.jpg" for n in range(3)] + ["%E4%BD%A0" * 28 + ".tif", "/".join(["folder" * 6] * 40) + "/x.jpg"]
    names = file_names(ids, ".png", name_bytes(locate(str(tmp_path))))
    assert len(set(names.values())) == len(ids)
    for name in names.values():
        place = tmp_path / f"{name}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"")  # The file system takes it
    assert names[ids[0]].startswith("你" * 30)
    # Images of one long folder stay in one folder
    together = list(file_names([f"{same}/{n}.jpg" for n in range(3)], ".png").values())
    assert len({Path(name).parent for name in together}) == 1 and [Path(n).name for n in together] == ["0", "1", "2"]


@settings(max_examples=300, deadline=None)
@given(st.lists(IDENTITY, min_size=1, max_size=8, unique=True), st.sampled_from([".png", None]))
@example(["a.jpg", "A.jpg", "a.jpg.png", "a", "a.png/b"], ".png")
def test_every_image_has_a_file_of_its_own_in_the_folder(ids, suffix):
    names = file_names(ids, suffix)
    assert list(names) == ids
    keys = {key(name + (suffix or "")) for name in names.values()}
    assert len(keys) == len(ids)
    for path in keys:
        assert not any(path != other and other.startswith(f"{path}/") for other in keys)
    for name in names.values():
        parts = f"{name}{suffix or ''}".split("/")
        assert all(part and part.strip(".") and len(part.encode()) <= 244 for part in parts)
        assert len(name.encode()) <= 900 and name.isprintable() and not set(name) & set('\\:*?"<>|')


def key(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
