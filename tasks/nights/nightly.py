"""The steps of a night: every model of the registry evaluated, and compared with its accepted baseline.

A broken model keeps no other from its evaluation. What wakes people is found in `tasks/nights/alarms.py`.

    OUTPUT/baselines/<model>.json       the evaluations that later ones are compared with (`tasks/nights/baselines.py`)
    OUTPUT/metrics/<night>.parquet      every figure of a night, one row each (`tasks/nights/history.py`)
    OUTPUT/reports/<night>/report.html  everything, pictures included; *.png beside it (`tasks/nights/page.py`)
    OUTPUT/nights/<night>.json          what a night found; written last (`tasks/nights/baselines.py`)
"""

import datetime
import hashlib
import json
import uuid
from dataclasses import asdict, dataclass
from typing import Any

from tasks import engines, progress, storage
from tasks.datasets.shards import DatasetManifest, Split
from tasks.errors import InterruptedJobError, JobError
from tasks.evaluation.code import code_version
from tasks.evaluation.evaluate import (
    Evaluation,
    ReevaluateJob,
    evaluations_of,
    open_dataset,
)
from tasks.evaluation.judging import evaluate
from tasks.evaluation.record import read_record
from tasks.evaluation.unseen import RefusedError, require_unseen, seen_digest
from tasks.models.registry import RegisteredModel, list_models
from tasks.nights.alarms import find_alarms
from tasks.nights.baselines import ModelNight, Night, last_night, listed, read_baseline, write_night
from tasks.nights.history import append_metrics
from tasks.nights.page import write_page
from tasks.storage import Location


@dataclass(frozen=True)
class NightPlan:
    """What a night comes to before anything is scored."""

    run: str
    """Name of the night: its time, and a few digits."""

    key: str
    """Digest of models, images, code, baselines and the rule of the alarm."""

    nothing_new: str | None
    """Sentence that says so, where the last night was the same."""


def plan_night(job: ReevaluateJob) -> NightPlan:
    """Name the night, and see whether anything changed since the last one; reads cards and digests only."""
    manifest, split, models = _inputs(job)
    output = storage.locate(job.output)
    storage.require_writable(output)
    asked: dict[str, Any] = {}
    for model in models:
        try:
            asked[model.name] = [seen_digest(model.uri), *(of.id for of in evaluations_of(job, model, manifest))]
        except JobError as error:
            asked[model.name] = str(error)
    key = hashlib.sha256(
        json.dumps(
            [asked, split.digest, code_version(), asdict(job.alarm), _baselines(output, asked)], sort_keys=True
        ).encode()
    ).hexdigest()[:16]
    now = datetime.datetime.now(datetime.UTC)
    run = f"{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:4]}"
    return NightPlan(run, key, _nothing_new(output, key))


def _inputs(job: ReevaluateJob) -> tuple[DatasetManifest, Split, list[RegisteredModel]]:
    """What a night reads. Raises JobError that names all that is missing at once: a night is tried once a day."""
    missing = []
    try:
        models = list_models(job.models)
    except JobError as error:
        missing.append(error)
    try:
        manifest, split = open_dataset(job)
    except JobError as error:
        missing.append(error)
    if missing:
        outage = next((error for error in missing if isinstance(error, InterruptedJobError)), None)
        raise outage or JobError(" ".join(str(error) for error in missing))
    return manifest, split, models


def _nothing_new(output: Location, key: str) -> str | None:
    last = last_night(output)
    # A model that failed is tried again: the machine may have been at fault
    if last is None or last["key"] != key or any(m["failure"] for m in last["models"]):
        return None
    told = f"Nothing new since the night {last['run']}: same models, images, baselines and code; nothing was done."
    if last["alarms"]:
        worse = listed(sorted({alarm["model"] for alarm in last["alarms"]}))
        told += f" Its alarm about {worse} still stands."
    return told


def _baselines(output: Location, models: dict[str, Any]) -> dict[str, Any]:
    return {model: read_baseline(output, model).get("evaluations") for model in models}


def evaluate_models(job: ReevaluateJob, plan: NightPlan) -> Night:
    """Evaluate every model of the registry as far as that is not done; a broken one keeps no other from its turn."""
    manifest, split = open_dataset(job)
    output = storage.locate(job.output)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    night = Night(plan.run, plan.key, now, f"{manifest.name}-{job.split}", split.images, [], output=job.output)
    asked: list[tuple[ModelNight, list[Evaluation]]] = []
    for model in list_models(job.models):
        of = ModelNight(model.name)
        night.models.append(of)
        try:
            evaluations = evaluations_of(job, model, manifest)
            unseen = require_unseen(model.uri, manifest, job.split, storage.locate(job.dataset), output)
            of.training_images, of.similar = unseen.sentence, unseen.similar
            asked.append((of, evaluations))
        except RefusedError as error:
            of.refused = str(error)
        except JobError as error:
            of.failure = str(error)
    todo = {e.id for _, evaluations in asked for e in evaluations if not read_record(output, e.id)}
    with engines.at_hand(job.engine):
        for of, evaluations in asked:
            try:
                for e in evaluations:
                    if e.id in todo:
                        progress.say(f"Evaluating {e.model}, {e.protocol}, on {e.images} images of {e.dataset}.")
                    evaluate(job, e)
                of.evaluations = [e.id for e in evaluations]
            except JobError as error:
                of.failure = str(error)
            except Exception as error:  # Whatever a broken model does is its own failure, not the night's
                of.failure = f"{type(error).__name__}: {error}".splitlines()[0]
    return night


def judge_night(job: ReevaluateJob, night: Night) -> Night:
    """Compare with the baselines, and append to the metrics."""
    output = storage.locate(job.output)
    records = {evaluation_id: read_record(output, evaluation_id) for evaluation_id in night.evaluations}
    night.alarms = find_alarms(job, night, records)
    append_metrics(output, night, records)
    if job.report and records:
        night.report = (output / "reports" / night.run / "report.html").uri
    return night


def publish_night(job: ReevaluateJob, night: Night) -> Night:
    """Write the report."""
    output = storage.locate(job.output)
    if night.report is not None:
        write_page(output, night, job.dataset)
    return night


def close_night(job: ReevaluateJob, night: Night) -> None:
    """Write the record of the night: the last thing of it, so that what was cut short is done again."""
    write_night(storage.locate(job.output), night)
