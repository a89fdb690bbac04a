"""The console command `segment-archive prepare`."""

import sys
from typing import Annotated, Any, NoReturn

import typer


def prepare(
    output: Annotated[str | None, typer.Argument(help="Folder or s3://bucket/prefix for the shards.")] = None,
    data: Annotated[str | None, typer.Option(help="Your own data: a folder or archive.")] = None,
    images: Annotated[str | None, typer.Option(help="Folder of your images, where its name does not say it.")] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="With --data: NAME=FILE, a list of ids; may be given several times.")
    ] = None,
    masks: Annotated[str | None, typer.Option(help="Folder of your masks, where its name does not say it.")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names of your classes: a file, background,cat,dog, or voc.")
    ] = None,
    void: Annotated[str | None, typer.Option(help="Numbers or names that mean void beside 255, such as 11.")] = None,
    by_colour: Annotated[
        bool, typer.Option("--by-colour", help="Read the palette's colours of masks instead of their numbers.")
    ] = False,
    val_share: Annotated[float, typer.Option(help="With --data without lists: share that becomes val.")] = 0.1,
    voc: Annotated[str | None, typer.Option(help="VOC 2012 trainval: archive, folder, object or URL.")] = None,
    sbd: Annotated[str | None, typer.Option(help="SBD benchmark.tgz: archive, folder, object or URL.")] = None,
    with_sbd: Annotated[bool, typer.Option("--with-sbd/--no-sbd", help="Add SBD's annotations to VOC's.")] = True,
    prefer: Annotated[str, typer.Option(help="Whose mask counts where there are two: voc or sbd.")] = "voc",
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Prepare what is in order, leave out the rest.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name of the dataset.")] = None,
    work: Annotated[str | None, typer.Option(help="Local folder for archives and what is unpacked.")] = None,
    mirrors: Annotated[str | None, typer.Option(help="TOML file with other mirrors and checksums.")] = None,
    check: Annotated[str | None, typer.Option(help="Only check this dataset, and say what is wrong.")] = None,
    fix: Annotated[bool, typer.Option("--fix", help="With --check: mend what is safe; originals are kept.")] = False,
    show: Annotated[int, typer.Option(help="With --check: files to show of each kind of finding.")] = 3,
    report: Annotated[str | None, typer.Option(help="With --check: write every finding to this CSV file.")] = None,
    gallery: Annotated[str | None, typer.Option(help="With --check: write a few samples to this PNG.")] = None,
) -> None:
    """Prepare PASCAL VOC 2012 with SBD, or your own data, for training and evaluation.

    The same command continues where the last one ended. Without --data, the archives are fetched (3.4 GB).

    segment-archive prepare ~/datasets/voc2012
    segment-archive prepare ~/datasets/mine --data ~/mine
    segment-archive prepare ~/datasets/mine --images ~/photos --masks ~/masks --classes background,cat,dog
    segment-archive prepare --check ~/mine
    """
    if val_share < 0 or val_share >= 1:
        _fail("--val-share is a share of the images, from 0 to less than 1.")
    own: dict[str, Any] = {
        "images": images,
        "masks": masks,
        "lists": _lists(split),
        "classes": classes,
        "void": void,
        "by_colour": by_colour,
        "val_share": val_share,
    }
    if check is not None:
        if output is not None or data is not None or voc is not None or sbd is not None:
            _fail("--check looks at one dataset and prepares nothing: give --check PATH alone.")
        _check(check, own, fix, show, report, gallery)
        return
    if fix or report or gallery:
        _fail("--fix, --report and --gallery belong to --check; prepare writes findings.csv and gallery.png itself.")
    if output is None:
        _fail("Say where the dataset goes: segment-archive prepare OUTPUT; or check one with --check PATH.")
    given = {
        "output": output,
        "data": data,
        **own,
        "voc": voc,
        "sbd": sbd,
        "with_sbd": with_sbd,
        "prefer": prefer,
        "leave_out": leave_out,
        "name": name,
        "work": work,
        "mirrors": mirrors,
    }
    _prepare(given)


def _prepare(given: dict[str, Any]) -> None:
    from flows import execution, jobs
    from tasks.datasets.prepare import DatasetJob, say_splits

    report = execution.run(jobs.prepare_dataset, DatasetJob(**given))
    splits = f"{report.name}: {say_splits(report.splits)} images"
    if report.unchanged:
        print(f"Nothing to do: {splits} are in {report.output}.")
    else:
        size = f"{report.bytes / 1e6:,.1f} MB in {report.files} files, {report.written_now} written now"
        print(f"{splits}; {size}, in {report.seconds:.1f} s.")
    if report.mended:
        print(f"Masks mended on the way: {report.mended:,}.")
    if report.left_out:
        print(f"Left out: {report.left_out:,} images; manifest.json names them, findings.csv says why.")
    seen = sorted(report.classes.items(), key=lambda item: -item[1][0])
    print("Images by class: " + ", ".join(f"{name} {images:,}" for name, (images, _) in seen[:8]))
    print(f"Void: {report.void_share:.1%} of the pixels. Look at {report.output}/gallery.png.")
    if report.findings:
        print("Findings: " + ", ".join(f"{number:,} x {kind}" for kind, number in report.findings.items()))
        print(f"All of them: {report.output}/findings.csv")


def _check(
    check: str,
    own: dict[str, Any],
    fix: bool,
    show: int,
    report: str | None,
    gallery: str | None,
) -> None:
    from tasks import progress
    from tasks.datasets import check_report as dataset_report
    from tasks.datasets.doctor import Consultation
    from tasks.datasets.voc_layout import OwnData
    from tasks.errors import JobError

    console = dataset_report.console()
    try:
        with progress.told_to(progress.Terminal()):
            found = Consultation(check, OwnData(**own))
            if found.examined.findings:
                dataset_report.print_findings(found.examined.findings, console, show)
            dataset_report.print_classes(found.examined, console)
            print(dataset_report.verdict(found.examined))
            if report is not None:
                found.write_report(report)
                print(f"Every finding: {report}")
            if gallery is not None:
                print(f"Samples with their masks: {gallery}" if found.write_gallery(gallery) else "Nothing to show.")
            if fix:
                changed = found.fix()
                for file in changed[:show]:
                    print(f"mended: {file}")
                if changed:
                    print(f"{len(changed):,} files mended; what was there is kept in before-fix/.")
                    print(dataset_report.verdict(found.examined))
                else:
                    print("There is nothing that can be mended safely.")
    except JobError as error:
        _fail(str(error))
    if found.examined.errors:
        raise typer.Exit(1)


def _lists(split: list[str] | None) -> dict[str, str] | None:
    lists = {}
    for entry in split or ():
        name, separator, file = entry.partition("=")
        if not separator or not name or not file:
            _fail(f"--split {entry} is not NAME=FILE, such as train=train.txt.")
        lists[name] = file
    return lists or None


def _fail(sentence: str) -> NoReturn:
    print(f"segment-archive: {sentence}", file=sys.stderr)
    raise typer.Exit(1)


def mount(app: typer.Typer) -> None:
    """Add the command to the console application."""
    app.command("prepare")(prepare)
