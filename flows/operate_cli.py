"""The console commands for operators: estimate, doctor, clean, completion."""

import os
from typing import Annotated, Literal

from cyclopts import Parameter

from flows import screen
from flows.options import Json, Quiet, flag
from flows.run_cli import NO_ARCHIVE, trial_options
from tasks.errors import JobError
from tasks.segmentation.archive_job import ArchiveJob
from tasks.words import counted


def _least(low: float) -> Parameter:
    def check(_type: object, value: float | None) -> None:
        if value is not None and value < low:
            raise ValueError(f"at least {low:g}")

    return Parameter(validator=check)


@trial_options(without=NO_ARCHIVE)
def estimate(
    job: ArchiveJob,
    *,
    sample: Annotated[int, Parameter(help="Images to measure."), _least(1)] = 12,
    nodes: Annotated[int, Parameter(help="Machines."), _least(1)] = 1,
    cpus: Annotated[int, Parameter(help="CPUs of each."), _least(1)] = 16,
    gpus: Annotated[int, Parameter(help="GPUs of each."), _least(0)] = 0,
    price: Annotated[float, Parameter(help="Price of one machine for an hour."), _least(0)] = 0.0,
    gpu_images_per_s: Annotated[float | None, Parameter(help="Speed of one GPU, where none is here.")] = None,
    json: Json = False,
) -> None:
    """Measure a sample of SOURCE here, and calculate how long it takes on such machines and what it costs.

    For example:

    segment-archive estimate ~/photos

    segment-archive estimate s3://photos --untrained --nodes 4 --cpus 16 --price 0.80
    """
    import tempfile

    from tasks import progress
    from tasks.segmentation.estimate import Nodes, measure
    from tasks.segmentation.estimate import estimate as calculate

    with tempfile.TemporaryDirectory() as folder:
        found = measure(job.model_copy(update={"output": folder}), sample)
    result = calculate(found, Nodes(nodes, cpus, gpus, price), gpu_images_per_s)
    if json:
        screen.print_json({"sample": found, "estimate": result})
        return
    print(f"{counted(found.images_listed, 'image')}; measured on {found.images} of them, scored on {found.device}:")
    for stage, seconds in found.seconds.items():
        print(f"  {stage:<7} {seconds * 1000:8.1f} ms an image")
    if found.errors:
        print(f"  {found.errors} of the sample are no readable images and become error rows.")
    machines = f"{nodes} x ({cpus} CPUs, {gpus} GPUs)"
    took = progress.duration(result.seconds)
    print(f"On {machines}: {result.images_per_s:.2f} images/s, {took}, price {result.price:.2f}.")
    print(f"What limits is {result.limit}.")
    print("Calculated from one undisturbed worker here; other processors and storage may be faster or slower.")


def doctor(
    output: Annotated[
        str | None, Parameter(help="Folder or s3://bucket/prefix to try writing to; a small file, removed again.")
    ] = None,
    /,
    *,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Check that everything a job needs is here: one line each, in order or with the remedy.

    For example:

    segment-archive doctor

    segment-archive doctor s3://masks/first
    """
    from rich.console import Console

    from tasks.segmentation.requirements import examine

    console, findings = Console(highlight=False, soft_wrap=True), []
    for finding in examine(output, ("Prefect", _prefect), ("cache", _cache)):
        findings.append(finding)
        if not (json or quiet):
            console.print("[green]ok  [/green]" if finding.healthy else "[red]ILL [/red]", end="")
            console.print(f"{finding.subject}: {finding.words}", markup=False)
    if json:
        screen.print_json(findings)
    return 0 if all(finding.healthy for finding in findings) else 1


def _prefect() -> str:
    if not os.environ.get("PREFECT_API_URL"):
        return "PREFECT_API_URL is not set: jobs run without a server"
    from flows.prefect_runs import server_answers

    return server_answers()


def _cache() -> str:
    from tasks import cache

    size = sum(cache.sizes().values()) / 1e6
    return f"{cache.folder()}, {size:.1f} MB; `segment-archive clean` empties it"


def clean(
    *,
    weights: Annotated[bool, flag("Imported and pulled weights too.")] = False,
    dry_run: Annotated[bool, flag("Print what would be removed.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove this user's cache: copies of models, downloads, unpacked archives. Outputs are never touched.

    For example:

    segment-archive clean --dry-run

    segment-archive clean --weights
    """
    from tasks import cache

    found = {name: size for name, size in cache.sizes().items() if weights or name != "weights"}
    if not dry_run:
        cache.remove(list(found))
    if json:
        screen.print_json({"folder": str(cache.folder()), "removed": not dry_run, "bytes": found})
    if json or quiet:
        return
    for name, size in found.items():
        print(f"{size / 1e6:10.1f} MB  {name}")
    if not found:
        print(f"Nothing to remove in {cache.folder()}.")
    else:
        total = sum(found.values()) / 1e6
        print(f"{total:.1f} MB in {cache.folder()} {'would be' if dry_run else 'were'} removed.")


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"] | None, Parameter(show_default="the shell you use")] = None,
    /,
    *,
    install: Annotated[bool, flag("Put it where the shell finds it.")] = False,
) -> None:
    """Print the completion of a shell, or install it.

    For example:

    segment-archive completion bash > segment-archive.bash

    segment-archive completion --install
    """
    from flows import cli

    try:
        print(f"Installed: {cli.install_completion(shell)}. Open a new terminal." if install else cli.completion(shell))
    except (RuntimeError, ValueError, OSError) as error:  # No shell is recognised, or its folder cannot be written
        raise JobError(str(error)) from None
