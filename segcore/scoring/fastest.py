"""Which number format a CPU scores a network fastest in, by a measurement of about a second, kept for this processor.

What a processor says it can is not how fast it is: bfloat16 without AMX may take longer than float32. Asked where the
precision is "auto" and the processor has bfloat16; the answer is kept in the user's folder under the processor, the
variant, the threads and the versions of the libraries, and is the same for every process that asks, so that a run has
masks of one kind on one machine. Rows say what it was (`device`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from segcore.user_folder import user_folder

if TYPE_CHECKING:
    from segcore.models.checkpoint import LoadedModel

Choice = Literal["bf16", "fp32"]

WORTH = 0.9
"""Of the time of bfloat16 that float32 may take to be chosen: nearly equal ones would be chosen by chance."""

_SIDE_PX = 193
_ROUNDS = 3
_NAMES: tuple[Choice, Choice] = ("bf16", "fp32")


def precision_of(model: LoadedModel, num_threads: int | None) -> Choice:
    """The format to score a network of ours in on this CPU, which has bfloat16; measured where it is not known yet."""
    place = _place(model, num_threads)
    known = _read(place)
    if known is not None:
        return known
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        seconds = measure(model, num_threads)
    except OSError:  # Nothing can be kept: what every process would measure anew could differ
        return "bf16"
    facts = {"precision": choose(seconds), "seconds": seconds, "processor": _processor()}
    own = place.with_name(f"{place.name}.{uuid.uuid4().hex}")
    try:
        own.write_text(json.dumps(facts))
        with contextlib.suppress(FileExistsError):  # Another has measured meanwhile, and all take its answer
            os.link(own, place)
    except OSError:
        return "bf16"
    finally:
        own.unlink(missing_ok=True)
    return _read(place) or "bf16"


def choose(seconds: dict[Choice, float]) -> Choice:
    """float32 where it is clearly faster."""
    return "fp32" if seconds["fp32"] < WORTH * seconds["bf16"] else "bf16"


def measure(model: LoadedModel, num_threads: int | None) -> dict[Choice, float]:
    """Seconds of the processor for a small picture in either format, the least of a few rounds that take turns.

    float32 by ONNX Runtime where it computes the network, as `Predictor.scorer` has it.
    """
    from segcore.scoring.inference import InferenceParams, Scorer
    from segcore.scoring.onnx_scorer import OnnxScorer, is_better

    scorers: dict[Choice, Scorer | OnnxScorer] = {}
    for precision in _NAMES:
        params = InferenceParams(precision=precision)
        kind = OnnxScorer if is_better(model, params, "cpu") else Scorer
        scorers[precision] = kind(model, params, device="cpu", num_threads=num_threads)
    picture = np.random.default_rng(0).integers(0, 256, (_SIDE_PX, _SIDE_PX, 3), dtype=np.uint8)
    seconds = dict.fromkeys(_NAMES, float("inf"))
    for number in range(_ROUNDS + 1):
        for precision, scorer in scorers.items():
            began = time.process_time()
            scorer([picture])
            if number:  # The first makes what the libraries keep
                seconds[precision] = min(seconds[precision], time.process_time() - began)
    return seconds


def _place(model: LoadedModel, num_threads: int | None) -> Path:
    versions = [version(package) for package in ("torch", "onnxruntime")]
    key = [_processor(), model.card.variant, len(model.card.classes), num_threads, versions]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]
    return user_folder() / "scoring" / f"{digest}.json"


def _read(place: Path) -> Choice | None:
    try:
        facts: Any = json.loads(place.read_text())
        found = facts["precision"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if found in _NAMES else None


def _processor() -> list[str]:
    """Name and abilities, as the system tells them."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        return sorted({line for line in lines if line.startswith(wanted)})
    return [platform.processor(), platform.machine()]
