"""The Ray engine: a cluster, or GPUs. Units go through the stream of `tasks/stream/`; pieces are Ray tasks."""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

import ray

from segcore import checkpoint
from tasks import cluster
from tasks.errors import InterruptedJobError, JobError
from tasks.stream.growth import stream_growing
from tasks.stream.meter import Meter
from tasks.stream.units import Unit, UnitReport
from tasks.stream.worker import UnitWork

P = TypeVar("P")
R = TypeVar("R")

WAVE_UNITS = 2048
"""Units handed to Ray at a time: bounds the driver's memory, and lets a grown cluster be planned anew. More on a large
cluster, `wave_units`, whose workers take as long to start as those of a small one."""

_WAVE_UNITS_OF_A_CPU = 16
_AHEAD = 2


class RayEngine:
    """The cluster of RAY_ADDRESS, or one of this machine that ends with this object."""

    name = "ray"

    def __init__(self, cpus: int = 0, gpus: int = 0) -> None:
        """cpus, gpus: what to ask an autoscaling cluster for before the first unit."""
        self._wish = cpus, gpus
        self._connected = contextlib.ExitStack()
        self._free = (1.0, 0.0)

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connected.close()

    def prepare(self, work: UnitWork) -> None:
        """Nothing: the cluster is joined when there are units."""

    def units(self, units: Iterable[Unit], work: UnitWork, meter: Meter) -> Iterator[UnitReport]:
        """A report of each unit as it is committed; see `tasks.engines.Engine`."""
        self._connect()
        cluster.grow(*self._wish)
        self._wish = 0, 0
        packed = _packed(work)
        meter.export()
        source = iter(units)
        while wave := list(itertools.islice(source, wave_units(self._free[0]))):
            self._free = cluster.free_resources(self._free)
            workers = cluster.plan_nodes(cluster.free_nodes())
            try:
                yield from stream_growing(wave, work.params, work.destination, workers, meter, work.last, packed=packed)
            except JobError:
                raise
            except Exception as error:
                reason = cluster.explain(error)
                raise (InterruptedJobError if cluster.may_pass(error) else JobError)(reason) from error

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
        if not ray.is_initialized():
            self._connected.enter_context(cluster.connected())


def wave_units(cpus: float) -> int:
    """Units of one wave on a cluster with this many CPUs free: ten minutes of work and more against a start of 20 s."""
    return max(WAVE_UNITS, int(_WAVE_UNITS_OF_A_CPU * cpus))


def _packed(work: UnitWork) -> "ray.ObjectRef[checkpoint.PackedModel] | None":
    """The model in Ray's object store, where the workers do not see the files of this machine."""
    if not cluster.is_shared() or work.params.untrained or "://" in work.params.model:
        return None
    return ray.put(checkpoint.pack(work.params.model))


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, JobError):
            raise type(error.cause)(str(error.cause)) from None
        raise JobError(f"A worker failed: {cluster.explain(error)}") from error
    except ray.exceptions.RayError as error:
        raise JobError(f"The Ray cluster lost a worker: {cluster.explain(error)}. Run again: it continues.") from error
