"""Small datasets in VOC layout, as users have them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from segcore.images.masks import encode_mask
from tests.conftest import photograph

CLASSES = ("background", "cat", "dog")


def labels_of(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Label map (H, W) of three classes and a rim of void; size: width, height."""
    random, (width, height) = np.random.default_rng(seed), size
    labels = np.zeros((height, width), np.uint8)
    y, x = int(random.integers(1, height // 2)), int(random.integers(1, width // 2))
    labels[y - 1 : y + height // 3 + 1, x - 1 : x + width // 3 + 1] = 255
    labels[y : y + height // 3, x : x + width // 3] = 1 + seed % 2
    return labels


def jpeg(seed: int, size: tuple[int, int], orientation: int | None = None, quality: int = 90) -> bytes:
    """A photograph as a file."""
    buffer = io.BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    photograph(seed, size).save(buffer, format="JPEG", quality=quality, exif=exif)
    return buffer.getvalue()


def make_dataset(folder: Path, num_images: int = 8, *, num_val: int = 2, classes: bool = True) -> Path:
    """A sound dataset of three classes: img-0, img-1, ...; the last num_val are val."""
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for number in range(num_images):
        size = (60, 44) if number % 2 else (45, 61)
        (folder / f"JPEGImages/img-{number}.jpg").write_bytes(jpeg(number, size))
        (folder / f"SegmentationClass/img-{number}.png").write_bytes(encode_mask(labels_of(number, size)))
    ids = [f"img-{number}" for number in range(num_images)]
    write_list(folder, "train", ids[: num_images - num_val])
    write_list(folder, "val", ids[num_images - num_val :])
    if classes:
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return folder


def write_list(folder: Path, name: str, ids: list[str]) -> None:
    """Write a list of ids."""
    (folder / f"ImageSets/Segmentation/{name}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
