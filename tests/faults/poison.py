"""Photographs that crash, hang or fill the process that touches them: in decoding, in scoring, in refinement."""

import shutil
import time
from pathlib import Path

from tests.conftest import ROOT, photograph
from tests.faults.bench import Bench
from tests.faults.fault import Fault, Outcome
from tests.poison.sitecustomize import PAINT, STAGES

KINDS = {"crash": "crashed", "hang": "timeout", "grow": "memory"}
POISONED = 1
"""Photographs of each stage: each costs the start of several processes, and one that hangs its time limit as well."""

LIMITS = {"image_seconds": 12.0, "image_memory_mib": 400}
"""Of one image, instead of minutes and gigabytes, so that trials are short."""


def poisoned_source(bench: Bench, deed: str) -> tuple[Path, dict[str, str]]:
    """The photographs of the bench with poison among them, and the kind of error that each of these is to have."""
    source, kinds = bench.folder / f"poisoned-{deed}", {}
    making = bench.folder / f"making-{deed}"
    shutil.rmtree(making, ignore_errors=True)
    shutil.copytree(bench.source, making, symlinks=True)
    for number in range(POISONED * len(STAGES)):
        name = f"{8 * number:03d}-poison.png"  # Spread over the units
        painted = photograph(number, (96, 72))
        painted.paste(PAINT[STAGES[number % len(STAGES)], deed], (0, 0, 24, 24))
        painted.save(making / name)
        kinds[name] = KINDS[deed]
    shutil.rmtree(source, ignore_errors=True)
    making.rename(source)
    return source, kinds


def run(bench: Bench, trial: int, engine: str, deed: str) -> Outcome:
    """One job with the poison in all of its processes; its recovery is the time of the whole job for each of them."""
    source, kinds = poisoned_source(bench, deed)
    expected = bench.undisturbed() | kinds
    place = bench.fresh(f"{deed}-{engine}", trial)
    output = str(place / "out")
    poison = {"PYTHONPATH": str(ROOT / "tests" / "poison")}
    job = bench.start(output, place / "log", str(source), engine, limits=LIMITS, **poison)
    start = time.monotonic()
    try:
        assert job.wait() == 0, job.told
        spent = time.monotonic() - start
    finally:
        job.end()
    outcome = bench.judge(output, expected)
    outcome.times = len(kinds)
    outcome.recovery_s = [spent / len(kinds)]
    return outcome


def _fault(deed: str, does: str, engine: str) -> Fault:
    name = {"local": deed, "ray": f"ray-{deed}", "staged": f"staged-{deed}"}[engine]
    where = {"local": "local engine", "ray": "Ray engine", "staged": "Ray engine with a GPU's actors"}[engine]
    return Fault(name, f"a photograph that {does}, {where}", lambda b, t: run(b, t, engine, deed), trials=2)


FAULTS = tuple(
    _fault(deed, does, engine)
    for deed, does in (
        ("crash", "crashes its process"),
        ("hang", "hangs its process"),
        ("grow", "takes memory without end"),
    )
    for engine in ("local", "ray", "staged")
)
