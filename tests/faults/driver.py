"""The driver dies: the whole process tree, or the driver alone, whose workers or Ray must go by themselves.

And Ray's own servers under it.
"""

import time
from collections.abc import Callable

from tasks.storage import locate
from tests.faults.bench import Bench, Job, kill, mask_files, wait_for_commits
from tests.faults.fault import Fault, Outcome

KILLS = 1  # Of one job


def kill_tree(job: Job) -> None:
    job.kill_all()


def kill_alone(job: Job) -> None:
    kill(job.process.pid)
    job.process.wait()


def kill_server(title: str) -> Callable[[Job], None]:
    """A strike at one of Ray's own servers; the session ends, and says why."""

    def strike(job: Job) -> None:
        (pid,) = job.workers(title)
        kill(pid)
        assert job.wait() == 1 and "is gone" in job.sentences[-1], job.told

    return strike


def run(bench: Bench, trial: int, name: str, engine: str, strike, *, at_work: bool = False) -> Outcome:
    """One job, killed several times at random moments, each time started again at once by the same command.

    at_work: never before something is committed.
    """
    place, dice, outcome = bench.fresh(name, trial), bench.dice(name, trial), Outcome(times=0)
    output = str(place / "out")
    expected = bench.undisturbed()
    jobs = [job := bench.start(output, place / "log", engine=engine)]
    try:
        for _ in range(KILLS):
            # Before the first new commit, between two, or in the middle of one
            if dice.random() < 0.3 and not at_work:
                time.sleep(dice.uniform(0, 8))
            else:
                wait_for_commits(job, locate(output), len(mask_files(locate(output))))
                time.sleep(dice.uniform(0, 1.0))
            if not job.running:
                break
            before, struck = len(mask_files(locate(output))), time.monotonic()
            strike(job)
            outcome.times += 1
            outcome.duplicated += bench.judge(
                output, expected
            ).duplicated  # Whatever is there is whole, and has no image twice
            jobs.append(job := bench.start(output, place / "log", engine=engine))
            if wait_for_commits(job, locate(output), before):
                outcome.recovery_s.append(time.monotonic() - struck)
        assert job.wait() == 0, job.told
    finally:
        for each in jobs:  # Also what a killed driver has left behind
            each.end()
    return outcome + bench.judge(output, expected)


def _fault(name: str, what: str, engine: str, strike, *, at_work: bool = False) -> Fault:
    return Fault(name, f"SIGKILL of {what}", lambda b, t: run(b, t, name, engine, strike, at_work=at_work), trials=2)


FAULTS = (
    _fault("driver-tree", "the driver and its whole tree, local engine", "local", kill_tree),
    _fault("driver", "the driver alone, local engine", "local", kill_alone),
    _fault("ray-driver-tree", "the driver and its whole tree, Ray engine", "ray", kill_tree),
    _fault("ray-driver", "the driver alone, Ray engine", "ray", kill_alone),
    _fault("ray-raylet", "Ray's server of the node", "ray", kill_server("raylet/raylet\0"), at_work=True),
    _fault("ray-head", "Ray's server of the cluster", "ray", kill_server("gcs/gcs_server\0"), at_work=True),
)
