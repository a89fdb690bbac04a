"""The local engine: processes of this machine, one a core, watched from outside. Started by spawning, never by forking.

Why this and no pool of a library: docs/decisions/0098-local-engine.md. A worker says what it is at before each stage
of each image; this process counts how long that takes and by how much the worker grows meanwhile. A worker that dies,
or is ended for that, is replaced, and its unit is sent again isolated.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection as connections
from multiprocessing.connection import Connection
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TypeVar

from segcore import extras
from segcore.scoring import hardware
from tasks import cache, engines, logs, processes, progress
from tasks.engines import child
from tasks.errors import InterruptedJobError, JobError

if TYPE_CHECKING:  # Imported where needed: workers start before this process has loaded anything
    from tasks.stream.isolation import ImageLimits
    from tasks.stream.meter import Meter
    from tasks.stream.units import Unit, UnitReport
    from tasks.stream.worker import UnitWork, UnitWorker

P = TypeVar("P")
R = TypeVar("R")

WORKER_BYTES = 700 * 2**20
"""Memory of a worker with torch and a model: no more workers are started than fit into the machine's."""

_MAP_TRIES = 4
_STARTS = 3
_LOOK_EVERY_S = 0.2
_AHEAD = 2

# One thread for each worker's libraries, since there is a worker on every core; few heaps, since each keeps holes
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


@dataclass
class _Task:
    """A piece, and how often a worker has died over it."""

    number: int
    piece: Any
    died: int = 0


class _Held:
    """The work of units in a worker process: the model is loaded once, not for each unit."""

    def __init__(self, work: UnitWork) -> None:
        self.work = work
        self._worker: UnitWorker | None = None

    def warm_in_worker(self) -> None:
        """Load the model before the first unit, when no clock is running."""
        self.worker.warm()

    @property
    def worker(self) -> UnitWorker:
        if self._worker is None:
            self._worker = self.work.worker()
        return self._worker


def _scoring_modules(precision: str) -> tuple[str, ...]:
    """What takes longest to import of what a worker most likely needs."""
    in_bf16 = precision != "fp32" and hardware.multiplies_bf16()
    if extras.is_here("torch") and (hardware.may_have_gpu() or in_bf16):
        return ("torch", "segcore.scoring.device")
    return ("segcore.scoring.onnx_scorer", "onnxruntime")


def _do_unit(piece: tuple[Unit, bool], held: _Held) -> UnitReport:
    unit, isolated = piece
    return held.worker(unit, child.beat, isolated)


