"""A prepared dataset of a few small photographs with masks, for tests of training."""

import io

import numpy as np
from PIL import Image

from tasks import storage
from tasks.datasets import shards
from tasks.storage import Location
from tests.conftest import photograph

CLASSES = ["background", "bright", "dark"]


def write_dataset(uri: str, num_train: int = 8, num_val: int = 3) -> Location:
    """Splits "train" and "val"; a pixel's class follows from its brightness, with a border of 255."""
    place = storage.locate(uri)
    splits = {}
    for split, numbers in (("train", range(num_train)), ("val", range(100, 100 + num_val))):
        rows = [_row(split, number) for number in numbers]
        digests = {row.id: row.digest for row in rows}
        file = shards.write_part(place, f"shards/split={split}/part-00000.parquet", rows)
        splits[split] = shards.Split(
            images=len(rows),
            files=[file],
            class_pixels=[1, 1, 1],
            class_images=[1, 1, 1],
            void_pixels=0,
            digest=shards.split_digest(digests),
        )
    digest = shards.dataset_digest(CLASSES, splits)
    manifest = shards.DatasetManifest(name="small", classes=CLASSES, splits=splits, digest=digest, provenance={})
    shards.write_manifest(place, manifest)
    return place


def _row(split: str, number: int) -> shards.ShardRow:
    size = (64, 48) if number % 2 else (49, 65)
    picture = photograph(number, size)
    grey = np.asarray(picture.convert("L"))
    labels = np.where(grey > 120, 1, np.where(grey < 70, 2, 0)).astype(np.uint8)
    labels[:2] = 255
    image, mask = io.BytesIO(), io.BytesIO()
    picture.save(image, "JPEG", quality=95)
    Image.fromarray(labels).save(mask, "PNG")
    data, truth = image.getvalue(), mask.getvalue()
    digest = shards.row_digest(data, truth)
    return shards.ShardRow(f"photo-{number}", split, data, truth, *size, source="made", digest=digest)
