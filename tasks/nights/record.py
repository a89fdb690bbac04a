"""What a night found, and its record: OUTPUT/nights/<night>.json, written last."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tasks import storage
from tasks.storage import Location


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
        told = [f"{sum(1 for m in self.models if m.evaluations)} models on {self.images} images of {self.dataset}"]
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


def latest_sentence(output: str) -> str | None:
    """What the latest night told; None where there is none that can be read."""
    with contextlib.suppress(Exception):
        last = last_night(storage.locate(output))
        return None if last is None else str(last["sentence"])
    return None


def listed(names: Sequence[str]) -> str:
    """Names for a sentence: the first few, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
