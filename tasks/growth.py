"""The stream on a cluster that changes: nodes that join take part, nodes that leave are done without.

Units that a lost node had under way are done again by the others; that is Ray's work. Nodes that join get a second
stream over the same units, from the other end of the list: a unit that one has committed, the other passes by.
"""

import queue
import threading
import time
import traceback
from collections.abc import Iterator

import ray

from segcore.checkpoint import PackedModel
from tasks import cluster
from tasks.cluster import Plan
from tasks.errors import InterruptedJobError, JobError
from tasks.meter import Meter
from tasks.pipeline import stream
from tasks.units import Destination, MaskParams, Unit, UnitReport

LOOK_EVERY_S = 5.0
"""How often the cluster is looked at."""

STALLED_AFTER_S = 3600.0
"""A session in which no unit is finished for so long ends; the work of a unit is about a minute."""

_PARTING_S = 30.0


def stream_growing(
    units: list[Unit],
    params: MaskParams,
    destination: Destination,
    free: tuple[float, float],
    meter: Meter,
    packed: "ray.ObjectRef[PackedModel] | None" = None,
) -> Iterator[UnitReport]:
    """`tasks.pipeline.stream` on these free CPUs and GPUs, and on whatever joins meanwhile; each unit is told once.

    Raises JobError where the cluster is too small, and where nothing is finished for an hour.
    """
    lanes = _Lanes(params, destination, meter, packed)
    lanes.start(units, cluster.plan_stages(*free))
    have = cluster.total_resources()
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
                total = cluster.total_resources()
                more = (total[0] - have[0], total[1] - have[1])
                rest = [unit for unit in reversed(units) if unit.name not in done]
                if more[0] >= 1 and len(rest) > len(lanes.threads):
                    have = total
                    lanes.start(rest, _plan(*more))
                elif more[0] < 0 or more[1] < 0:
                    have = total
        yield from (report for name, report in passed_by.items() if name not in done)
    except BaseException:
        lanes.part(0.0)  # Who cancels does not wait
        raise
    lanes.part(_PARTING_S)


def _plan(cpus: float, gpus: float) -> Plan:
    """Of what has joined: without its GPUs where there are too few CPUs beside them."""
    try:
        return cluster.plan_stages(cpus, gpus)
    except JobError:
        return cluster.plan_stages(cpus, 0.0)


class _Lanes:
    """Streams side by side, each in a thread, since Ray Data gives results only to who waits for them."""

    def __init__(
        self,
        params: MaskParams,
        destination: Destination,
        meter: Meter,
        packed: "ray.ObjectRef[PackedModel] | None",
    ) -> None:
        self.params, self.destination, self.meter, self.packed = params, destination, meter, packed
        self.out: queue.Queue[UnitReport | BaseException] = queue.Queue()
        self.threads: list[threading.Thread] = []
        self._parting = threading.Event()

    @property
    def running(self) -> bool:
        return any(thread.is_alive() for thread in self.threads)

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
        """Tell the streams to end, and wait so long for those that are about to."""
        self._parting.set()
        deadline = time.monotonic() + patience_s
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, units: list[Unit], plan: Plan) -> None:
        self.meter.begin(plan)
        try:
            source = stream(units, self.params, self.destination, plan, packed=self.packed)
            for report in source:
                self.out.put(report)
                if self._parting.is_set():
                    break
        except BaseException as error:
            _let_go(error)
            if not self._parting.is_set():
                self.out.put(error)
        finally:
            self.meter.end(plan)


def _let_go(error: BaseException) -> None:
    """Free what the frames of an error hold: Ray's actors, whose CPUs the next try in this process needs."""
    following: BaseException | None = error
    while following is not None:
        traceback.clear_frames(following.__traceback__)
        following = following.__cause__ or following.__context__
