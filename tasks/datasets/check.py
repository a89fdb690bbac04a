"""The dataset doctor: every pair read once, on all cores; what is wrong with the whole; what is safe to mend.

What one pair is checked for is in `segcore/datasets/pair_check.py`.
"""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from segcore.datasets import pair_check
from segcore.datasets.label_set import LabelSet
from segcore.datasets.near_duplicates import close_pairs
from segcore.datasets.pair_check import ADVICE, Finding, Kind, Level
from segcore.voc import IGNORE_LABEL
from tasks import progress, storage, storage_faults
from tasks.datasets import shards
from tasks.datasets.layout import BEFORE_FIX, IMAGES, FileRef, Layout, Pair, is_training, is_validation, relative
from tasks.engines import spread
from tasks.errors import JobError
from tasks.parquet_files import read_parquet
from tasks.storage import Location

CHECK_VERSION = 3
"""Raised when a check changes, so that no stored one of before is taken for it."""

CHUNK_PAIRS = 128
"""Pairs of one piece of work, and of one stored file of checks."""

MAX_FILE_BYTES = 256 << 20
"""A larger photograph or mask is not read."""

REMEDY = "remove it and prepare again"
"""What to do about a damaged file of the preparation, as the end of a sentence."""

CHECKED = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("labels", pa.list_(pa.uint8())),
        ("pixels", pa.list_(pa.int64())),
        ("fingerprint", pa.uint64()),
        ("image_digest", pa.string()),
        ("digest", pa.string()),
        ("stored_bytes", pa.int64()),
        ("mask_is", pa.string()),
        ("kinds", pa.list_(pa.string())),
        ("details", pa.list_(pa.string())),
    ]
)
"""One row per pair: what the check found. `mask_is`: whether the stored mask is the "file" itself, "mended", "sbd", or
"none"; `digest`: of what is stored, empty where nothing can be."""


@dataclass(frozen=True)
class Checked:
    """What is known of one pair after it was read once."""

    id: str
    source: str
    width: int
    height: int
    labels: list[int]
    pixels: list[int]
    fingerprint: int | None
    image_digest: str
    digest: str
    stored_bytes: int
    mask_is: str
    kinds: list[str]
    details: list[str]

    @property
    def findings(self) -> list[Finding]:
        """What is wrong."""
        return [Finding(Kind[kind], detail) for kind, detail in zip(self.kinds, self.details, strict=True)]


_OF_IMAGE = (Kind.MISSING_IMAGE, Kind.IMAGE_UNREADABLE, Kind.SAME_IMAGE, Kind.LOOKS_SAME, Kind.SAME_WITHIN)


class Reported(BaseModel, frozen=True, use_attribute_docstrings=True):
    """One finding, as it stands in the table."""

    kind: Kind
    """What."""

    file: str
    """The file at fault, below the dataset."""

    detail: str
    """The facts."""

    image_id: str | None = None
    """The image that it concerns; None for a list or a class."""

    @property
    def level(self) -> Level:
        """How bad."""
        return ADVICE[self.kind].level


@dataclass
class Examined:
    """A dataset after every pair was read."""

    layout: Layout
    """What lies where."""

    checks: dict[str, Checked]
    """By id."""

    findings: list[Reported] = field(default_factory=list)
    """Worst first."""

    chunk_names: list[str] = field(default_factory=list)
    """Names of the stored checks that belong to this dataset as it is."""

    @property
    def errors(self) -> list[Reported]:
        """What makes pairs or splits unusable."""
        return [finding for finding in self.findings if finding.level is Level.ERROR]


