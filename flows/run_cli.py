"""The console commands `segment-archive run` and `show`."""

import functools
import shlex
from typing import Annotated, Any

from cyclopts import Parameter

from flows import screen
from flows.options import PRINTING, Found, Json, Quiet, flag, options
from tasks.models.names import model_names, presets
from tasks.segmentation.archive_job import ArchiveJob, output_beside, require_no_web_address
from tasks.words import counted

ARCHIVE_GROUPS = {
    "Input": (
        "source",
        "output",
        "limit",
        "refresh_changed",
        "pages",
        "frames",
        "pairs",
        "skip_duplicates",
        "id_column",
        "image_column",
        "raw",
        "ignore_profiles",
    ),
    "Model": ("model", "untrained", "seed", "inference"),
    "CRF": ("crf", "crf_engine"),
    "Output": ("png", "mask_size", "keep_mask_before_crf", "gallery_images"),
    "Limits": ("max_pixels", "image_seconds", "image_memory_mib"),
    "Machine": ("engine", "cpus", "gpus"),
}

archive_options = functools.partial(
    options,
    names={"source": "--source", "model": "--model -m", "limit": "--limit -n"},
    groups=ARCHIVE_GROUPS,
    presets={"crf": presets},
    complete={"model": model_names},
)
"""Options of commands about an archive job."""

trial_options = functools.partial(archive_options, arguments=("source",), found={"output": Found("", lambda given: "")})
"""Those of commands that make no archive."""

NO_ARCHIVE = (
    *("output", "cpus", "gpus", "engine", "refresh_changed", "png", "gallery_images", "keep_mask_before_crf"),
    *("image_seconds", "image_memory_mib", "limit", "pages", "frames", "pairs", "skip_duplicates"),
)
"""Fields of the job that say nothing without an archive."""


@archive_options(
    arguments=("source", "output"),
    found={"output": Found("SOURCE-masks, beside the source", lambda given: output_beside(given["source"]))},
)
def run(
    job: ArchiveJob,
    *,
    open_: Annotated[bool, flag("Open the gallery in the browser at the end.", "--open", group=PRINTING)] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Segment every photograph of SOURCE: one row in OUTPUT for each, a mask or the reason why there is none.

    The same command continues where the last one ended, whatever ended it; new photographs are added.

    For example:

    segment-archive run ~/photos --open

    segment-archive run s3://bucket/photos s3://bucket/masks --model ~/models/mine

    segment-archive run ~/photos --crf-preset deeplab_v2_resnet101 --scales 0.5,0.75,1
    """
    from flows import execution, jobs

    require_no_web_address(job.source)
    report = execution.run(jobs.segment_archive, job, quiet=quiet or json)
    if json:
        screen.print_json(report)
    elif not quiet:
        print_report(report, job.source)
    if open_ and report.gallery:
        screen.open_page(screen.address(report.gallery))


def print_report(report: Any, source: str) -> None:
    """Print what came out of a job, and what can be asked of it."""
    errors = counted(report.num_errors, "error row") if report.num_errors else "no errors"
    images, masks = counted(report.images, "image"), counted(report.masks - report.duplicates, "mask")
    if report.duplicates:
        masks += f", {counted(report.duplicates, 'duplicate')} with the mask of another"
    if not report.done_now:
        print(f"Nothing to do: all of {source} has its rows ({images}: {masks}, {errors}).")
    else:
        rate = report.done_now / max(1e-9, report.session.seconds)
        print(f"{images}: {masks}, {errors}.")
        print(f"{report.done_now} done now in {report.session.seconds:.1f} s, {rate:.2f} images/s, by {report.model}.")
    for kind, count in report.errors.items():
        print(f"  {count:>6} {kind}")
    for example in report.examples:
        print(f"         {screen.printable(example)}")
    found = {name: count for name, count in report.classes.items() if name != "background"}
    if found:
        most = list(found.items())[:8]
        screen.print_table(
            ["class", "images", "share of images"],
            [(name, c.images, f"{c.images / max(1, report.masks):.0%}") for name, c in most],
        )
    elif report.classes:
        print("Every mask is background alone.")
    place = shlex.quote(report.output)
    sql = "SELECT class, count(*) AS images FROM objects GROUP BY ALL ORDER BY images DESC"
    if found:
        print(f"Find:    segment-archive find {place} --class {shlex.quote(next(iter(found)))} --min-share 0.1")
    print(f"Query:   segment-archive query {place} {shlex.quote(sql)}")
    if report.gallery:
        print(f"Gallery: {screen.address(report.gallery)}")


@trial_options(without=(*NO_ARCHIVE, "id_column", "image_column"), words={"source": "Path or URL of a photograph."})
def show(
    job: ArchiveJob,
    *,
    to: Annotated[
        str | None,
        Parameter(name=("--to", "-o"), help="Picture to write.", show_default="NAME-overlay.png in this folder"),
    ] = None,
    mask: Annotated[str | None, Parameter(help="PNG to write the mask to as well.")] = None,
    open_: Annotated[bool, flag("Open the picture.", "--open", group=PRINTING)] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Segment one photograph, and write its overlay; no archive is made.

    For example:

    segment-archive show photo.jpg --open

    segment-archive show https://example.org/photo.jpg --to overlay.png --mask mask.png
    """
    from tasks.segmentation.show import picture_name, show_photograph

    shown = show_photograph(job, to or picture_name(job.source), mask)
    if json:
        screen.print_json(shown)
    elif not quiet:
        print(f"{shown.photograph}: {shown.width} x {shown.height} px, by {shown.model}.")
        for name, share in shown.shares.items():
            print(f"  {share:6.1%}  {name}")
        if shown.note:
            print(f"  note: {screen.printable(shown.note)}")
        print(f"Picture: {screen.address(shown.picture)}")
        if shown.mask is not None:
            print(f"Mask: {shown.mask}")
    if open_:
        screen.open_page(screen.address(shown.picture))
