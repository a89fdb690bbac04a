"""What is asked of a training, by which recipe."""

from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import annotated_types
from pydantic import BaseModel, field_validator, model_validator

from segcore.learning import recipes
from segcore.learning.recipes import TrainRecipe
from segcore.scoring.inference import InferenceParams


class TrainJob(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """What to train, on what, and where to put it."""

    dataset: str
    """URI of a prepared dataset."""

    output: str
    """URI that checkpoints, metrics and the model are written under; one training each."""

    recipe: TrainRecipe = recipes.FAST_PSPNET18
    """A recipe in full, or the name of one."""

    split: str = "auto"
    """Split of the dataset to learn from; "auto": train_aug where the dataset has one, otherwise train."""

    validation_split: str = "auto"
    """Split to validate on; "auto": val, or no validation where the dataset has none."""

    initial: str | None = None
    """Weights to start from: name of a model, path or URI of a model directory; layers that fit are taken."""

    teacher: str | None = None
    """URI of an npz file with `ids` and `probabilities`, for recipes that learn from a teacher."""

    iterations: Annotated[int, annotated_types.Ge(1)] | None = None
    """Steps, instead of the recipe's; the schedule, its stairs and its warm-up shrink or grow with them."""

    epochs: Annotated[float, annotated_types.Gt(0)] | None = None
    """As many steps as show each image so often, instead of the recipe's number."""

    minutes: Annotated[float, annotated_types.Gt(0)] | None = None
    """As many steps as this machine does in so many minutes, by a measurement at the start, instead of the recipe's
    number. A training that goes on keeps its number of steps."""

    batch_size: Annotated[int, annotated_types.Ge(1)] | None = None
    """Global batch, instead of the recipe's; learning rate and iterations follow by the linear rule."""

    learning_rate: Annotated[float, annotated_types.Gt(0)] | None = None
    """At the first full step, instead of the recipe's and of the linear rule's; multipliers and schedule stay."""

    crop_px: Annotated[int, annotated_types.Interval(ge=9, le=4097)] | None = None
    """Side of the crops in px, instead of the recipe's: 8k + 1."""

    precision: Literal["fp32", "bf16"] | None = None
    """Number format of the forward pass, instead of the recipe's."""

    seed: Annotated[int, annotated_types.Ge(0)] | None = None
    """Instead of the recipe's."""

    num_workers: Annotated[int, annotated_types.Ge(0)] = 0
    """Workers of Ray Train; 0: one for each GPU, or one where there is none."""

    min_workers: Annotated[int, annotated_types.Ge(0)] = 0
    """Fewest workers to go on with where machines are lost and none takes their place; they share the same batches. 0:
    one where `num_workers` is 0, else all of them, since another number adds up in another order, which are other
    weights in the last bits."""

    num_threads: Annotated[int, annotated_types.Ge(0)] = 0
    """CPU threads of each worker; 0: the free CPUs, shared evenly. A resumed training keeps its number, since sums in
    another order are other weights in the last bit."""

    images_at_once: Annotated[int, annotated_types.Ge(0)] = 0
    """Images of one forward pass on one worker; the gradients of the passes of a step are added up. 0: all at once."""

    validation_images: Annotated[int, annotated_types.Ge(0)] = 100
    """Images of each validation, the first of the split (whose order is drawn); 0 for none."""

    validate_every: Annotated[int, annotated_types.Ge(1)] = 1000
    """Steps between validations; there is one after the last step too."""

    checkpoint_every: Annotated[int, annotated_types.Ge(1)] = 500
    """Steps between checkpoints; there is one with each validation and after the last step too."""

    keep_checkpoints: Annotated[int, annotated_types.Ge(1)] = 3
    """The last so many are kept, and the best."""

    max_failures: Annotated[int, annotated_types.Ge(0)] = 3
    """How often the workers are started again after one of them was lost."""

    inference: InferenceParams = InferenceParams()
    """How validation scores its images: whole, never a centre crop."""

    cache_bytes: Annotated[int, annotated_types.Ge(0)] = 4 << 30
    """Most bytes of the dataset that each worker keeps in memory, as stored."""

    compiled: bool = False
    """Let torch.compile fuse the kernels; takes a minute or more at the start."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        given = [name for name in ("iterations", "epochs", "minutes") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both given; one of them says how long to train.")
        return self

    @field_validator("recipe", mode="before", json_schema_input_type=str | TrainRecipe)
    @classmethod
    def _named_recipe(cls, value: Any) -> Any:
        return recipes.recipe(value) if isinstance(value, str) else value


def job_recipe(job: TrainJob, images: int) -> TrainRecipe:
    """The recipe, with what the job asks for instead, for a split of so many images.

    ValueError: it does not fit together.
    """
    recipe = job.recipe
    if job.batch_size is not None:
        recipe = recipes.with_batch_size(recipe, job.batch_size)
    if job.epochs is not None:
        recipe = recipes.with_iterations(recipe, max(1, round(job.epochs * images / recipe.batch_size)))
    elif job.iterations is not None:
        recipe = recipes.with_iterations(recipe, job.iterations)
    else:
        recipe = recipes.for_images(recipe, images)
    changes: dict[str, Any] = {
        name: value for name in ("learning_rate", "precision", "seed") if (value := getattr(job, name)) is not None
    }
    if job.crop_px is not None:
        changes["augmentation"] = replace(recipe.augmentation, crop_px=job.crop_px)
        changes["phases"] = tuple(replace(phase, crop_px=job.crop_px) for phase in recipe.phases)
    return replace(recipe, **changes)


def describe_recipes() -> list[str]:
    """One line for each recipe."""
    return [
        f"{name:<30} {r.optimiser} {r.learning_rate:g}, {r.schedule.kind}, batch {r.batch_size}, {r.iterations} steps, "
        f"crop {r.crop_px}; from {r.initial or 'scratch'}"
        for name, r in recipes.RECIPES.items()
    ]
