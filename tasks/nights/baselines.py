"""What a night found, and the baseline that later nights are compared with.

OUTPUT/nights/<night>.json        what a night found; written last
OUTPUT/baselines/<model>.json     the evaluations of a model that a person accepted; `accept_baseline` alone moves it
"""

import contextlib
import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tasks import storage
from tasks.errors import JobError
from tasks.evaluation.record import evaluation_of, read_record
from tasks.storage import Location
from tasks.words import counted


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

    training_images: str = ""
    """Whether these images were among its training images, as far as that is known: a sentence."""

    similar: int = 0
    """Images that look like one of its training images."""


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
    def evaluations(self) -> list[str]:
        """Identities of all that was evaluated, model by model."""
        return [evaluation_id for model in self.models for evaluation_id in model.evaluations]

    @property
    def sentence(self) -> str:
        """What a person is told first."""
        if self.alarms:
            return "; ".join(alarm.sentence.rstrip(".") for alarm in self.alarms) + "."
        models = counted(sum(1 for m in self.models if m.evaluations), "model")
        told = [f"{models} on {counted(self.images, 'image')} of {self.dataset}"]
        compared = sum(m.compared for m in self.models)
        if compared:
            told.append(f"{compared} compared with their baseline, none worse")
        without = [m.model for m in self.models if m.evaluations and not m.compared]
        if without:
            told.append(f"no baseline yet for {listed(without)}: `segment-archive baseline accept {self.output}`")
        refused = [m.model for m in self.models if m.refused]
        if refused:
            told.append(f"not scored, since trained on these images: {listed(refused)}")
        return "; ".join(told) + "."


def write_night(output: Location, night: Night) -> None:
    """Write the record of a night: the last thing of it, so that what was cut short is done again."""
    content = asdict(night) | {"sentence": night.sentence}
    storage.write_whole(output / "nights" / f"{night.run}.json", json.dumps(content, indent=1).encode())


def last_night(output: Location) -> dict[str, Any] | None:
    """The record of the latest night; None where there was none."""
    names = sorted(file.path for file in storage.list_files(output / "nights") if file.path.endswith(".json"))
    if not names:
        return None
    return dict(json.loads(storage.read_bytes(output / "nights" / names[-1])))


def listed(names: Sequence[str]) -> str:
    """Names for a sentence: the first few, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


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
