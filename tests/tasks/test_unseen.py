"""A model is not scored on what it learnt, whatever its images and splits are called."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from segcore.datasets.seen_images import SeenImages, look_at
from segcore.models import checkpoint
from segcore.models.card import ModelCard
from segcore.models.preprocessing import DEEPLAB
from segcore.voc import CLASSES
from tasks.datasets.shards import read_manifest
from tasks.evaluation.unseen import RefusedError, Unseen, refuse_by_name, require_unseen
from tasks.storage import locate
from tests.conftest import photograph
from tests.evaluation_data import VARIANT, shard_row, write_dataset


def jpeg(picture: Image.Image, quality: int = 92) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


PICTURES = [photograph(number, (120, 90)) for number in range(8)]
FILES = [jpeg(picture) for picture in PICTURES]


def model(folder: Path, files: list[bytes] | None, trained_on: str = "unknown", unknown: str = "") -> str:
    """A model directory that says what it was trained on; None: it has no digests."""
    loaded = checkpoint.load(VARIANT, untrained=True)
    card = replace(loaded.card, untrained=False, training_split=trained_on)
    seen = None if files is None else SeenImages.of(look_at(files), unknown)
    checkpoint.save(folder, loaded.module, card, seen=seen, replace=True)
    return str(folder)


def asked(tmp_path: Path, scored: list[bytes], uri: str, name: str = "other") -> Unseen:
    """What is said of a model on some images under new ids in a dataset of another name."""
    labels = np.zeros((90, 120), np.uint8)
    place = locate(str(tmp_path / "data"))
    write_dataset(place, name, {"val": [shard_row(f"new-{k}", data, labels) for k, data in enumerate(scored)]})
    return require_unseen(uri, read_manifest(place), "val", place, locate(str(tmp_path / "out")))


def test_the_same_files_under_other_ids_are_refused(tmp_path: Path) -> None:
    uri = model(tmp_path / "model", FILES[:3])
    with pytest.raises(RefusedError, match=r"trained on 2 of the 4 images of other-val, the very files: new-1, new-3;"):
        asked(tmp_path, [FILES[5], FILES[0], FILES[6], FILES[2]], uri)


def test_copies_saved_again_and_mirrored_are_named(tmp_path: Path) -> None:
    uri = model(tmp_path / "model", FILES[:4])
    again = jpeg(PICTURES[1].resize((60, 45)), 60)
    mirrored = jpeg(ImageOps.mirror(PICTURES[2]), 70)
    said = asked(tmp_path, [FILES[7], again, mirrored, FILES[6]], uri)
    assert (said.similar, said.mirrored, said.certain) == (2, 1, False)
    assert said.sentence.startswith("2 of the 4 images of other-val look like training images")
    assert "1 of them mirrored: new-1, new-2 (mirrored)." in said.sentence


def test_other_images_are_cleared_and_their_digests_kept(tmp_path: Path) -> None:
    uri = model(tmp_path / "model", FILES[:4])
    said = asked(tmp_path, FILES[4:], uri)
    assert said.certain and said.sentence.startswith(
        "None of the 4 images of other-val is one of the 4 training images"
    )
    assert len(list((tmp_path / "out" / "images").iterdir())) == 1
    # What was seen before nobody knows
    said = asked(tmp_path, FILES[4:], model(tmp_path / "model", FILES[:4], unknown="coco"))
    assert not said.certain and said.sentence.endswith("cannot be excluded: coco.")


def test_without_digests_nothing_is_excluded(tmp_path: Path) -> None:
    said = asked(tmp_path, FILES[:4], model(tmp_path / "model", None))
    assert not said.certain and "cannot be excluded" in said.sentence and said.sentence.endswith("on: unknown.")
    assert not (tmp_path / "out").exists()
    loaded = checkpoint.load(VARIANT, untrained=True)
    checkpoint.save(tmp_path / "untrained", loaded.module, loaded.card)
    assert asked(tmp_path, FILES[:4], str(tmp_path / "untrained")).certain


def test_splits_are_refused_by_name_whatever_their_spelling(tmp_path: Path) -> None:
    rows = [shard_row(f"a{k}", b"no image is read here", np.zeros((8, 8), np.uint8)) for k in range(2)]
    write_dataset(locate(str(tmp_path / "data")), "mine", {"val": rows})
    manifest = read_manifest(locate(str(tmp_path / "data")))
    val = manifest.splits["val"]
    both = manifest.model_copy(update={"splits": {"val": val, "trainval": val, "all images": val}})
    card = ModelCard("pspnet50", CLASSES, DEEPLAB)
    for trained in ("mine-val", "MINE_trainval", "mine all-images", "coco after Mine-Val", "coco + mine-val"):
        with pytest.raises(RefusedError, match=f'its card says "training_split": "{trained}"'.replace("+", r"\+")):
            refuse_by_name(replace(card, training_split=trained), both, "val")
    for trained in ("mine-train", "unknown", "coco", "yours-val"):
        refuse_by_name(replace(card, training_split=trained), both, "val")
    voc = both.model_copy(update={"name": "voc2012"})
    for trained in ("voc2012-trainval_aug", "VOC2012-val", "voc2012 val", "PASCAL VOC 2012 / trainval", "sbd-train"):
        with pytest.raises(RefusedError, match="which contains voc2012-val"):
            refuse_by_name(replace(card, training_split=trained), voc, "val")
    refuse_by_name(replace(card, training_split="voc2012-train_aug"), voc, "val")
