"""Console commands about evaluation: `segment-archive evaluate`, `baseline accept`, `submission`."""

import sys
from typing import Annotated

from cyclopts import App, Parameter

from flows import screen
from flows.options import Json, Quiet, flag, options
from tasks.errors import JobError
from tasks.evaluation.evaluate import ReevaluateJob
from tasks.models.names import presets

baseline = App(name="baseline", help="Accept what later evaluations are compared with.", help_format="plaintext")


@options(
    arguments=("models", "dataset", "output"),
    names={"alarm.tolerance_points": "--tolerance"},
    groups={
        "Input": ("models", "dataset", "output", "split"),
        "Scoring": ("inference", "multi_scale"),
        "CRF": ("crf", "crf_engine"),
        "Alarm": ("alarm",),
    },
    without=("stale_after_hours",),
    presets={"crf": presets},
)
def evaluate(
    job: ReevaluateJob,
    *,
    sheet: Annotated[bool, flag("Print our numbers beside the papers'.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how good models are, and compare them with their baselines.

    Nothing is measured twice: the same command continues where it was stopped, or says that nothing is new.

    For example:

    segment-archive evaluate ~/models ~/datasets/voc2012 ~/evaluation --sheet
    """
    from flows import execution, jobs
    from tasks.nights.nightly import NightPlan

    night = execution.run(jobs.reevaluate, job, quiet=quiet or json)
    if json:
        screen.print_json(night)
        if not isinstance(night, NightPlan) and night.alarms:
            raise SystemExit(execution.FAILED)
        return
    if not quiet:
        _show(job.output)
        if sheet:
            _show_sheet(job.output)
    if not isinstance(night, NightPlan) and night.alarms:
        execution.fail(night.sentence)
    if not quiet:
        print(night.nothing_new if isinstance(night, NightPlan) else night.sentence)


@baseline.command
def accept(
    output: Annotated[str, Parameter(help="Where evaluations were written.")],
    /,
    *,
    model: Annotated[list[str] | None, Parameter(negative=(), help="Only this model; may be repeated.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare later evaluations with what the latest one found.

    For example:

    segment-archive baseline accept ~/evaluation
    """
    from tasks.nights.baselines import accept_baseline

    try:
        accepted = accept_baseline(output, model or ())
    except ValueError as error:
        raise JobError(str(error)) from None
    if json:
        screen.print_json(accepted)
    if json or quiet:
        return
    for name, sentence in accepted.items():
        print(f"{name}: {sentence}")


def submission(
    archive: Annotated[str, Parameter(help="Output of `segment-archive run` on the test images.")],
    ids: Annotated[str, Parameter(help="List of the test images, such as ImageSets/Segmentation/test.txt.")],
    destination: Annotated[str, Parameter(help="Folder for results/ and the packed archive.")],
    /,
    *,
    comp: Annotated[int, Parameter(help="5: trained on VOC's data alone; 6: on anything.")] = 6,
    run: Annotated[str | None, Parameter(help="Run of the archive, where it holds several.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the masks of an archive as a submission to the VOC test server, checked and packed.

    For example:

    segment-archive submission ~/masks test.txt ~/submission
    """
    from tasks.evaluation.submission import doubts_about, write_submission

    try:
        doubts = list(doubts_about(ids))
        for doubt in doubts:
            print(f"segment-archive: warning: {ids} does not look like the test set. {doubt}", file=sys.stderr)
        told = write_submission(archive, ids, destination, comp=comp, run_id=run)
    except ValueError as error:
        raise JobError(str(error)) from None
    if json:
        screen.print_json({"destination": destination, "comp": comp, "doubts": doubts, "told": told})
    elif not quiet:
        print(told)


def _show(output: str) -> None:
    """Print the figures of the latest night."""
    from tasks.nights.summary import summary

    print("\n".join(summary(output)))


def _show_sheet(output: str) -> None:
    from tasks import storage
    from tasks.nights.summary import sheet, sheet_lines, sheet_markdown

    rows = sheet(storage.locate(output))
    place = storage.locate(output) / "sheet.md"
    storage.write_whole(place, sheet_markdown(rows).encode())
    print("\n".join(sheet_lines(rows)))
    print(f"As Markdown: {place.uri}")