def examine(layout: Layout, store: Location | None = None) -> Examined:
    """Read and check every pair of a dataset.

    store: folder in which what was found is kept piece by piece, so that a stop is continued and an unchanged dataset
    is not read again; None: nothing is kept.
    """
    every = list(layout.pairs.values())
    pieces = [every[start : start + CHUNK_PAIRS] for start in range(0, len(every), CHUNK_PAIRS)]
    names = [checked_name(piece, layout.label_set) for piece in pieces]
    there = set() if store is None else {file.path for file in storage.list_files(store)}
    missing = [piece for piece, name in zip(pieces, names, strict=True) if name not in there]
    fresh = spread(check_chunk, missing, layout.label_set, store, layout.root)
    checks: dict[str, Checked] = {}
    with progress.measured("checking", len(layout.pairs)) as tell:
        for name in names:
            known = None if store is None or name not in there else store / name
            checks.update((check.id, check) for check in (next(fresh) if known is None else _stored(known)))
            tell(len(checks))
    next(fresh, None)  # Ends the cluster
    examined = Examined(layout, checks, chunk_names=names)
    found = [*_of_pairs(examined), *_of_lists(examined), *_of_duplicates(examined), *_of_classes(examined)]
    order = {kind: number for number, kind in enumerate(Kind)}  # Kinds are listed from the worst on
    examined.findings = sorted(found, key=lambda f: (f.level, order[f.kind], f.file, f.image_id or "", f.detail))
    return examined


def check_chunk(pairs: list[Pair], label_set: LabelSet, store: Location | None, root: Location) -> list[Checked]:
    """Read and check some pairs.

    store: folder in which what was found is kept under a name made of all that decides it. root: a folder that must be
    seen here, or every file would be called missing on a machine of the cluster that does not share it.
    """
    if root.protocol == "file" and not Path(root.path).is_dir():
        raise JobError(f"A worker of the cluster does not see {root.path}: use a shared folder or a bucket.")
    checks = [_check(pair, label_set) for pair in pairs]
    # What could not be read is looked at again next time: it may be there by then
    failed = {Kind.IMAGE_UNREADABLE.name, Kind.MASK_UNREADABLE.name}
    if store is not None and not any(failed & set(check.kinds) for check in checks):
        table = pa.Table.from_pylist([asdict(check) for check in checks], CHECKED)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        storage.write_whole(store / checked_name(pairs, label_set), sink.getvalue().to_pybytes())
    return checks


def checked_name(pairs: list[Pair], label_set: LabelSet) -> str:
    """File name of stored checks."""
    files = [(p.id, p.source, _stamp(p.image), _stamp(p.mask)) for p in pairs]
    whole = json.dumps([CHECK_VERSION, asdict(label_set), files], sort_keys=True)
    return f"{hashlib.sha256(whole.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.parquet"


def _stored(place: Location) -> list[Checked]:
    return [Checked(**row) for row in read_parquet(place, REMEDY).to_pylist()]


