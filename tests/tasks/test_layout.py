from pathlib import Path

import pytest

from segcore.datasets.division import divide
from segcore.datasets.pair_check import Kind
from segcore.images.masks import encode_mask
from tasks.datasets.folders import read_layout, read_voc_with_sbd
from tasks.datasets.layout import OwnData
from tasks.errors import JobError
from tasks.storage import locate
from tests.datasets import CLASSES, jpeg, labels_of, make_dataset, write_list
from tests.sbd_files import annotation


def layout(folder: Path, **options):
    return read_layout(locate(str(folder)), OwnData(**options))


def test_a_dataset_of_ones_own(tmp_path):
    found = layout(make_dataset(tmp_path / "mine"))
    assert found.name == "mine" and found.label_set.classes == CLASSES and found.findings == []
    assert found.lists == {"train": [f"img-{k}" for k in range(6)], "val": ["img-6", "img-7"]}
    pair = found.pairs["img-3"]
    assert pair.image.place.name == "img-3.jpg" and pair.mask.place.name == "img-3.png" and pair.source == "mine"


def test_the_same_in_a_bucket(bucket, tmp_path):
    folder = make_dataset(tmp_path / "mine", 3, num_val=1)
    for file in folder.rglob("*.*"):
        bucket.put(f"mine/{file.relative_to(folder)}", file.read_bytes())
    found = read_layout(locate(f"s3://{bucket.name}/mine"))
    assert found.lists == {"train": ["img-0", "img-1"], "val": ["img-2"]}
    assert all(pair.image and pair.mask for pair in found.pairs.values())


@pytest.mark.parametrize("inside", ["VOCdevkit/VOC2012", "VOC2012", "export/data"])
def test_folders_within_folders_are_found(tmp_path, inside):
    make_dataset(tmp_path / "top" / inside, 2, num_val=1)
    assert layout(tmp_path / "top").lists["train"] == ["img-0"]


def test_lists_as_other_tools_write_them(tmp_path):
    folder = make_dataset(tmp_path / "mine")
    lines = "\ufeffimg-0\r\nJPEGImages/img-1.jpg SegmentationClass/img-1.png\r\n\r\nimg-2.jpg\r\nimg-0\r\nimg 9\r\n"
    (folder / "ImageSets/Segmentation/train.txt").write_text(lines, newline="")
    found = layout(folder)
    assert found.lists["train"] == ["img-0", "img-1", "img-2", "img 9"]
    assert ("ImageSets/Segmentation/train.txt", Kind.TWICE_LISTED) in [(f, x.kind) for f, x in found.findings]
    assert found.pairs["img 9"].image is None


def test_without_lists_an_image_keeps_its_side_when_others_come(tmp_path):
    folder = make_dataset(tmp_path / "mine", 40)
    for file in (folder / "ImageSets/Segmentation").iterdir():
        file.unlink()
    found = layout(folder, val_share=0.25)
    assert sorted(found.lists["train"] + found.lists["val"]) == sorted(f"img-{k}" for k in range(40))
    assert 3 <= len(found.lists["val"]) <= 20
    more = divide([f"img-{k}" for k in range(80)], 0.25)
    assert set(found.lists["val"]) <= set(more["val"])
    assert divide(["a", "b"], 0.0) == {"train": ["a", "b"]}


def test_lists_that_are_chosen(tmp_path):
    folder = make_dataset(tmp_path / "mine")
    (tmp_path / "few.txt").write_text("img-5\n")
    found = layout(folder, lists={"val": "val", "few": str(tmp_path / "few.txt")})
    assert found.lists == {"val": ["img-6", "img-7"], "few": ["img-5"]} and set(found.pairs) == {
        "img-5",
        "img-6",
        "img-7",
    }
    with pytest.raises(JobError, match="no list nowhere"):
        layout(folder, lists={"val": "nowhere"})
    with pytest.raises(JobError, match="cannot name a split"):
        layout(folder, lists={"../x": "val"})


