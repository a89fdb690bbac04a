"""How a CPU scores a network fastest, by a measurement of about a second, kept for this processor.

What a processor says it can is not how fast it is: bfloat16 without AMX may take longer than float32. Asked where the
precision is "auto" and there is a choice: float32, and bfloat16 by torch or by OpenVINO. The answer is kept in the
user's folder under the processor, the variant, the threads and the versions of the libraries, and is the same for every
process that asks, so that a run has masks of one kind on one machine. Rows say what it was (`device`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from segcore import extras
from segcore.scoring import hardware
from segcore.user_folder import user_folder

if TYPE_CHECKING:
    from segcore.models.checkpoint import LoadedModel
    from segcore.scoring.inference import InferenceParams

Choice = Literal["bf16", "fp32", "openvino"]
"""bfloat16 by torch, float32, bfloat16 by OpenVINO."""

WORTH = 0.9
"""Of the time of one way that the next may take to be chosen: nearly equal ones would be chosen by chance."""

_SIDE_PX = 193
_ROUNDS = 3


def choices(model: LoadedModel, params: InferenceParams, device: str) -> list[Choice]:
    """The ways to score a network on a CPU, the first being the one where nothing can be measured; none elsewhere.

    device: "auto", "cpu", or a GPU, of which there is nothing to choose.
    """
    from segcore.scoring.onnx_scorer import is_possible_in_bf16

    found: list[Choice] = ["fp32"]
    if model.onnx is not None or device not in ("auto", "cpu"):
        return []
    if extras.is_here("torch"):
        if device == "auto" and hardware.has_gpu():
            return []
        if hardware.multiplies_bf16():
            found.insert(0, "bf16")
    if is_possible_in_bf16(model, params, device):
        found.append("openvino")
    return found


def choice_of(model: LoadedModel, num_threads: int | None, among: Sequence[Choice]) -> Choice:
    """The way to score a network of ours on this CPU; measured where it is not known yet. among: of `choices`."""
    place = _place(model, num_threads, among)
    known = _read(place)
    if known is not None:
        return known
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        seconds = measure(model, num_threads, among)
    except OSError:  # Nothing can be kept: what every process would measure anew could differ
        return among[0]
    facts = {"choice": choose(seconds), "seconds": seconds, "processor": _processor()}
    own = place.with_name(f"{place.name}.{uuid.uuid4().hex}")
    try:
        own.write_text(json.dumps(facts))
        with contextlib.suppress(FileExistsError):  # Another has measured meanwhile, and all take its answer
            os.link(own, place)
    except OSError:
        return among[0]
    finally:
        own.unlink(missing_ok=True)
    return _read(place) or among[0]


def choose(seconds: dict[Choice, float]) -> Choice:
    """The first, unless a later one is clearly faster than what is chosen before it."""
    best, *others = seconds
    for other in others:
        if seconds[other] < WORTH * seconds[best]:
            best = other
    return best


def measure(model: LoadedModel, num_threads: int | None, among: Sequence[Choice]) -> dict[Choice, float]:
    """Seconds of the processor for a small picture in each way, the least of a few rounds that take turns.

    float32 by ONNX Runtime where it computes the network, as `Predictor.scorer` has it.
    """
    from segcore.scoring.inference import InferenceParams, Scorer
    from segcore.scoring.onnx_scorer import OnnxScorer, is_better

    scorers: dict[Choice, Scorer | OnnxScorer] = {}
    for choice in among:
        params = InferenceParams(precision=precision_of(choice))
        kind = OnnxScorer if choice == "openvino" or is_better(model, params, "cpu") else Scorer
        scorers[choice] = kind(model, params, device="cpu", num_threads=num_threads)
    picture = np.random.default_rng(0).integers(0, 256, (_SIDE_PX, _SIDE_PX, 3), dtype=np.uint8)
    seconds = dict.fromkeys(among, float("inf"))
    for number in range(_ROUNDS + 1):
        for choice, scorer in scorers.items():
            began = time.process_time()
            scorer([picture])
            if number:  # The first makes what the libraries keep
                seconds[choice] = min(seconds[choice], time.process_time() - began)
    return seconds


def precision_of(choice: Choice) -> Literal["bf16", "fp32"]:
    """The number format of a way."""
    return "fp32" if choice == "fp32" else "bf16"


def _place(model: LoadedModel, num_threads: int | None, among: Sequence[Choice]) -> Path:
    here = [package for package in ("torch", "onnxruntime", "openvino") if extras.is_here(package)]
    versions = [(package, version(package)) for package in here]
    key = [_processor(), model.card.variant, len(model.card.classes), num_threads, versions, list(among)]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]
    return user_folder() / "scoring" / f"{digest}.json"


def _read(place: Path) -> Choice | None:
    try:
        facts: Any = json.loads(place.read_text())
        found = facts["choice"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if found in get_args(Choice) else None


def _processor() -> list[str]:
    """Name and abilities, as the system tells them."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        return sorted({line for line in lines if line.startswith(wanted)})
    return [platform.processor(), platform.machine()]
