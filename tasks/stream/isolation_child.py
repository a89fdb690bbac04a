"""The process that `apart.py` starts: makes one object, calls its methods as it is told, ends with its parent."""

import contextlib
import pickle

from tasks import processes
from tasks.stream.isolation import Answer


def main() -> None:
    """Serve the pipe whose number is the first argument until it is closed."""
    connection = processes.connect()
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
                answer = Answer(raised=processes.survives_pickling(error))
            connection.send_bytes(pickle.dumps(answer))
