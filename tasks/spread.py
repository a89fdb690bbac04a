"""A function over many pieces of work on the whole cluster, a few ahead of the reader, results in order."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray

from tasks import cluster
from tasks.errors import JobError

P = TypeVar("P")
R = TypeVar("R")

FEW = 4
"""So many pieces are done in this process: a cluster takes longer to start."""

_AHEAD = 2


def spread(function: Callable[..., R], pieces: Sequence[P], *shared: Any) -> Iterator[R]:
    """Results of `function(piece, *shared)` in the order of the pieces, on every CPU of the cluster.

    function: of a module, so that workers can import it. shared: what every call needs, sent once.
    Raises JobError as the function did; a worker that dies is replaced.
    """
    if len(pieces) <= FEW:
        for piece in pieces:
            yield function(piece, *shared)
        return
    with cluster.connected():
        remote = ray.remote(num_cpus=1, max_retries=3)(function)
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        window = _AHEAD * max(1, int(resources.get("CPU", 1)))
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


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, JobError):
            raise JobError(str(error.cause)) from None
        raise JobError(f"A worker failed: {cluster.explain(error)}") from error
    except ray.exceptions.RayError as error:
        raise JobError(f"The Ray cluster lost a worker: {cluster.explain(error)}. Run again: it continues.") from error
