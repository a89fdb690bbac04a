"""Where work runs: one protocol, two engines.

    with engines.opened("auto") as engine:
        engine.prepare(work)                          # optional: workers start and load the model meanwhile
        for report in engine.units(units, work, meter):   # whole units, as each is committed, in any order
            ...
        for result in engine.map(function, pieces, *shared):  # in the order of the pieces, a few ahead
            ...

- **local** (`local.py`): processes of this machine, one a core. Each takes a unit and does all of it; nothing is copied
  between them. The parent imports neither torch nor Ray.
- **ray** (`ray.py`): a cluster, or GPUs.

What both promise. A unit is one atomic file, so it may be done twice and never half. Whoever runs a unit sees its
process end from outside, and sends the unit again *isolated*: each image in a process of its own, where the one that
crashes, hangs or grows becomes an error row (`crashed`, `timeout`, `memory`). The unit itself never counts as failed.
JobError passes through from any worker. What a caller leaves early is stopped. The engine is no part of a run's
identity: a job begun on one goes on with the other.

Code below a job's steps does not pass engines on: `spread` takes the one that is open, or opens one for itself.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from segcore import extras
from segcore.scoring import hardware

if TYPE_CHECKING:
    from tasks.stream.meter import Meter
    from tasks.stream.units import Unit, UnitReport
    from tasks.stream.worker import UnitWork

P = TypeVar("P")
R = TypeVar("R")

EngineName = Literal["auto", "local", "ray"]

FEW = 4
"""So many pieces of a `map` are done in this process: workers take longer to start."""


TRIES = 10
"""A unit over which workers have died this often ends the session: with every image isolated, no image did it."""

_STALLED_AFTER_S = 3600.0


def stalled_after_s(work: "UnitWork | None") -> float:
    """A session in which nothing is finished for so long ends.

    A unit is about a minute of work; a picture of any size may be hours, of which each window is watched.
    """
    return 24 * _STALLED_AFTER_S if work is not None and work.of_any_size else _STALLED_AFTER_S


class Engine(Protocol):
    """Runs functions over pieces, and units to committed files."""

    name: str
    """"local" or "ray"."""

    def begin(self, precision: str = "auto") -> None:
        """Start workers that import what units need, before more is known than the precision; returns at once."""

    def prepare(self, work: "UnitWork") -> None:
        """Start workers that load the model of this work; returns at once."""

    def units(self, units: "Iterable[Unit]", work: "UnitWork", meter: "Meter") -> "Iterator[UnitReport]":
        """A report of each unit as it is committed, in any order; each unit once.

        units: taken as workers get free. meter: hears which workers take part. May end before all are done where
        nodes were lost: what is left is asked for again. Raises JobError, as workers did, and InterruptedJobError where
        workers cannot be kept alive.
        """
        ...

    def map(self, function: Callable[..., R], pieces: Sequence[P], *shared: Any) -> Iterator[R]:
        """Results of `function(piece, *shared)` in the order of the pieces, a few ahead of the reader.

        function: of a module, so that workers can import it. shared: what every call needs, sent once.
        Raises JobError as the function did; a worker that dies is replaced and its piece done again.
        """
        ...


_open: list[Engine] = []


@contextlib.contextmanager
def opened(name: EngineName = "auto", *, cpus: int = 0, gpus: int = 0) -> Iterator[Engine]:
    """The engine of a job; within, `spread` uses it too. Nothing is started before there is work.

    cpus, gpus: what to ask an autoscaling cluster for.
    """
    chosen = choose(name, cpus=cpus, gpus=gpus)
    if chosen == "ray":
        from tasks.engines.ray import RayEngine

        made: contextlib.AbstractContextManager[Engine] = RayEngine(cpus, gpus)
    else:
        from tasks.engines.local import LocalEngine

        made = LocalEngine()
    with made as engine:
        _open.append(engine)
        try:
            yield engine
        finally:
            _open.remove(engine)


@contextlib.contextmanager
def at_hand(name: EngineName = "auto", *, cpus: int = 0, gpus: int = 0) -> Iterator[Engine]:
    """The engine that is open, or one that is opened for what is within."""
    if _open:
        yield _open[-1]
    else:
        with opened(name, cpus=cpus, gpus=gpus) as engine:
            yield engine


def choose(name: EngineName, *, cpus: int = 0, gpus: int = 0) -> Literal["local", "ray"]:
    """auto: ray where RAY_ADDRESS is set, where nodes are asked for, or where there are GPUs and Ray; else local."""
    if name != "auto":
        return name
    asked = os.environ.get("RAY_ADDRESS") or cpus or gpus
    return "ray" if asked or (hardware.shows_gpu() and extras.is_here("ray")) else "local"


def spread(function: Callable[..., R], pieces: Sequence[P], *shared: Any) -> Iterator[R]:
    """`Engine.map` on the engine that is open, or on one of its own; few pieces are done in this process."""
    if len(pieces) <= FEW:
        for piece in pieces:
            yield function(piece, *shared)
    else:
        with at_hand() as engine:
            yield from engine.map(function, pieces, *shared)
