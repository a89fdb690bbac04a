"""The end of a run: proof that every image has exactly one row, and what is in the archive.

Reads every mask file of the run, small or compacted, but no masks, and a bounded number of rows at a time.
"""

import collections
import dataclasses
import hashlib
import itertools
import shlex
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext

from tasks import compaction, progress, runs, storage
from tasks import pointer as pointers
from tasks.archive import (
    RETRIES,
    ArchiveJob,
    ArchivePlan,
    Identity,
    identify,
    manifest_folder,
    png_folder,
    units_of,
)
from tasks.archive_session import SessionReport
from tasks.errors import JobError
from tasks.gallery_files import gallery_folder
from tasks.manifest import SEGMENT_IMAGES, Manifest
from tasks.parquet_files import naming_damage, read_parquet
from tasks.pipeline import write_rows
from tasks.png_files import png_name, write_png
from tasks.pointer import CompactedSegment, Pointer, masks_folder
from tasks.report import ReportJob, build_report
from tasks.results import REMEDY, Results, mask_files
from tasks.storage import Location
from tasks.units import mask_file

_READERS = 16
_IMAGES_IN_FLIGHT = 2 * SEGMENT_IMAGES  # Whose identities are held while their files are read
_NAMED_AT_MOST = 5
_COLUMNS = ["image_id", "error_kind", "error", "classes"]


@dataclass
class ClassCount:
    """One class over the whole archive."""

    images: int = 0
    """Images with at least one pixel of it."""

    pixels: int = 0


@dataclass
class ArchiveReport:
    """What came out: `images == masks + errors`."""

    run_id: str
    output: str
    model: str
    images: int = 0
    masks: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    """Error rows by kind, most frequent first."""

    classes: dict[str, ClassCount] = field(default_factory=dict)
    """By name, in most images first."""

    examples: list[str] = field(default_factory=list)
    """A few error rows: identity and reason."""

    done_now: int = 0
    """Images done by this session."""

    gallery: str | None = None
    """Page of the gallery; None where none was made."""

    contact_sheet: str | None = None
    """A dozen overlays in one picture."""

    compacted: bool = False
    """Whether large files stand for small ones."""

    session: SessionReport = field(default_factory=SessionReport)

    @property
    def num_errors(self) -> int:
        return sum(self.errors.values())


@dataclass(frozen=True)
class _Held:
    """What holds a fixed set of images: the small file of a unit, or the large files of a segment."""

    name: str
    """File name of the unit, or name of the segment."""

    places: tuple[Location, ...]
    segment: CompactedSegment | None = None


@dataclass
class _Check:
    """What was found in it."""

    missing: list[str] = field(default_factory=list)
    foreign: tuple[_Held, set[str]] | None = None
    """It, and what belongs to it, where it holds more."""

    masks: int = 0
    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    examples: list[str] = field(default_factory=list)
    classes: dict[str, ClassCount] = field(default_factory=dict)


@task(name="publish-report", cache_policy=NO_CACHE, **RETRIES)
def publish_report(job: ArchiveJob, plan: ArchivePlan, session: SessionReport) -> ArchiveReport:
    """Check that every image has exactly one row, write the run record, and show what is in the archive."""
    output = storage.locate(job.output)
    identity = identify(job)
    with storage.explained(output):
        manifest = Manifest(manifest_folder(output, identity))
        segments = [segment.name for segment in manifest.segments]
        known = None if plan.remaining_units else _finished_before(output, identity, segments)
        if known is None:
            try:
                report = check_run(output, identity, manifest)
            except JobError:
                runs.end(output, plan.run_id, runs.FAILED, dataclasses.asdict(session) if session.images else None)
                raise
        if job.png:
            complete_pngs(output, plan.run_id)
    if known is not None:
        return known
    report.session, report.done_now = session, session.images
    facts = {
        "images": report.images,
        "segments": segments,
        "compacted": _compacted(output, plan.run_id),
        "masks": report.masks,
        "errors": report.errors,
        "error_examples": report.examples,
        "classes": {name: dataclasses.asdict(count) for name, count in report.classes.items()},
    }
    runs.end(output, plan.run_id, runs.FINISHED, dataclasses.asdict(session) if session.images else None, **facts)
    for own in ("manifest", "masks", "runs", "png"):
        storage.sweep_temporary(output / own)
    show(report)
    return report


