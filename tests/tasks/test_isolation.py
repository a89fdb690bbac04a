import ctypes
import functools
import os
import signal
import time

import numpy as np
import pytest

from segcore.images.errors import ErrorKind, ImageError
from tasks.errors import InterruptedJobError, JobError
from tasks.processes import anonymous_bytes
from tasks.stream.isolation import Apart, ImageLimits


class Deeds:
    """What an image may do to the process that touches it; counts what it was asked."""

    def __init__(self, log: str) -> None:
        self.log = log

    def do(self, deed: str) -> object:
        with open(self.log, "a") as file:  # noqa: PTH123
            file.write(f"{deed}\n")
        return getattr(self, deed)()

    def well(self) -> int:
        return os.getpid()

    def crash(self) -> None:
        ctypes.string_at(0)

    def leave(self) -> None:
        os._exit(3)

    def killed(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def killed_once(self) -> int:
        with open(self.log) as file:  # noqa: PTH123
            if file.read().count("killed_once") == 1:
                self.killed()
        return os.getpid()

    def hang(self) -> None:
        time.sleep(1000)

    def grow(self) -> None:
        kept = []
        while True:
            kept.append(np.ones(2**22, np.uint8))

    def wrong(self) -> None:
        raise ImageError(ErrorKind.CORRUPT, "it is broken")

    def outage(self) -> None:
        raise JobError("the source is gone")


@pytest.fixture
def apart(tmp_path):
    limits = ImageLimits(seconds=1.0, memory_bytes=100 * 2**20)
    with Apart(functools.partial(Deeds, str(tmp_path / "log")), "looking", limits, ("do", "well")) as made:
        yield made


def kind_of(apart, deed):
    with pytest.raises(ImageError) as caught:
        apart("do", deed)
    return caught.value.kind, str(caught.value)


def test_what_an_image_does_to_its_process_is_said_of_it_and_of_no_other(apart, tmp_path):
    first = apart("do", "well")
    assert first != os.getpid()
    assert kind_of(apart, "crash") == (ErrorKind.CRASHED, "looking crashed the process 2 times (SIGSEGV)")
    assert kind_of(apart, "leave") == (ErrorKind.CRASHED, "looking crashed the process 2 times (exit status 3)")
    assert kind_of(apart, "hang") == (ErrorKind.TIMEOUT, "looking took longer than 1 s")
    assert kind_of(apart, "grow") == (ErrorKind.MEMORY, "looking needs more than the allowed 100 MiB")
    second = apart("do", "well")
    assert apart("do", "well") == second != first
    assert kind_of(apart, "wrong") == (ErrorKind.CORRUPT, "it is broken")
    with pytest.raises(JobError, match="the source is gone"):
        apart("do", "outage")
    assert apart("do", "well") == second  # What is only raised costs no process
    # A crash is tried twice; time and memory are measured, and need no second proof
    asked = (tmp_path / "log").read_text().split()
    assert [asked.count(deed) for deed in ("crash", "leave", "hang", "grow")] == [2, 2, 1, 1]


def test_a_process_that_somebody_kills_is_no_images_fault(apart):
    assert apart("do", "killed_once") != 0
    kind, reason = kind_of(apart, "killed")
    assert kind is ErrorKind.MEMORY and "killed by the system 3 times" in reason


def test_where_a_harmless_image_crashes_too_no_image_is_blamed(tmp_path):
    make = functools.partial(Deeds, str(tmp_path / "log"))
    apart = Apart(make, "looking", ImageLimits(), ("do", "crash"))
    with apart, pytest.raises(InterruptedJobError, match="no photograph is to blame"):
        apart("do", "crash")


def test_a_process_that_does_not_start_says_so():
    apart = Apart(functools.partial(os._exit, 7), "looking", ImageLimits())
    with apart, pytest.raises(InterruptedJobError, match=r"does not start \(exit status 7\)"):
        apart("do", "well")


def test_the_process_ends_with_its_parent(tmp_path):
    # A worker that is killed must not leave a process behind that goes on with its image
    told, telling = os.pipe()
    parent = os.fork()
    if parent == 0:
        apart = Apart(functools.partial(Deeds, str(tmp_path / "log")), "looking", ImageLimits())
        os.write(telling, str(apart("do", "well")).encode())
        apart("do", "hang")
        os._exit(0)
    child = int(os.read(told, 20))
    deadline = time.monotonic() + 20
    while "hang" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    while anonymous_bytes(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert anonymous_bytes(child) == 0
