"""A worker of either engine dies over what it has in hand. The job itself goes on."""

import time

from tasks.storage import locate
from tests.faults.bench import Bench, kill, mask_files, wait_for_commits
from tests.faults.fault import Fault, Outcome

KILLS = 2  # Of one job


def run(bench: Bench, trial: int, name: str, engine: str, title: str) -> Outcome:
    """One job, some of whose workers of one kind are killed at random moments.

    title: what the titles of these processes hold; Ray names a worker by what it is doing.
    """
    place, dice, outcome = bench.fresh(name, trial), bench.dice(name, trial), Outcome(times=0)
    output = str(place / "out")
    expected = bench.undisturbed()
    job = bench.start(output, place / "log", engine=engine)
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


def _fault(name: str, what: str, engine: str, title: str) -> Fault:
    return Fault(name, f"SIGKILL of {what}", lambda bench, trial: run(bench, trial, name, engine, title), trials=2)


FAULTS = (
    _fault("local-worker", "a worker process of the local engine", "local", "tasks.engines.child"),
    _fault("ray-worker", "an actor that does whole units", "ray", "ray::ArchiveWorker.whole"),
    _fault("scorer", "a scoring actor", "staged", "ray::ArchiveWorker.score"),
    _fault("finisher", "a refining actor", "staged", "ray::ArchiveWorker.finish"),
    _fault("reader", "the worker of a reading task", "staged", "ray::_read"),
)
"""All faults, in the order of the table."""
