"""The console commands `segment-archive train` and `recipes`."""

from typing import Annotated, Any

from flows import screen
from flows.options import Json, Quiet, flag, options
from tasks.models.names import model_names, recipe_name, recipe_names
from tasks.training.training_job import TrainJob
from tasks.words import counted


@options(
    arguments=("dataset", "output"),
    names={"recipe": "--recipe -r", "num_workers": "--workers", "crop_px": "--crop", "num_threads": "--threads"},
    groups={
        "Input": ("dataset", "output", "split", "validation_split"),
        "Recipe": (
            *("recipe", "initial", "teacher", "iterations", "epochs", "minutes", "batch_size", "learning_rate"),
            *("crop_px", "precision", "seed"),
        ),
        "Machine": (
            "num_workers",
            "min_workers",
            "num_threads",
            "images_at_once",
            "max_failures",
            "cache_bytes",
            "compiled",
        ),
        "Validation and checkpoints": (
            *("validation_images", "validate_every", "checkpoint_every", "keep_checkpoints"),
        ),
    },
    without=("inference",),
    by_name={"recipe": recipe_name},
    complete={"recipe": recipe_names, "initial": model_names},
)
def train(
    job: TrainJob,
    *,
    dry_run: Annotated[bool, flag("Print what would happen, measured over some steps.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a model by a recipe of the papers, or by a fast one of ours.

    The same command goes on from the newest checkpoint, whatever ended the last one; to the last bit on CPUs.

    For example:

    segment-archive train ~/datasets/voc2012 out/ --recipe deeplab_v2_resnet101 --dry-run

    segment-archive train ~/datasets/voc2012 out/ --recipe deeplab_v2_resnet101 --initial ~/models/resnet101
    """
    from flows import execution, jobs
    from tasks.errors import require_packages

    require_packages("Training", "train", "torch", "ray", "matplotlib")
    result: Any = execution.run(jobs.plan_training if dry_run else jobs.train_model, job, quiet=quiet or json)
    if json:
        screen.print_json(result)
    elif not quiet:
        (_show_plan if dry_run else _show)(result)


def recipes(*, json: Json = False) -> None:
    """List the recipes that `train` knows.

    For example:

    segment-archive recipes
    """
    from tasks.models.names import recipes as all_recipes
    from tasks.training.training_job import describe_recipes

    if json:
        screen.print_json(all_recipes())
        return
    for line in describe_recipes():
        print(line)


def _show(report: Any) -> None:
    if not report.steps_now:
        print(f"Nothing to do: {'the one step is' if report.steps == 1 else f'all {report.steps:,} steps are'} done.")
    else:
        going_on = f" (from step {report.resumed_from})" if report.resumed_from else ""
        restarts = f", workers restarted {counted(report.restarts, 'time')}" if report.restarts else ""
        print(
            f"{counted(report.steps_now, 'step')}{going_on} in {report.seconds:.1f} s: "
            f"{report.images_per_s:.1f} images/s, device busy {100 * report.device_busy:.0f} %{restarts}."
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
        f"{counted(plan.images, 'image')}, each seen {plan.epochs:.1f} times; {plan.dataset_bytes / 2**20:.0f} MiB as "
        "stored, which each worker keeps in memory."
    )
    print(
        f"{counted(plan.num_workers, 'worker')} on {plan.device}: "
        f"{plan.seconds_per_step:.2f} s a step, {plan.images_per_s:.1f} images/s, "
        f"device busy {100 * plan.device_busy:.0f} %, peak memory {plan.peak_bytes / 2**30:.1f} GiB a worker."
    )
    hours, minutes = divmod(round(plan.seconds_left / 60), 60)
    print(f"{counted(plan.steps, 'step')} to do: {hours} h {minutes} min, validations not counted.")
