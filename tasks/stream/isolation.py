"""One image at a time in a process of its own: what crashes, hangs or grows there takes nothing else along.

Who did it is then seen from outside, not inferred; `isolation_child.py` is what runs there. When a unit is handled
so is the engines' business. See docs/decisions/0090-crashes-are-seen-from-outside.md.
"""

import contextlib
import math
import pickle
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from segcore.images.errors import ErrorKind, ImageError
from tasks import processes
from tasks.errors import InterruptedJobError, JobError
from tasks.processes import anonymous_bytes, ending, usable_memory

CRASHES = 2
"""An image whose process has crashed this often, alone and in a fresh process each time, becomes an error row."""

KILLS = 3
"""The same where something outside has killed the process: most likely the system, short of memory."""

_LEAST_SECONDS = 300.0
_SECONDS_OF_WORK = 60.0

_STARTS = 3
_LOOK_EVERY_S = 0.05
_START_S = 600.0  # Loads a model, perhaps over a network


@dataclass(frozen=True)
class ImageLimits:
    """What one image may take in one stage before it becomes an error row."""

    seconds: float = 300.0
    """Time to decode, score or refine it."""

    memory_bytes: int | None = None
    """What its process may grow by; None: half of the memory of the machine or container."""

    @property
    def growth_bytes(self) -> int:
        """The bound on memory on this machine."""
        return self.memory_bytes if self.memory_bytes is not None else usable_memory() // 2


def limits_of(work: float, seconds: float | None = None, memory_mib: int | None = None) -> ImageLimits:
    """What was asked for, or by default what leaves ample room.

    work: what an image costs (`segcore.scoring.inference.relative_work`); 1 takes about a second.
    """
    return ImageLimits(
        seconds or _LEAST_SECONDS + _SECONDS_OF_WORK * work, None if memory_mib is None else memory_mib * 2**20
    )


class Apart:
    """A process that holds what `make` gives, and has its methods called with one image after the other.

    make: pickled, called in the process; loads what is expensive.
    control: method and arguments of a harmless image. It is asked for where an image has brought the process down:
        where it does so too, no image is to blame, and InterruptedJobError says so.
    """

    apart = True

    def __init__(
        self,
        make: Callable[[], object],
        what: str,
        limits: ImageLimits,
        control: tuple[Any, ...] | None = None,
    ) -> None:
        self.made, self.what, self.limits, self.control = pickle.dumps(make), what, limits, control
        self._proven: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> "Apart":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def __call__(self, method: str, *arguments: Any, limited: bool = True, times: int = 1) -> Any:
        """What the method gives for one image; what it raises is raised here.

        limited: whether the limit of time holds; storage takes what it takes. times: how often the limit it may take,
            since it does so many steps.
        Raises ImageError (crashed, timeout, memory) for an image that brings the process down again and again, and
        InterruptedJobError where the process does not even start, or a harmless image brings it down too.
        """
        crashes = kills = 0
        while True:
            ended = self._ask(method, arguments, self.limits.seconds * times if limited else math.inf)
            if isinstance(ended, Answer):
                if ended.raised is not None:
                    raise ended.raised
                return ended.value
            crashes += isinstance(ended, _Crash) and not ended.by_others
            kills += isinstance(ended, _Crash) and ended.by_others
            if isinstance(ended, ImageError) or crashes >= CRASHES or kills >= KILLS:
                self._prove_control()
                raise ended if isinstance(ended, ImageError) else self._blame(ended)

    def turn_to(self, what: str, control: tuple[Any, ...] | None) -> None:
        """From now on it is this that is done to images, with this control."""
        if what != self.what:
            self.what, self.control = what, None if what in self._proven else control

    def touch(self) -> None:
        """Nothing: the limits are watched from outside."""

    def renew(self, error: Exception) -> None:
        """Go on in a fresh process: an error may have left a device unusable for this one."""
        self._end()

    def _ask(self, method: str, arguments: tuple[Any, ...], most_seconds: float) -> "Answer | _Crash | ImageError":
        connection = self._started()
        base = anonymous_bytes(self._pid)
        try:
            connection.send_bytes(pickle.dumps((method, arguments)))
        except OSError:
            return self._crash()
        seconds = 0.0  # In slices, so that a machine that was halted meanwhile is not held against the image
        while not connection.poll(_LOOK_EVERY_S):
            seconds += _LOOK_EVERY_S
            if seconds > most_seconds:
                self._end()
                return ImageError(ErrorKind.TIMEOUT, f"{self.what} took longer than {most_seconds:g} s")
            if anonymous_bytes(self._pid) - base > self.limits.growth_bytes:
                self._end()
                allowed = self.limits.growth_bytes / 2**20
                return ImageError(ErrorKind.MEMORY, f"{self.what} needs more than the allowed {allowed:.0f} MiB")
        try:
            return pickle.loads(connection.recv_bytes())  # type: ignore[no-any-return]
        except (EOFError, OSError):
            return self._crash()

    @property
    def _pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _started(self) -> Connection:
        """The connection to a process that is ready, started where there is none."""
        for _ in range(_STARTS):
            if self._process is not None and self._process.poll() is not None:
                self._end()
            if self._connection is not None:
                return self._connection
            self._process, ours = processes.start("tasks.stream.isolation_child:main")
            deadline = time.monotonic() + _START_S
            with contextlib.suppress(EOFError, OSError):
                ours.send_bytes(self.made)
                if ours.poll(max(0.0, deadline - time.monotonic())):
                    answer: Answer = pickle.loads(ours.recv_bytes())
                    if answer.raised is not None:
                        self._end()
                        raise _not_started(self.what, answer.raised)
                    self._connection = ours
                    return ours
            code = self._end()
        raise _not_started(self.what, ending(code))

    def _crash(self) -> "_Crash":
        code = self._end(kill=False)
        by_others = code in (-signal.SIGKILL, -signal.SIGTERM)
        return _Crash(ending(code), by_others)

    def _blame(self, crash: "_Crash") -> ImageError:
        if crash.by_others:
            return ImageError(
                ErrorKind.MEMORY,
                f"{self.what} was killed by the system {KILLS} times, most likely for want of memory ({crash.ending})",
            )
        return ImageError(ErrorKind.CRASHED, f"{self.what} crashed the process {CRASHES} times ({crash.ending})")

    def _prove_control(self) -> None:
        if self.control is None:
            return
        method, *arguments = self.control
        self.control = None  # Once
        self._proven.add(self.what)
        try:
            self(method, *arguments)
        except ImageError as error:
            raise InterruptedJobError(
                f"A plain grey image brings the process down too, so no photograph is to blame: {error}. Is the "
                "installation right for this node's processor, is something else taking its memory?"
            ) from None

    def _end(self, kill: bool = True) -> int:
        """End the process; its exit code."""
        code = 0
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            if kill:
                self._process.kill()
            try:
                code = self._process.wait(30)
            except subprocess.TimeoutExpired:  # It has closed its end, and lives on
                self._process.kill()
                code = self._process.wait()
        self._process = self._connection = None
        return code


@dataclass(frozen=True)
class Answer:
    """What the process says of a call."""

    value: Any = None
    raised: Exception | None = None


@dataclass(frozen=True)
class _Crash:
    """The process has ended instead of answering."""

    ending: str
    by_others: bool


def _not_started(what: str, reason: Exception | str) -> JobError:
    """Never an image's fault."""
    if isinstance(reason, JobError):
        return reason
    return InterruptedJobError(
        f"The process in which {what} is tried image by image does not start ({reason}): is memory short on this node, "
        "is the installation whole?"
    )
