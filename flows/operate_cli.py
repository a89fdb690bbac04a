"""The console commands of who operates: doctor, estimate."""

import os
import sys
from typing import Annotated, Any, NoReturn

import typer


def doctor(
    output: Annotated[
        str | None, typer.Argument(help="Folder or s3://bucket/prefix to try writing to; a small file, removed again.")
    ] = None,
) -> None:
    """Look whether everything that a job needs is here: one line each, in order or with the remedy."""
    from rich.console import Console

    from tasks.segmentation.doctor import examine

    console, ill = Console(highlight=False, soft_wrap=True), 0
    for finding in examine(output, ("Prefect", _prefect)):
        sign = "[green]ok  [/green]" if finding.healthy else "[red]ILL [/red]"
        console.print(sign, end="")
        console.print(f"{finding.subject}: {finding.words}", markup=False)
        ill += not finding.healthy
    if ill:
        raise typer.Exit(1)


def _prefect() -> str:
    if not os.environ.get("PREFECT_API_URL"):
        return "PREFECT_API_URL is not set: jobs run without a server"
    from flows.prefect_runs import server_answers

    return server_answers()


def estimate(
    source: Annotated[str, typer.Argument(help="What is to be segmented, as for `segment-archive run`.")],
    model: Annotated[str, typer.Option(help="Name of a model, or path of a model directory.")] = "deeplab_v1_largefov",
    untrained: Annotated[bool, typer.Option("--untrained", help="Seeded random weights; their speed is real.")] = False,
    crf: Annotated[bool, typer.Option("--crf/--no-crf", help="Sharpen by the fully connected CRF.")] = True,
    long_side: Annotated[int, typer.Option(help="Score photographs at no more than this many px.")] = 513,
    sample: Annotated[int, typer.Option(min=1, max=1000, help="Images to measure.")] = 12,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    cpus: Annotated[int, typer.Option(min=1, help="CPUs of each.")] = 16,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each.")] = 0,
    price: Annotated[float, typer.Option(min=0.0, help="Price of one machine for an hour.")] = 0.0,
    gpu_images_per_s: Annotated[float | None, typer.Option(help="Speed of one GPU, where none is here.")] = None,
) -> None:
    """Tell how long SOURCE takes and what it costs: measures a sample of it here, and reckons for the given nodes."""
    import tempfile

    from pydantic import ValidationError

    from tasks.errors import JobError
    from tasks.segmentation.estimate import Nodes, measure
    from tasks.segmentation.estimate import estimate as reckon
    from tasks.segmentation.job import ArchiveJob

    wanted: dict[str, Any] = {"model": model, "untrained": untrained, "inference": {"long_side_px": long_side}}
    with tempfile.TemporaryDirectory() as folder:
        try:
            job = ArchiveJob(source=source, output=folder, **(wanted if crf else wanted | {"crf": None}))
            found = measure(job, sample)
            result = reckon(found, Nodes(nodes, cpus, gpus, price), gpu_images_per_s)
        except ValidationError as error:
            first = error.errors()[0]
            _fail(f"{'.'.join(map(str, first['loc']))}: {first['msg']}.")
        except JobError as error:
            _fail(str(error))
    print(f"{found.images_listed} images; measured on {found.images} of them, scored on {found.device}:")
    for stage, seconds in found.seconds.items():
        print(f"  {stage:<7} {seconds * 1000:8.1f} ms an image")
    if found.errors:
        print(f"  {found.errors} of the sample are no readable images and become error rows.")
    machines = f"{nodes} x ({cpus} CPUs, {gpus} GPUs)"
    print(f"On {machines}: {result.images_per_s:.2f} images/s, {_duration(result.seconds)}, price {result.price:.2f}.")
    print(f"What limits is {result.limit}.")
    print("Reckoned from one undisturbed worker here; the nodes' processors and storage may be faster or slower.")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _fail(sentence: str) -> NoReturn:
    print(f"segment-archive: {sentence}", file=sys.stderr)
    raise typer.Exit(1)


def mount(app: typer.Typer) -> None:
    """Add the commands to the console application."""
    app.command("doctor")(doctor)
    app.command("estimate")(estimate)