@task(name="publish-gallery", cache_policy=NO_CACHE)
def publish_gallery(job: ArchiveJob, report: ArchiveReport) -> ArchiveReport:
    """Make the gallery of a sample, and show its link; returns the report with it.

    The rows are proved and recorded by now: whatever goes wrong here is said, and fails nothing.
    """
    if not job.gallery_images:
        return report
    output = storage.locate(job.output)
    try:
        folder = gallery_folder(output, report.run_id)
        index, sheet = folder / "index.html", folder / "contact-sheet.png"
        if report.done_now or not storage.exists(index):
            build_report(ReportJob(output=job.output, run=report.run_id, images=job.gallery_images))
        pictured = sheet.uri if storage.exists(sheet) else None
        if FlowRunContext.get() is not None or TaskRunContext.get() is not None:
            create_link_artifact(
                link=storage.web_address(index),
                link_text=f"Gallery of {report.masks} masks: {index.uri}",
                key="segment-archive-gallery",
                description="What the masks look like",
            )
    except Exception as error:
        progress.say(f"No gallery was made ({str(error) or type(error).__name__}). The masks are complete.")
        return report
    return dataclasses.replace(report, gallery=index.uri, contact_sheet=pictured)


def check_run(output: Location, identity: Identity, manifest: Manifest | None = None) -> ArchiveReport:
    """Prove that the files of a run hold exactly one row for every image of the manifest.

    Rows of images that a refresh or a rival listing has given to another part are dropped from their files, once every
    image has its row where it belongs.
    Raises JobError that names images without a row.
    """
    manifest = manifest or Manifest(manifest_folder(output, identity))
    while True:
        pointer = pointers.read(output, identity.run_id)
        report, missing, foreign = _check_all(output, identity, manifest, pointer)
        # What a compaction names while this reads is found where the new pointer says
        if not missing or pointers.read(output, identity.run_id) == pointer:
            break
    if missing:
        for held, _ in missing:
            _give_up(output, identity.run_id, held)
        count = sum(len(ids) for _, ids in missing)
        names = [image_id for _, ids in missing for image_id in ids[:_NAMED_AT_MOST]][:_NAMED_AT_MOST]
        more = f" and {count - _NAMED_AT_MOST} more" if count > _NAMED_AT_MOST else ""
        raise JobError(f"{count} images have no row: {', '.join(names)}{more}. Run the same command again to do them.")
    for held, wanted in foreign:
        _drop_foreign(output, identity.run_id, held, wanted)
    if report.images != report.masks + report.num_errors:
        raise JobError(
            f"{report.images} images are listed, but there are {report.masks} masks and {report.num_errors} errors in "
            f"{masks_folder(output, identity.run_id).uri}: did somebody else write there? Remove the files of this run "
            "and run it again."
        )
    return report


def show(report: ArchiveReport) -> None:
    """Prefect artifacts of the running flow: a summary, and a table of what is in the archive."""
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return
    create_markdown_artifact(markdown=summary(report), key="segment-archive-summary", description="What came out")
    rows = [
        {"class": name, "images": count.images, "share of images": f"{count.images / max(1, report.masks):.1%}"}
        for name, count in report.classes.items()
    ]
    if rows:
        create_table_artifact(table=rows, key="segment-archive-classes", description="What is in the archive")


