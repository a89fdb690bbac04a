"""The record of an evaluation: what was evaluated and its figures, as JSON; the last thing that is written of it."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from segcore.crf.dense_crf import CrfParams
from segcore.scoring.inference import InferenceParams
from tasks import storage
from tasks.evaluation.counts import Counts
from tasks.evaluation.evaluate import Evaluation
from tasks.evaluation.metrics import figures
from tasks.storage import Location


def write_record(output: Location, of: Evaluation, counts: Counts) -> dict[str, Any]:
    """Write what was evaluated and its figures; returns the record as `read_record` finds it."""
    record = json.loads(
        json.dumps(
            {
                "evaluation": asdict(of),
                "figures": figures(counts, of.classes),
                "images": len(counts.ids),
                "images_digest": hashlib.sha256("\n".join(counts.ids).encode()).hexdigest(),
            }
        )
    )
    storage.write_whole(record_of(output, of.id), json.dumps(record, indent=1).encode())
    return dict(record)


def read_record(output: Location, evaluation_id: str) -> dict[str, Any]:
    """The record of a finished evaluation; empty where there is none."""
    try:
        return dict(json.loads(storage.read_bytes(record_of(output, evaluation_id))))
    except (FileNotFoundError, ValueError):
        return {}


def evaluation_of(record: dict[str, Any]) -> Evaluation:
    """What a record is about."""
    stored = dict(record["evaluation"])
    inference = dict(stored["inference"]) | {"scales": tuple(stored["inference"]["scales"])}
    stored |= {"inference": InferenceParams(**inference), "classes": tuple(stored["classes"])}
    stored["crf"] = None if stored["crf"] is None else CrfParams(**stored["crf"])
    return Evaluation(**stored)


def record_of(output: Location, evaluation_id: str) -> Location:
    """Where the record of an evaluation stands."""
    return output / "evaluations" / f"{evaluation_id}.json"