def test_lists_that_cannot_be_used_and_pairs_in_none(tmp_path):
    folder = make_dataset(tmp_path / "mine")
    write_list(folder, "val", [])
    (folder / "ImageSets/Segmentation/other.txt").write_bytes(b"\xff\xfe\x00")
    assert [(file.rpartition("/")[2], found.kind) for file, found in layout(folder).findings] == [
        ("other.txt", Kind.LIST_BROKEN),
        ("val.txt", Kind.LIST_BROKEN),
        ("img-6.jpg", Kind.UNLISTED),
        ("img-7.jpg", Kind.UNLISTED),
    ]


def test_what_is_no_dataset_is_one_sentence(tmp_path):
    with pytest.raises(JobError, match="does not exist, or is an empty folder"):
        layout(tmp_path / "none")
    (tmp_path / "x.jpg").write_bytes(b"x")
    with pytest.raises(JobError, match=r"not in VOC layout.*JPEGImages"):
        layout(tmp_path)
    folder = make_dataset(tmp_path / "mine", 2, num_val=1)
    with pytest.raises(JobError, match="neither Masken holds any; name their folder with --masks"):
        layout(folder, masks="Masken")
    (folder / "classes.txt").write_text("cat\ncat\n")
    with pytest.raises(JobError, match=r"classes\.txt gives the class cat to two labels"):
        layout(folder)
    (folder / "classes.txt").write_bytes(b"\xff\xfb")
    with pytest.raises(JobError, match="no text in UTF-8"):
        layout(folder)


def voc_and_sbd(tmp_path: Path) -> tuple[Path, Path]:
    """VOC with train 0..3 and val 4, 5; SBD with 2..9, of which 5 is one of VOC's val."""
    voc, sbd = tmp_path / "VOC2012", tmp_path / "dataset"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / name).mkdir(parents=True)
    (sbd / "cls").mkdir(parents=True)
    for k in range(10):
        (voc / f"JPEGImages/2007_{k}.jpg").write_bytes(jpeg(k, (40, 30)))
        if k < 6:
            (voc / f"SegmentationClass/2007_{k}.png").write_bytes(encode_mask(labels_of(k, (40, 30))))
        if k >= 2:
            (sbd / f"cls/2007_{k}.mat").write_bytes(annotation(labels_of(k, (40, 30)) % 255))
    write_list(voc, "train", [f"2007_{k}" for k in range(4)])
    write_list(voc, "val", ["2007_4", "2007_5"])
    (sbd / "train.txt").write_text("".join(f"2007_{k}\n" for k in (2, 3, 5, 6, 7)))
    (sbd / "val.txt").write_text("2007_8\n2007_9\n")
    return voc, sbd


def test_voc_with_sbd(tmp_path):
    voc, sbd = voc_and_sbd(tmp_path)
    found = read_voc_with_sbd(locate(str(voc)), locate(str(sbd)))
    assert [len(found.lists[n]) for n in ("train", "val", "trainval", "train_aug", "trainval_aug")] == [4, 2, 6, 8, 10]
    assert not set(found.lists["train_aug"]) & set(found.lists["val"])
    assert [found.pairs[f"2007_{k}"].source for k in range(10)] == ["VOC2012"] * 6 + ["SBD"] * 4
    other = read_voc_with_sbd(locate(str(voc)), locate(str(sbd)), prefer_sbd=True)
    # What is in val keeps VOC's mask whatever is preferred
    assert [other.pairs[f"2007_{k}"].source for k in range(10)] == ["VOC2012"] * 2 + ["SBD"] * 2 + ["VOC2012"] * 2 + [
        "SBD"
    ] * 4
    alone = read_voc_with_sbd(locate(str(voc)), None)
    assert {name: len(ids) for name, ids in alone.lists.items()} == {"train": 4, "val": 2, "trainval": 6}
    with pytest.raises(JobError, match="no annotations of SBD"):
        read_voc_with_sbd(locate(str(voc)), locate(str(voc)))
    (voc / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(JobError, match=r"val\.txt is missing"):
        read_voc_with_sbd(locate(str(voc)), locate(str(sbd)))
