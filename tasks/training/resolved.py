"""A training with everything looked up: its recipe, its data, the model that will come out; and its record.

What cannot be trained is refused here, before anything starts. `training.json` in the output says what is trained there
and how it stands; its identity decides whether a session may go on.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from segcore import models
from segcore.learning.recipes import TrainRecipe
from segcore.models import checkpoint
from segcore.models.card import ONNX, ModelCard
from tasks import storage
from tasks.commit import commit
from tasks.datasets import shards
from tasks.datasets.shards import DatasetManifest
from tasks.errors import JobError
from tasks.models import remote as remote_models
from tasks.storage import Location
from tasks.training.training_job import TrainJob, job_recipe


@dataclass(frozen=True)
class ResolvedTraining:
    """A job with everything looked up."""

    job: TrainJob
    recipe: TrainRecipe
    output: Location
    manifest: DatasetManifest
    card: ModelCard
    """Of the model that will come out."""
    identity: dict[str, Any]
    """What decides the weights, as it stands in the record."""


def resolve(job: TrainJob) -> ResolvedTraining:
    """Look everything up that a job names. Raises JobError where it cannot be trained."""
    manifest = shards.read_manifest(storage.locate(job.dataset))
    job = job.model_copy(update={"split": manifest.training_split(job.split)})
    split = manifest.split(job.split)
    try:
        recipe = job_recipe(job, split.images)
    except ValueError as error:
        raise JobError(f"The recipe does not fit together: {error}") from None
    if job.validation_split == "auto":
        images = job.validation_images if "val" in manifest.splits else 0
        job = job.model_copy(update={"validation_split": "val", "validation_images": images})
    if job.validation_images:
        manifest.split(job.validation_split)
    if recipe.loss.teacher_share and job.teacher is None:
        raise JobError("The recipe learns from a teacher too: give the npz file of its probabilities (teacher).")
    preprocessing, init, digest = models.variant(recipe.model).preprocessing, f"seeded, seed {recipe.seed}", ""
    trained_on = f"{manifest.name}-{job.split}"
    if job.initial is not None:
        try:
            card, digest = checkpoint.describe(remote_models.local_model(job.initial))
        except ValueError as error:
            raise JobError(f"The initial weights cannot be used: {error}") from None
        if card.variant == ONNX:
            raise JobError(f"{job.initial} is an ONNX file, which cannot be trained on: give a model directory.")
        preprocessing = card.preprocessing
        init = f"{card.shown_name}, trained on {card.training_split}"
        if card.saw_voc_val:
            trained_on += f" after {card.training_split}"  # What it saw before, it has still seen
    teacher = None
    if recipe.loss.teacher_share and job.teacher is not None:
        place = storage.locate(job.teacher)
        with storage.explained(place):
            teacher = hashlib.sha256(storage.read_bytes(place)).hexdigest()
    identity = {
        "recipe": asdict(recipe),
        "dataset": split.digest,
        "classes": manifest.classes,
        "initial": digest,
        "teacher": teacher,
        "images_at_once": job.images_at_once,
    }
    card = ModelCard(
        variant=recipe.model,
        classes=tuple(manifest.classes),
        preprocessing=preprocessing,
        options=dict(recipe.options),
        init=init,
        training_split=trained_on,
        commit=commit(),
    )
    return ResolvedTraining(job, recipe, storage.locate(job.output), manifest, card, json.loads(json.dumps(identity)))


RECORD_VERSION = 1

_RECORD = "training.json"


def begin_record(resolved: ResolvedTraining) -> dict[str, Any]:
    """The record of this training, written where there is none. Raises JobError where that of another one stands."""
    record = read_record(resolved.output)
    check_identity(resolved, record)
    if record:
        return record
    record = {
        "record_version": RECORD_VERSION,
        "status": "running",
        "identity": resolved.identity,
        "dataset": {"uri": resolved.job.dataset, "name": resolved.manifest.name, "digest": resolved.manifest.digest},
        "split": resolved.job.split,
        "validation_split": resolved.job.validation_split,
        "commit": resolved.card.commit,
        # Filled in with the first session's
        "num_threads": 0,
    }
    write_record(resolved.output, record)
    return record


def read_record(output: Location) -> dict[str, Any]:
    """What stands in an output; empty where nothing does. Raises JobError for what is damaged or of another version."""
    try:
        record = json.loads(storage.read_bytes(output / _RECORD))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise JobError(f"{(output / _RECORD).uri} is not readable: choose another output, or remove it.") from None
    if not isinstance(record, dict) or record.get("record_version") != RECORD_VERSION:
        raise JobError(f"{(output / _RECORD).uri} was written by another version: choose another output.")
    return record


def write_record(output: Location, record: dict[str, Any]) -> None:
    """Replace the record of an output, whole."""
    storage.write_whole(output / _RECORD, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())


def check_identity(resolved: ResolvedTraining, record: dict[str, Any]) -> None:
    """Raises JobError with the names of what differs, where the record is of another training; an empty one fits."""
    if not record:
        return
    differing = _differences(_as_today(record["identity"]), resolved.identity)
    if differing:
        raise JobError(
            f"{resolved.output.uri} holds another training, which differs in {', '.join(differing[:5])}: "
            "choose another output, or ask for the same."
        )


_GONE = {"class_weights": None, "ohem_share": 1.0, "soft_weight": 0.0}
"""Fields of a recipe's loss that there are no more, with the values at which they did nothing."""


def _as_today(identity: dict[str, Any]) -> dict[str, Any]:
    """The identity of a record of before, whose recipe lacks newer fields: they did nothing then, as by default."""
    recipe = dict(identity["recipe"])
    default = json.loads(json.dumps(asdict(TrainRecipe(recipe["model"]))))
    loss = {name: value for name, value in recipe["loss"].items() if name not in _GONE or value != _GONE[name]}
    recipe["loss"] = {**default["loss"], **loss}
    return {**identity, "recipe": {**default, **recipe}}


def _differences(one: Any, other: Any, name: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        found = []
        for key in sorted(one.keys() | other.keys()):
            found += _differences(one.get(key), other.get(key), f"{name}.{key}" if name else key)
        return found
    return [] if one == other else [name]
