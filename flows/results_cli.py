"""Console commands about results: `segment-archive query`, `find`, `report`, `export`, `annotate` and others."""

from typing import Annotated

from cyclopts import Parameter

from flows import screen
from flows.options import PRINTING, Json, Quiet, UsageError, flag, options
from flows.screen import Format
from tasks.results.export import ExportJob
from tasks.results.keywords import AnnotateJob
from tasks.results.publish import PublishJob
from tasks.results.query import FindJob
from tasks.results.report import ReportJob
from tasks.results.sealing import CompactJob
from tasks.words import counted

Output = Annotated[str, Parameter(help="Folder or s3://bucket/prefix that `segment-archive run` wrote.")]
Run = Annotated[str | None, Parameter(help="Run to read.", show_default="the one that finished last")]
AsFormat = Annotated[Format | None, Parameter(name="--format", help="How to print the answer.", show_default="table")]
To = Annotated[str | None, Parameter(name="--to", help="File for the answer; its ending names the format.")]


def query(
    output: Output,
    sql: Annotated[str | None, Parameter(help="SQL over the views.", show_default="list the views")] = None,
    /,
    *,
    run: Run = None,
    format_: AsFormat = None,
    to: To = None,
    json: Json = False,
) -> None:
    """Query one run in SQL (DuckDB); the views are images, objects, errors, masks, runs and metrics.

    For example:

    segment-archive query OUTPUT "SELECT class, count(*) FROM objects GROUP BY ALL ORDER BY 2 DESC"

    segment-archive query OUTPUT "DESCRIBE objects"
    """
    from tasks.results import query as asking

    chosen = _format(format_, to, json)
    if sql is not None:
        screen.show_answer(asking.ask(output, sql, run), chosen, to)
        return
    answer = asking.ask(output, "SELECT run_id, status, model, images FROM runs WHERE chosen", run)
    [(run_id, status, model, images)] = answer.rows()
    if json:
        screen.print_json({"run": run_id, "status": status, "model": model, "images": images, "views": asking.VIEWS})
        return
    print(f"Run {run_id} ({status}): {counted(images, 'image')} by {model}. Its views:")
    print(asking.views_told())
    print(
        'For example: segment-archive query OUTPUT "SELECT class, count(*) FROM objects GROUP BY ALL ORDER BY 2 DESC"'
    )
    print('Columns of a view: segment-archive query OUTPUT "DESCRIBE objects"')


@options(names={"classes": "--class -c", "limit": "--limit -n"})
def find(
    job: FindJob,
    output: Output,
    /,
    *,
    run: Run = None,
    format_: AsFormat = None,
    to: To = None,
    json: Json = False,
) -> None:
    """Find images by class, share and confidence, without SQL. --sort annotate: what to annotate next.

    For example:

    segment-archive find OUTPUT --class dog --min-share 0.1 --sort confidence --limit 20

    segment-archive find OUTPUT --class dog --class person
    """
    from tasks.results.query import find as find_images

    chosen = _format(format_, to, json)
    screen.show_answer(find_images(output, job, run), chosen, to)


