from tasks.archive.sources import LeftAside
from tasks.segmentation.outcome import ArchiveReport
from tasks.words import counted


def test_one_and_many():
    assert [counted(n, "mask") for n in (0, 1, 2, 1204)] == ["0 masks", "1 mask", "2 masks", "1,204 masks"]
    assert counted(1, "entry", "entries") == "1 entry" and counted(3, "entry", "entries") == "3 entries"


def test_sentences_of_one_image_and_of_several():
    assert ArchiveReport("r", "o", "m", 1, 1).sentence == "1 image: 1 mask, 0 errors"
    assert ArchiveReport("r", "o", "m", 3, 2, errors={"truncated": 1}).sentence == "3 images: 2 masks, 1 error"
    aside = LeftAside()
    aside.note("archive without an image", "archives without an image", "a.zip")
    assert aside.sentences() == "Left aside: 1 archive without an image (a.zip)."
    aside.note("archive without an image", "archives without an image", "b.zip")
    assert aside.sentences() == "Left aside: 2 archives without an image (a.zip, ...)."
