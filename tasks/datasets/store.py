"""What of a checked dataset is stored: lists without what is unusable, files named by their contents, the manifest.

An image is stored once however many splits it is in; what is there already is not written again. What is asked of a
dataset, and in which order its steps go, is in `prepare.py`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from segcore.datasets import near_duplicates, sbd
from segcore.datasets.label_set import LabelSet
from segcore.datasets.pair_check import Kind
from segcore.images.masks import encode_mask
from segcore.voc import IGNORE_LABEL
from tasks import progress, storage
from tasks.datasets import check as dataset_check
from tasks.datasets import fetch, shards
from tasks.datasets import layout as dataset_layout
from tasks.datasets.check import Checked, Examined, Reported
from tasks.datasets.layout import Pair
from tasks.datasets.shards import DatasetManifest, ShardFile, ShardRow, Split
from tasks.engines import spread
from tasks.errors import JobError
from tasks.storage import Location


@dataclass(frozen=True)
class Part:
    """One file of a dataset that is to be written."""

    path: str
    """Below the dataset."""

    split: str
    """Folder that it is stored in."""

    pairs: list[Pair]
    """In the order of rows."""

    checks: list[Checked]
    """One for each pair."""


def write_part(part: Part, label_set: LabelSet, dataset: Location) -> ShardFile:
    """Read the pairs of a part again and write them; or say what is there, where the part is written already."""
    if storage.is_file(dataset / part.path):
        return shards.read_part(dataset, part.path)
    return shards.write_part(dataset, part.path, _rows(part, label_set))


def count_kinds(findings: Sequence[Reported]) -> dict[str, int]:
    """Findings by kind, in the order in which the kinds first stand there."""
    return {str(kind): number for kind, number in Counter(finding.kind for finding in findings).items()}


def usable_lists(examined: Examined, leave_out: bool) -> tuple[dict[str, list[str]], list[str]]:
    """Lists without what cannot be used, and the ids that are in no list any more.

    leave_out: also takes out of training lists what is, by its id or its bytes, in a validation list.
    """
    layout = examined.layout
    leaking = {f.image_id for f in examined.findings if f.kind in (Kind.LEAK, Kind.SAME_IMAGE)} if leave_out else set()
    lists = {}
    for name, ids in layout.lists.items():
        train = dataset_layout.is_training(name)
        lists[name] = [i for i in ids if examined.checks[i].digest and not (train and i in leaking)]
    lists = {name: ids for name, ids in lists.items() if ids}
    if not lists:
        raise JobError(f"Nothing of {layout.name} is left to prepare: no list has an image with a mask.")
    kept = set().union(*lists.values())
    return lists, sorted(layout.pairs.keys() - kept)


def partitions(lists: dict[str, list[str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Divide images into folders, so that every list is some whole folders and no image is stored twice.

    Returns ids by folder, and folders by list. A folder is called as the smallest list that it is in, with `_only`
    where it is not the whole list: VOC's are train, train_aug_only and val.
    """
    member_of: dict[str, list[str]] = {}
    for name in sorted(lists, key=lambda n: (len(set(lists[n])), n)):
        for image_id in lists[name]:
            if name not in (names := member_of.setdefault(image_id, [])):
                names.append(name)
    groups: dict[tuple[str, ...], list[str]] = {}
    for image_id in sorted(member_of):
        groups.setdefault(tuple(member_of[image_id]), []).append(image_id)
    folders: dict[str, list[str]] = {}
    folders_of: dict[str, list[str]] = {name: [] for name in lists}
    for members, ids in sorted(groups.items()):
        whole = len(ids) == len(set(lists[members[0]]))
        folder = members[0] if whole else f"{members[0]}_only"
        while folder in folders:
            folder = f"{folder}_"
        folders[folder] = ids
        for name in members:
            folders_of[name].append(folder)
    return folders, folders_of


def plan_parts(examined: Examined, lists: dict[str, list[str]]) -> tuple[list[Part], dict[str, list[str]]]:
    """The files to write, each named by its contents, and the folders of each list."""
    folders, folders_of = partitions(lists)
    parts = []
    for folder, ids in sorted(folders.items()):
        held: list[str] = []
        size, number = 0, 0
        order = shards.shard_order(ids)
        for position, image_id in enumerate(order):
            held.append(image_id)
            size += examined.checks[image_id].stored_bytes
            if size >= shards.PART_BYTES or position == len(order) - 1:
                parts.append(_part(examined, folder, number, held))
                held, size, number = [], 0, number + 1
    return parts, folders_of


