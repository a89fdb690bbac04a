"""The console command `segment-archive tune-crf`."""

from typing import Annotated

import typer


def tune_crf(
    scores: Annotated[str, typer.Argument(help="npz file with ids and logits, as a network gave them.")],
    images: Annotated[str, typer.Argument(help="Folder of the photographs, <id>.jpg.")],
    truth: Annotated[str, typer.Argument(help="Folder of the true masks, <id>.png.")],
    output: Annotated[str, typer.Argument(help="Folder for the table of points, the report and the picture.")],
    num_images: Annotated[int, typer.Option(help="Images that the search sees.")] = 100,
    num_held_out: Annotated[int, typer.Option(help="Other images to compare the best point on.")] = 0,
    rounds: Annotated[int, typer.Option(help="Refinements after the coarse grid.")] = 3,
    seed: Annotated[int, typer.Option(help="Draws images and bootstrap samples.")] = 0,
) -> None:
    """Search the CRF parameters with the best mean IoU, coarse to fine, as the papers do."""
    from flows import execution, jobs
    from tasks.evaluation.tuning import TuneJob

    job = TuneJob(
        scores=scores,
        images=images,
        truth=truth,
        output=output,
        num_images=num_images,
        num_held_out=num_held_out,
        rounds=rounds,
        seed=seed,
    )
    report = execution.run(jobs.tune_crf, job)
    print(report.told())
    print(f"Best: {report.best}")
    print(f"Table, report and picture: {output}")


def mount(app: typer.Typer) -> None:
    """Add the command to the console application."""
    app.command("tune-crf")(tune_crf)
