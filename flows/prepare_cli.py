"""The console command `segment-archive prepare`."""

from typing import Annotated

from cyclopts import Parameter

from flows import screen
from flows.options import Found, Json, Quiet, UsageError, flag, options
from tasks.datasets.layout import OwnData
from tasks.datasets.prepare import DatasetJob
from tasks.words import counted

_CHECK = Parameter(group="Check")


@options(
    arguments=("output",),
    names={"lists": "--split", "with_sbd": "--with-sbd/--no-sbd"},
    groups={
        "Your own data": ("output", "data", *OwnData.model_fields, "name", "leave_out"),
        "PASCAL VOC and SBD": ("voc", "sbd", "with_sbd", "prefer", "mirrors", "work"),
    },
    found={"output": Found("", lambda given: "")},
)
def prepare(
    job: DatasetJob,
    *,
    check: Annotated[str | None, _CHECK, Parameter(help="Check this dataset only, and print what is wrong.")] = None,
    fix: Annotated[bool, flag("Mend what is safe; originals are kept.", group="Check")] = False,
    show: Annotated[int, _CHECK, Parameter(help="Files to show of each kind of finding.")] = 3,
    report: Annotated[str | None, _CHECK, Parameter(help="Write every finding to this CSV file.")] = None,
    gallery: Annotated[str | None, _CHECK, Parameter(help="Write a few samples to this PNG.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Prepare PASCAL VOC 2012 with SBD, or your own data, for training and evaluation.

    The same command continues where the last one ended. Without --data, the archives are fetched (3.4 GB).

    For example:

    segment-archive prepare ~/datasets/voc2012

    segment-archive prepare ~/datasets/mine --data ~/mine

    segment-archive prepare ~/datasets/mine --images ~/photos --masks ~/masks --classes background,cat,dog

    segment-archive prepare --check ~/mine
    """
    if check is not None:
        if job.output or job.data or job.voc or job.sbd:
            raise UsageError("--check looks at one dataset and prepares nothing: give --check PATH alone.")
        own = OwnData.model_validate(job.model_dump(include=set(OwnData.model_fields)))
        return _check(check, own, fix, show, report, gallery, json, quiet)
    if fix or report or gallery:
        raise UsageError(
            "--fix, --report and --gallery belong to --check; prepare writes findings.csv and gallery.png itself."
        )
    if not job.output:
        raise UsageError("Name where the dataset goes: segment-archive prepare OUTPUT; or check one with --check PATH.")
    _prepare(job, json, quiet)
    return 0


def _prepare(job: DatasetJob, json: bool, quiet: bool) -> None:
    from flows import execution, jobs
    from tasks.datasets.prepare import say_splits

    report = execution.run(jobs.prepare_dataset, job, quiet=quiet or json)
    if json:
        screen.print_json(report)
    if json or quiet:
        return
    splits = f"{report.name}: {say_splits(report.splits)} {'image' if sum(report.splits.values()) == 1 else 'images'}"
    if report.unchanged:
        print(f"Nothing to do: {splits} are in {report.output}.")
    else:
        size = f"{report.bytes / 1e6:,.1f} MB in {counted(report.files, 'file')}, {report.written_now} written now"
        print(f"{splits}; {size}, in {report.seconds:.1f} s.")
    if report.mended:
        print(f"Masks mended on the way: {report.mended:,}.")
    if report.left_out:
        print(f"Left out: {counted(report.left_out, 'image')}; manifest.json names each, findings.csv says why.")
    seen = sorted(((images, name) for name, (images, _) in report.classes.items() if images), reverse=True)
    print("Images by class: " + ", ".join(f"{name} {images:,}" for images, name in seen[:8]))
    print(f"Void: {report.void_share:.1%} of the pixels. Look at {report.output}/gallery.png.")
    if report.findings:
        print("Findings: " + ", ".join(f"{number:,} x {kind}" for kind, number in report.findings.items()))
        print(f"All of them: {report.output}/findings.csv")


def _check(
    check: str,
    own: OwnData,
    fix: bool,
    show: int,
    report: str | None,
    gallery: str | None,
    json: bool,
    quiet: bool,
) -> int:
    from tasks import progress
    from tasks.datasets import doctor

    console = doctor.console()
    with progress.told_to(*([] if quiet or json else [progress.Terminal()])):
        found = doctor.Consultation(check, own)
        if not (json or quiet):
            if found.examined.findings:
                doctor.print_findings(found.examined.findings, console, show)
            doctor.print_classes(found.examined, console)
            print(doctor.verdict(found.examined))
        if report is not None:
            found.write_report(report)
        with_samples = gallery is not None and found.write_gallery(gallery)
        changed = found.fix() if fix else []
    if json:
        errors = len(found.examined.errors)
        screen.print_json({"pairs": len(found.examined.checks), "errors": errors, "findings": found.examined.findings})
    if json or quiet:
        return 1 if found.examined.errors else 0
    if report is not None:
        print(f"Every finding: {report}")
    if gallery is not None:
        print(f"Samples with their masks: {gallery}" if with_samples else "Nothing to show.")
    for file in changed[:show]:
        print(f"mended: {file}")
    if changed:
        print(f"{counted(len(changed), 'file')} mended; what was there is kept in before-fix/.")
        print(doctor.verdict(found.examined))
    elif fix:
        print("There is nothing that can be mended safely.")
    return 1 if found.examined.errors else 0
