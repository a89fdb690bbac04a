"""VOC 2012 and SBD as they lie after unpacking: official lists and layout, stand-ins where photographs are missing."""

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from segcore.images.masks import encode_mask
from segcore.voc import IGNORE_LABEL
from tests.sbd_files import quick_annotation


def read_list(voc: Path, name: str) -> list[str]:
    """Ids of an official list."""
    return (voc / f"ImageSets/Segmentation/{name}.txt").read_text().split()


def sbd_lists(voc: Path) -> tuple[list[str], list[str]]:
    """Lists train (8,498) and val (2,857) as SBD has them: all that only SBD annotates, some of VOC's train and val."""
    draw = random.Random(0)
    train = read_list(voc, "train")
    ids = sorted(set(read_list(voc, "train_aug")) - set(train))
    ids += draw.sample(train, 1100) + draw.sample(read_list(voc, "val"), 1137)
    draw.shuffle(ids)
    return ids[:8498], ids[8498:]


def write_voc(folder: Path, voc: Path, labels_of: Callable[[str], np.ndarray], ids: list[str] | None = None) -> None:
    """Write VOC2012: lists, the 2,913 masks, an image for each id of either dataset.

    labels_of: label map (H, W) uint8 of an id. ids: write images and masks of these only, of all by default.
    """
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("train", "val", "trainval"):
        ids_of = read_list(voc, name)
        (folder / f"ImageSets/Segmentation/{name}.txt").write_text("".join(f"{i}\n" for i in ids_of))
    official = set(read_list(voc, "trainval"))
    for image_id in ids or sorted(official | set(read_list(voc, "train_aug"))):
        labels = labels_of(image_id)
        if image_id in official:
            (folder / f"SegmentationClass/{image_id}.png").write_bytes(encode_mask(labels))
        (folder / f"JPEGImages/{image_id}.jpg").write_bytes(stand_in(image_id, labels.shape[1], labels.shape[0]))


def write_sbd(folder: Path, voc: Path, labels_of: Callable[[str], np.ndarray], *, slip_in: str | None = None) -> None:
    """Write SBD's dataset/: train.txt, val.txt, cls/*.mat; slip_in: an id that is put into train.txt besides."""
    (folder / "cls").mkdir(parents=True, exist_ok=True)
    train, val = sbd_lists(voc)
    train = train if slip_in is None or slip_in in train else [*train, slip_in]
    (folder / "train.txt").write_text("".join(f"{i}\n" for i in train))
    (folder / "val.txt").write_text("".join(f"{i}\n" for i in val))
    for image_id in {*train, *val}:
        labels = labels_of(image_id)
        without_void = np.where(labels == IGNORE_LABEL, 0, labels).astype(np.uint8)
        (folder / f"cls/{image_id}.mat").write_bytes(quick_annotation(without_void))


def real_labels(voc: Path) -> Callable[[str], np.ndarray]:
    """The real masks."""
    return lambda image_id: np.array(Image.open(voc / f"SegmentationClassAug/{image_id}.png"))


def small_labels(image_id: str) -> np.ndarray:
    """A label map of 16 x 12 px that differs from id to id."""
    labels = np.random.default_rng(list(image_id.encode())).integers(0, 21, (12, 16), dtype=np.uint8)
    labels[0] = IGNORE_LABEL
    return labels


_FLAT: dict[tuple[int, int], bytes] = {}


def stand_in(image_id: str, width: int, height: int) -> bytes:
    """A grey JPEG of a size, with the id as its comment, so that no two are equal."""
    if (width, height) not in _FLAT:
        buffer = io.BytesIO()
        Image.new("RGB", (width, height), (128, 128, 128)).save(buffer, format="JPEG", quality=50)
        _FLAT[width, height] = buffer.getvalue()
    comment = image_id.encode()
    flat = _FLAT[width, height]
    return flat[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + flat[2:]
