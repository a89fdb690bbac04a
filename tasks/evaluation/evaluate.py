"""What is evaluated: the job, and the evaluations that it comes to, each with all that decides a count.

An evaluation is one model on one set of images in one way of scoring. `tasks/evaluation/judging.py` does it, once:

    OUTPUT/counts/evaluation=<id>/part-*.parquet    counts of single images (`tasks/evaluation/counts.py`)
    OUTPUT/evaluations/<id>.json                    its figures (`tasks/evaluation/record.py`); written last

Whether a night was worse than another one is `tasks/nights/nightly.py`'s business.
"""

import dataclasses
import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Annotated

import annotated_types
from pydantic import BaseModel, BeforeValidator

from segcore.crf import dense_crf
from segcore.crf.dense_crf import Backend, CrfParams
from segcore.metrics.comparison import AlarmParams
from segcore.metrics.evaluation import Around
from segcore.models import checkpoint
from segcore.scoring.inference import DEEPLAB_V2_MSC, PSPNET_MULTI_SCALE, InferenceParams
from tasks import engines, storage
from tasks.commit import commit
from tasks.datasets.shards import DatasetManifest, Split, read_manifest
from tasks.engines import EngineName
from tasks.errors import JobError
from tasks.evaluation.code import code_version
from tasks.evaluation.unseen import refuse_by_name
from tasks.models.registry import RegisteredModel
from tasks.models.remote import local_model

EVALUATION_VERSION = 1
"""Raised when the same labels give other counts."""

STAGES = ("without CRF", "with CRF")


class ReevaluateJob(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """What to evaluate on which images, how, and when a difference is worth an alarm."""

    models: str
    """Folder or bucket prefix of model directories; one model directory; or the name of a model with weights here."""

    dataset: str
    """URI of a prepared dataset (`segment-archive prepare`)."""

    output: str
    """URI that counts, figures, baselines and reports are written under."""

    split: str = "val"
    """Images to evaluate on."""

    inference: InferenceParams = InferenceParams()
    """How scores are made: sizes, scales, windows, precision; as in an archive job."""

    multi_scale: bool = False
    """Evaluate at the scales of the model's paper too."""

    crf: Annotated[CrfParams | None, BeforeValidator(dense_crf.named_params)] = CrfParams()
    """Measure with the CRF too; figures come without and with it. Parameters, or a preset's name; None: without."""

    crf_engine: Backend = "auto"
    """Engine of the CRF; auto takes the native one where it is built; cuda: on the GPU that scores."""

    alarm: AlarmParams = AlarmParams()
    """When a difference from the baseline is worth an alarm."""

    stale_after_hours: Annotated[float, annotated_types.Gt(0)] = 12.0
    """A scheduled run that starts later than this after its time is cancelled: the next one is as good."""

    report: bool = True
    """Write the report with its pictures."""

    engine: EngineName = "auto"
    """Where the work runs: local (processes of this machine) or ray; auto takes ray where RAY_ADDRESS is set or there
    are GPUs."""


@dataclass(frozen=True)
class Evaluation:
    """One model on one set of images in one way of scoring: what a file of figures is about."""

    id: str
    """Digest of everything that decides a count."""

    model: str
    """Name in the registry."""

    uri: str
    variant: str
    shown_name: str
    """What people see: the variant, marked where it is untrained."""

    digest: str
    """Of the model."""

    training_split: str
    protocol: str
    """ "single scale" or "multi-scale"."""

    inference: InferenceParams
    crf: CrfParams | None
    crf_engine: Backend
    dataset: str
    """Name of the dataset and its split."""

    dataset_uri: str
    split: str
    split_digest: str
    images: int
    classes: tuple[str, ...]
    around: Around
    code: str
    """`code_version` that made it."""

    commit: str
    """For people: the commit of the project, or its version."""

    @property
    def stages(self) -> tuple[str, ...]:
        """What is counted: without CRF, and with it where there is one."""
        return STAGES if self.crf is not None else STAGES[:1]


def open_dataset(job: ReevaluateJob) -> tuple[DatasetManifest, Split]:
    """The dataset of a job and its split. Raises JobError where either is not there."""
    manifest = read_manifest(storage.locate(job.dataset))
    split = manifest.split(job.split)
    if not split.images:
        raise JobError(f"The split {job.split} of {job.dataset} holds no images.")
    return manifest, split


def evaluations_of(job: ReevaluateJob, model: RegisteredModel, manifest: DatasetManifest) -> list[Evaluation]:
    """What is to be evaluated of a model: one evaluation, or two with its multi-scale protocol.

    Reads card and digest of the model, builds no network.
    Raises JobError for a model that is broken, that has other classes, or that was trained on these images.
    """
    try:
        card, digest = checkpoint.describe(local_model(model.uri))
    except JobError:
        raise
    except (ValueError, OSError) as error:
        raise JobError(str(error)) from None
    split = manifest.split(job.split)
    if list(card.classes) != manifest.classes:
        raise JobError(
            f"{model.name} knows {len(card.classes)} classes, {', '.join(card.classes[:3])}, ..., the dataset "
            f"{manifest.name} has {len(manifest.classes)}: they must be the same in the same order."
        )
    refuse_by_name(card, manifest, job.split)
    protocols = {"single scale": job.inference}
    if job.multi_scale:
        ours = PSPNET_MULTI_SCALE if card.variant.startswith("pspnet") else DEEPLAB_V2_MSC
        protocols["multi-scale"] = dataclasses.replace(ours, precision=job.inference.precision)
    try:
        engine = dense_crf.choose_engine(job.crf_engine)
        if job.crf is not None and engines.choose(job.engine) == "local":
            dense_crf.require_engine(engine)
    except ValueError as error:
        raise JobError(str(error)) from None
    around: Around = "void" if split.void_pixels else "borders"
    found = []
    for protocol, inference in protocols.items():
        deciding = {
            "name": model.name,  # Two directories with the same weights are two models to a person
            "model": digest,
            "inference": asdict(inference),
            "crf": None if job.crf is None else asdict(job.crf),
            "engine": [engine, dense_crf.ENGINE_VERSION],
            "split": split.digest,
            "classes": manifest.classes,
            "around": around,
            "version": EVALUATION_VERSION,
            "code": code_version(),
        }
        found.append(
            Evaluation(
                id=hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12],
                model=model.name,
                uri=model.uri,
                variant=card.variant,
                shown_name=card.shown_name,
                digest=digest,
                training_split=card.training_split,
                protocol=protocol,
                inference=inference,
                crf=job.crf,
                crf_engine=engine,
                dataset=f"{manifest.name}-{job.split}",
                dataset_uri=job.dataset,
                split=job.split,
                split_digest=split.digest,
                images=split.images,
                classes=tuple(manifest.classes),
                around=around,
                code=code_version(),
                commit=commit()[:12] or version("segment-archive"),
            )
        )
    return found
