"""The process of a worker of the local engine: takes functions and pieces from its pipe, answers, ends with its parent.

Messages to it: ("import", names), ("function", token, pickled function and shared values), ("do", piece).
Messages from it: ("ready", None) after each function, ("at", stage), ("done", result), ("raised", error, traceback).
"""

import contextlib
import importlib
import pickle
import traceback
from multiprocessing.connection import Connection
from typing import Any

from tasks import processes

_connection: Connection | None = None


def main() -> None:
    """Serve the pipe until it is closed."""
    global _connection
    _connection = processes.connect()
    function: Any = None
    shared: tuple[Any, ...] = ()
    with contextlib.suppress(EOFError, OSError), processes.without_pandas():
        while True:
            kind, *rest = pickle.loads(_connection.recv_bytes())
            try:
                if kind == "import":
                    for name in rest[0]:
                        importlib.import_module(name)
                    continue
                if kind == "function":
                    function, shared = pickle.loads(rest[0])
                    if hasattr(shared[0] if shared else None, "warm_in_worker"):
                        shared[0].warm_in_worker()
                    answer: tuple[Any, ...] = ("ready", None)
                else:
                    answer = ("done", function(rest[0], *shared))
                data = pickle.dumps(answer)
            except Exception as error:
                data = pickle.dumps(("raised", processes.survives_pickling(error), traceback.format_exc()))
            _connection.send_bytes(data)


def beat(stage: str) -> None:
    """Report what this process is at from now on; its parent counts the time and the memory of it."""
    if _connection is not None:
        _connection.send_bytes(pickle.dumps(("at", stage)))
