"""The doctor over broken datasets: every fault is found, named with its file, and mended where that is safe."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from segcore.datasets.pair_check import ADVICE, Kind, Level
from segcore.images.masks import decode_mask, encode_mask
from segcore.voc import palette
from tasks.datasets import check as dataset_check
from tasks.datasets.check import examine, findings_csv, fix
from tasks.datasets.folders import read_layout
from tasks.errors import JobError
from tasks.storage import locate
from tests.datasets import jpeg, labels_of, make_dataset, write_list


@pytest.fixture
def mine(tmp_path):
    return make_dataset(tmp_path / "mine", 10, num_val=3)


def examined(folder):
    return examine(read_layout(locate(str(folder))))


def found(folder) -> dict[Kind, list[str]]:
    kinds: dict[Kind, list[str]] = {}
    for one in examined(folder).findings:
        kinds.setdefault(one.kind, []).append(f"{one.file}: {one.detail}")
    return kinds


def test_a_sound_dataset_has_no_findings(mine):
    result = examined(mine)
    assert result.findings == [] and len(result.checks) == 10
    pixels, present = dataset_check.label_counts(result, list(result.checks))
    assert present.tolist()[:3] == [10, 5, 5] and pixels[255] > 0
    assert pixels.sum() == 5 * (60 * 44) + 5 * (45 * 61)


def test_every_fault_is_named_with_its_file(mine):
    (mine / "JPEGImages/img-0.jpg").unlink()
    (mine / "SegmentationClass/img-1.png").unlink()
    (mine / "JPEGImages/img-2.jpg").write_bytes(b"no photograph")
    (mine / "SegmentationClass/img-3.png").write_bytes(b"no mask")
    (mine / "JPEGImages/img-4.jpg").write_bytes(jpeg(4, (10, 12)))
    (mine / "SegmentationClass/img-5.png").write_bytes(encode_mask(np.full((44, 60), 77, np.uint8)))
    kinds = found(mine)
    assert kinds.pop(Kind.MISSING_IMAGE) == ["JPEGImages/img-0: "]
    assert kinds.pop(Kind.MISSING_MASK) == ["img-1: "]
    assert kinds.pop(Kind.IMAGE_UNREADABLE)[0].startswith("JPEGImages/img-2.jpg: not_an_image")
    assert kinds.pop(Kind.MASK_UNREADABLE)[0].startswith("SegmentationClass/img-3.png")
    assert kinds.pop(Kind.SIZE_MISMATCH) == ["SegmentationClass/img-4.png: image 10 x 12, mask 45 x 61 px"]
    assert kinds.pop(Kind.OUT_OF_RANGE) == ["SegmentationClass/img-5.png: 77; classes.txt names 0 to 2"]
    assert not kinds


def test_leaks_and_copies_between_train_and_val(mine):
    write_list(mine, "train", [f"img-{k}" for k in range(7)] + ["img-8"])
    copy = (mine / "JPEGImages/img-7.jpg").read_bytes()
    (mine / "JPEGImages/img-1.jpg").write_bytes(copy)  # 7 is in val
    with Image.open(io.BytesIO((mine / "JPEGImages/img-9.jpg").read_bytes())) as picture:
        picture.save(mine / "JPEGImages/img-3.jpg", quality=70)  # Saved again: the same to the eye
        ImageOps.mirror(picture).save(mine / "JPEGImages/img-5.jpg", quality=80)
    (mine / "JPEGImages/img-4.jpg").write_bytes((mine / "JPEGImages/img-2.jpg").read_bytes())
    kinds = found(mine)
    assert kinds.pop(Kind.LEAK) == ["ImageSets/Segmentation/train.txt: img-8 is in val too"]
    assert kinds.pop(Kind.SAME_IMAGE) == ["JPEGImages/img-1.jpg: as img-7"]
    assert kinds.pop(Kind.LOOKS_SAME) == [
        "JPEGImages/img-3.jpg: as img-9",
        "JPEGImages/img-5.jpg: as img-9, mirrored",
    ]
    assert kinds.pop(Kind.SAME_WITHIN) == ["JPEGImages/img-4.jpg: as img-2"]
    assert not kinds


def test_a_class_that_never_appears(mine):
    (mine / "classes.txt").write_text("background\ncat\ndog\nbird\n")
    assert found(mine) == {Kind.CLASS_ABSENT: ["classes.txt: 3 bird"]}


def test_the_worst_comes_first_and_csv_has_all(mine):
    (mine / "SegmentationClass/img-1.png").write_bytes(encode_mask(np.zeros((44, 60), np.uint8)))
    (mine / "SegmentationClass/img-2.png").unlink()
    write_list(mine, "train", ["img-0", *(f"img-{k}" for k in range(7))])
    result = examined(mine)
    levels = [one.level for one in result.findings]
    assert levels == sorted(levels) and set(levels) == set(Level)
    rows = findings_csv(result.findings).decode().splitlines()
    assert len(rows) == 1 + len(levels)
    assert rows[1].startswith(f"error,{Kind.MISSING_MASK},img-2,,") and ADVICE[Kind.MISSING_MASK].remedy in rows[1]
    with pytest.raises(JobError, match=r"mine cannot be prepared.*1 x listed without a mask; first img-2.*--leave-out"):
        dataset_check.require_usable(result, "findings.csv")


def test_what_is_safe_is_mended_and_the_first_version_kept(mine):
    labels = {k: labels_of(k, (60, 44) if k % 2 else (45, 61)) for k in range(10)}
    rgb = io.BytesIO()
    Image.fromarray(palette()[labels[0]]).save(rgb, format="PNG")
    (mine / "SegmentationClass/img-0.png").write_bytes(rgb.getvalue())
    Image.fromarray(labels[1]).save(mine / "SegmentationClass/img-1.bmp")  # Grey
    (mine / "SegmentationClass/img-1.png").unlink()
    (mine / "JPEGImages/img-2.jpg").write_bytes(jpeg(2, (45, 61), orientation=6))  # The mask lies
    (mine / "SegmentationClass/img-3.png").write_bytes(encode_mask(np.full((44, 60), 77, np.uint8)))
    write_list(mine, "train", ["img-0", "img-1", "img-0", "img-2", "img-3", "img-4", "img-9"])
    before = {p: p.read_bytes() for p in mine.rglob("*") if p.is_file()}

    first = examined(mine)
    assert {one.kind for one in first.findings if ADVICE[one.kind].mendable} == {
        Kind.RGB_MASK,
        Kind.GREY_MASK,
        Kind.EXIF_ROTATED,
        Kind.LEAK,
        Kind.TWICE_LISTED,
    }
    assert sorted(fix(first)) == [
        "ImageSets/Segmentation/train.txt",
        "SegmentationClass/img-0.png",
        "SegmentationClass/img-1.png",
        "SegmentationClass/img-2.png",
    ]
    # What needs a person is as it was
    assert [one.kind for one in examined(mine).findings if one.level is Level.ERROR] == [Kind.OUT_OF_RANGE]
    for k, expected in ((0, labels[0]), (1, labels[1]), (2, np.rot90(labels[2], -1))):
        np.testing.assert_array_equal(decode_mask((mine / f"SegmentationClass/img-{k}.png").read_bytes()), expected)
    ids = (mine / "ImageSets/Segmentation/train.txt").read_text().split()
    assert ids == ["img-0", "img-1", "img-2", "img-3", "img-4"]
    assert not (mine / "SegmentationClass/img-1.bmp").exists()
    # Every byte that was replaced can be had back
    for path, data in before.items():
        kept = mine / "before-fix" / path.relative_to(mine)
        assert (kept if kept.exists() else path).read_bytes() == data
    assert fix(examined(mine)) == []


def test_what_was_found_is_kept_and_found_again(mine, tmp_path, monkeypatch):
    store = locate(str(tmp_path / "checks"))
    monkeypatch.setattr(dataset_check, "CHUNK_PAIRS", 3)
    layout = read_layout(locate(str(mine)))
    first = examine(layout, store)
    files = sorted((tmp_path / "checks").iterdir())
    assert [file.name for file in files] == sorted(first.chunk_names) and len(files) == 4
    stamps = [file.stat().st_mtime_ns for file in files]
    monkeypatch.setattr(dataset_check, "check_chunk", None)  # Nothing is read a second time
    assert examine(layout, store).checks == first.checks
    assert [file.stat().st_mtime_ns for file in files] == stamps
    monkeypatch.undo()
    monkeypatch.setattr(dataset_check, "CHUNK_PAIRS", 3)
    # One that is replaced is read again, with its neighbours only
    (mine / "SegmentationClass/img-0.png").write_bytes(b"no mask")
    again = examine(read_layout(locate(str(mine))), store)
    assert [one.kind for one in again.findings] == [Kind.MASK_UNREADABLE]
    assert len(set(again.chunk_names) & set(first.chunk_names)) == 3


def test_on_ray_it_finds_the_same(mine, ray_cluster, monkeypatch):
    alone = examined(mine)
    monkeypatch.setattr(dataset_check, "CHUNK_PAIRS", 1)
    (mine / "SegmentationClass/img-3.png").write_bytes(b"no mask")
    spread = examined(mine)
    assert [one.file for one in spread.findings] == ["SegmentationClass/img-3.png"]
    assert {k: c for k, c in spread.checks.items() if k != "img-3"} == {
        k: c for k, c in alone.checks.items() if k != "img-3"
    }


def test_a_worker_that_does_not_see_the_folder_says_so(mine):
    layout = read_layout(locate(str(mine)))
    layout.root = locate("/somewhere/else")
    with pytest.raises(JobError, match="does not see /somewhere/else"):
        examine(layout)


def test_an_outage_is_no_fault_of_the_pairs(mine, monkeypatch, tmp_path):
    (mine / "JPEGImages/img-1.jpg").unlink()
    (mine / "JPEGImages/img-1.jpg").symlink_to(tmp_path / "nowhere.jpg")
    kinds = found(mine)
    assert list(kinds) == [Kind.IMAGE_UNREADABLE] and "img-1.jpg does not exist" in kinds[Kind.IMAGE_UNREADABLE][0]

    def gone(place):
        raise TimeoutError("the server does not answer")

    layout = read_layout(locate(str(mine)))
    monkeypatch.setattr(dataset_check.storage, "read_bytes", gone)
    with pytest.raises(JobError, match="the server does not answer"):
        examine(layout)
