"""Preparing a dataset: fetch, unpack, prove, store. PASCAL VOC 2012 with SBD, or anybody's own in VOC layout.

Each step leaves what it has done where the next session finds it, so that the same command continues after any stop:
archives and unpacked files below `work`, what was read of each pair in `<output>/checks`, shards under names made of
their contents. The manifest is written last.
"""

import hashlib
import io
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
import numpy as np
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from pydantic import BaseModel

from segcore.images import decode
from segcore.masks import decode_mask
from segcore.pair_check import ADVICE, Kind, Level
from segcore.pictures import side_by_side
from segcore.voc import IGNORE_LABEL
from tasks import dataset_check, fetch, pairs, progress, shards, storage, unpack, voc_layout
from tasks.dataset_check import Examined, Reported
from tasks.errors import JobError
from tasks.fetch import Fetched
from tasks.pairs import Part
from tasks.shards import DatasetManifest, ShardFile, Split
from tasks.spread import spread
from tasks.storage import Location
from tasks.voc_layout import Layout

OFFICIAL_COUNTS = {"train": 1464, "val": 1449, "trainval": 2913, "train_aug": 10582, "trainval_aug": 12031}
"""Images of VOC 2012 with SBD, as all papers have them."""

_GALLERY_PAIRS = 3
_GALLERY_SIDE_PX = 640


