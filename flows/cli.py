"""The console command `segment-archive`: thin wiring from options to jobs, and words for a person."""

import contextlib
import os
from pathlib import Path
from typing import Annotated, Any

# A person at a terminal sees our words; Prefect and Ray report through their own interfaces. Set before their import.
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")
# The first start of Prefect's own server makes its database, which takes longer than its patience on a busy machine
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

if "PREFECT_HOME" in os.environ:
    with contextlib.suppress(OSError):  # Prefect makes the last folder of the path only, and its server then hangs
        Path(os.environ["PREFECT_HOME"]).expanduser().mkdir(parents=True, exist_ok=True)

import typer

from flows import evaluate_cli, execution, operate_cli, prepare_cli, results_cli, train_cli, tune_cli, weights_cli

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Segment large archives of photographs into queryable masks.",
)


@app.callback()
def _commands() -> None:
    """Segment large archives of photographs into queryable masks."""


@app.command()
def run(
    source: Annotated[str, typer.Argument(help="Folder, file, s3://bucket/prefix, tar shards or Parquet dataset.")],
    output: Annotated[str, typer.Argument(help="Folder or s3://bucket/prefix for manifest, masks and run records.")],
    model: Annotated[str | None, typer.Option(help="Name of a model, or path or URI of a model directory.")] = None,
    untrained: Annotated[bool, typer.Option("--untrained", help="Seeded random weights, marked in every row.")] = False,
    crf: Annotated[bool, typer.Option("--crf/--no-crf", help="Sharpen by the fully connected CRF.")] = True,
    crf_preset: Annotated[str | None, typer.Option(help="CRF parameters of a published model; see the README.")] = None,
    crf_engine: Annotated[str, typer.Option(help="auto, native or pydensecrf.")] = "auto",
    long_side: Annotated[int, typer.Option(help="Score photographs at no more than this many px.")] = 513,
    scales: Annotated[str, typer.Option(help="Scales to score at and fuse, such as 0.5,0.75,1.")] = "1",
    fusion: Annotated[str, typer.Option(help="How scales are fused: max (DeepLab v2) or mean (PSPNet).")] = "max",
    mirror: Annotated[bool, typer.Option("--mirror", help="Score the mirrored photograph too.")] = False,
    crop: Annotated[int | None, typer.Option(help="Score through sliding windows of this many px.")] = None,
    precision: Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.")] = "auto",
    mask_size: Annotated[str, typer.Option(help="own: the photograph's size; working: the scored size.")] = "own",
    keep_mask_before_crf: Annotated[
        bool, typer.Option("--keep-mask-before-crf", help="Store the mask before the CRF too.")
    ] = False,
    png: Annotated[bool, typer.Option("--png", help="Write each mask as a PNG file of its own too.")] = False,
    gallery_images: Annotated[int, typer.Option(help="Images of the gallery made at the end; 0: none.")] = 1000,
    max_pixels: Annotated[int, typer.Option(help="Larger photographs become error rows.")] = 100_000_000,
    image_seconds: Annotated[
        float | None, typer.Option(help="Images that take longer in one stage become error rows; 300 and more.")
    ] = None,
    image_memory_mib: Annotated[
        int | None, typer.Option(help="Images that need more memory become error rows; half of the machine's.")
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="Parquet source: column with the identity.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Parquet source: column with the image bytes.")] = None,
    refresh_changed: Annotated[
        bool, typer.Option("--refresh-changed", help="Do photographs again that were replaced under their path.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Take no more than this many images into the archive.")] = None,
) -> None:
    """Give every photograph of SOURCE one row in OUTPUT: a mask, or the reason why there is none.

    The same command continues where the last one ended, whatever ended it; new photographs are simply done.
    """
    from flows import jobs
    from tasks.segmentation.job import ArchiveJob, crf_parameters

    given: dict[str, Any] = {
        "source": source,
        "output": output,
        "untrained": untrained,
        "inference": {
            "long_side_px": long_side,
            "scales": [part.strip() for part in scales.split(",")],
            "fusion": fusion,
            "mirror": mirror,
            "crop_px": crop,
            "precision": precision,
        },
        "crf_engine": crf_engine,
        "mask_size": mask_size,
        "keep_mask_before_crf": keep_mask_before_crf,
        "png": png,
        "gallery_images": gallery_images,
        "max_pixels": max_pixels,
        "image_seconds": image_seconds,
        "image_memory_mib": image_memory_mib,
        "id_column": id_column,
        "image_column": image_column,
        "refresh_changed": refresh_changed,
        "limit": limit,
    }
    if model is not None:
        given["model"] = model
    if not crf:
        given["crf"] = None
    elif crf_preset is not None:
        given["crf"] = crf_parameters(crf_preset)
    job = ArchiveJob(**given)
    show(execution.run(jobs.segment_archive, job), job.source)


def show(report: Any, source: str) -> None:
    """Print what came of a job."""
    from tasks.segmentation.report import query

    errors = f"{report.num_errors} error rows" if report.num_errors else "no errors"
    if not report.done_now:
        print(f"Nothing to do: all {report.images} images of {source} have their row ({report.masks} masks, {errors}).")
    else:
        rate = report.done_now / max(1e-9, report.session.seconds)
        print(f"{report.images} images: {report.masks} masks, {errors}.")
        print(
            f"{report.done_now} done now in {report.session.seconds:.1f} s, {rate:.2f} images/s, by {report.model} "
            f"(first after {report.session.seconds_to_first:.1f} s: workers start)."
        )
    for kind, count in report.errors.items():
        print(f"  {count:>6} {kind}")
    for example in report.examples:
        print(f"         {example}")
    if report.classes:
        top = list(report.classes.items())[:8]
        print("In the most images: " + ", ".join(f"{name} {count.images}" for name, count in top))
    print(f"Masks: {report.output}/{'compacted' if report.compacted else 'masks'}/run={report.run_id}/")
    if report.gallery:
        print(f"Look at them: {report.gallery}")
    if report.contact_sheet:
        print(f"In one picture: {report.contact_sheet}")
    print(f"Ask them, for example{'' if report.compacted else ' with DuckDB'}:\n{query(report)}")


results_cli.mount(app)
weights_cli.mount(app)
tune_cli.mount(app)
train_cli.mount(app)
prepare_cli.mount(app)
evaluate_cli.mount(app)
operate_cli.mount(app)


def main() -> None:
    """Entry point of the console command."""
    execution.main(app)


if __name__ == "__main__":
    main()