def summary(report: ArchiveReport) -> str:
    """The result in Markdown."""
    lines = [
        f"# {report.images} images: {report.masks} masks, {report.num_errors} errors",
        "",
        f"Run `{report.run_id}` of model {report.model}, in `{report.output}`.",
        "",
    ]
    session = report.session
    if session.images:
        lines += [
            f"This session did {session.images} images in {session.seconds:.0f} s "
            f"({session.images / max(1e-9, session.seconds):.2f} images/s; {session.workers}).",
            "",
            "| stage | busy share of its workers | images/s of one worker | units that wait before it |",
            "|---|---|---|---|",
            *(
                f"| {n} | {s['busy_share']:.0%} | {s['images_per_s']:.2f} | {s['queue_units']:.1f} |"
                for n, s in session.stages.items()
            ),
            "",
            *([f"**{session.warning}**", ""] if session.warning else []),
        ]
    if report.errors:
        lines += ["| error | images |", "|---|---|", *(f"| {kind} | {n} |" for kind, n in report.errors.items()), ""]
    lines += ["```" if report.compacted else "```sql", query(report), "```"]
    return "\n".join(lines)


def query(report: ArchiveReport) -> str:
    """A first question to the output: DuckDB's SQL over its files, or our command where they were compacted."""
    if report.compacted:
        sql = "SELECT class, count(*) FROM objects GROUP BY ALL ORDER BY 2 DESC"
        return f"segment-archive query {shlex.quote(report.output)} --run {report.run_id} {shlex.quote(sql)}"
    files = f"{report.output.rstrip('/')}/masks/run={report.run_id}/*.parquet".replace("'", "''")
    return (
        "SELECT class.name AS name, count(*) AS images, round(avg(class.pixels / area), 3) AS mean_share\n"
        f"FROM (SELECT unnest(classes) AS class, mask_width * mask_height AS area FROM '{files}')\n"
        "GROUP BY ALL ORDER BY images DESC, name LIMIT 8"
    )


def _check_all(
    output: Location, identity: Identity, manifest: Manifest, pointer: Pointer
) -> tuple[ArchiveReport, list[tuple[_Held, list[str]]], list[tuple[_Held, set[str]]]]:
    """What the files of a run hold; which lack images, and which; which hold images of others, and what is theirs."""
    report = ArchiveReport(identity.run_id, output.uri, identity.model_name, compacted=bool(pointer.segments))
    errors: collections.Counter[str] = collections.Counter()
    missing: list[tuple[_Held, list[str]]] = []
    foreign: list[tuple[_Held, set[str]]] = []
    waiting: collections.deque[tuple[_Held, int, Future[_Check]]] = collections.deque()
    in_flight = 0

    def take_one() -> None:
        nonlocal in_flight
        held, images, future = waiting.popleft()
        check = future.result()
        in_flight -= images
        if check.missing:
            missing.append((held, check.missing))
        if check.foreign is not None:
            foreign.append(check.foreign)
        _add(report, errors, check)

    with ThreadPoolExecutor(_READERS) as pool:
        for held, expected in _expected(output, identity, manifest, pointer):
            while waiting and (in_flight + len(expected) > _IMAGES_IN_FLIGHT or len(waiting) >= 4 * _READERS):
                take_one()
            waiting.append((held, len(expected), pool.submit(_check, held, expected)))
            in_flight += len(expected)
            report.images += len(expected)
        while waiting:
            take_one()
    report.errors = dict(errors.most_common())
    report.classes = dict(sorted(report.classes.items(), key=_most_images_first))
    return report, missing, foreign


def _expected(
    output: Location, identity: Identity, manifest: Manifest, pointer: Pointer
) -> Iterator[tuple[_Held, list[str]]]:
    """What must hold which images."""
    folder = masks_folder(output, identity.run_id)
    for name, parts in itertools.groupby(manifest.parts(), key=lambda part: part.segment):
        held = pointer.segments.get(name)
        if held is not None:
            places = tuple(pointers.place_of(output, identity.run_id, held, file) for file in held.files)
            yield _Held(name, places, held), [image_id for part in parts for image_id in part.image_ids()]
            continue
        for part in parts:
            for unit, start, end in units_of(part, identity.unit_images):
                file = mask_file(unit)
                yield _Held(file, (folder / file,)), part.image_ids(start, end)


