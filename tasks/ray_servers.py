"""Ray's own servers, asked from outside: the raylet of this machine and the head of the cluster.

Ray ends a process whose server is gone after a while and without a word, or lets it wait for an answer.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray

from tasks.errors import InterruptedJobError

_ASK_EVERY_S = 1.0
PATIENCE_S = 3.0
HEAD_PATIENCE_S = 20.0
"""How long each may refuse connections; the head of a cluster may come back, other servers do not."""

_LAST_WORD_S = 4.0
"""Where the main thread waits within Ray for so long after that, it will not come back: Ray would end the process."""


@dataclass
class _Server:
    name: str
    address: tuple[str, int]
    patience_s: float
    refused_since: float | None = None

    def ask(self) -> None:
        """See whether it takes connections."""
        try:
            socket.create_connection(self.address, timeout=_ASK_EVERY_S).close()
        except ConnectionRefusedError:
            self.refused_since = self.refused_since or time.monotonic()
        except OSError:  # A network that is slow says nothing of the server
            pass
        else:
            self.refused_since = None

    @property
    def refused_s(self) -> float:
        """For how long it has taken no connection."""
        return time.monotonic() - self.refused_since if self.refused_since else 0.0

    @property
    def is_gone(self) -> bool:
        """For good."""
        return self.refused_s > self.patience_s

    @property
    def sentence(self) -> str:
        """That it is gone, and what helps."""
        return (
            f"Ray's {self.name} is gone: something ended it, or memory ran out. What is done is kept; run the same "
            "command again to go on."
        )


_watched: list[_Server] = []
_heard = threading.Event()


@contextlib.contextmanager
def watched(*, head_may_return: bool) -> Iterator[None]:
    """Within, `require` and `wait` raise where a server is gone; a process that asks neither ends with the sentence."""
    context = ray.get_runtime_context()
    table: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    own = [node for node in table if node["NodeID"] == context.get_node_id()]
    servers = [
        _Server("raylet on this machine", (node["NodeManagerAddress"], node["NodeManagerPort"]), PATIENCE_S)
        for node in own
    ]
    host, _, port = context.gcs_address.rpartition(":")
    patience_s = HEAD_PATIENCE_S if head_may_return else PATIENCE_S
    servers.append(_Server(f"head at {host}:{port}", (host, int(port)), patience_s))
    over = threading.Event()
    before = _watched[:]
    _watched[:] = servers
    _heard.clear()
    threading.Thread(target=_watch, args=(servers, over), daemon=True, name="ray-servers").start()
    try:
        yield
    finally:
        over.set()
        _watched[:] = before


def _watch(servers: list[_Server], over: threading.Event) -> None:
    while not over.wait(_ASK_EVERY_S):
        for server in servers:
            server.ask()
            if server.refused_s > server.patience_s + _LAST_WORD_S and not (_heard.is_set() or over.is_set()):
                print(server.sentence, file=sys.stderr, flush=True)
                os._exit(1)


def require() -> None:
    """Raises InterruptedJobError where a server is gone."""
    for server in _watched:
        if server.is_gone:
            _heard.set()
            raise InterruptedJobError(server.sentence)


def wait() -> None:
    """Until all answer, since a question to one that does not would wait within Ray; raises as `require`."""
    while any(server.refused_since for server in _watched):
        require()
        time.sleep(0.05)


def lost() -> bool:
    """Whether one is gone: whatever it is asked for would not come."""
    return any(server.is_gone for server in _watched)
