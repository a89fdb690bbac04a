"""One night of re-evaluation: every model of the registry, compared with its accepted baseline.

    OUTPUT/baselines/<model>.json       the evaluations that later ones are compared with; moved by `accept_baseline`
    OUTPUT/metrics/<night>.parquet      every figure of a night, one row each
    OUTPUT/nights/<night>.json          what a night found; written last

A broken model keeps no other from its evaluation. What wakes people is decided in `segcore/comparison.py`.
"""

import contextlib
import datetime
import hashlib
import io
import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from segcore import evaluation
from segcore.comparison import Difference, compare
from tasks import cluster, progress, storage
from tasks.errors import JobError
from tasks.evaluation import (
    Counts,
    Evaluation,
    ReevaluateJob,
    RefusedError,
    code_version,
    evaluate,
    evaluation_of,
    evaluations_of,
    open_dataset,
    read_counts,
    read_record,
)
from tasks.registry import list_models
from tasks.storage import Location

EVENT = "segment-archive.regression"
"""Name of the Prefect event that automations listen to."""

METRICS = pa.schema(
    [
        ("run", pa.string()),
        ("time", pa.timestamp("s", tz="UTC")),
        ("model", pa.string()),
        ("variant", pa.string()),
        ("model_digest", pa.string()),
        ("commit", pa.string()),
        ("dataset", pa.string()),
        ("split_digest", pa.string()),
        ("images", pa.int64()),
        ("protocol", pa.string()),
        ("stage", pa.string()),
        ("class", pa.string()),
        ("measure", pa.string()),
        ("trimap_px", pa.int32()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)
"""Columns of the metrics; values are shares, 0 to 1, low and high the 95 % interval. `class` is null for a figure over
all classes, `trimap_px` for one over all pixels."""


@dataclass(frozen=True)
class NightPlan:
    """What a night comes to before anything is scored."""

    run: str
    """Name of the night: its time, and a few digits."""

    key: str
    """Digest of models, images, code, baselines and the rule of the alarm."""

    nothing_new: str | None
    """Sentence that says so, where the last night was the same."""


@dataclass
class Alarm:
    """One reason to wake somebody."""

    model: str
    kind: str
    """ "worse", "other images" or "failed"."""

    sentence: str
    protocol: str | None = None
    differences: list[dict[str, Any]] = field(default_factory=list)
    """Figures that are worse, with stage and class; shares, 0 to 1."""


@dataclass
class ModelNight:
    """What came of one model."""

    model: str
    evaluations: list[str] = field(default_factory=list)
    """Identities; empty where it failed or was refused."""

    compared: bool = False
    """Whether there was a baseline to compare with."""

    refused: str | None = None
    """Why it must not be scored on these images."""

    failure: str | None = None


@dataclass
class Night:
    """What a night found."""

    run: str
    key: str
    time: str
    """UTC, ISO 8601."""

    dataset: str
    images: int
    models: list[ModelNight]
    alarms: list[Alarm] = field(default_factory=list)
    report: str | None = None
    """Where the HTML report is."""

    output: str = ""

    @property
    def sentence(self) -> str:
        """What a person is told first."""
        if self.alarms:
            return "; ".join(alarm.sentence.rstrip(".") for alarm in self.alarms) + "."
        told = [f"{sum(1 for m in self.models if m.evaluations)} models on {self.images} images of {self.dataset}"]
        compared = sum(m.compared for m in self.models)
        if compared:
            told.append(f"{compared} compared with their baseline, none worse")
        without = [m.model for m in self.models if m.evaluations and not m.compared]
        if without:
            told.append(f"no baseline yet for {_listed(without)}: `segment-archive baseline accept {self.output}`")
        refused = [m.model for m in self.models if m.refused]
        if refused:
            told.append(f"not scored, since trained on these images: {_listed(refused)}")
        return "; ".join(told) + "."


@task(name="plan-night", cache_policy=NO_CACHE)
def plan_night(job: ReevaluateJob) -> NightPlan:
    """Name the night, and see whether anything changed since the last one; reads cards and digests only."""
    output = storage.locate(job.output)
    storage.require_writable(output)
    manifest, split = open_dataset(job)
    asked: dict[str, Any] = {}
    for model in list_models(job.models):
        try:
            asked[model.name] = [of.id for of in evaluations_of(job, model, manifest)]
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


def _nothing_new(output: Location, key: str) -> str | None:
    last = last_night(output)
    # A model that failed is tried again: the machine may have been at fault
    if last is None or last["key"] != key or any(m["failure"] for m in last["models"]):
        return None
    told = f"Nothing new since the night {last['run']}: same models, images, baselines and code; nothing was done."
    if last["alarms"]:
        worse = _listed(sorted({alarm["model"] for alarm in last["alarms"]}))
        told += f" Its alarm about {worse} still stands."
    return told


@task(name="evaluate-models", cache_policy=NO_CACHE)
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
            asked.append((of, evaluations_of(job, model, manifest)))
        except RefusedError as error:
            of.refused = str(error)
        except JobError as error:
            of.failure = str(error)
    todo = [e for _, evaluations in asked for e in evaluations if not read_record(output, e.id)]
    with cluster.connected() if todo else contextlib.nullcontext():
        for of, evaluations in asked:
            try:
                for e in evaluations:
                    if e in todo:
                        progress.say(f"Evaluating {e.model}, {e.protocol}, on {e.images} images of {e.dataset}.")
                    evaluate(job, e)
                of.evaluations = [e.id for e in evaluations]
            except JobError as error:
                of.failure = str(error)
            except Exception as error:  # Whatever a broken model does is its own failure, not the night's
                of.failure = cluster.explain(error)
    return night


@task(name="judge-night", cache_policy=NO_CACHE)
def judge_night(job: ReevaluateJob, night: Night) -> Night:
    """Compare with the baselines, append to the metrics, and tell automations of every reason for an alarm."""
    output = storage.locate(job.output)
    records = {id: read_record(output, id) for model in night.models for id in model.evaluations}
    night.alarms = [
        Alarm(model.model, "failed", f"{model.model} could not be evaluated: {model.failure}")
        for model in night.models
        if model.failure
    ]
    pairs: list[tuple[Evaluation, str, Counts, Counts]] = []
    for model in night.models:
        baseline = read_baseline(output, model.model)
        if model.refused and baseline:
            night.alarms.append(Alarm(model.model, "failed", f"{model.refused.rstrip('.')}; it had a baseline"))
        for evaluation_id in model.evaluations:
            now = evaluation_of(records[evaluation_id])
            before_id = baseline.get("evaluations", {}).get(now.protocol)
            if before_id is None:
                continue
            model.compared = True
            if before_id == evaluation_id:
                continue
            found = _counts_of_both(output, before_id, now)
            if isinstance(found, str):
                night.alarms.append(Alarm(model.model, "other images", found, now.protocol))
                continue
            before, after = found
            pairs += [(now, stage, before, after) for stage in now.stages if stage in before.confusion]
    night.alarms += _worse(job, pairs)
    _append_metrics(output, night, records)
    if job.report and records:
        night.report = (output / "reports" / night.run / "report.html").uri
    _tell_automations(night)  # Before the pictures, so that nothing that goes wrong with them keeps it from anybody
    return night


@task(name="close-night", cache_policy=NO_CACHE)
def close_night(job: ReevaluateJob, night: Night) -> None:
    """Write the record of the night: the last thing of it, so that what was cut short is done again."""
    place = storage.locate(job.output) / "nights" / f"{night.run}.json"
    content = asdict(night) | {"sentence": night.sentence}
    storage.write_whole(place, json.dumps(content, indent=1).encode())


def stale(job: ReevaluateJob) -> str | None:
    """Sentence that says so, where this run of a deployment starts too long after its time; None otherwise."""
    due = runtime.flow_run.scheduled_start_time
    if runtime.deployment.id is None or due is None:
        return None
    hours = (datetime.datetime.now(datetime.UTC) - due).total_seconds() / 3600
    if hours <= job.stale_after_hours:
        return None
    return f"Due {hours:.0f} hours ago, at {due:%Y-%m-%d %H:%M} UTC: too late to be of use; the next night is as good."


def _tell_automations(night: Night) -> None:
    for alarm in night.alarms:
        emit_event(
            event=EVENT,
            resource={
                "prefect.resource.id": f"segment-archive.model.{alarm.model}",
                "prefect.resource.name": alarm.model,
                "segment-archive.kind": alarm.kind,
            },
            payload={
                "sentence": alarm.sentence,
                "model": alarm.model,
                "kind": alarm.kind,
                "run": night.run,
                "dataset": night.dataset,
                "differences": alarm.differences,
                "report": night.report,
            },
        )


def _counts_of_both(output: Location, before_id: str, now: Evaluation) -> tuple[Counts, Counts] | str:
    """Counts before and now, or the sentence that says why they cannot be compared."""
    record = read_record(output, before_id)
    if not record:
        return f"the baseline of {now.model} is gone ({before_id}): accept another one"
    was = evaluation_of(record)
    if record["images"] != now.images:
        return (
            f"{now.model} was evaluated on {now.images} images of {now.dataset}, its baseline on {record['images']}: "
            "find out why, then accept a new baseline"
        )
    if was.split_digest != now.split_digest:
        return (
            f"the images or masks of {now.dataset} are not those of the baseline of {now.model}, though as many: "
            "find out why, then accept a new baseline"
        )
    before, after = read_counts(output, was), read_counts(output, now)
    if before.ids != after.ids:
        return f"{now.model} and its baseline have counts of different images: evaluate again"
    return before, after


def _worse(job: ReevaluateJob, pairs: Sequence[tuple[Evaluation, str, Counts, Counts]]) -> list[Alarm]:
    """An alarm for each model and protocol with a figure that is worse; all figures are judged together."""
    compared = compare([(before.of(stage), after.of(stage)) for _, stage, before, after in pairs], job.alarm)
    found: dict[tuple[str, str], Alarm] = {}
    for (of, stage, _, _), differences in zip(pairs, compared, strict=True):
        for difference in differences:
            if difference.worse:
                alarm = found.setdefault((of.model, of.protocol), Alarm(of.model, "worse", "", of.protocol))
                name = None if difference.label is None else of.classes[difference.label]
                alarm.differences.append(
                    asdict(difference) | {"stage": stage, "class": name, "figure": figure_name(difference, of.classes)}
                )
    for alarm in found.values():
        alarm.differences.sort(key=lambda d: d["now"] - d["before"])
        first, more = alarm.differences[0], len(alarm.differences) - 1
        points, low, high = (100 * v for v in (first["now"] - first["before"], first["low"], first["high"]))
        alarm.sentence = (
            f"{alarm.model} is worse than its baseline: {first['figure']} {first['stage']} "
            f"{points:+.1f} points ({low:+.1f} to {high:+.1f})" + (f", {more} more figures" if more else "")
        )
    return list(found.values())


def figure_name(difference: Difference, classes: tuple[str, ...]) -> str:
    """What people call a figure: "mean IoU", "IoU of dog"."""
    if difference.label is not None:
        return f"IoU of {classes[difference.label]}"
    return {"mean_iou": "mean IoU", "pixel_accuracy": "pixel accuracy"}[difference.name]


def _append_metrics(output: Location, night: Night, records: dict[str, dict[str, Any]]) -> None:
    rows: list[dict[str, Any]] = []
    time = datetime.datetime.fromisoformat(night.time)
    for record in records.values():
        of = evaluation_of(record)
        common = {
            "run": night.run,
            "time": time,
            "model": of.model,
            "variant": of.variant,
            "model_digest": of.digest,
            "commit": of.commit,
            "dataset": of.dataset,
            "split_digest": of.split_digest,
            "images": record["images"],
            "protocol": of.protocol,
        }
        for stage, figures in record["figures"].items():
            overall = {"stage": stage, "class": None, "trimap_px": None}
            for name in ("mean_iou", "pixel_accuracy", "class_accuracy"):
                rows.append(common | overall | {"measure": name} | figures[name])
            for name, figure in figures["iou"].items():
                values = {end: figure[end] for end in ("value", "low", "high")}
                rows.append(common | overall | {"class": name, "measure": "iou"} | values)
            for name, curve in figures["trimap"].items():
                for width, figure in enumerate(curve, start=1):
                    rows.append(common | overall | {"trimap_px": width, "measure": name} | figure)
    if rows:
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=METRICS), buffer, compression="zstd")
        storage.write_whole(output / "metrics" / f"{night.run}.parquet", buffer.getvalue())


