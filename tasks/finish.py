"""The end of a run: proof that every image has exactly one row, and what is in the archive.

Reads every mask file of the run, but neither masks nor more than one file's rows at a time per reader.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext

from tasks import progress, runs, storage
from tasks.archive import (
    RETRIES,
    ArchiveJob,
    ArchivePlan,
    Identity,
    SessionReport,
    identify,
    manifest_folder,
    masks_folder,
    png_folder,
    units_of,
)
from tasks.errors import JobError
from tasks.manifest import Manifest
from tasks.pipeline import write_rows
from tasks.png_files import png_name, write_png
from tasks.report import ReportJob, build_report, gallery_folder
from tasks.storage import Location
from tasks.units import mask_file

_READERS = 16
_NAMED_AT_MOST = 5


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

    session: SessionReport = field(default_factory=SessionReport)

    @property
    def num_errors(self) -> int:
        return sum(self.errors.values())


@dataclass
class _FileCheck:
    missing: list[str]
    foreign: tuple[Location, set[str]] | None
    """The file and what belongs to it, where it holds more."""

    masks: int
    errors: collections.Counter[str]
    examples: list[str]
    classes: dict[str, ClassCount]


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
    report = ArchiveReport(identity.run_id, output.uri, identity.model_name)
    errors: collections.Counter[str] = collections.Counter()
    classes: dict[str, ClassCount] = {}
    missing: list[str] = []
    foreign: list[tuple[Location, set[str]]] = []
    manifest = manifest or Manifest(manifest_folder(output, identity))
    folder = masks_folder(output, identity.run_id)
    with ThreadPoolExecutor(_READERS) as pool:
        waiting: collections.deque[Future[_FileCheck]] = collections.deque()
        for place, expected in _expected_files(manifest, folder, identity.unit_images):
            waiting.append(pool.submit(_check_file, place, expected))
            report.images += len(expected)
            if len(waiting) >= 4 * _READERS:
                _add(report, errors, classes, missing, foreign, waiting.popleft().result())
        while waiting:
            _add(report, errors, classes, missing, foreign, waiting.popleft().result())
    report.errors = dict(errors.most_common())
    report.classes = dict(sorted(classes.items(), key=_most_images_first))
    if missing:
        more = f" and {len(missing) - _NAMED_AT_MOST} more" if len(missing) > _NAMED_AT_MOST else ""
        names = ", ".join(missing[:_NAMED_AT_MOST])
        raise JobError(f"{len(missing)} images have no row: {names}{more}. Run the same command again to do them.")
    for place, wanted in foreign:
        _drop_foreign(place, wanted)
    if report.images != report.masks + report.num_errors:
        raise JobError(
            f"{report.images} images are listed, but there are {report.masks} masks and {report.num_errors} errors in "
            f"{folder.uri}: did somebody else write there? Remove the files of this run and run it again."
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
    lines += ["```sql", query(report), "```"]
    return "\n".join(lines)


def query(report: ArchiveReport) -> str:
    """A first question to the output, in DuckDB's SQL."""
    files = f"{report.output.rstrip('/')}/masks/run={report.run_id}/*.parquet".replace("'", "''")
    return (
        "SELECT class.name AS name, count(*) AS images, round(avg(class.pixels / area), 3) AS mean_share\n"
        f"FROM (SELECT unnest(classes) AS class, mask_width * mask_height AS area FROM '{files}')\n"
        "GROUP BY ALL ORDER BY images DESC, name LIMIT 8"
    )


def _expected_files(manifest: Manifest, folder: Location, unit_images: int) -> Iterator[tuple[Location, list[str]]]:
    for part in manifest.parts():
        for name, start, end in units_of(part, unit_images):
            yield folder / mask_file(name), part.image_ids(start, end)


