"""The console commands about evaluation: words and exit statuses; and a submission that is checked."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.cli import app
from segcore.images.masks import encode_mask
from tasks.archive.schema import empty_row
from tasks.errors import JobError
from tasks.evaluation.submission import check_mask, doubts_about, write_submission
from tasks.results.sealing import CompactJob, compact
from tests.console import invoke
from tests.outputs import write_run


def run(*arguments: object):  # type: ignore[no-untyped-def]
    return invoke(app, *arguments)


def test_bad_options_and_empty_places_end_with_one_sentence(tmp_path: Path) -> None:
    for arguments, words in [
        (("evaluate", "m", "d", tmp_path, "--long-side", "3"), "--long-side: "),
        (("evaluate", "m", "d", tmp_path, "--crf-preset", "none"), "no CRF preset 'none'"),
        (("evaluate", "m", "d", tmp_path, "--tolerance", "-1"), "--tolerance: "),
        (("baseline", "accept", tmp_path), "holds no night yet"),
        (("submission", tmp_path, tmp_path / "ids", tmp_path / "out"), "does not exist"),
    ]:
        told = run(*arguments)
        assert told.exit_code in (1, 2) and words in told.output and "Traceback" not in told.output
        assert len(told.output.strip().splitlines()) == 1


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    rows = []
    for number, (width, height) in enumerate([(20, 10), (11, 13)]):
        labels = np.full((height // (number + 1), width // (number + 1)), 5 * number, np.uint8)
        rows.append(
            empty_row()
            | {"image_id": f"2008_00000{number}.jpg", "run_id": "r", "uri": "u", "model": "m"}
            | {"width": width, "height": height, "mask": encode_mask(labels)}
        )
    write_run(str(tmp_path / "archive"), "r", [row | {"classes": []} for row in rows], per_file=1)
    return tmp_path / "archive"


def test_a_submission_has_the_servers_names_sizes_and_palette(archive: Path, tmp_path: Path) -> None:
    ids = tmp_path / "test.txt"
    ids.write_text("2008_000000\n2008_000001\n")
    told = run("submission", archive, ids, tmp_path / "out", "--comp", "5")
    assert told.exit_code == 0 and "2 masks, checked" in told.output
    folder = "results/VOC2012/Segmentation/comp5_test_cls"
    with Image.open(tmp_path / "out" / folder / "2008_000001.png") as image:
        assert image.mode == "P" and image.size == (11, 13) and set(np.asarray(image).ravel()) == {5}
        assert image.getpalette()[15:18] == [128, 0, 128]
    with tarfile.open(tmp_path / "out" / "comp5_test_cls.tar.gz") as packed:
        assert packed.getnames() == [f"{folder}/2008_000000.png", f"{folder}/2008_000001.png"]
    first = (tmp_path / "out" / "comp5_test_cls.tar.gz").read_bytes()
    assert run("submission", archive, ids, tmp_path / "out", "--comp", "5").exit_code == 0
    assert (tmp_path / "out" / "comp5_test_cls.tar.gz").read_bytes() == first


def test_a_compacted_and_expired_run_is_submitted_too(archive: Path, tmp_path: Path) -> None:
    ids = tmp_path / "test.txt"
    ids.write_text("2008_000000\n2008_000001\n")
    write_submission(str(archive), str(ids), str(tmp_path / "before"))
    compact(CompactJob(output=str(archive), expire=True, grace_minutes=0))
    assert not list((archive / "masks").rglob("*.parquet"))
    assert "2 masks, checked" in write_submission(str(archive), str(ids), str(tmp_path / "after"))
    packed = "comp6_test_cls.tar.gz"
    assert (tmp_path / "after" / packed).read_bytes() == (tmp_path / "before" / packed).read_bytes()


def test_what_the_server_would_refuse_is_named(archive: Path, tmp_path: Path) -> None:
    ids = tmp_path / "test.txt"
    ids.write_text("2008_000000\n2009_000000\n")
    with pytest.raises(JobError, match=r"no mask of 1 of the 2 images .*: 2009_000000"):
        write_submission(str(archive), str(ids), str(tmp_path / "out"))
    with pytest.raises(JobError, match="no competition 7"):
        write_submission(str(archive), str(ids), str(tmp_path / "out"), comp=7)
    with pytest.raises(JobError, match="has no run 'x'"):
        write_submission(str(archive), str(ids), str(tmp_path / "out"), run_id="x")
    with pytest.raises(JobError, match="label 21"):
        check_mask("a", encode_mask(np.full((4, 4), 21, np.uint8)), 4, 4)
    with pytest.raises(JobError, match="4 x 4 px, its photograph 5 x 4"):
        check_mask("a", encode_mask(np.zeros((4, 4), np.uint8)), 5, 4)


def test_a_list_that_is_not_the_test_set_is_doubted(archive: Path, tmp_path: Path) -> None:
    lists = tmp_path / "Segmentation"
    lists.mkdir()
    (lists / "val.txt").write_text("2008_000001\n2007_000033\n")
    (lists / "train.txt").write_text("2009_000009\n")
    (lists / "mine.txt").write_text("2008_000000\n2008_000001\n")
    told = run("submission", archive, lists / "mine.txt", tmp_path / "out")
    assert told.exit_code == 0 and "2 masks, checked" in told.output
    assert "does not look like the test set. 1 of the 2 images are of val.txt beside it: 2008_000001." in told.output
    assert "It lists 2 images, the test set of VOC 2012 has 1456." in told.output
    # Without lists beside it
    (tmp_path / "alone.txt").write_text("2007_000033\n2008_000000\n")
    (doubt, _) = doubts_about(str(tmp_path / "alone.txt"))
    assert doubt.startswith("1 images are of 2007,") and "2007_000033" in doubt
    # The test set itself: as many images as the server has, of no other list
    (lists / "test.txt").write_text("".join(f"2010_{number:06d}\n" for number in range(1456)))
    assert doubts_about(str(lists / "test.txt")) == []
