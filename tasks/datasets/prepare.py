"""Preparing a dataset: fetch, unpack, prove, store. PASCAL VOC 2012 with SBD, or anybody's own in VOC layout.

Each step leaves what it has done where the next session finds it, so that the same command continues after any stop:
archives and unpacked files below `work`, what was read of each pair in `<output>/checks`, shards under names made of
their contents. The manifest is written last.
"""

import contextlib
import hashlib
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from segcore.datasets.pair_check import ADVICE, Kind, Level
from segcore.user_folder import user_folder
from segcore.voc import IGNORE_LABEL
from tasks import progress, storage
from tasks.datasets import check as dataset_check
from tasks.datasets import doctor, fetch, folders, shards, unpack
from tasks.datasets import layout as dataset_layout
from tasks.datasets import store as dataset_store
from tasks.datasets.fetch import Fetched
from tasks.datasets.layout import Layout, OwnData
from tasks.errors import JobError

OFFICIAL_COUNTS = {"train": 1464, "val": 1449, "trainval": 2913, "train_aug": 10582, "trainval_aug": 12031}
"""Images of VOC 2012 with SBD, as all papers have them."""


class DatasetJob(OwnData, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Which dataset to prepare, and where to put it. Without `data` and `images`, VOC 2012 with SBD."""

    output: str
    """URI that shards, manifest, gallery and findings are written under."""

    data: str | None = None
    """URI of the folder or local archive of a dataset of one's own; by default the folder `images`."""

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
    """TOML file with mirrors and checksums in place of tasks/datasets/mirrors.toml."""


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


def fetch_archives(job: DatasetJob) -> dict[str, Fetched]:
    """Bring what the dataset is made of: archives whose checksum is right, or folders."""
    _require_sense(job)
    output = storage.locate(job.output)
    above = [Path(output.path), *Path(output.path).parents] if output.protocol == "file" else []
    made = [folder for folder in above if not folder.exists()]
    storage.require_writable(output)
    for folder in made:  # A job that is refused after this leaves nothing behind
        with contextlib.suppress(OSError):
            folder.rmdir()
    archives = _work(job) / "archives"
    if (data := job.data or job.images) is not None:
        place = storage.locate(data)
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


def unpack_archives(job: DatasetJob, fetched: dict[str, Fetched]) -> Sources:
    """Take images, masks and lists out of the archives; folders stay where they are."""
    places = {}
    for name, source in fetched.items():
        if source.folder is not None:
            places[name] = source.folder.uri
            continue
        assert source.archive is not None
        key = source.origin.get("md5") or _stamp(source.archive)
        target = _work(job) / "unpacked" / f"{name}-{key[:12]}"
        wanted = _wanted_of_sbd if name == "sbd" else _wanted_of_voc if name == "voc" else _wanted_of_data
        unpack.unpack(source.archive, target, wanted, key=key, title=f"unpacking {source.archive.name}")
        places[name] = str(target)
    voc = places.get("data") or places["voc"]
    origins = {name: source.origin for name, source in fetched.items()}
    return Sources(voc=voc, sbd=places.get("sbd"), origins=origins)


def check_pairs(job: DatasetJob, sources: Sources) -> CheckSummary:
    """Read every image and mask once; write what is wrong, and stop where it makes pairs or splits unusable."""
    output = storage.locate(job.output)
    examined = dataset_check.examine(_layout(job, sources), output / "checks")
    storage.write_whole(output / "findings.csv", dataset_check.findings_csv(examined.findings))
    count = dataset_store.count_kinds(examined.findings)
    for kind, number in count.items():
        if ADVICE[Kind(kind)].level is not Level.NOTE:
            progress.say(f"{ADVICE[Kind(kind)].level.name.lower()}: {number:,} x {kind}")
    if not job.leave_out:
        dataset_check.require_usable(examined, (output / "findings.csv").uri)
    return CheckSummary(pairs=len(examined.checks), findings=count)


def write_shards(job: DatasetJob, sources: Sources) -> DatasetReport:
    """Write the shards that are not there yet, a picture of a few samples, and the manifest last."""
    start = time.monotonic()
    output = storage.locate(job.output)
    storage.sweep_temporary(output)
    examined = dataset_check.examine(_layout(job, sources), output / "checks")  # As it was found by the last step
    lists, left_out = dataset_store.usable_lists(examined, job.leave_out)
    parts, split_folders = dataset_store.plan_parts(examined, lists)
    files, written = dataset_store.write_parts(output, parts, examined)
    manifest = dataset_store.manifest_of(
        examined,
        lists,
        left_out,
        parts,
        split_folders,
        files,
        origins=sources.origins,
        prefer=job.prefer if sources.sbd is not None else None,
    )
    unchanged = not written and dataset_store.is_same_manifest(output, manifest)
    if not unchanged:
        picture = doctor.gallery(examined, lists)
        if picture is not None:
            storage.write_whole(output / "gallery.png", picture)
        shards.write_manifest(output, manifest)
        dataset_store.sweep(output, manifest, examined)
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
        findings=dataset_store.count_kinds(examined.findings),
        digest=manifest.digest,
        seconds=time.monotonic() - start,
    )


def say_splits(splits: dict[str, int]) -> str:
    """Splits with their images, for a person."""
    return ", ".join(f"{name} {images:,}" for name, images in splits.items())


def _require_sense(job: DatasetJob) -> None:
    own = job.data is not None or job.images is not None
    if own and (job.voc is not None or job.sbd is not None):
        raise JobError("Give either your own data, or --voc and --sbd for VOC 2012 with SBD.")
    if not own and any((job.lists, job.masks, job.classes, job.void, job.by_colour)):
        raise JobError(
            "--split, --masks, --classes, --void and --by-colour are for your own data; VOC 2012 with SBD has its own."
        )


def _work(job: DatasetJob) -> Path:
    if job.work is not None:
        place = storage.locate(job.work)
        if place.protocol != "file":
            raise JobError(f"{job.work} is no local folder: archives are unpacked on this machine.")
        return Path(place.path)
    return user_folder() / "datasets"


def _layout(job: DatasetJob, sources: Sources) -> Layout:
    voc = storage.locate(sources.voc)
    if (data := job.data or job.images) is not None:
        name = job.name or storage.locate(data).name.partition(".")[0]
        return folders.read_layout(voc, job, name=name)
    sbd = None if sources.sbd is None else storage.locate(sources.sbd)
    layout = folders.read_voc_with_sbd(voc, sbd, prefer_sbd=job.prefer == "sbd")
    layout.name = job.name or layout.name
    for name, ids in layout.lists.items():
        if len(ids) != OFFICIAL_COUNTS[name]:
            progress.say(f"{name} has {len(ids):,} images, the official lists give {OFFICIAL_COUNTS[name]:,}.")
    return layout


def _stamp(archive: Path) -> str:
    status = archive.stat()
    return hashlib.sha256(f"{archive} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()


def _wanted_of_voc(name: str) -> str | None:
    inside = name.rpartition("VOC2012/")[2] if "VOC2012/" in name else name
    folders = (f"{dataset_layout.IMAGES}/", "SegmentationClass/", f"{dataset_layout.LISTS}/")
    return inside if inside.startswith(folders) else None


def _wanted_of_sbd(name: str) -> str | None:
    inside = name.rpartition("dataset/")[2]
    return inside if inside.startswith("cls/") or inside in ("train.txt", "val.txt") else None


def _wanted_of_data(name: str) -> str | None:
    parts = name.split("/")
    return None if parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts) else name