class DatasetJob(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Which dataset to prepare, and where to put it. Without `data`, VOC 2012 with SBD."""

    output: str
    """URI that shards, manifest, gallery and findings are written under."""

    data: str | None = None
    """URI of a folder or local archive in VOC layout: JPEGImages, SegmentationClass, ImageSets/Segmentation."""

    lists: dict[str, str] | None = None
    """With `data`: list files by the split that they make; a path, or a name in ImageSets/Segmentation."""

    masks: str | None = None
    """With `data`: folder of the masks, where it is neither SegmentationClassAug nor SegmentationClass."""

    val_share: Annotated[float, annotated_types.Interval(ge=0.0, lt=1.0)] = 0.1
    """With `data` without lists: share of the images that becomes val."""

    voc: str | None = None
    """VOC 2012 trainval: archive, folder, object or URL; by default it is fetched."""

    sbd: str | None = None
    """SBD's benchmark.tgz: archive, folder, object or URL; by default it is fetched."""

    with_sbd: bool = True
    """False prepares VOC 2012 alone: train, val and trainval."""

    prefer: Literal["voc", "sbd"] = "voc"
    """Whose mask counts where a training image has both; val always keeps VOC's."""

    leave_out: bool = False
    """Prepare what is in order and leave out the rest, instead of stopping."""

    name: str | None = None
    """Name of the dataset, by default "voc2012" or the folder's."""

    work: str | None = None
    """Local folder for archives and what is unpacked; by default below the user's cache."""

    mirrors: str | None = None
    """TOML file with mirrors and checksums in place of tasks/dataset_mirrors.toml."""


class Sources(BaseModel, frozen=True, use_attribute_docstrings=True):
    """Folders that the dataset is read from."""

    voc: str
    """URI of the folder in VOC layout."""

    sbd: str | None
    """URI of the folder with SBD's annotations."""

    origins: dict[str, dict[str, str]]
    """Archives with checksums, or the names of folders."""


class CheckSummary(BaseModel, frozen=True, use_attribute_docstrings=True):
    """What the check found, in numbers."""

    pairs: int
    """Images with masks that were read."""

    findings: dict[str, int]
    """Findings by kind, worst first."""


class DatasetReport(BaseModel, frozen=True, use_attribute_docstrings=True):
    """What was prepared."""

    name: str
    """Of the dataset."""

    output: str
    """Where it is."""

    splits: dict[str, int]
    """Images by split."""

    classes: dict[str, tuple[int, int]]
    """Images and pixels by class, over all splits."""

    void_share: float
    """Of all pixels, 0..1."""

    files: int
    """Shards."""

    written_now: int
    """Shards that were not there before."""

    unchanged: bool
    """Whether all of it was there already."""

    bytes: int
    """Of all shards."""

    mended: int
    """Masks that were mended on the way."""

    left_out: int
    """Images that are in no split because something is wrong with them."""

    findings: dict[str, int]
    """Findings by kind, worst first."""

    digest: str
    """Of the dataset."""

    seconds: float
    """Of checking and writing."""


@task(name="fetch-archives", cache_policy=NO_CACHE)
def fetch_archives(job: DatasetJob) -> dict[str, Fetched]:
    """Bring what the dataset is made of: archives whose checksum is right, or folders."""
    _require_sense(job)
    storage.require_writable(storage.locate(job.output))
    archives = _work(job) / "archives"
    if job.data is not None:
        place = storage.locate(job.data)
        with storage.explained(place):
            is_archive = storage.is_file(place)
        if is_archive and place.protocol != "file":
            raise JobError(f"{place.uri} is one object: bring it to this machine, or unpack it into the bucket.")
        origin = {"folder": place.name}
        return {"data": Fetched(Path(place.path), None, origin) if is_archive else Fetched(None, place, origin)}
    published = fetch.read_mirrors(Path(job.mirrors) if job.mirrors else fetch.MIRRORS)
    wanted = {"voc": job.voc} | ({"sbd": job.sbd} if job.with_sbd else {})
    return {
        name: fetch.fetch(published[name], given, archives, room_for=published[name].unpacked_bytes)
        for name, given in wanted.items()
    }


@task(name="unpack-archives", cache_policy=NO_CACHE)
def unpack_archives(job: DatasetJob, fetched: dict[str, Fetched]) -> Sources:
    """Take images, masks and lists out of the archives; folders stay where they are."""
    folders = {}
    for name, source in fetched.items():
        if source.folder is not None:
            folders[name] = source.folder.uri
            continue
        assert source.archive is not None
        key = source.origin.get("md5") or _stamp(source.archive)
        target = _work(job) / "unpacked" / f"{name}-{key[:12]}"
        wanted = _wanted_of_sbd if name == "sbd" else _wanted_of_voc if name == "voc" else _wanted_of_data
        unpack.unpack(source.archive, target, wanted, key=key, title=f"unpacking {source.archive.name}")
        folders[name] = str(target)
    voc = folders.get("data") or folders["voc"]
    origins = {name: source.origin for name, source in fetched.items()}
    return Sources(voc=voc, sbd=folders.get("sbd"), origins=origins)


@task(name="check-pairs", cache_policy=NO_CACHE)
def check_pairs(job: DatasetJob, sources: Sources) -> CheckSummary:
    """Read every image and mask once; write what is wrong, and stop where it makes pairs or splits unusable."""
    output = storage.locate(job.output)
    examined = dataset_check.examine(_layout(job, sources), output / "checks")
    storage.write_whole(output / "findings.csv", dataset_check.findings_csv(examined.findings))
    count = count_kinds(examined.findings)
    for kind, number in count.items():
        if ADVICE[Kind(kind)].level is not Level.NOTE:
            progress.say(f"{ADVICE[Kind(kind)].level.name.lower()}: {number:,} x {kind}")
    if not job.leave_out:
        dataset_check.require_usable(examined, (output / "findings.csv").uri)
    return CheckSummary(pairs=len(examined.checks), findings=count)


@task(name="write-shards", cache_policy=NO_CACHE)
def write_shards(job: DatasetJob, sources: Sources) -> DatasetReport:
    """Write the shards that are not there yet, a picture of a few samples, and the manifest last."""
    start = time.monotonic()
    output = storage.locate(job.output)
    storage.sweep_temporary(output)
    examined = dataset_check.examine(_layout(job, sources), output / "checks")  # As it was found by the last step
    lists, left_out = usable_lists(examined, job.leave_out)
    parts, split_folders = plan_parts(examined, lists)
    files, written = _write_parts(output, parts, examined)
    manifest = _manifest(job, sources, examined, lists, left_out, parts, split_folders, files)
    unchanged = not written and _same_manifest(output, manifest)
    if not unchanged:
        picture = gallery(examined, lists)
        if picture is not None:
            storage.write_whole(output / "gallery.png", picture)
        shards.write_manifest(output, manifest)
        _sweep(output, manifest, examined)
    pixels, present = dataset_check.label_counts(examined, sorted(set().union(*lists.values())))
    return DatasetReport(
        name=manifest.name,
        output=job.output,
        splits={name: split.images for name, split in manifest.splits.items()},
        classes={name: (int(present[k]), int(pixels[k])) for k, name in enumerate(manifest.classes)},
        void_share=float(pixels[IGNORE_LABEL] / max(1, pixels.sum())),
        files=len(files),
        written_now=written,
        unchanged=unchanged,
        bytes=sum(file.bytes for file in files.values()),
        mended=sum(examined.checks[i].mask_is == "mended" for i in set().union(*lists.values())),
        left_out=len(left_out),
        findings=count_kinds(examined.findings),
        digest=manifest.digest,
        seconds=time.monotonic() - start,
    )


@task(name="publish-dataset", cache_policy=NO_CACHE)
def publish_dataset(report: DatasetReport) -> None:
    """Show a dataset in Prefect: splits, classes, findings."""
    if FlowRunContext.get() is None:
        return
    lines = [
        f"# {report.name}: {say_splits(report.splits)}",
        f"In `{report.output}`, digest `{report.digest[:12]}`.",
        "",
    ]
    lines += ["| class | images | pixels |", "|---|---:|---:|"]
    lines += [f"| {name} | {images:,} | {pixels:,} |" for name, (images, pixels) in report.classes.items()]
    lines += ["", "| finding | times |", "|---|---:|", *(f"| {kind} | {n:,} |" for kind, n in report.findings.items())]
    create_markdown_artifact(key="prepare-dataset", markdown="\n".join(lines), description=report.name)


def say_splits(splits: dict[str, int]) -> str:
    """Splits with their images, for a person."""
    return ", ".join(f"{name} {images:,}" for name, images in splits.items())


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
        train = voc_layout.is_training(name)
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


def _require_sense(job: DatasetJob) -> None:
    if job.data is not None and (job.voc is not None or job.sbd is not None):
        raise JobError("Give either your own data, or --voc and --sbd for VOC 2012 with SBD.")
    if job.data is None and (job.lists is not None or job.masks is not None):
        raise JobError("--split and --masks are for your own --data; the lists of VOC 2012 with SBD are computed.")


def _work(job: DatasetJob) -> Path:
    if job.work is not None:
        place = storage.locate(job.work)
        if place.protocol != "file":
            raise JobError(f"{job.work} is no local folder: archives are unpacked on this machine.")
        return Path(place.path)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "segment-archive" / "datasets"


def _layout(job: DatasetJob, sources: Sources) -> Layout:
    voc = storage.locate(sources.voc)
    if job.data is not None:
        name = job.name or storage.locate(job.data).name.partition(".")[0]
        return voc_layout.read_layout(voc, lists=job.lists, masks=job.masks, val_share=job.val_share, name=name)
    sbd = None if sources.sbd is None else storage.locate(sources.sbd)
    layout = voc_layout.read_voc_with_sbd(voc, sbd, prefer_sbd=job.prefer == "sbd")
    layout.name = job.name or layout.name
    for name, ids in layout.lists.items():
        if len(ids) != OFFICIAL_COUNTS[name]:
            progress.say(f"{name} has {len(ids):,} images, the official lists give {OFFICIAL_COUNTS[name]:,}.")
    return layout


def _part(examined: Examined, folder: str, number: int, ids: list[str]) -> Part:
    checks = [examined.checks[i] for i in ids]
    contents = [(c.id, c.digest, c.source, c.width, c.height) for c in checks]
    whole = json.dumps([shards.FORMAT_VERSION, shards.ROW_GROUP_BYTES, folder, contents])
    digest = hashlib.sha256(whole.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    path = f"shards/split={folder}/part-{number:05d}-{digest}.parquet"
    return Part(path, folder, [examined.layout.pairs[i] for i in ids], checks)


def _write_parts(output: Location, parts: list[Part], examined: Examined) -> tuple[dict[str, ShardFile], int]:
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
        for part, file in zip(rest, spread(pairs.write_part, rest, examined.layout.label_set, output), strict=True):
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


def _manifest(
    job: DatasetJob,
    sources: Sources,
    examined: Examined,
    lists: dict[str, list[str]],
    left_out: list[str],
    parts: list[Part],
    folders_of: dict[str, list[str]],
    files: dict[str, ShardFile],
) -> DatasetManifest:
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
        "sources": sources.origins,
        "classes_from": examined.layout.label_set.origin,
        "prefer": job.prefer if sources.sbd is not None else None,
        "masks_by_source": dict(sorted(Counter(p.source for part in parts for p in part.pairs).items())),
        "mended_masks": sum(check.mask_is == "mended" for part in parts for check in part.checks),
        "left_out": left_out,
        "findings": count_kinds(examined.findings),
        "program": f"segment-archive {version('segment-archive')}",
    }
    digest = shards.dataset_digest(classes, splits)
    name = examined.layout.name
    return DatasetManifest(name=name, classes=classes, splits=splits, digest=digest, provenance=provenance)


def _same_manifest(output: Location, manifest: DatasetManifest) -> bool:
    try:
        return shards.read_manifest(output) == manifest
    except JobError:
        return False


def _sweep(output: Location, manifest: DatasetManifest, examined: Examined) -> None:
    """Remove shards and checks of inputs that have changed since; after the manifest that no longer names them."""
    wanted = {file.path for split in manifest.splits.values() for file in split.files}
    wanted |= {f"checks/{name}" for name in examined.chunk_names}
    for folder in ("shards", "checks"):
        for file in list(storage.list_files(output / folder)):
            if file.path.endswith(".parquet") and f"{folder}/{file.path}" not in wanted:
                storage.remove(output / folder / file.path)


def _stamp(archive: Path) -> str:
    status = archive.stat()
    return hashlib.sha256(f"{archive} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()


def _wanted_of_voc(name: str) -> str | None:
    inside = name.rpartition("VOC2012/")[2] if "VOC2012/" in name else name
    folders = (f"{voc_layout.IMAGES}/", "SegmentationClass/", f"{voc_layout.LISTS}/")
    return inside if inside.startswith(folders) else None


def _wanted_of_sbd(name: str) -> str | None:
    inside = name.rpartition("dataset/")[2]
    return inside if inside.startswith("cls/") or inside in ("train.txt", "val.txt") else None


def _wanted_of_data(name: str) -> str | None:
    parts = name.split("/")
    return None if parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts) else name
