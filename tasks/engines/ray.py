"""The Ray engine: a cluster, or GPUs. Plain actors and tasks, of which the driver keeps a bounded number at work.

On nodes without GPUs each CPU has one actor that does whole units. Where nodes have GPUs, a task reads a unit, an actor
with a GPU scores it, an actor without one finishes it; arrays go from one to the next by reference, through the object
store, without a copy.

The driver alone knows which units are under way, and where. Of an actor that dies it sends the unit that was in hand
again, isolated; of a node that leaves, the same without suspicion. A node that joins gets actors of its own.
"""

import collections
import contextlib
import dataclasses
import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segcore.models import checkpoint
from tasks import cluster, engines, logs, ray_servers
from tasks.cluster import FINISH_CPUS, READ_CPUS
from tasks.engines.watchdog import Watch
from tasks.errors import InterruptedJobError, JobError
from tasks.models.remote import local_model
from tasks.storage import locate
from tasks.stream.meter import Meter
from tasks.stream.staged import ReadUnit, ScoredUnit, StagedWorker
from tasks.stream.units import Unit, UnitReport
from tasks.stream.worker import UnitWork

P = TypeVar("P")
R = TypeVar("R")

LOOK_EVERY_S = 5.0
"""How often the cluster is looked at: which nodes have joined, which are gone."""

_STARTS = 2
"""So many actors that fail to start make a node one that is done without."""

_AHEAD = 2
"""Units that an actor has at hand beside the GPU or the CRF, and pieces of `map` for each CPU."""

Kind = Literal["whole", "score", "finish"]

_STAGES_OF: dict[Kind, dict[str, int]] = {
    "whole": {"read": 1, "score": 1, "refine": 1},
    "score": {"score": 1},
    "finish": {"read": 1, "refine": 1},
}


class RayEngine:
    """The cluster of RAY_ADDRESS, or one of this machine that ends with this object."""

    name = "ray"

    def __init__(self, cpus: int = 0, gpus: int = 0) -> None:
        """cpus, gpus: what to ask an autoscaling cluster for before the first unit."""
        self._wish = cpus, gpus
        self._connected: contextlib.ExitStack | None = None

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._disconnect()

    def begin(self, precision: str = "auto") -> None:
        """Nothing: the cluster is joined when there are units."""

    def prepare(self, work: UnitWork) -> None:
        """Nothing: the cluster is joined when there are units."""

    def units(self, units: Iterable[Unit], work: UnitWork, meter: Meter) -> Iterator[UnitReport]:
        """A report of each unit as it is committed; see `tasks.engines.Engine`."""
        self._connect()
        cluster.grow(*self._wish)
        self._wish = 0, 0
        cluster.free_resources()  # Where others hold all CPUs, say so
        meter.export()
        driver = _Driver(iter(units), _with_model(work), meter)
        try:
            yield from driver.run()
        except JobError:
            raise
        except ray.exceptions.RayError as error:
            reason = cluster.explain(error)
            raise (InterruptedJobError if cluster.may_pass(error) else JobError)(reason) from None
        finally:
            driver.end()

    def map(self, function: Callable[..., R], pieces: Sequence[P], *shared: Any) -> Iterator[R]:
        """Results in the order of the pieces; see `tasks.engines.Engine`."""
        self._connect()
        remote = ray.remote(num_cpus=1, max_retries=3)(function)
        window = _AHEAD * max(1, int(cluster.total_resources()[0]))
        given = [ray.put(value) for value in shared]
        waiting: deque[Any] = deque()
        try:
            for piece in pieces:
                waiting.append(remote.remote(piece, *given))
                if len(waiting) >= window:
                    yield _result(waiting.popleft())
            while waiting:
                yield _result(waiting.popleft())
        finally:
            for reference in waiting:
                ray.cancel(reference, force=False)

    def _connect(self) -> None:
        if ray_servers.lost():  # Whoever tries again has a new cluster
            self._disconnect()
        if self._connected is None:
            connected = contextlib.ExitStack()
            connected.enter_context(cluster.connected())
            self._connected = connected

    def _disconnect(self) -> None:
        if self._connected is not None:
            self._connected.close()
            self._connected = None


