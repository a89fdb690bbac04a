"""The process that `apart.py` starts: makes one object, calls its methods as it is told, ends with its parent."""

import contextlib
import ctypes
import os
import pickle
import signal
import sys
from multiprocessing.connection import Connection

from tasks.stream.apart import Answer

_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)


def main() -> None:
    """Serve the pipe whose number is the first argument until it is closed."""
    _end_with_parent()
    connection = Connection(int(sys.argv[1]))
    with contextlib.suppress(EOFError, OSError):
        made: object = None
        while True:
            message = connection.recv_bytes()
            try:
                if made is None:
                    made, answer = pickle.loads(message)(), Answer()
                else:
                    method, arguments = pickle.loads(message)
                    answer = Answer(getattr(made, method)(*arguments))
            except Exception as error:
                answer = Answer(raised=error)
            connection.send_bytes(_pickled(answer))


def _pickled(answer: Answer) -> bytes:
    if answer.raised is None:
        return pickle.dumps(answer)
    try:
        data = pickle.dumps(answer)
        pickle.loads(data)  # Exceptions with arguments of their own often do not come out again
        return data
    except Exception:
        raised = answer.raised
        return pickle.dumps(Answer(raised=RuntimeError(f"{type(raised).__name__}: {raised}")))


def _end_with_parent() -> None:
    """Die when the worker dies, whatever is under way; go first where the system runs out of memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The worker is told, and ends this process
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("1000")
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):  # Linux has it
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
