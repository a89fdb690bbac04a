import functools
import os

import pytest
import ray

from segcore.images import ImageError
from tasks.errors import InterruptedJobError
from tasks.stream import care
from tasks.stream.apart import ImageLimits
from tests.tasks.test_apart import Deeds


def outcomes(log: str, deeds: list[str]) -> list[str]:
    """What a stage would do with a unit of these images, and how often it was begun."""
    make = functools.partial(Deeds, log)
    limits = ImageLimits(seconds=1.5, memory_bytes=200 * 2**20)
    found = []
    with care.in_hands("unit", make, lambda: make, "looking", limits, ("do", "well")) as hands:
        for deed in deeds:
            try:
                hands("do", deed)
                found.append("well")
            except ImageError as error:
                found.append(error.kind.value)
    return [*found, str(care.times_begun_before())]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("first", ["crash", "hang", "grow"])
def test_a_worker_that_dies_is_followed_by_one_that_takes_each_image_apart(first, tmp_path):
    deeds = ["well", first, "well", "crash", "well"]
    remote = ray.remote(num_cpus=0.1, max_retries=-1)(outcomes)
    found = ray.get(remote.remote(str(tmp_path / "log"), deeds), timeout=120)
    kind = {"crash": "crashed", "hang": "timeout", "grow": "memory"}[first]
    assert found == ["well", kind, "well", "crashed", "well", "1"]


@pytest.mark.usefixtures("ray_cluster")
def test_workers_that_die_however_careful_they_are_end_the_session_and_blame_nobody(tmp_path, monkeypatch):
    def killed(log: str, tries: int) -> list[str]:
        care.TRIES = tries
        if care.times_begun_before() < tries:
            os._exit(1)  # As by somebody else's hand: before any image is touched
        return outcomes(log, ["well"])

    remote = ray.remote(num_cpus=0.1, max_retries=-1)(killed)
    with pytest.raises(InterruptedJobError, match="2 workers have died at the looking of unit unit"):
        ray.get(remote.remote(str(tmp_path / "log"), 2), timeout=120)
    assert not (tmp_path / "log").exists()


def test_outside_of_a_worker_nothing_ends_the_process(tmp_path):
    assert not care.in_worker() or ray.is_initialized()
    assert outcomes(str(tmp_path / "log"), ["well", "well"]) == ["well", "well", "0"]
