"""How an image is taken in hand: in this worker, watched; where a worker has died over its unit, in a process apart.

Ray counts how often a task was begun, outside the worker that dies over it. The first time nothing is known, and a
watch alone ends the worker where an image hangs or grows. Every other time the images go one by one into a process of
their own (`apart.py`), where a crash names its image. See docs/decisions/0090-crashes-are-seen-from-outside.md.
"""

import contextlib
import faulthandler
import os
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import ray

from tasks import logs
from tasks.errors import InterruptedJobError
from tasks.processes import anonymous_bytes
from tasks.stream.apart import Apart, ImageLimits

TRIES = 30
"""A unit whose workers have died this often ends the session: with every image apart, no image did it."""

_LOOK_EVERY_S = 0.2
_STDERR = 2


@contextlib.contextmanager
def in_hands(
    unit: str,
    here: Callable[[], object],
    anew: Callable[[], Callable[[], object]],
    what: str,
    limits: ImageLimits,
    control: tuple[Any, ...] | None = None,
) -> "Iterator[Watched | Apart]":
    """Something that calls methods with one image each: `hands(method, *arguments)`.

    here: gives the object whose methods are called in this process; anew: gives what makes it in another one.
    what: what an error row says has failed. control: method and arguments of a harmless image.
    Raises InterruptedJobError where the workers of the unit die however careful they are.
    """
    died = times_begun_before()
    if died >= TRIES:
        raise InterruptedJobError(
            f"{died} workers have died at the {what} of unit {unit}, though each image had a process of its own: look "
            "at the memory of the nodes, and at their logs."
        )
    if died:
        with Apart(anew(), what, limits, control) as apart:
            yield apart
    else:
        with Watched(here(), limits, in_worker()) as watched:
            yield watched


def times_begun_before() -> int:
    """How often Ray has begun this task before, in workers that died; 0 outside of a worker."""
    if not in_worker():
        return 0
    # Ray counts the attempts of a task in its driver, and tells the worker; there is no public name for it
    worker: Any = ray._private.worker.global_worker
    return int(worker.core_worker.get_current_task_attempt_number())


def in_worker() -> bool:
    """Whether this process is a worker of Ray, which another one replaces when it ends."""
    return bool(ray.is_initialized() and ray._private.worker.global_worker.mode == ray.WORKER_MODE)


class Watched:
    """Calls in this process; where an image takes too long or too much memory, a worker ends itself.

    The clock is faulthandler's, which needs no lock of the interpreter: also what never gives that back is ended. Its
    trace goes to the worker's log.
    """

    apart = False

    def __init__(self, made: object, limits: ImageLimits, may_end: bool) -> None:
        self.made, self.limits, self.may_end = made, limits, may_end
        self._base = 0
        self._over = threading.Event()

    def __enter__(self) -> "Watched":
        if self.may_end:
            self._base = anonymous_bytes()
            threading.Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self.may_end:
            faulthandler.cancel_dump_traceback_later()

    def __call__(self, method: str, *arguments: Any, limited: bool = True) -> Any:
        """What the method gives."""
        if limited:
            self.touch()
        try:
            return getattr(self.made, method)(*arguments)
        finally:
            if self.may_end:
                faulthandler.cancel_dump_traceback_later()

    def touch(self) -> None:
        """Another image is in hand from now on."""
        if self.may_end:
            self._base = anonymous_bytes()
            faulthandler.dump_traceback_later(self.limits.seconds, exit=True, file=_STDERR)

    def renew(self, error: Exception) -> None:
        """After an error that leaves a device unusable for its process, go on in another one, image by image."""
        if self.may_end and "CUDA error" in str(error):
            logs.event(f"this worker ends: {error}", run="", stage="device")
            os._exit(1)

    def _look(self) -> None:
        allowed = self.limits.growth_bytes
        while not self._over.wait(_LOOK_EVERY_S):
            if anonymous_bytes() - self._base > allowed:
                logs.event(f"this worker ends: an image took more than {allowed >> 20} MiB", run="", stage="memory")
                os._exit(1)
