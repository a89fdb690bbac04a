"""Proof that every image of a run has exactly one row.

Reads every mask file of the run, small or compacted, but no masks, and a bounded number of rows at a time.
"""

import collections
import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks import storage
from tasks.archive.manifest import SEGMENT_IMAGES, Manifest, segment_names
from tasks.archive.output import Output
from tasks.archive.schema import DUPLICATE_OF, version_of
from tasks.archive.seals import Seal, segment_of
from tasks.errors import JobError
from tasks.parquet_files import naming_damage, read_parquet
from tasks.results import sealing
from tasks.results.reading import REMEDY
from tasks.segmentation.archive_job import COPIES, Identity, units_of
from tasks.segmentation.outcome import ArchiveReport, ClassCount
from tasks.storage import Location
from tasks.stream.rows import rows_as_file, write_rows
from tasks.stream.units import mask_file
from tasks.words import counted

_READERS = 16
_IMAGES_IN_FLIGHT = 2 * SEGMENT_IMAGES  # Whose identities are held while their files are read
_NAMED_AT_MOST = 5
_COLUMNS = ["image_id", "error_kind", "error", "classes", "mask_file"]


@dataclass(frozen=True)
class _Held:
    """What holds a fixed set of images: the small file of a unit, or the large files of a segment."""

    name: str
    """File name of the unit, or name of the segment."""

    places: tuple[Location, ...]
    seal: Seal | None = None


@dataclass
class _Check:
    """What was found in it."""

    missing: list[str] = field(default_factory=list)
    is_there: bool = True
    """Whether all of its files are."""

    foreign: tuple[_Held, set[str]] | None = None
    """It, and what belongs to it, where it holds more."""

    masks: int = 0
    duplicates: int = 0
    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    examples: list[str] = field(default_factory=list)
    classes: dict[str, ClassCount] = field(default_factory=dict)


def check_run(output: Output, identity: Identity, manifest: Manifest | None = None) -> ArchiveReport:
    """Prove that the files of a run hold exactly one row for every image of the manifest.

    Rows of images that a refresh or a rival listing has given to another part are dropped from their files, once every
    image has its row where it belongs.
    What another session lists while this reads is proved too: rows that its finish has dropped are no rows that are
    missing.
    Raises JobError that names images without a row.
    """
    manifest = manifest or output.manifest(identity.source_id)
    while True:
        # Seals that are copies are left aside: what they are made from is what counts
        alone = output.look(identity.run_id).alone
        report, missing, foreign, absent = _check_all(output, identity, manifest, alone)
        names = segment_names(manifest.folder)
        if names != report.segments:
            manifest = output.manifest(identity.source_id)
        # What became alone while this reads is found in its large files
        elif not missing or output.look(identity.run_id).alone == alone:
            break
    if missing:
        for held, _ in missing:
            _give_up(output, identity.run_id, held)
        count = sum(len(ids) for _, ids in missing)
        names = [image_id for _, ids in missing for image_id in ids[:_NAMED_AT_MOST]][:_NAMED_AT_MOST]
        more = f" and {count - _NAMED_AT_MOST} more" if count > _NAMED_AT_MOST else ""
        without = counted(count, "image has", "images have")
        raise JobError(f"{without} no row: {', '.join(names)}{more}. Run the same command again to do them.")
    # Before rows are dropped for others: a session may have died between the name of a file and its fsync
    for folder in (output.masks_folder(identity.run_id), manifest.folder):
        storage.make_durable(folder, output.place)
    changing = {segment for held, _ in foreign if held.seal is None and (segment := segment_of(held.name))}
    sealing.unseal(output, identity.run_id, changing)
    for held, wanted in foreign:
        _drop_foreign(output, identity.run_id, held, wanted, len(report.segments))
    for held in absent:  # A session that began before the refresh could still commit it, or has since it was looked for
        version = version_of({"deciding": identity.deciding})
        storage.write_whole(held.places[0], rows_as_file([], version, with_copies=identity.skip_duplicates))
    if report.images != report.masks + report.num_errors:
        raise JobError(
            f"Listed and found differ ({report.sentence}) in "
            f"{output.masks_folder(identity.run_id).uri}: did somebody else write there? Remove the files of this run "
            "and run it again."
        )
    return report