def read_metrics(output: Location) -> list[dict[str, Any]]:
    """Rows of mean IoU over all pixels, of every night, oldest first."""
    rows: list[dict[str, Any]] = []
    for file in storage.list_files(output / "metrics"):
        with storage.open_for_reading(output / "metrics" / file.path) as opened:
            table = pq.read_table(opened, partitioning=None, filters=[("measure", "=", "mean_iou")])
        rows += [r for r in table.to_pylist() if r["trimap_px"] is None]
    return sorted(rows, key=lambda row: row["time"])


def last_night(output: Location) -> dict[str, Any] | None:
    """The record of the latest night; None where there was none."""
    names = sorted(file.path for file in storage.list_files(output / "nights") if file.path.endswith(".json"))
    if not names:
        return None
    return dict(json.loads(storage.read_bytes(output / "nights" / names[-1])))


def latest_sentence(output: str) -> str | None:
    """What the latest night told; None where there is none that can be read."""
    with contextlib.suppress(Exception):
        last = last_night(storage.locate(output))
        return None if last is None else str(last["sentence"])
    return None


def baseline_of(output: Location, model: str) -> Location:
    """Where the baseline of a model stands."""
    return output / "baselines" / f"{model}.json"


def read_baseline(output: Location, model: str) -> dict[str, Any]:
    """The accepted baseline of a model: `evaluations` by protocol, `run`, `accepted`. Empty where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return dict(json.loads(storage.read_bytes(baseline_of(output, model))))
    return {}


def _baselines(output: Location, models: dict[str, Any]) -> dict[str, Any]:
    return {model: read_baseline(output, model).get("evaluations") for model in models}


def accept_baseline(output_uri: str, models: Sequence[str] = ()) -> dict[str, str]:
    """Compare later nights with what the latest one found; returns a sentence for each model.

    models: names; all of the latest night by default. Raises JobError where there was no night, or no such model in it.
    """
    output = storage.locate(output_uri)
    with storage.explained(output):
        last = last_night(output)
        if last is None:
            raise JobError(f"{output_uri} holds no night yet: run `segment-archive evaluate` first.")
        by_name = {of["model"]: of for of in last["models"]}
        if unknown := sorted(set(models) - by_name.keys()):
            raise JobError(f"The night {last['run']} has no model {unknown[0]}; it has {', '.join(by_name)}.")
        told = {}
        for name in models or by_name:
            if not by_name[name]["evaluations"]:
                reason = by_name[name]["failure"] or by_name[name]["refused"]
                told[name] = f"not accepted, since it was not evaluated: {reason}"
                continue
            evaluations, figures = {}, []
            for evaluation_id in by_name[name]["evaluations"]:
                record = read_record(output, evaluation_id)
                of = evaluation_of(record)
                evaluations[of.protocol] = evaluation_id
                stage = of.stages[-1]
                value = record["figures"][stage]["mean_iou"]["value"]
                figures.append(f"{of.protocol} {stage} {100 * value:.2f} %")
            accepted = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            content = {"model": name, "run": last["run"], "accepted": accepted, "evaluations": evaluations}
            storage.write_whole(baseline_of(output, name), json.dumps(content, indent=1).encode())
            told[name] = f"accepted as of the night {last['run']}: mean IoU {', '.join(figures)}"
    return told


def lost_images(
    before: Counts, after: Counts, stage: str, label: int | None, num_shown: int
) -> list[tuple[int, float]]:
    """The images that lost the most: index and change of the share of right pixels, worst first, only losses.

    label: of the class whose pixels are looked at, true or predicted; None for all.
    """

    def wrong(counts: Counts) -> Any:
        single = counts.of(stage)
        missed = single[..., 1] + single[..., 2] - 2 * single[..., 0]
        pixels = single[..., 1].sum(axis=-1).clip(min=1)
        return (missed[:, label] if label is not None else missed.sum(axis=-1) / 2) / pixels

    change = wrong(after) - wrong(before)
    order = change.argsort()[::-1][:num_shown]
    return [(int(i), -float(change[i])) for i in order if change[i] > 0]


def worst_images(counts: Counts, stage: str, num_shown: int = 20) -> list[tuple[int, float]]:
    """The images with the lowest share of right pixels: index and share, worst first."""
    share = evaluation.pixel_accuracy(counts.of(stage))
    order = share.argsort(kind="stable")[:num_shown]
    return [(int(i), float(share[i])) for i in order]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
