"""A node of a Ray cluster dies under a job: raylet and all its workers at once."""

import time

from tasks.storage import locate
from tests.faults.bench import Bench, mask_files, wait_for_commits
from tests.faults.fault import Fault, Outcome
from tests.ray_nodes import MARK, ray_nodes


def run(bench: Bench, trial: int) -> Outcome:
    """A cluster of three nodes of one CPU; one that is not the head dies at a random moment."""
    place, dice, outcome = bench.fresh("node", trial), bench.dice("node", trial), Outcome()
    output = str(place / "out")
    expected = bench.undisturbed()
    with ray_nodes(place) as nodes:
        for _ in range(3):
            nodes.start(num_cpus=1)
        environment = {name: value for name, value in nodes.environment.items() if name.startswith(("RAY_", MARK))}
        environment["RAY_ADDRESS"] = nodes.address
        job = bench.start(output, place / "log", engine="ray", **environment)
        try:
            wait_for_commits(job, locate(output), dice.randint(0, 8))
            before, struck = len(mask_files(locate(output))), time.monotonic()
            nodes.kill(dice.choice([1, 2]))
            if wait_for_commits(job, locate(output), before):
                outcome.recovery_s.append(time.monotonic() - struck)
            if job.wait():
                assert len(job.sentences) == 1 and "Traceback" not in job.told, job.told
                outcome.sentences += job.sentences
                job = bench.start(output, place / "log", engine="ray", **environment)
                assert job.wait() == 0, job.told
        finally:
            job.end()
    return outcome + bench.judge(output, expected)


FAULTS = (Fault("node", "SIGKILL of a node of three", run),)