def _with_model(work: UnitWork) -> UnitWork:
    """With the model's bytes, where the workers do not see the files of this machine."""
    model = work.params.model
    if not cluster.is_shared() or work.params.untrained or ("://" in model and locate(model).protocol != "file"):
        return work
    return dataclasses.replace(work, packed=checkpoint.pack(local_model(model)))


def _result(reference: Any) -> Any:
    try:
        cluster.ready([reference])
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, JobError):
            raise type(error.cause)(str(error.cause)) from None
        raise JobError(f"A worker failed: {cluster.explain(error)}") from error
    except ray.exceptions.RayError as error:
        raise JobError(f"The Ray cluster lost a worker: {cluster.explain(error)}. Run again: it continues.") from error


# What runs on the cluster


class ArchiveWorker:
    """An actor: does whole units, or scores or finishes what others have read."""

    def __init__(self, work: UnitWork) -> None:
        logs.in_worker()
        self.limits = work.limits
        self.worker = StagedWorker(work)
        self.node = f"{platform.node()} {ray.get_runtime_context().get_node_id()[:8]}"

    def start(self, kind: Kind) -> None:
        """Load what it needs; apart from the constructor, whose exceptions Ray wraps beyond recognition."""
        if kind == "finish":
            self.worker.last  # noqa: B018  # Raises where the CRF engine is not here
        else:
            self.worker.warm()

    def whole(self, unit: Unit, isolated: bool) -> UnitReport:
        """All of a unit. isolated: each image in a process of its own, since a worker has died over the unit."""
        if isolated:
            self.worker.release()  # That process is to have the memory of the device
            return self._placed(self.worker(unit, lambda stage: None, isolated=True))
        with Watch(self.limits) as beat:
            return self._placed(self.worker(unit, beat))

    def score(self, read: ReadUnit) -> tuple[None, ScoredUnit]:
        """Nothing, which tells the driver that it is done, and the scores, which the driver does not fetch."""
        with Watch(self.limits) as beat:
            return None, self.worker.score_unit(read, beat)

    def finish(self, read: ReadUnit, scored: ScoredUnit) -> UnitReport:
        """Refine and commit."""
        with Watch(self.limits) as beat:
            return self._placed(self.worker.finish_unit(read, scored, beat))

    def _placed(self, report: UnitReport) -> UnitReport:
        report.node = self.node
        return report


def _read(unit: Unit, work: UnitWork) -> tuple[None, ReadUnit]:
    logs.in_worker()
    with Watch(work.limits) as beat:
        return None, StagedWorker(work).read_unit(unit, beat)


# The driver


@dataclass(eq=False)
class _Worker:
    """An actor, as the driver knows it."""

    actor: Any
    node: str
    kind: Kind
    started: bool = False
    load: int = 0
    """Units that it has in hand or waiting."""


@dataclass(eq=False)
class _Task:
    """A unit under way."""

    unit: Unit
    deaths: int = 0
    """Workers that have died over it."""

    read: Any = None
    """Reference of its `ReadUnit`."""

    scored: Any = None
    """Reference of its `ScoredUnit`."""


