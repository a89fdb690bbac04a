"""The console command `segment-archive train`."""

from typing import Annotated, Any

import typer


def train(
    dataset: Annotated[str, typer.Argument(help="Folder or s3://bucket/prefix of a prepared dataset.")],
    output: Annotated[str, typer.Argument(help="Folder or s3://bucket/prefix for checkpoints, curves and the model.")],
    recipe: Annotated[str, typer.Option(help="Name of a recipe; see `segment-archive recipes`.")] = "fast_pspnet18",
    split: Annotated[
        str, typer.Option(help="Split to learn from; auto: train_aug, or train where there is none.")
    ] = "auto",
    validation_split: Annotated[str, typer.Option(help="Split to validate on.")] = "val",
    initial: Annotated[str | None, typer.Option(help="Weights to start from: name, path or URI of a model.")] = None,
    teacher: Annotated[str | None, typer.Option(help="npz file of a teacher's probabilities.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Steps, instead of the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Global batch; rate and steps follow by the linear rule.")] = (
        None
    ),
    learning_rate: Annotated[float | None, typer.Option(help="Instead of the recipe's and the linear rule's.")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of the crops in px, 8k + 1.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draws weights, order, views and dropout.")] = None,
    workers: Annotated[int, typer.Option(help="Workers; 0: one for each GPU, or one.")] = 0,
    min_workers: Annotated[
        int, typer.Option(help="Fewest to go on with where machines are lost; 0: all of --workers, or one.")
    ] = 0,
    images_at_once: Annotated[int, typer.Option(help="Images of one forward pass; 0: a worker's whole share.")] = 0,
    validation_images: Annotated[int, typer.Option(help="Images of each validation; 0 for none.")] = 100,
    validate_every: Annotated[int, typer.Option(help="Steps between validations.")] = 1000,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 500,
    keep_checkpoints: Annotated[int, typer.Option(help="The last so many are kept, and the best.")] = 3,
    max_failures: Annotated[int, typer.Option(help="Lost workers that are survived.")] = 3,
    compiled: Annotated[bool, typer.Option("--compiled", help="Fuse kernels with torch.compile.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, measured over some steps.")] = (
        False
    ),
) -> None:
    """Train a model by a recipe of the papers, or by a fast one of ours.

    The same command goes on from the newest checkpoint, whatever ended the last one; to the last bit on CPUs.
    """
    from flows import execution, jobs
    from tasks.training.job import TrainJob

    given: dict[str, Any] = {
        "dataset": dataset,
        "output": output,
        "recipe": recipe,
        "split": split,
        "validation_split": validation_split,
        "initial": initial,
        "teacher": teacher,
        "iterations": iterations,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "crop_px": crop,
        "precision": precision,
        "seed": seed,
        "num_workers": workers,
        "min_workers": min_workers,
        "images_at_once": images_at_once,
        "validation_images": validation_images,
        "validate_every": validate_every,
        "checkpoint_every": checkpoint_every,
        "keep_checkpoints": keep_checkpoints,
        "max_failures": max_failures,
        "compiled": compiled,
    }
    job = TrainJob(**given)
    if dry_run:
        _show_plan(execution.run(jobs.plan_training, job))
    else:
        _show(execution.run(jobs.train_model, job))


def list_recipes() -> None:
    """List the recipes that `train` knows."""
    from tasks.training.job import describe_recipes

    for line in describe_recipes():
        print(line)


def mount(app: typer.Typer) -> None:
    """Add the commands to the console application."""
    app.command("train")(train)
    app.command("recipes")(list_recipes)


def _show(report: Any) -> None:
    if not report.steps_now:
        print(f"Nothing to do: all {report.steps} steps are done.")
    else:
        going_on = f" (from step {report.resumed_from})" if report.resumed_from else ""
        restarts = f", workers restarted {report.restarts} times" if report.restarts else ""
        print(
            f"{report.steps_now} steps{going_on} in {report.seconds:.1f} s: {report.images_per_s:.1f} images/s, "
            f"device busy {100 * report.device_busy:.0f} %{restarts}."
        )
    print(f"Loss of the last steps {report.loss:.4f}.")
    if report.mean_iou is not None:
        best = f" (best {100 * report.best_mean_iou:.2f} %)" if report.best_mean_iou is not None else ""
        print(f"Validation mean IoU {100 * report.mean_iou:.2f} %{best}, over the classes in its images.")
    print(f"Model: {report.model}\nUse it: segment-archive run PHOTOGRAPHS OUTPUT --model {report.model}")


def _show_plan(plan: Any) -> None:
    print(f"{plan.job}.")
    for group in plan.groups:
        print(
            f"  trains {group.parameters:>12,} parameters in {group.tensors} tensors at {group.learning_rate:g} "
            f"({group.label})"
        )
    print(f"  frozen {plan.frozen:>12,}")
    print(
        f"{plan.images} images, each seen {plan.epochs:.1f} times; {plan.dataset_bytes / 2**20:.0f} MiB as stored, "
        "which each worker keeps in memory."
    )
    print(
        f"{plan.num_workers} worker{'s' if plan.num_workers > 1 else ''} on {plan.device}: "
        f"{plan.seconds_per_step:.2f} s a step, {plan.images_per_s:.1f} images/s, "
        f"device busy {100 * plan.device_busy:.0f} %, peak memory {plan.peak_bytes / 2**30:.1f} GiB a worker."
    )
    hours, minutes = divmod(round(plan.seconds_left / 60), 60)
    print(f"{plan.steps} steps to do: {hours} h {minutes} min, validations not counted.")