def _check_all(
    output: Output, identity: Identity, manifest: Manifest, alone: dict[str, Seal]
) -> tuple[ArchiveReport, list[tuple[_Held, list[str]]], list[tuple[_Held, set[str]]], list[_Held]]:
    """What the files of a run hold; which lack images, and which; which hold images of others, and what is theirs; and
    which are not there, with nothing that would belong to them."""
    report = ArchiveReport(identity.run_id, output.uri, identity.model_name, compacted=bool(alone))
    report.segments = [segment.name for segment in manifest.segments]
    errors: collections.Counter[str] = collections.Counter()
    missing: list[tuple[_Held, list[str]]] = []
    foreign: list[tuple[_Held, set[str]]] = []
    absent: list[_Held] = []
    waiting: collections.deque[tuple[_Held, int, Future[_Check]]] = collections.deque()
    in_flight = 0
    there = output.label_files(identity.run_id)

    def take_one() -> None:
        nonlocal in_flight
        held, images, future = waiting.popleft()
        check = future.result()
        in_flight -= images
        if check.missing:
            # What was not there may be by now, since another session has committed it: no file to give up
            missing.append((held if check.is_there else replace(held, places=()), check.missing))
        if check.foreign is not None:
            foreign.append(check.foreign)
        if not (check.is_there or check.missing) and held.seal is None:
            absent.append(held)
        _add(report, errors, check)

    with ThreadPoolExecutor(_READERS) as pool:
        for held, expected in _expected(output, identity, manifest, alone):
            while waiting and (in_flight + len(expected) > _IMAGES_IN_FLIGHT or len(waiting) >= 4 * _READERS):
                take_one()
            waiting.append((held, len(expected), pool.submit(_check, held, expected, there)))
            in_flight += len(expected)
            report.images += len(expected)
        while waiting:
            take_one()
    report.label_files = len(there)
    report.errors = dict(errors.most_common())
    report.classes = dict(sorted(report.classes.items(), key=most_images_first))
    return report, missing, foreign, absent


def _expected(
    output: Output, identity: Identity, manifest: Manifest, alone: dict[str, Seal]
) -> Iterator[tuple[_Held, list[str]]]:
    """What must hold which images."""
    folder, sealed = output.masks_folder(identity.run_id), output.sealed_folder(identity.run_id)
    copies_of = identity.copies(output)
    for name, parts in itertools.groupby(manifest.parts(), key=lambda part: part.segment):
        seal = alone.get(name)
        if seal is not None:
            places = tuple(sealed / seal.prefix / file.path for file in seal.files)
            yield _Held(name, places, seal), [image_id for part in parts for image_id in part.image_ids()]
            continue
        for part in parts:
            for unit, start, end in units_of(part, identity.unit_images):
                ids, copies = part.image_ids(start, end), copies_of.among(part, start, end)
                if not copies or len(copies) < end - start:
                    file = mask_file(unit)
                    yield _Held(file, (folder / file,)), [i for i in ids if i not in copies] if copies else ids
                if copies:
                    file = mask_file(unit + COPIES)
                    yield _Held(file, (folder / file,)), [i for i in ids if i in copies]


def _with_masks(table: pa.Table, there: set[str]) -> pa.Table:
    """The rows without those whose mask should lie beside them and does not: images that are to be done again."""
    if "mask_file" not in table.column_names:
        return table
    named = table["mask_file"].to_pylist()
    return table.filter(pa.array([name is None or name in there for name in named], pa.bool_()))


