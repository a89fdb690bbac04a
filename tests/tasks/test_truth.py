"""True masks beside the prediction: which mask belongs to which image, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segcore.images.masks import encode_mask
from tasks.errors import JobError
from tasks.results.report import ReportJob, build_report
from tasks.results.truth import Truth
from tasks.storage import locate
from tests.evaluation_data import shard_row, write_dataset

CLASSES = {0: "background", 12: "dog"}


def _mask(path: Path, label: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_mask(np.full((4, 6), label, np.uint8)))


def test_masks_are_found_by_path_then_by_a_name_that_is_unique(tmp_path):
    _mask(tmp_path / "a" / "1.png", 1)
    _mask(tmp_path / "b" / "1.png", 2)
    _mask(tmp_path / "only_mask.png", 3)
    _mask(tmp_path / "cafe\u0301.png", 4)
    ids = ["a/1.jpg", "b/1.jpeg", "1.jpg", "deep/only.jpg", "caf\u00e9.jpg", "nobody.jpg", "shard.tar!/a/1.jpg"]
    truth = Truth(str(tmp_path), ids, CLASSES)
    found = {image_id: truth.read(image_id) for image_id in ids}
    labels = {image_id: None if mask is None else int(mask[0, 0]) for image_id, mask in found.items()}
    assert labels == dict(zip(ids, [1, 2, None, 3, 4, None, 1], strict=True)) and truth.images == 5


def test_a_prepared_dataset_is_truth_of_its_ids_and_its_classes(tmp_path):
    truth_of = np.full((4, 6), 12, np.uint8)
    write_dataset(locate(str(tmp_path)), "small", {"val": [shard_row("2007_000033", b"", truth_of)]})
    truth = Truth(str(tmp_path), ["JPEGImages/2007_000033.jpg"], CLASSES)
    assert (truth.read("JPEGImages/2007_000033.jpg") == 12).all()
    with pytest.raises(JobError, match="Label 12 is chair in the run and dog in"):
        Truth(str(tmp_path), ["2007_000033.jpg"], {12: "chair"})


def test_masks_of_other_images_are_refused_and_damaged_ones_are_left_out(tmp_path):
    _mask(tmp_path / "other.png", 1)
    with pytest.raises(JobError, match="has a mask for none of the 1 images"):
        Truth(str(tmp_path), ["mine.jpg"], CLASSES)
    with pytest.raises(JobError, match="nowhere"):
        Truth(str(tmp_path / "nowhere"), ["mine.jpg"], CLASSES)
    (tmp_path / "mine.png").write_bytes(b"no mask")
    Image.new("RGB", (3, 3)).save(tmp_path / "coloured.png")
    truth = Truth(str(tmp_path), ["mine.jpg", "coloured.jpg"], CLASSES)
    assert truth.read("mine.jpg") is None and truth.read("coloured.jpg") is None


def test_a_gallery_holds_the_truth_of_the_images_that_have_one(small_output, tmp_path):
    _mask(tmp_path / "truth" / "003.png", 12)
    to = tmp_path / "gallery"
    build_report(ReportJob(output=small_output, to=str(to), truth=str(tmp_path / "truth")))
    [summary] = to.glob("data-*/summary.js")
    assert json.loads(summary.read_text()[len("archive.summary(") : -3])["truths"] == 1
    items = [file.read_text() for file in to.glob("data-*/items/*/*.js")]
    assert sum('"truth":' in item for item in items) == 1
