"""Reasons to wake somebody: what is worse than its baseline, cannot be compared with it, or failed.

Which difference is worth an alarm is decided in `segcore/metrics/comparison.py`.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from segcore.metrics.comparison import Difference, compare
from tasks import storage
from tasks.evaluation.counts import Counts, read_counts
from tasks.evaluation.evaluate import Evaluation, ReevaluateJob
from tasks.evaluation.record import evaluation_of, read_record
from tasks.nights.baselines import Alarm, Night, read_baseline
from tasks.storage import Location


def find_alarms(job: ReevaluateJob, night: Night, records: dict[str, dict[str, Any]]) -> list[Alarm]:
    """Every reason for an alarm in a night; notes in it which models had a baseline to compare with.

    records: of the night's evaluations, by identity.
    """
    output = storage.locate(job.output)
    alarms = [
        Alarm(model.model, "failed", f"{model.model} could not be evaluated: {model.failure}")
        for model in night.models
        if model.failure
    ]
    pairs: list[tuple[Evaluation, str, Counts, Counts]] = []
    for model in night.models:
        baseline = read_baseline(output, model.model)
        if model.refused and baseline:
            alarms.append(Alarm(model.model, "failed", f"{model.refused.rstrip('.')}; it had a baseline"))
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
                alarms.append(Alarm(model.model, "other images", found, now.protocol))
                continue
            before, after = found
            pairs += [(now, stage, before, after) for stage in now.stages if stage in before.confusion]
    return alarms + _worse(job, pairs)


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
                    asdict(difference) | {"stage": stage, "class": name, "figure": _figure_name(difference, of.classes)}
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


def _figure_name(difference: Difference, classes: tuple[str, ...]) -> str:
    """What people call a figure: "mean IoU", "IoU of dog"."""
    if difference.label is not None:
        return f"IoU of {classes[difference.label]}"
    return {"mean_iou": "mean IoU", "pixel_accuracy": "pixel accuracy"}[difference.name]
