"""Digests of the images of a split, read from its shards on all cores: what `segcore/seen_images.py` compares."""

import numpy as np

from segcore.seen_images import Looks, look_at
from tasks.datasets.shards import RowGroup, Split, read_looks, read_row_group, row_groups
from tasks.engines import spread
from tasks.storage import Location


def looks_of(dataset: Location, split: Split) -> tuple[list[str], Looks]:
    """Identities and digests of the images of a split, in the order of its rows; read where it lacks them."""
    found = list(spread(_look_at_group, row_groups(split), dataset))
    looks = [looks for _, looks in found]
    return [image_id for ids, _ in found for image_id in ids], Looks(
        np.concatenate([look.digests for look in looks]), np.concatenate([look.fingerprints for look in looks])
    )


def _look_at_group(group: RowGroup, dataset: Location) -> tuple[list[str], Looks]:
    if (stored := read_looks(dataset, group)) is not None:
        return stored
    table = read_row_group(dataset, group, ["id", "image"])
    images = table.column("image")
    return table.column("id").to_pylist(), look_at(images[k].as_py() for k in range(len(images)))
