"""Console commands about evaluation: `segment-archive evaluate`, `baseline accept`, `submission`."""

import sys
from typing import Annotated, Any, NoReturn

import typer

baseline_app = typer.Typer(no_args_is_help=True, help="What later evaluations are compared with.")


def evaluate(
    models: Annotated[str, typer.Argument(help="Model directory, a folder or prefix of them, or a model's name.")],
    dataset: Annotated[str, typer.Argument(help="Prepared dataset: folder or s3://bucket/prefix.")],
    output: Annotated[str, typer.Argument(help="Folder or s3://bucket/prefix for counts, figures and reports.")],
    split: Annotated[str, typer.Option(help="Images to evaluate on.")] = "val",
    crf: Annotated[bool, typer.Option("--crf/--no-crf", help="Measure with the CRF too.")] = True,
    crf_preset: Annotated[str | None, typer.Option(help="CRF parameters of a published model.")] = None,
    multi_scale: Annotated[bool, typer.Option("--multi-scale", help="Measure at the paper's scales too.")] = False,
    long_side: Annotated[int, typer.Option(help="Score images at no more than this many px.")] = 513,
    precision: Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.")] = "auto",
    tolerance: Annotated[float, typer.Option(help="Points that a figure may fall without an alarm.")] = 0.5,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write the page with its pictures.")] = True,
    sheet: Annotated[bool, typer.Option("--sheet", help="Print our numbers beside the papers'.")] = False,
) -> None:
    """Measure how good models are, and compare them with their baselines.

    Nothing is measured twice: the same command continues where it was stopped, or says that nothing is new.
    """
    from flows import execution, jobs
    from tasks.evaluation.evaluate import ReevaluateJob
    from tasks.nights.nightly import NightPlan
    from tasks.segmentation.job import crf_parameters

    given: dict[str, Any] = {
        "models": models,
        "dataset": dataset,
        "output": output,
        "split": split,
        "inference": {"long_side_px": long_side, "precision": precision},
        "multi_scale": multi_scale,
        "alarm": {"tolerance_points": tolerance},
        "report": report,
    }
    if not crf:
        given["crf"] = None
    elif crf_preset is not None:
        given["crf"] = crf_parameters(crf_preset)
    night = execution.run(jobs.reevaluate, ReevaluateJob(**given))
    _show(output)
    if sheet:
        _show_sheet(output)
    if isinstance(night, NightPlan):
        print(night.nothing_new)
    elif night.alarms:
        execution.fail(night.sentence)
    else:
        print(night.sentence)


@baseline_app.command("accept")
def accept(
    output: Annotated[str, typer.Argument(help="Where evaluations were written.")],
    model: Annotated[list[str] | None, typer.Option(help="Only this model; may be repeated.")] = None,
) -> None:
    """Compare later evaluations with what the latest one found."""
    from tasks.nights.baselines import accept_baseline

    try:
        told = accept_baseline(output, model or ())
    except ValueError as error:
        _fail(str(error))
    for name, sentence in told.items():
        print(f"{name}: {sentence}")


def submission(
    archive: Annotated[str, typer.Argument(help="Output of `segment-archive run` on the test images.")],
    ids: Annotated[str, typer.Argument(help="List of the test images, such as ImageSets/Segmentation/test.txt.")],
    destination: Annotated[str, typer.Argument(help="Folder for results/ and the packed archive.")],
    comp: Annotated[int, typer.Option(help="5: trained on VOC's data alone; 6: on anything.")] = 6,
    run: Annotated[str | None, typer.Option(help="Run of the archive, where it holds several.")] = None,
) -> None:
    """Write the masks of an archive as a submission to the VOC test server, checked and packed."""
    from tasks.evaluation.submission import write_submission

    try:
        print(write_submission(archive, ids, destination, comp=comp, run_id=run))
    except ValueError as error:
        _fail(str(error))


def mount(app: typer.Typer) -> None:
    """Add the commands to the console application."""
    app.command("evaluate")(evaluate)
    app.add_typer(baseline_app, name="baseline")
    app.command("submission")(submission)


def _show(output: str) -> None:
    """Print the figures of the latest night."""
    from tasks.nights.words import summary

    print("\n".join(summary(output)))


def _show_sheet(output: str) -> None:
    from tasks import storage
    from tasks.nights.sheet import sheet, sheet_markdown, sheet_table

    rows = sheet(storage.locate(output))
    place = storage.locate(output) / "sheet.md"
    storage.write_whole(place, sheet_markdown(rows).encode())
    print(sheet_table(rows))
    print(f"As Markdown: {place.uri}")


def _fail(sentence: str) -> NoReturn:
    print(f"segment-archive: {sentence}", file=sys.stderr)
    raise typer.Exit(1)