def _check(held: _Held, expected: list[str]) -> _Check:
    check, present = _Check(), set[str]()
    wanted = set(expected)
    for place in held.places:
        try:
            # A few kB of the file: not the masks
            with naming_damage(place, REMEDY), storage.open_for_reading(place, sparse=True) as opened:
                file = pq.ParquetFile(opened)
                for group in range(file.metadata.num_row_groups):
                    _count(check, file.read_row_group(group, columns=_COLUMNS), place, present, wanted)
        except FileNotFoundError:
            pass  # Its images will be missing
    missing = [image_id for image_id in expected if image_id not in present]
    if missing:
        return _Check(missing)
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


def _give_up(output: Location, run_id: str, held: _Held) -> None:
    """Out of the way with what lacks rows, never written by us: the next run does it again as a whole."""
    if held.segment is not None:
        compaction.uncover(output, run_id, held.name)
    else:
        storage.remove(held.places[0])


def _drop_foreign(output: Location, run_id: str, held: _Held, wanted: set[str]) -> None:
    """Write again what holds rows of images that another part owns, without them."""
    if held.segment is not None:
        compaction.rewrite_without(output, run_id, held.name, wanted)
        return
    [place] = held.places
    if not wanted:
        storage.remove(place)
        return
    table = read_parquet(place, REMEDY)
    write_rows(place, table.filter(pa.array([image_id in wanted for image_id in table["image_id"].to_pylist()])))


def complete_pngs(output: Location, run_id: str) -> None:
    """Write the masks that have no file of their own yet: of units that were done before anybody asked for files."""
    png = png_folder(output, run_id)
    there = {file.path for file in storage.list_files(png)}
    for file in mask_files(output, run_id):
        ids = [
            image_id for table in Results.read_file(file, ["image_id"]) for image_id in table["image_id"].to_pylist()
        ]
        if all(png_name(image_id) in there for image_id in ids):
            continue
        for table in Results.read_file(file, ["image_id", "mask"]):
            for row in table.to_pylist():
                if row["mask"] is not None and png_name(row["image_id"]) not in there:
                    write_png(png, row["image_id"], row["mask"])


def _add(report: ArchiveReport, errors: collections.Counter[str], check: _Check) -> None:
    report.masks += check.masks
    errors.update(check.errors)
    report.examples.extend(check.examples[: max(0, _NAMED_AT_MOST - len(report.examples))])
    for name, count in check.classes.items():
        total = report.classes.setdefault(name, ClassCount())
        total.images += count.images
        total.pixels += count.pixels


def _most_images_first(item: tuple[str, ClassCount]) -> tuple[int, str]:
    return -item[1].images, item[0]


def _finished_before(output: Location, identity: Identity, segments: list[str]) -> ArchiveReport | None:
    """The report of a run that was proved before over these very segments, in the files that hold them now."""
    record = runs.read(output, identity.run_id)
    if record.get("status") != runs.FINISHED or record.get("segments") != segments:
        return None
    if record.get("compacted") != _compacted(output, identity.run_id):
        return None  # What stands for the proved files since then is proved too, once
    classes = {name: ClassCount(**count) for name, count in record.get("classes", {}).items()}
    classes = dict(sorted(classes.items(), key=_most_images_first))
    return ArchiveReport(
        run_id=identity.run_id,
        output=output.uri,
        model=identity.model_name,
        images=record["images"],
        masks=record["masks"],
        errors=dict(sorted(record["errors"].items(), key=lambda item: -item[1])),
        classes=classes,
        examples=record.get("error_examples", []),
        compacted=record.get("compacted") is not None,
    )


def _compacted(output: Location, run_id: str) -> str | None:
    """Names what stands for small files; None where nothing does."""
    segments = pointers.read(output, run_id).segments
    prefixes = "".join(sorted(held.prefix for held in segments.values()))
    return hashlib.sha256(prefixes.encode()).hexdigest()[:12] if segments else None