def _check(held: _Held, expected: list[str], there: set[str]) -> _Check:
    check, present = _Check(), set[str]()
    wanted = set(expected)
    for place in held.places:
        try:
            # A few kB of the file: not the masks
            with naming_damage(place, REMEDY), storage.open_for_reading(place, sparse=True) as opened:
                file = pq.ParquetFile(opened)
                columns = [name for name in (*_COLUMNS, DUPLICATE_OF) if name in file.schema_arrow.names]
                for group in range(file.metadata.num_row_groups):
                    _count(
                        check, _with_masks(file.read_row_group(group, columns=columns), there), place, present, wanted
                    )
        except FileNotFoundError:  # Its images will be missing
            check.is_there = False
    missing = [image_id for image_id in expected if image_id not in present]
    if missing:
        return _Check(missing, check.is_there)
    if present != wanted:
        check.foreign = (held, wanted)
    return check


def _count(check: _Check, table: pa.Table, place: Location, present: set[str], wanted: set[str]) -> None:
    """Add rows that are read at a time to what was found; present: identities found until now."""
    found = table["image_id"].to_pylist()
    before = len(present)
    present.update(found)
    if len(present) != before + len(found):
        raise JobError(f"{place.uri} holds an image twice; remove the file and run again.")
    if not wanted.issuperset(found):
        table = table.filter(pa.array([image_id in wanted for image_id in found]))
    kinds = table["error_kind"].to_pylist()
    check.errors.update(kind for kind in kinds if kind is not None)
    check.masks += kinds.count(None)
    if DUPLICATE_OF in table.column_names:
        check.duplicates += len(table) - table[DUPLICATE_OF].null_count
    if len(check.examples) < _NAMED_AT_MOST and len(kinds) != kinds.count(None):
        named = table.filter(pc.is_valid(table["error"]))
        reasons = zip(named["image_id"].to_pylist(), named["error"].to_pylist(), strict=True)
        check.examples += [f"{i}: {reason}" for i, reason in reasons][: _NAMED_AT_MOST - len(check.examples)]
    classes = pc.list_flatten(table["classes"])
    flat = pa.table({name: pc.struct_field(classes, name) for name in ("name", "pixels")})
    for row in flat.group_by("name").aggregate([("pixels", "count"), ("pixels", "sum")]).to_pylist():
        count = check.classes.setdefault(row["name"], ClassCount())
        count.images += row["pixels_count"]
        count.pixels += row["pixels_sum"]


def _give_up(output: Output, run_id: str, held: _Held) -> None:
    """Out of the way with what lacks rows, never written by us: the next run does it again as a whole."""
    if held.seal is not None:
        sealing.give_up(output, run_id, held.seal)
    else:
        for place in held.places:
            storage.remove(place)


def _drop_foreign(output: Output, run_id: str, held: _Held, wanted: set[str], segments: int) -> None:
    """Write again what holds rows of images that another part owns, without them. segments: of the manifest."""
    if held.seal is not None:
        sealing.rewrite_without(output, run_id, held.seal, wanted, segments)
        return
    [place] = held.places  # Also where nothing is left: a session that began before could commit it again
    table = read_parquet(place, REMEDY)
    ours = [image_id in wanted for image_id in table["image_id"].to_pylist()]
    write_rows(place, table.filter(pa.array(ours, pa.bool_())))  # Another finish may have emptied it by now


def _add(report: ArchiveReport, errors: collections.Counter[str], check: _Check) -> None:
    report.masks += check.masks
    report.duplicates += check.duplicates
    errors.update(check.errors)
    report.examples.extend(check.examples[: max(0, _NAMED_AT_MOST - len(report.examples))])
    for name, count in check.classes.items():
        total = report.classes.setdefault(name, ClassCount())
        total.images += count.images
        total.pixels += count.pixels


def most_images_first(item: tuple[str, ClassCount]) -> tuple[int, str]:
    """Key that sorts classes."""
    return -item[1].images, item[0]
