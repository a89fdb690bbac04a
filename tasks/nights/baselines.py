"""Baselines: the evaluations of a model that later nights are compared with, as a person accepted them.

They stand in OUTPUT/baselines/<model>.json, which `accept_baseline` alone moves.
"""

import contextlib
import datetime
import json
from collections.abc import Sequence
from typing import Any

from tasks import storage
from tasks.errors import JobError
from tasks.evaluation.record import evaluation_of, read_record
from tasks.nights.record import last_night
from tasks.storage import Location


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


def read_baseline(output: Location, model: str) -> dict[str, Any]:
    """The accepted baseline of a model: `evaluations` by protocol, `run`, `accepted`. Empty where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return dict(json.loads(storage.read_bytes(baseline_of(output, model))))
    return {}


def baseline_of(output: Location, model: str) -> Location:
    """Where the baseline of a model stands."""
    return output / "baselines" / f"{model}.json"
