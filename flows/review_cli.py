"""The console command `segment-archive import`: corrected masks on their way back."""

from flows import screen
from flows.options import Json, Quiet, options
from tasks.review.corrections import CorrectionsJob
from tasks.words import counted


@options(arguments=("output", "corrections"), names={"source": "--from", "dataset": "--to"})
def import_(job: CorrectionsJob, *, json: Json = False, quiet: Quiet = False) -> None:
    """Bring corrected masks back as a dataset to train and evaluate on, and count what was changed.

    For example:

    segment-archive import OUTPUT project-3.json --from label-studio --to ~/datasets/corrected

    segment-archive import OUTPUT annotations.xml --from cvat --to ~/datasets/corrected --only-changed
    """
    from flows import execution, jobs
    from tasks.datasets.prepare import say_splits

    done = execution.run(jobs.import_corrections, job, quiet=quiet or json)
    if json:
        screen.print_json(done)
    if json or quiet:
        return
    print(done.told())
    for name, told in (
        ("refused", list(done.refused.items())),
        ("no image of the run", [(n, "") for n in done.unknown]),
    ):
        if told:
            first, reason = told[0]
            print(f"{len(told):,} {name}, first {screen.printable(first)}{f': {reason}' if reason else ''}.")
    if done.new_classes:
        print(f"New classes: {', '.join(done.new_classes)}.")
    rows = [(name, change.gained, change.lost, change.kept) for name, change in done.classes.items()]
    if rows:
        screen.print_table(["class", "pixels gained", "pixels lost", "pixels kept"], rows)
    prepared = done.dataset
    assert prepared is not None
    left = f"; {counted(prepared.left_out, 'image')} left out, see findings.csv" if prepared.left_out else ""
    print(f"Dataset {prepared.name}: {say_splits(prepared.splits)}{left}. Every image: {job.dataset}/corrections.csv")
    print(f"Next: segment-archive train {job.dataset} OUT --initial MODEL")