class _Driver:
    """The state of one call of `RayEngine.units`."""

    def __init__(self, units: Iterator[Unit], work: UnitWork, meter: Meter) -> None:
        self.units, self.meter = units, meter
        self.run_id = work.destination.run_id
        self.work = ray.put(work)
        self.stalled_after_s = engines.stalled_after_s(work)
        nodes = cluster.all_nodes()
        cluster.require_room(nodes)
        self.gpus = any(share.scorers for share in cluster.shares(nodes).values())
        self.workers: list[_Worker] = []
        self.failed_starts: collections.Counter[str] = collections.Counter()
        self.exhausted = False
        self.again: deque[_Task] = deque()
        self.read: deque[_Task] = deque()
        self.scored: deque[_Task] = deque()
        # By the reference that says when
        self.starting: dict[Any, _Worker] = {}
        self.reading: dict[Any, _Task] = {}
        self.scoring: dict[Any, tuple[_Task, _Worker]] = {}
        self.finishing: dict[Any, tuple[_Task, _Worker]] = {}
        self._looked = 0.0

    def run(self) -> Iterator[UnitReport]:
        """A report of each unit as it is committed."""
        last = time.monotonic()
        while True:
            if time.monotonic() - self._looked > LOOK_EVERY_S:
                self._look()
            self._hand_out()
            under_way = [*self.reading, *self.scoring, *self.finishing]
            if not (under_way or self.read or self.scored) and self._none_left():
                return
            pending = [*under_way, *self.starting]
            if pending:
                for reference in cluster.ready(pending, LOOK_EVERY_S):
                    report = self._settle(reference)
                    if report is not None:
                        last = time.monotonic()
                        yield report
            else:
                time.sleep(min(0.5, LOOK_EVERY_S))  # All nodes are gone: perhaps others join
            if time.monotonic() - last > self.stalled_after_s:
                raise InterruptedJobError(
                    f"Nothing was finished for {self.stalled_after_s / 60:.0f} minutes: look at the cluster and the "
                    "storage. What is done is kept; run the same command again to go on."
                )

    def end(self) -> None:
        """Leave nothing at work on the cluster."""
        if not ray.is_initialized() or ray_servers.lost():
            return
        for reference in self.reading:
            ray.cancel(reference, force=True)
        for worker in list(self.workers):
            self._forget(worker)

    # Workers

    def _look(self) -> None:
        """Start actors where nodes have room for more; forget those of nodes that are gone."""
        self._looked = time.monotonic()
        shares = cluster.shares(cluster.all_nodes(), on_gpus=self.gpus)
        for node, share in shares.items():
            if self.failed_starts[node] >= _STARTS:
                continue
            have = collections.Counter(worker.kind for worker in self.workers if worker.node == node)
            wanted: dict[Kind, int] = {"whole": share.whole, "score": share.scorers, "finish": share.finishers}
            for kind, count in wanted.items():
                for _ in range(count - have[kind]):
                    self._start(node, kind)
        for worker in [worker for worker in self.workers if worker.node not in shares and not worker.load]:
            self._forget(worker)

    def _start(self, node: str, kind: Kind) -> None:
        cpus, gpus = {"whole": (1.0, 0), "score": (cluster.GPU_SCORE_CPUS, 1), "finish": (FINISH_CPUS, 0)}[kind]
        actor: Any = (
            ray.remote(ArchiveWorker)
            .options(
                num_cpus=cpus,
                num_gpus=gpus,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote(self.work)
        )
        worker = _Worker(actor, node, kind)
        self.workers.append(worker)
        started: Any = worker.actor.start.remote(kind)
        self.starting[started] = worker

    def _started(self, worker: _Worker, reference: Any) -> None:
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            self._forget(worker)
            if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, JobError):
                raise type(error.cause)(str(error.cause)) from None
            if worker.node not in cluster.all_nodes():
                return
            self.failed_starts[worker.node] += 1
            reason = cluster.explain(error)
            logs.event(f"a worker does not start on {worker.node[:8]}: {reason}", run=self.run_id, stage="engine")
            usable = cluster.shares(cluster.all_nodes(), on_gpus=self.gpus).keys()
            if not self.workers and all(self.failed_starts[node] >= _STARTS for node in usable):
                raise InterruptedJobError(f"No worker starts on any node of the cluster: {reason}.") from None
            self._looked = 0.0
        else:
            worker.started = True
            self.meter.begin(_STAGES_OF[worker.kind], gpus=worker.kind == "score")

    def _forget(self, worker: _Worker) -> None:
        if worker not in self.workers:
            return
        self.workers.remove(worker)
        if worker.started:
            self.meter.end(_STAGES_OF[worker.kind])
        with contextlib.suppress(Exception):  # It may have died already
            ray.kill(worker.actor)

    def _free(self, kind: Kind, room: int) -> Iterator[_Worker]:
        """Workers that can take a unit, the least busy first; each as often as it has room."""
        while free := [w for w in self.workers if w.kind == kind and w.started and w.load < room]:
            yield min(free, key=lambda worker: worker.load)

    # Units

    def _none_left(self) -> bool:
        task = self._next()
        if task is not None:
            self.again.appendleft(task)
        return task is None

    def _next(self) -> _Task | None:
        if self.again:
            return self.again.popleft()
        if not self.exhausted:
            for unit in self.units:
                return _Task(unit)
            self.exhausted = True
        return None

    def _hand_out(self) -> None:
        """Give work to whoever has room for it, the last stage first."""
        for worker in self._free("finish", _AHEAD):
            if not self.scored:
                break
            task = self.scored.popleft()
            self._give(self.finishing, worker.actor.finish.remote(task.read, task.scored), task, worker)
        for worker in self._free("score", _AHEAD) if self.gpus else self._free("whole", 1):
            following = self._next_isolated() if self.gpus else self._next()
            if following is None:
                break
            isolated = following.deaths > 0
            self._give(self.finishing, worker.actor.whole.remote(following.unit, isolated), following, worker)
        for worker in self._free("score", _AHEAD):
            if not self.read:
                break
            task = self.read.popleft()
            done, task.scored = worker.actor.score.options(num_returns=2).remote(task.read)
            self._give(self.scoring, done, task, worker)
        while self.gpus and self._may_read():
            following = self._next()
            if following is None:
                break
            if following.deaths:
                self.again.append(following)
                break
            read: Any = ray.remote(_read).options(num_cpus=READ_CPUS, num_returns=2, max_retries=0)
            done, following.read = read.remote(following.unit, self.work)
            self.reading[done] = following

    def _next_isolated(self) -> _Task | None:
        """On GPUs, a unit that a worker has died over is done as a whole beside the GPU."""
        task = next((task for task in self.again if task.deaths), None)
        if task is not None:
            self.again.remove(task)
        return task

    def _may_read(self) -> bool:
        """Units under way are bounded, and with them the bytes in the object store: about 60 MB a unit."""
        kinds = collections.Counter(worker.kind for worker in self.workers if worker.started)
        under_way = len(self.reading) + len(self.read) + len(self.scoring) + len(self.scored) + len(self.finishing)
        return len(self.reading) < kinds["finish"] and under_way < _AHEAD * (kinds["score"] + kinds["finish"])

    def _give(self, where: dict[Any, Any], reference: Any, task: _Task, worker: _Worker) -> None:
        worker.load += 1
        where[reference] = (task, worker)

    def _settle(self, reference: Any) -> UnitReport | None:
        """Take note of what is done; the report of a unit that is committed."""
        if reference in self.starting:
            self._started(self.starting.pop(reference), reference)
            return None
        worker: _Worker | None = None
        if reference in self.reading:
            task = self.reading.pop(reference)
            done: deque[_Task] | None = self.read
        else:
            at_work = self.scoring if reference in self.scoring else self.finishing
            task, worker = at_work.pop(reference)
            worker.load -= 1
            done = self.scored if at_work is self.scoring else None
        try:
            report: UnitReport | None = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, JobError):
                raise type(error.cause)(str(error.cause)) from None
            if not isinstance(error.cause, ray.exceptions.RayError):
                raise
            self._send_again(task, None)  # What it was handed is lost with another worker or node
        except ray.exceptions.RayError as error:
            died = isinstance(error, ray.exceptions.RayActorError | ray.exceptions.WorkerCrashedError)
            died = died or isinstance(error, ray.exceptions.OutOfMemoryError)
            self._send_again(task, error if died else None, worker)
        else:
            if done is None:
                return report
            done.append(task)
        return None

    def _send_again(self, task: _Task, death: Exception | None, worker: _Worker | None = None) -> None:
        """death: why a worker has died over the unit; None where the unit is not suspected of it."""
        task.read = task.scored = None
        if worker is not None and death is not None:
            self._forget(worker)  # What waited behind the unit fails too, and is suspected: it costs time, no row
            self._looked = 0.0
            if worker.node not in cluster.all_nodes():
                death = None
        if death is not None:
            task.deaths += 1
            reason = cluster.explain(death)
            logs.event(f"a worker died over unit {task.unit.name}: {reason}", run=self.run_id, stage="engine")
            if task.deaths >= engines.TRIES:
                raise InterruptedJobError(
                    f"{task.deaths} workers have died over unit {task.unit.name}, though each image had a process of "
                    "its own: look at the memory of the nodes, and at their logs."
                )
        self.again.append(task)
