"""The stream on a cluster that changes: nodes that join take part, nodes that leave are done without.

Nodes that join get a second stream over the same units, from the other end of the list: a unit that one has committed,
the other passes by. Of a node that leaves, Ray starts the actors again elsewhere, and sends them what they had under
way; where the others have no room for them, those units would wait for ever, and so they are left to another pass.
"""

import contextlib
import gc
import logging
import queue
import threading
import time
import traceback
from collections.abc import Iterator
from types import FrameType

import ray

from segcore.checkpoint import PackedModel
from tasks import cluster, logs
from tasks.cluster import Plan
from tasks.errors import InterruptedJobError, JobError
from tasks.stream.meter import Meter
from tasks.stream.pipeline import stream
from tasks.stream.rows import MaskRows
from tasks.stream.units import Destination, MaskParams, Unit, UnitReport

LOOK_EVERY_S = 5.0
"""How often the cluster is looked at."""

STALLED_AFTER_S = 3600.0
"""A session in which no unit is finished for so long ends; the work of a unit is about a minute."""

STUCK_AFTER_S = 120.0
"""After a node was lost, a stream in which no unit is finished for so long ends; what it leaves is planned anew."""

_PARTING_S = 30.0


def stream_growing(
    units: list[Unit],
    params: MaskParams,
    destination: Destination,
    plan: Plan,
    meter: Meter,
    rows: type[MaskRows] = MaskRows,
    packed: "ray.ObjectRef[PackedModel] | None" = None,
) -> Iterator[UnitReport]:
    """`tasks.stream.pipeline.stream` with these workers, and on whatever joins meanwhile; each unit is told once.

    Ends before all are done where a lost node holds up the others.
    Raises JobError where nothing is finished for an hour.
    """
    lanes = _Lanes(params, destination, meter, rows, packed)
    lanes.start(units, plan)
    known = set(cluster.all_nodes())
    lost = False
    done: set[str] = set()
    passed_by: dict[str, UnitReport] = {}
    looked = last = time.monotonic()
    try:
        while len(done) < len(units) and (lanes.running or not lanes.out.empty()):
            report = lanes.next(LOOK_EVERY_S)
            now = time.monotonic()
            if report is not None:
                last = now
                if report.done_elsewhere and len(lanes.threads) > 1:
                    passed_by[report.unit] = report  # Most likely by our own other stream, whose report is on its way
                elif report.unit not in done:
                    done.add(report.unit)
                    yield report
            elif now - last > STALLED_AFTER_S:
                raise InterruptedJobError(
                    f"Nothing was finished for {STALLED_AFTER_S / 60:.0f} minutes: look at the cluster and the "
                    "storage. What is done is kept; run the same command again to go on."
                )
            if now - looked > LOOK_EVERY_S:
                looked = now
                living = cluster.all_nodes()
                lost |= not known <= living.keys()
                known &= living.keys()
                rest = [unit for unit in reversed(units) if unit.name not in done]
                # All that they have: readers of the first stream, which hold a part of it already, come and go
                joined = {node: has for node, has in living.items() if node not in known and has[0] >= 1}
                if joined and len(rest) > lanes.running:
                    known |= joined.keys()
                    lanes.start(rest, _plan(joined))
                elif lost and now - last > STUCK_AFTER_S:
                    what = f"a node was lost, and {len(rest)} units wait for its workers: they are planned anew"
                    logs.event(what, run=destination.run_id, stage="pipeline", level=logging.WARNING)
                    break
        yield from (report for name, report in passed_by.items() if name not in done)
    except BaseException:
        lanes.part(0.0)  # Who cancels does not wait
        raise
    lanes.part(_PARTING_S)


def _plan(nodes: dict[str, tuple[float, float]]) -> Plan:
    """Of what has joined: without its GPUs where there are too few CPUs beside them."""
    try:
        return cluster.plan_nodes(nodes)
    except JobError:
        return cluster.plan_nodes({node: (cpus, 0.0) for node, (cpus, _) in nodes.items()})


class _Lanes:
    """Streams side by side, each in a thread, since Ray Data gives results only to who waits for them."""

    def __init__(
        self,
        params: MaskParams,
        destination: Destination,
        meter: Meter,
        last: type[MaskRows],
        packed: "ray.ObjectRef[PackedModel] | None",
    ) -> None:
        self.params, self.destination, self.meter = params, destination, meter
        self.last, self.packed = last, packed
        self.out: queue.Queue[UnitReport | BaseException] = queue.Queue()
        self.threads: list[threading.Thread] = []
        self._datasets: list[ray.data.Dataset] = []
        self._parting = threading.Event()

    @property
    def running(self) -> int:
        """Streams that have not ended."""
        return sum(thread.is_alive() for thread in self.threads)

    def start(self, units: list[Unit], plan: Plan) -> None:
        thread = threading.Thread(target=self._run, args=(units, plan), daemon=True)
        self.threads.append(thread)
        thread.start()

    def next(self, patience_s: float) -> UnitReport | None:
        """The next report; None where none came in time. Raises what a stream has raised."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                item = self.out.get(timeout=0.2)
            except queue.Empty:
                if time.monotonic() > deadline or not self.running:
                    return None
                continue
            if isinstance(item, BaseException):
                raise item
            return item

    def part(self, patience_s: float) -> None:
        """End the streams, and wait so long until they have; without patience they are only told to."""
        self._parting.set()
        if not patience_s or not self.running:
            return
        for dataset in self._datasets:
            # Ray Data has no public way to end a stream from another thread than its reader's
            executor = dataset._current_executor
            if executor is not None:
                executor.shutdown(force=True)
        deadline = time.monotonic() + patience_s
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, units: list[Unit], plan: Plan) -> None:
        self.meter.begin(plan.workers(), gpus=plan.score_gpus > 0)
        try:
            datasets = self._datasets
            for report in stream(
                units, self.params, self.destination, plan, self.last, packed=self.packed, datasets=datasets
            ):
                self.out.put(report)
                if self._parting.is_set():
                    break
        except BaseException as error:
            if not self._parting.is_set():  # After which Ray may be gone, and would end the process that speaks to it
                _let_go(error)
                self.out.put(error)
        finally:
            self.meter.end(plan.workers())


def _let_go(error: BaseException) -> None:
    """Free what the frames of an error hold: Ray's actors, whose CPUs the next try in this process needs."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop()
        seen.add(id(one))
        for frame, _ in traceback.walk_tb(one.__traceback__):
            _clear(frame)
        waiting += [e for e in (one.__cause__, one.__context__) if e is not None and id(e) not in seen]
    gc.collect()  # Ray Data's tasks and their callbacks hold each other


def _clear(frame: FrameType | None) -> None:
    """Forget the variables of a frame and of those that called it, which have all ended or are still at work."""
    while frame is not None:
        with contextlib.suppress(RuntimeError):  # At work
            frame.clear()
        frame = frame.f_back
