"""A worker's watch over itself, where nobody outside looks at it image by image: it ends the process.

What sees the process end does the unit again isolated, and finds the image (decision 0090).
"""

import faulthandler
import os
import threading
from types import TracebackType

from tasks import logs
from tasks.processes import anonymous_bytes
from tasks.stream.isolation import ImageLimits
from tasks.stream.worker import UNWATCHED

_LOOK_EVERY_S = 0.2
_STDERR = 2


class Watch:
    """Within, ends this process where an image takes too long in one stage, or too much memory.

    To be called with the name of each stage of each image (`tasks.stream.worker.Beat`). The clock is faulthandler's,
    which needs no lock of the interpreter: a call that never gives that back is ended too. Its trace goes to the
    worker's log.
    """

    def __init__(self, limits: ImageLimits) -> None:
        self.limits = limits
        self._base: int | None = None
        self._over = threading.Event()

    def __enter__(self) -> "Watch":
        threading.Thread(target=self._look, daemon=True, name="watch").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        faulthandler.cancel_dump_traceback_later()

    def __call__(self, stage: str) -> None:
        if stage in UNWATCHED:
            faulthandler.cancel_dump_traceback_later()
            self._base = None
            return
        self._base = anonymous_bytes()
        faulthandler.dump_traceback_later(self.limits.seconds, exit=True, file=_STDERR)

    def _look(self) -> None:
        allowed = self.limits.growth_bytes
        while not self._over.wait(_LOOK_EVERY_S):
            base = self._base
            if base is not None and anonymous_bytes() - base > allowed:
                logs.event(f"this worker ends: an image took more than {allowed >> 20} MiB", run="", stage="memory")
                os._exit(1)
