"""Photographs that crash the process that touches them: in decoding, in scoring, in refinement; several in one unit."""

import shutil
import time
from pathlib import Path

from tests.conftest import ROOT, photograph
from tests.faults.bench import Bench
from tests.faults.fault import Fault, Outcome
from tests.poison.sitecustomize import PAINT, STAGES

POISONED = 4  # Of each stage


def poisoned_source(bench: Bench) -> tuple[Path, dict[str, str]]:
    """The photographs of the bench with poison among them, and the kind of error that each of these is to have."""
    source, kinds = bench.folder / "poisoned", {}
    making = bench.folder / "making-poisoned"
    shutil.rmtree(making, ignore_errors=True)
    shutil.copytree(bench.source, making, symlinks=True)
    for number in range(POISONED * len(STAGES)):
        name = f"{8 * number:03d}-poison.png"  # Spread over the units
        painted = photograph(number, (96, 72))
        painted.paste(PAINT[STAGES[number % len(STAGES)], "crash"], (0, 0, 24, 24))
        painted.save(making / name)
        kinds[name] = "crashed"
    if not source.is_dir():
        making.rename(source)
    return source, kinds


def run(bench: Bench, trial: int, engine: str) -> Outcome:
    """One job with the poison in all of its processes; its recovery is the time of the whole job for each of them."""
    source, kinds = poisoned_source(bench)
    expected = bench.undisturbed(str(source)) | kinds
    place = bench.fresh(f"poison-{engine}", trial)
    output = str(place / "out")
    job = bench.start(output, place / "log", str(source), engine, PYTHONPATH=str(ROOT / "tests" / "poison"))
    start = time.monotonic()
    try:
        assert job.wait(600.0) == 0, job.told
        spent = time.monotonic() - start
    finally:
        job.end()
    outcome = bench.judge(output, expected)
    outcome.times = len(kinds)
    outcome.recovery_s = [spent / len(kinds)]
    return outcome


def _fault(name: str, engine: str) -> Fault:
    what = f"a photograph that crashes its process, {engine} engine"
    return Fault(name, what, lambda bench, trial: run(bench, trial, engine))


FAULTS = (_fault("poison", "local"), _fault("ray-poison", "ray"), _fault("staged-poison", "staged"))