def _part(examined: Examined, folder: str, number: int, ids: list[str]) -> Part:
    checks = [examined.checks[i] for i in ids]
    contents = [(c.id, c.digest, c.source, c.width, c.height, c.fingerprint) for c in checks]
    whole = json.dumps([shards.FORMAT_VERSION, near_duplicates.VERSION, shards.ROW_GROUP_BYTES, folder, contents])
    digest = hashlib.sha256(whole.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    path = f"shards/split={folder}/part-{number:05d}-{digest}.parquet"
    return Part(path, folder, [examined.layout.pairs[i] for i in ids], checks)


def _rows(part: Part, label_set: LabelSet) -> Iterator[ShardRow]:
    for pair, check in zip(part.pairs, part.checks, strict=True):
        assert pair.image is not None and pair.mask is not None
        with storage.explained(pair.image.place):
            image = pair.image.read()
            if check.mask_is == "mended":
                mask = dataset_check.mended_mask(pair, label_set)
            else:
                mask = pair.mask.read()
                mask = encode_mask(sbd.decode_annotation(mask)) if check.mask_is == "sbd" else mask
        if shards.row_digest(image, mask) != check.digest:
            raise JobError(f"Image or mask of {pair.id} was changed while the dataset was prepared: run again.")
        size, look = (check.width, check.height), check.fingerprint or 0
        yield ShardRow(pair.id, part.split, image, mask, *size, pair.source, check.digest, fingerprint=look)


def write_parts(output: Location, parts: list[Part], examined: Examined) -> tuple[dict[str, ShardFile], int]:
    """The files by path, and how many of them were written now."""
    there = {f"shards/{file.path}": file.size for file in storage.list_files(output / "shards")}
    known = _known_files(output)
    files = {p.path: known[p.path] for p in parts if p.path in known and known[p.path].bytes == there.get(p.path)}
    rest = [part for part in parts if part.path not in files]
    new = [part for part in rest if part.path not in there]
    size = sum(check.stored_bytes for part in new for check in part.checks)
    if output.protocol == "file" and size:
        fetch.require_space(Path(output.path), size, "The dataset")
    done = sum(len(part.pairs) for part in parts) - sum(len(part.pairs) for part in rest)
    with progress.measured("writing", sum(len(part.pairs) for part in parts)) as tell:
        for part, file in zip(rest, spread(write_part, rest, examined.layout.label_set, output), strict=True):
            files[part.path] = file
            done += len(part.pairs)
            tell(done)
    return files, len(new)


def _known_files(output: Location) -> dict[str, ShardFile]:
    """What the manifest of before says of its files, so that they need not be read to be known."""
    try:
        manifest = shards.read_manifest(output)
    except JobError:
        return {}
    return {file.path: file for split in manifest.splits.values() for file in split.files}


def manifest_of(
    examined: Examined,
    lists: dict[str, list[str]],
    left_out: list[str],
    parts: list[Part],
    folders_of: dict[str, list[str]],
    files: dict[str, ShardFile],
    *,
    origins: dict[str, dict[str, str]],
    prefer: str | None,
) -> DatasetManifest:
    """The manifest of a dataset whose files are all there.

    origins: archives with checksums, or names of folders. prefer: whose mask counts where two datasets have one.
    """
    classes = list(examined.layout.label_set.classes)
    splits = {}
    for name, ids in lists.items():
        own = [files[part.path] for part in parts if part.split in folders_of[name]]
        stored = sum(file.rows for file in own)
        if stored != len(set(ids)):
            raise JobError(f"Split {name} has {len(set(ids))} images, its files hold {stored}: remove them, run again.")
        pixels, present = dataset_check.label_counts(examined, list(dict.fromkeys(ids)))
        splits[name] = Split(
            images=stored,
            files=own,
            class_pixels=pixels[: len(classes)].tolist(),
            class_images=present[: len(classes)].tolist(),
            void_pixels=int(pixels[IGNORE_LABEL]),
            digest=shards.split_digest({i: examined.checks[i].digest for i in ids}),
        )
    provenance: dict[str, Any] = {
        "sources": origins,
        "classes_from": examined.layout.label_set.origin,
        "prefer": prefer,
        "masks_by_source": dict(sorted(Counter(p.source for part in parts for p in part.pairs).items())),
        "mended_masks": sum(check.mask_is == "mended" for part in parts for check in part.checks),
        "left_out": left_out,
        "findings": count_kinds(examined.findings),
        "program": f"segment-archive {version('segment-archive')}",
    }
    digest = shards.dataset_digest(classes, splits)
    name = examined.layout.name
    return DatasetManifest(name=name, classes=classes, splits=splits, digest=digest, provenance=provenance)


def is_same_manifest(output: Location, manifest: DatasetManifest) -> bool:
    """Whether this manifest is the one that is there."""
    try:
        return shards.read_manifest(output) == manifest
    except JobError:
        return False


def sweep(output: Location, manifest: DatasetManifest, examined: Examined) -> None:
    """Remove shards and checks of inputs that have changed since; after the manifest that no longer names them."""
    wanted = {file.path for split in manifest.splits.values() for file in split.files}
    wanted |= {f"checks/{name}" for name in examined.chunk_names}
    for folder in ("shards", "checks"):
        for file in list(storage.list_files(output / folder)):
            if file.path.endswith(".parquet") and f"{folder}/{file.path}" not in wanted:
                storage.remove(output / folder / file.path)
