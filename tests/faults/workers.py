"""A worker dies: a scoring actor, a refining actor, the worker of a reading task. The job itself goes on."""

import time

from tasks.storage import locate
from tests.faults.bench import Bench, kill, mask_files, wait_for_commits
from tests.faults.fault import Fault, Outcome

KILLS = 5  # Of one job


def run(bench: Bench, trial: int, name: str, title: str) -> Outcome:
    """One job, some of whose workers of one kind are killed at random moments.

    title: what the titles of these processes hold; Ray names a worker by what it is doing.
    """
    place, dice, outcome = bench.fresh(name, trial), bench.dice(name, trial), Outcome(times=0)
    output = str(place / "out")
    expected = bench.undisturbed()
    job = bench.start(output, place / "log")
    try:
        while outcome.times < KILLS and job.running:
            time.sleep(dice.uniform(0.0, 2.0))
            # A reader is at work for a fraction of a second
            while job.running and not (found := job.workers(title)):
                time.sleep(0.01)
            if not job.running:
                break
            before, struck = len(mask_files(locate(output))), time.monotonic()
            kill(dice.choice(found))
            outcome.times += 1
            if wait_for_commits(job, locate(output), before):
                outcome.recovery_s.append(time.monotonic() - struck)
        assert job.wait() == 0, job.told
    finally:
        job.end()
    return outcome + bench.judge(output, expected)


def _fault(name: str, what: str, title: str) -> Fault:
    return Fault(name, f"SIGKILL of {what}", lambda bench, trial: run(bench, trial, name, title), trials=2)


FAULTS = (
    _fault("scorer", "a scoring actor", "ray::MapWorker(MapBatches(Score))"),
    _fault("refiner", "a refining actor", "ray::MapWorker(MapBatches(Refine))"),
    _fault("reader", "the worker of a reading task", "ray::MapBatches(read_unit)"),
)
