"""A picture of a few images of a dataset with their masks: whether they fit is seen at a glance."""

import io

import numpy as np

from segcore.images import decode
from segcore.masks import decode_mask
from segcore.pictures import side_by_side
from segcore.voc import IGNORE_LABEL
from tasks import storage
from tasks.datasets import pairs, shards, voc_layout
from tasks.datasets.check import Examined

_GALLERY_PAIRS = 3
_GALLERY_SIDE_PX = 640


def gallery(examined: Examined, lists: dict[str, list[str]]) -> bytes | None:
    """A PNG with a few samples of the largest training list and of the smallest validation list; None without any."""
    by_size = sorted(lists, key=lambda name: len(lists[name]))
    training = [name for name in by_size if voc_layout.is_training(name)][-1:]
    validation = [name for name in by_size if voc_layout.is_validation(name)][:1]
    rows = []
    for name in [*training, *validation] or by_size[:1]:
        ids = shards.shard_order(lists[name])
        # Those with the most to see come first among the fair sample that the first images are
        shown = sorted(ids[:30], key=lambda i: -len(set(examined.checks[i].labels) - {0, IGNORE_LABEL}))
        for image_id in shown[:_GALLERY_PAIRS]:
            rows.append(_gallery_row(examined, image_id, name))
    if not rows:
        return None
    buffer = io.BytesIO()
    side_by_side(rows).save(buffer, format="PNG")
    return buffer.getvalue()


def _gallery_row(examined: Examined, image_id: str, split: str) -> tuple[np.ndarray, np.ndarray, str]:
    pair, check = examined.layout.pairs[image_id], examined.checks[image_id]
    assert pair.image is not None and pair.mask is not None
    image = decode(storage.read_bytes(pair.image.place), _GALLERY_SIDE_PX).image
    mask = storage.read_bytes(pair.mask.place)
    labels = decode_mask(mask if check.mask_is == "file" else pairs.mended_mask(pair, examined.layout.label_set))
    classes, area = examined.layout.label_set.classes, check.width * check.height
    named = [(p, classes[k]) for k, p in zip(check.labels, check.pixels, strict=True) if 0 < k < len(classes)]
    found = ", ".join(f"{name} {pixels / area:.0%}" for pixels, name in sorted(named, reverse=True)[:3])
    return image, labels, f"{image_id} ({split}): {found or 'background'}"