class LocalEngine:
    """Worker processes, started where there is work, ended with this object."""

    name = "local"

    def __init__(self, num_workers: int | None = None) -> None:
        fitting = max(1, processes.usable_memory() // WORKER_BYTES)
        self.num_workers = num_workers or min(processes.usable_cpus(), fitting)
        self._workers: list[_Worker] = []
        self._log: IO[bytes] | None = None
        self._tokens = itertools.count(1)
        self._prepared: tuple[UnitWork, int, bytes] | None = None
        self._said = False

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        if self._log is not None:
            cache.close_log(self._log)
            self._log = None

    def begin(self, precision: str = "auto") -> None:
        """Start workers that import what units need; returns at once."""
        if not self._workers:
            self._start(self.num_workers)
            for worker in self._workers:
                worker.load(("tasks.stream.worker", "segcore.models.checkpoint", *_scoring_modules(precision)))

    def prepare(self, work: UnitWork) -> None:
        """Start workers that load the model of this work; returns at once."""
        token, function = self._function_of(work)
        self._start(self.num_workers)
        for worker in self._workers:
            worker.learn(token, function)

    def units(self, units: Iterable[Unit], work: UnitWork, meter: Meter) -> Iterator[UnitReport]:
        """A report of each unit as it is committed; see `tasks.engines.Engine`."""
        token, function = self._function_of(work)
        from tasks.stream.units import STAGES

        taking_part = dict.fromkeys(STAGES, self.num_workers)
        meter.begin(taking_part)
        try:
            for _, report in self._run(units, token, function, work):
                yield report
        finally:
            meter.end(taking_part)

    def map(self, function: Callable[..., R], pieces: Sequence[P], *shared: Any) -> Iterator[R]:
        """Results in the order of the pieces; see `tasks.engines.Engine`."""
        token, made = next(self._tokens), pickle.dumps((function, shared))
        given = 0  # To the reader
        found: dict[int, R] = {}

        def ahead() -> Iterator[P]:
            for number, piece in enumerate(pieces):
                while number >= given + _AHEAD * self.num_workers + len(self._workers):
                    yield None  # type: ignore[misc]  # Not now: the reader is far behind
                yield piece

        for number, result in self._run(ahead(), token, made, None):
            found[number] = result
            while given in found:
                yield found.pop(given)
                given += 1

    def _function_of(self, work: UnitWork) -> tuple[int, bytes]:
        if self._prepared is None or self._prepared[0] != work:
            self._prepared = work, next(self._tokens), pickle.dumps((_do_unit, (_Held(work),)))
        return self._prepared[1:]

    def _start(self, wanted: int) -> None:
        if self._log is None:
            # What the libraries of workers print would flood the progress bar
            self._log = cache.new_log("workers")
        while len(self._workers) < min(wanted, self.num_workers):
            self._workers.append(_Worker(self._log))

    def _run(
        self, pieces: Iterable[Any], token: int, function: bytes, work: UnitWork | None
    ) -> Iterator[tuple[int, Any]]:
        """Number and result of each piece, as they come. A piece of None means: ask again later."""
        source, numbers = iter(pieces), itertools.count()
        again: deque[_Task] = deque()
        exhausted = False
        starts_failed = 0
        last = time.monotonic()
        limits = work.limits if work is not None else None
        stalled_after_s = engines.stalled_after_s(work)

        def following() -> _Task | None:
            nonlocal exhausted
            if again:
                return again.popleft()
            if exhausted:
                return None
            for piece in source:
                return None if piece is None else _Task(next(numbers), piece)
            exhausted = True
            return None

        try:
            while True:
                for slot in range(self.num_workers):
                    if slot < len(self._workers) and self._workers[slot].task is not None:
                        continue
                    task = following()
                    if task is None:
                        break
                    self._start(slot + 1)
                    if self._workers[slot].process.poll() is not None:  # While it had nothing to do
                        self._workers[slot] = self._replaced(self._workers[slot])
                    piece = task.piece if work is None else (task.piece, task.died > 0)
                    watched = limits if task.died == 0 else None  # Isolated, the worker itself watches
                    self._workers[slot].give(task, piece, token, function, watched)
                busy = [worker for worker in self._workers if worker.task is not None]
                if not busy:
                    if exhausted and not again:
                        return
                    continue
                connections.wait([worker.connection for worker in busy], _LOOK_EVERY_S)
                for worker in busy:
                    for kind, *rest in worker.messages():
                        if kind == "ready":
                            starts_failed = 0
                        elif kind == "done":
                            task, worker.task = worker.task, None
                            last = time.monotonic()
                            assert task is not None
                            yield task.number, rest[0]
                        elif kind == "raised":
                            if worker.ready:  # Else it would go on with what it could not learn
                                worker.task = None
                            raise self._raised(rest[0], rest[1], work)
                    if worker.task is None or not (ended := worker.ended()):
                        continue
                    task, was_ready = worker.task, worker.ready
                    self._workers[self._workers.index(worker)] = self._replaced(worker)
                    starts_failed += not was_ready
                    if starts_failed >= _STARTS * self.num_workers:
                        raise InterruptedJobError(
                            f"The worker processes end while they start ({ended}): is memory short, is the "
                            f"installation whole? What they printed: {self._log_name}"
                        )
                    if was_ready:
                        task.died += 1
                        self._note(task, ended, work)
                    again.append(task)
                if time.monotonic() - last > stalled_after_s:
                    raise InterruptedJobError(
                        f"Nothing was finished for {stalled_after_s / 60:.0f} minutes: look at the machine and the "
                        "storage. What is done is kept; run the same command again to go on."
                    )
        finally:
            for slot, worker in enumerate(self._workers):
                if worker.task is not None:  # The caller has left
                    self._workers[slot] = self._replaced(worker, only_end=True)
            self._workers = [worker for worker in self._workers if worker.alive]

    @property
    def _log_name(self) -> str:
        return self._log.name if self._log is not None else ""

    def _replaced(self, worker: _Worker, *, only_end: bool = False) -> _Worker:
        worker.kill()
        worker.end()
        assert self._log is not None
        return worker if only_end else _Worker(self._log)

    def _note(self, task: _Task, ended: str, work: UnitWork | None) -> None:
        """A worker has died over a task: say so once, and give up where no caution helps."""
        if work is None:
            if task.died >= _MAP_TRIES:
                raise InterruptedJobError(
                    f"Worker processes ended {task.died} times over the same work ({ended}): is memory short? What "
                    f"they printed: {self._log_name}"
                )
            return
        unit: Unit = task.piece
        run = work.destination.run_id
        logs.event(f"a worker ended over unit {unit.name}: {ended}", run=run, stage="worker", unit=unit.name)
        if task.died >= engines.TRIES:
            raise InterruptedJobError(
                f"{task.died} workers have died over unit {unit.name}, though each image had a process of its own: "
                f"look at the machine's memory, and at {self._log_name}."
            )
        if not self._said:
            self._said = True
            progress.say(
                f"A worker process ended ({ended}); its images are done again, each in a process of its own."
                f" What workers print: {self._log_name}"
            )

    def _raised(self, error: Exception, trace: str, work: UnitWork | None) -> Exception:
        """What the caller sees of a worker's exception; a fault of ours leaves its traceback in the log."""
        if isinstance(error, JobError):
            return error
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.write(trace.encode("utf-8", "replace"))
                self._log.flush()
        words = (str(error).splitlines() or [""])[0]
        return JobError(f"A worker failed: {type(error).__name__}: {words}. Details: {self._log_name}")


class _Worker:
    """One process, as its parent sees it."""

    def __init__(self, log: IO[bytes]) -> None:
        self.process: subprocess.Popen[bytes]
        self.connection: Connection
        self.process, self.connection = processes.start("tasks.engines.child:main", _ENVIRONMENT, log)
        self.task: _Task | None = None
        self.ready = False
        """Whether it has learnt its function, so that what ends it later is its task."""

        self.alive = True
        self._token = 0
        self._limits: ImageLimits | None = None
        self._stage = ""
        self._seconds = 0.0
        self._base = 0
        self._looked = time.monotonic()
        self._verdict = ""

    def load(self, modules: tuple[str, ...]) -> None:
        """Import these."""
        self._send(("import", modules))

    def learn(self, token: int, function: bytes) -> None:
        """From now on, this function with what every call shares."""
        if token != self._token:
            self._token, self.ready = token, False
            self._send(("function", function))

    def give(self, task: _Task, piece: Any, token: int, function: bytes, limits: ImageLimits | None) -> None:
        """Do a piece; the answer comes as a message."""
        self.task, self._limits, self._stage = task, limits, ""
        self.learn(token, function)
        self._send(("do", piece))

    def messages(self) -> Iterator[tuple[Any, ...]]:
        """What it has answered since; its notes about stages are taken here."""
        with contextlib.suppress(EOFError, OSError):
            while self.connection.poll():
                message: tuple[Any, ...] = pickle.loads(self.connection.recv_bytes())
                if message[0] == "at":
                    self._stage, self._seconds = message[1], 0.0
                    self._base = processes.anonymous_bytes(self.process.pid)
                    self._looked = time.monotonic()
                    continue
                if message[0] == "ready":
                    self.ready = True
                yield message

    def ended(self) -> str:
        """How it has ended, or why it was ended just now; empty while it is well."""
        if self.process.poll() is not None:
            return self._verdict or processes.ending(self.process.returncode)
        now = time.monotonic()
        # In slices, so that a machine that was halted meanwhile is not held against the image
        self._seconds += min(now - self._looked, 2 * _LOOK_EVERY_S)
        self._looked = now
        if self._limits is None:
            return ""
        from tasks.stream.worker import UNWATCHED

        if self._stage in UNWATCHED:
            return ""
        if self._seconds > self._limits.seconds:
            self._verdict = f"an image took longer than {self._limits.seconds:g} s"
        elif processes.anonymous_bytes(self.process.pid) - self._base > self._limits.growth_bytes:
            self._verdict = f"an image took more than {self._limits.growth_bytes >> 20} MiB"
        if self._verdict:
            self.kill()
        return self._verdict

    def kill(self) -> None:
        """End it at once."""
        self.alive = False
        with contextlib.suppress(OSError):
            os.kill(self.process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Wait until it has ended."""
        with contextlib.suppress(OSError):
            self.connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)

    def _send(self, message: tuple[Any, ...]) -> None:
        with contextlib.suppress(OSError):  # It has died, which `ended` finds
            self.connection.send_bytes(pickle.dumps(message))