def _check_file(place: Location, expected: list[str]) -> _FileCheck:
    columns = ["image_id", "error_kind", "error", "classes"]
    try:
        with storage.open_for_reading(place, sparse=True) as opened:  # A few kB of the file: not the masks
            table = pq.read_table(opened, columns=columns, partitioning=None)
    except FileNotFoundError:
        return _FileCheck(expected, None, 0, collections.Counter(), [], {})
    except pa.ArrowException as error:
        raise JobError(
            f"{place.uri} is not readable as Parquet ({str(error).splitlines()[0]}); remove it and run again."
        ) from None
    found = table["image_id"].to_pylist()
    wanted, present = set(expected), set(found)
    if len(present) != len(found):
        raise JobError(f"{place.uri} holds an image twice; remove the file and run again.")
    missing = [image_id for image_id in expected if image_id not in present]
    if missing:  # Never written by us: out of the way, so that the next run does the whole unit again
        storage.remove(place)
        return _FileCheck(missing, None, 0, collections.Counter(), [], {})
    foreign = None
    if present != wanted:
        foreign = (place, wanted)
        table = table.filter(pa.array([image_id in wanted for image_id in found]))
        found = table["image_id"].to_pylist()
    check = _FileCheck([], foreign, 0, collections.Counter(), [], {})
    kinds = table["error_kind"].to_pylist()
    check.errors.update(kind for kind in kinds if kind is not None)
    check.masks = kinds.count(None)
    reasons = zip(found, table["error"].to_pylist(), strict=True)
    check.examples = [f"{i}: {reason}" for i, reason in itertools.islice((r for r in reasons if r[1]), _NAMED_AT_MOST)]
    for classes in table["classes"].to_pylist():
        for entry in classes or ():
            count = check.classes.setdefault(entry["name"], ClassCount())
            count.images += 1
            count.pixels += entry["pixels"]
    return check


def _drop_foreign(place: Location, wanted: set[str]) -> None:
    """Write a file again without the rows of images that another part owns."""
    if not wanted:
        storage.remove(place)
        return
    table = pq.read_table(pa.BufferReader(storage.read_bytes(place)), partitioning=None)
    write_rows(place, table.filter(pa.array([image_id in wanted for image_id in table["image_id"].to_pylist()])))


def complete_pngs(output: Location, run_id: str) -> None:
    """Write the masks that have no file of their own yet: of units that were done before anybody asked for files."""
    folder, png = masks_folder(output, run_id), png_folder(output, run_id)
    there = {file.path for file in storage.list_files(png)}
    for file in storage.list_files(folder):
        with storage.open_for_reading(folder / file.path, sparse=True) as opened:
            ids = pq.read_table(opened, columns=["image_id"], partitioning=None)["image_id"].to_pylist()
        if all(png_name(image_id) in there for image_id in ids):
            continue
        data = storage.read_bytes(folder / file.path)
        for row in pq.read_table(pa.BufferReader(data), columns=["image_id", "mask"], partitioning=None).to_pylist():
            if row["mask"] is not None and png_name(row["image_id"]) not in there:
                write_png(png, row["image_id"], row["mask"])


def _add(
    report: ArchiveReport,
    errors: collections.Counter[str],
    classes: dict[str, ClassCount],
    missing: list[str],
    foreign: list[tuple[Location, set[str]]],
    check: _FileCheck,
) -> None:
    report.masks += check.masks
    errors.update(check.errors)
    missing.extend(check.missing)
    if check.foreign is not None:
        foreign.append(check.foreign)
    report.examples.extend(check.examples[: max(0, _NAMED_AT_MOST - len(report.examples))])
    for name, count in check.classes.items():
        total = classes.setdefault(name, ClassCount())
        total.images += count.images
        total.pixels += count.pixels


def _most_images_first(item: tuple[str, ClassCount]) -> tuple[int, str]:
    return -item[1].images, item[0]


def _finished_before(output: Location, identity: Identity, segments: list[str]) -> ArchiveReport | None:
    """The report of a run that was proved before over these very segments."""
    record = runs.read(output, identity.run_id)
    if record.get("status") != runs.FINISHED or record.get("segments") != segments:
        return None
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
    )