@options(arguments=("output",), names={"images": "--images -n", "to": "--to -o"})
def report(
    job: ReportJob,
    *,
    open_: Annotated[bool, flag("Open it in the browser.", "--open", group=PRINTING)] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a gallery to look at: static pages that open from a disk or a bucket.

    For example:

    segment-archive report OUTPUT --open

    segment-archive report OUTPUT --where "confidence < 0.6" --order "entropy DESC"
    """
    from tasks.results.report import MOST_IMAGES, build_report

    with screen.Counter("images", quiet=quiet or json) as counter:
        made = build_report(job, counter)
    if open_:
        screen.open_page(made.address)
    if json:
        screen.print_json(made)
    if json or quiet:
        return
    print(f"{made.shown:,} of {counted(made.matching, 'image')} in {made.seconds:.1f} s.")
    if made.matching > made.shown and job.images > MOST_IMAGES:
        print(f"A gallery holds {MOST_IMAGES} at most; choose with --where and --order.")
    if made.photographs_missing:
        missing = counted(made.photographs_missing, "photograph")
        print(f"{missing} could not be read any more: the gallery shows the mask alone.")
    if made.sheet:
        print(f"Contact sheet: {made.sheet}")
    print(f"Gallery: {made.index}")
    if made.address != made.index:
        print(f"In a browser: {made.address}")


@options(
    arguments=("output", "destination"),
    names={"classes": "--class -c", "limit": "--limit -n"},
    groups={"Which images": (*FindJob.model_fields, "ids"), "Regions": ("shapes", "tolerance_px")},
)
def export(job: ExportJob, *, json: Json = False, quiet: Quiet = False) -> None:
    """Export the masks of a run for other tools. The same command goes on where it was ended.

    For example:

    segment-archive export OUTPUT coco/ --to coco

    segment-archive export OUTPUT voc/ --to voc --photographs

    segment-archive export OUTPUT review/ --to label-studio --photographs --sort annotate --limit 50

    segment-archive export OUTPUT dogs/ --to cvat --shapes polygons --class dog --min-share 0.1
    """
    from tasks.results.export import export_run

    with screen.Counter("images", quiet=quiet or json) as counter:
        done = export_run(job, counter)
    if json:
        screen.print_json(done)
    if json or quiet:
        return
    if done.done_before == done.masks:
        print("Nothing to do: the export is complete.")
    regions = f", {counted(done.annotations, 'region')}" if done.annotations else ""
    without = f"{counted(done.without_mask, 'image')} {'has' if done.without_mask == 1 else 'have'} none"
    print(f"{counted(done.masks, 'mask')}{regions} of run {done.run_id} as {done.format}; {without}.")
    if done.photographs or done.photographs_missing:
        print(
            f"{counted(done.photographs, 'photograph')} copied, {done.photographs_missing} could not be read any more."
        )
    if done.too_large:
        print(f"{counted(done.too_large, 'mask')} beside the rows, too large for regions: left out.")
    print(f"In {done.destination}")


def diff(
    output: Output,
    run_a: Annotated[str, Parameter(help="First run.")],
    run_b: Annotated[str, Parameter(help="Second run.")],
    /,
    *,
    images: Annotated[int, Parameter(help="Changed images in the gallery; 10,000 at most.")] = 200,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare two runs: agreement per class, the images that changed most, a gallery of differences.

    For example:

    segment-archive diff OUTPUT 3f2a91c0de11 9b01c45a7e20
    """
    from tasks.results.report import build_diff_report

    with screen.Counter("images", quiet=quiet or json) as counter:
        found, gallery = build_diff_report(output, run_a, run_b, images=images, advance=counter)
    if json:
        screen.print_json({"difference": found, "gallery": gallery})
    if json or quiet:
        return
    print(
        f"{counted(found.images, 'image')} in both runs, {found.equal} equal in every pixel; {found.agreement:.2%} of "
        f"the pixels have the same label. {found.only_a} only in {found.run_a}, {found.only_b} only in {found.run_b}."
    )
    rows = [
        (name, None if c.agreement is None else round(c.agreement, 4), c.pixels_a, c.pixels_b)
        for name, c in found.classes.items()
    ]
    screen.print_table(["class", "agreement (IoU)", f"pixels {found.run_a}", f"pixels {found.run_b}"], rows)
    if found.changed_most:
        print("Changed most:")
        for image_id, share in found.changed_most[:8]:
            print(f"  {share:>7.2%} {screen.printable(image_id)}")
    print(f"Every image: {found.folder}/images.parquet")
    if gallery is not None:
        print(f"Gallery: {gallery.index}")


@options(arguments=("output",), names={"classes": "--class -c"})
def annotate(job: AnnotateJob, *, json: Json = False, quiet: Quiet = False) -> None:
    """Write classes as keywords into XMP sidecars beside the photographs, which are never touched.

    For example:

    segment-archive annotate OUTPUT --to xmp --min-share 0.1

    segment-archive annotate OUTPUT --undo
    """
    from tasks import progress
    from tasks.results.keywords import annotate as write_keywords

    with progress.told_to(*([] if quiet or json else [progress.Terminal()])):
        done = write_keywords(job)
    if json:
        screen.print_json(done)
    if json or quiet:
        return
    print(done.told())
    if done.without_place:
        print(f"{counted(done.without_place, 'image')} without a file of their own, or gone: no sidecar.")
    if done.num_failed:
        first, reason = next(iter(done.failed.items()))
        print(f"{counted(done.num_failed, 'sidecar')} left as they are, first {screen.printable(first)}: {reason}.")


@options(arguments=("output", "catalog"))
def publish(job: PublishJob, *, json: Json = False, quiet: Quiet = False) -> None:
    """Publish a finished run as rows of an Iceberg table, in one commit; again: what is new or has changed.

    For example:

    segment-archive publish OUTPUT --to iceberg ~/lake

    segment-archive publish OUTPUT glue --table photos.masks
    """
    from tasks import progress
    from tasks.results.publish import publish as publish_run

    with progress.told_to(*([] if quiet or json else [progress.Terminal()])):
        done = publish_run(job)
    if json:
        screen.print_json(done)
    elif not quiet:
        print(done.told())
        print(f"In {done.location}")


@options(arguments=("output",))
def compact(job: CompactJob, *, json: Json = False, quiet: Quiet = False) -> None:
    """Replace many small files of a run by few large ones; every reader honours them, and no mask is touched.

    For example:

    segment-archive compact OUTPUT

    segment-archive compact OUTPUT --expire
    """
    from flows import execution, jobs

    done = execution.run(jobs.compact_run, job, quiet=quiet or json)
    if json:
        screen.print_json(done)
    elif not quiet:
        print(done.told())
        print(f"In {done.folder}")


def _format(format_: Format | None, to: str | None, json: bool) -> Format | None:
    if json and format_ not in (None, "json"):
        raise UsageError(f"--json and --format {format_} exclude each other.")
    if format_ == "parquet" and not to:
        raise UsageError("Parquet is not for a terminal: name a file with --to answer.parquet.")
    return "json" if json else format_