def label_counts(examined: Examined, ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(256,) pixels and (256,) images of each label over some images."""
    pixels, present = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for image_id in ids:
        check = examined.checks[image_id]
        labels = np.array(check.labels, np.int64)
        pixels[labels] += np.array(check.pixels, np.int64)
        present[labels] += 1
    return pixels, present


def findings_csv(findings: list[Reported]) -> bytes:
    """Every finding as CSV, worst first."""
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(["level", "finding", "file", "facts", "remedy"])
    for found in findings:
        writer.writerow([found.level.name.lower(), found.kind, found.file, found.detail, ADVICE[found.kind].remedy])
    return sheet.getvalue().encode("utf-8", "surrogateescape")


def fix(examined: Examined) -> list[str]:
    """Mend what is safe, in place; returns the files that were changed, below the dataset.

    Each file's first version is kept under before-fix/. Masks: palette added, colours of classes written as labels,
    turned as EXIF turns the image. Lists: ids of val taken out of training lists, second lines removed.
    """
    layout = examined.layout
    storage.require_writable(layout.root)
    changed = []
    for image_id, check in examined.checks.items():
        pair = layout.pairs[image_id]
        if check.mask_is == "mended" and pair.mask is not None and pair.mask.made is None:
            changed.append(_replace_mask(layout, pair))
    leaking = {f.image_id for f in examined.findings if f.kind is Kind.LEAK}
    twice = {f.file.rpartition("/")[2] for f in examined.findings if f.kind is Kind.TWICE_LISTED}
    for name, place in layout.list_files.items():
        keep = [i for i in layout.lists[name] if not (is_training(name) and i in leaking)]
        if (len(keep) < len(layout.lists[name]) or place.name in twice) and relative(layout.root, place) != place.path:
            _keep_first(layout.root, place)
            storage.write_whole(place, "".join(f"{image_id}\n" for image_id in keep).encode())
            changed.append(relative(layout.root, place))
    return changed


def mended_mask(pair: Pair, label_set: LabelSet) -> bytes:
    """The mask of a pair as it is stored: palette PNG, upright, mended where that is safe."""
    assert pair.mask is not None
    image = None if pair.image is None else pair.image.read()
    mask = pair_check.check_pair(image, pair.mask.read(), label_set, sbd_mask=_is_sbd(pair.mask)).mask
    if mask is None:
        raise JobError(f"{pair.mask.place.uri} was changed while it was read: run again.")
    return mask


def _replace_mask(layout: Layout, pair: Pair) -> str:
    assert pair.mask is not None
    place = pair.mask.place
    mended = mended_mask(pair, layout.label_set)
    _keep_first(layout.root, place)
    stem, _, ending = place.path.rpartition(".")
    target = place if ending.lower() == "png" else Location(place.protocol, f"{stem}.png")
    storage.write_whole(target, mended)
    if target != place:
        storage.remove(place)
    return relative(layout.root, target)


def _keep_first(root: Location, place: Location) -> None:
    kept = root / BEFORE_FIX / relative(root, place)
    if not storage.exists(kept):
        storage.write_whole(kept, storage.read_bytes(place))


def _of_pairs(examined: Examined) -> Iterator[Reported]:
    layout = examined.layout
    for image_id, check in examined.checks.items():
        for found in check.findings:
            file = _file(layout, layout.pairs[image_id], found.kind)
            yield Reported(kind=found.kind, file=file, detail=found.detail, image_id=image_id)


def _file(layout: Layout, pair: Pair, kind: Kind) -> str:
    file = pair.image if kind in _OF_IMAGE else pair.mask
    if file is not None:
        return relative(layout.root, file.place) + (f", {file.part}" if file.part else "")
    return f"{IMAGES}/{pair.id}" if kind in _OF_IMAGE else pair.id


def _of_lists(examined: Examined) -> Iterator[Reported]:
    layout = examined.layout
    for file, found in layout.findings:
        about = found.detail if found.kind is Kind.TWICE_LISTED else None
        yield Reported(kind=found.kind, file=file, detail=found.detail, image_id=about)
    for training in filter(is_training, layout.lists):
        for validation in filter(is_validation, layout.lists):
            for image_id in sorted(set(layout.lists[training]) & set(layout.lists[validation])):
                detail = f"{image_id} is in {validation} too"
                yield Reported(kind=Kind.LEAK, file=_list_name(layout, training), detail=detail, image_id=image_id)


def _list_name(layout: Layout, name: str) -> str:
    place = layout.list_files.get(name)
    return f"list {name}" if place is None else relative(layout.root, place)


def _of_duplicates(examined: Examined) -> Iterator[Reported]:
    layout, checks = examined.layout, examined.checks
    validation = set().union(*(ids for name, ids in layout.lists.items() if is_validation(name)), set())
    training = set().union(*(ids for name, ids in layout.lists.items() if is_training(name)), set()) - validation
    first: dict[tuple[str, bool], str] = {}
    for image_id in sorted(training | validation):
        digest = checks[image_id].image_digest
        if not digest:
            continue
        of_val = image_id in validation
        other = first.get((digest, True))
        if other is not None and not of_val:
            yield _pair_finding(layout, Kind.SAME_IMAGE, image_id, other)
        elif (other := first.get((digest, of_val))) is not None:
            yield _pair_finding(layout, Kind.SAME_WITHIN, image_id, other)
        elif of_val and (other := first.get((digest, False))) is not None:
            yield _pair_finding(layout, Kind.SAME_IMAGE, other, image_id)
        first.setdefault((digest, of_val), image_id)
    for trained, judged, mirrored in _close(examined, sorted(training), sorted(validation)):
        if checks[trained].image_digest != checks[judged].image_digest:
            yield _pair_finding(layout, Kind.LOOKS_SAME, trained, judged, ", mirrored" if mirrored else "")


def _close(examined: Examined, training: list[str], validation: list[str]) -> Iterator[tuple[str, str, bool]]:
    marks = examined.checks
    trained = [i for i in training if marks[i].fingerprint is not None]
    judged = [i for i in validation if marks[i].fingerprint is not None]
    first = np.array([marks[i].fingerprint for i in trained], np.uint64)
    second = np.array([marks[i].fingerprint for i in judged], np.uint64)
    for i, j, mirrored in close_pairs(first, second):
        yield trained[i], judged[j], mirrored


def _pair_finding(layout: Layout, kind: Kind, image_id: str, other: str, how: str = "") -> Reported:
    file = _file(layout, layout.pairs[image_id], kind)
    return Reported(kind=kind, file=file, detail=f"as {other}{how}", image_id=image_id)


def _of_classes(examined: Examined) -> Iterator[Reported]:
    label_set = examined.layout.label_set
    _, present = label_counts(examined, list(examined.checks))
    for label, name in enumerate(() if label_set.assumed else label_set.classes):
        if not present[label] and present[:IGNORE_LABEL].any() and label not in label_set.unused:
            yield Reported(kind=Kind.CLASS_ABSENT, file=label_set.origin, detail=f"{label} {name}")


def require_usable(examined: Examined, where: str) -> None:
    """Raise JobError that sums up the errors of a dataset; where: the file that lists them all."""
    errors = examined.errors
    if not errors:
        return
    count = Counter(finding.kind for finding in errors)
    said = ", ".join(f"{number:,} x {kind}" for kind, number in count.most_common(4))
    example = errors[0]
    facts = f" ({example.detail})" if example.detail else ""
    raise JobError(
        f"{examined.layout.name} cannot be prepared as it is: {said}; first {example.file}{facts}. All stand in "
        f"{where}. Mend them, or prepare the others with --leave-out."
    )


def _check(pair: Pair, label_set: LabelSet) -> Checked:
    before: list[Finding] = []
    image = _read(pair.image, Kind.MISSING_IMAGE, Kind.IMAGE_UNREADABLE, before)
    mask = _read(pair.mask, Kind.MISSING_MASK, Kind.MASK_UNREADABLE, before)
    is_sbd = pair.mask is not None and _is_sbd(pair.mask)
    check = pair_check.check_pair(image, mask, label_set, sbd_mask=is_sbd)
    check.findings[:0] = before
    stored = check.mask if check.usable and image is not None else None
    mask_is = "none" if stored is None else "file" if stored == mask else "mended"
    if is_sbd and mask_is == "mended" and Kind.EXIF_ROTATED not in {f.kind for f in check.findings}:
        mask_is = "sbd"  # Written again without a look at the image
    present = np.flatnonzero(check.label_pixels)
    return Checked(
        id=pair.id,
        source=pair.source,
        width=check.width,
        height=check.height,
        labels=present.tolist(),
        pixels=check.label_pixels[present].tolist(),
        fingerprint=check.fingerprint,
        image_digest="" if image is None else hashlib.sha256(image).hexdigest(),
        digest="" if stored is None or image is None else shards.row_digest(image, stored),
        stored_bytes=0 if stored is None or image is None else len(image) + len(stored),
        mask_is=mask_is,
        kinds=[finding.kind.name for finding in check.findings],
        details=[finding.detail for finding in check.findings],
    )


def _read(file: FileRef | None, missing: Kind, unreadable: Kind, findings: list[Finding]) -> bytes | None:
    if file is None:
        findings.append(Finding(missing, ""))
        return None
    if file.size > MAX_FILE_BYTES:
        findings.append(Finding(unreadable, f"it has {file.size} bytes, more than {MAX_FILE_BYTES}"))
        return None
    # An outage or credentials that have expired stop the job, or every pair would be called broken and left out
    own_fault = (FileNotFoundError, PermissionError) if file.place.protocol == "file" else FileNotFoundError
    with storage.explained(file.place):
        try:
            return file.read()
        except own_fault as error:
            findings.append(Finding(unreadable, storage_faults.explain(error, file.place)))
            return None
        except ValueError as error:  # Of what a mask is painted from
            findings.append(Finding(unreadable, str(error)))
            return None


def _is_sbd(mask: FileRef) -> bool:
    return mask.place.path.endswith(".mat")


def _stamp(file: FileRef | None) -> list[str | int] | None:
    return None if file is None else [file.place.uri, file.size, file.version]
