"""How the console runs a job, and how every command ends: one sentence and an exit status.

    from flows import execution, jobs
    report = execution.run(jobs.segment_archive, job)     # with PREFECT_API_URL as a recorded flow run, else directly
    execution.main(app)                                   # the whole command: errors, Ctrl-C, SIGTERM

Exit statuses: 1 a job that cannot run or has failed, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM, 141 nobody reads on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from flows.jobs import Step

FAILED = 1
WRONG_USAGE = 2
PIPE_CLOSED = 128 + 13
"""What a shell shows of other tools in front of `| head`, which SIGPIPE ends."""

_GRACE_S = 2.0
"""After a signal: what has not ended by then is ended from outside, children first."""

_RETRY_AFTER_S = (10.0, 60.0)

J = TypeVar("J")
R = TypeVar("R")


class Stopped(BaseException):
    """Ctrl-C or SIGTERM; no KeyboardInterrupt, which libraries catch to end in their own way."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.status = 128 + signal_number


def run(steps: Callable[[J, Step], R], job: J, *, quiet: bool = False) -> R:
    """The report of a job of `flows.jobs`: recorded by the server of PREFECT_API_URL, or run directly without one.

    A person at the terminal sees its progress, unless `quiet`. Raises JobError for a job that cannot run or has failed.
    """
    from tasks import progress

    _console.goes_on = True
    with progress.told_to(*([] if quiet else [progress.Terminal()])):
        if os.environ.get("PREFECT_API_URL"):
            from flows import prefect_runs

            return prefect_runs.record(steps, job)
        return steps(job, directly)


def directly(function: Callable[..., Any], /, *, again: bool = False) -> Callable[..., Any]:
    """The step itself, tried again after an outage where that makes sense (`flows.jobs.Step`)."""
    if not again:
        return function

    def tried(*arguments: Any) -> Any:
        from tasks import progress
        from tasks.errors import InterruptedJobError

        for seconds in _RETRY_AFTER_S:
            try:
                return function(*arguments)
            except InterruptedJobError as error:
                progress.say(f"{error} Trying again in {seconds:.0f} s.")
            time.sleep(seconds)
        return function(*arguments)

    return tried


def fail(sentence: str, status: int = FAILED) -> NoReturn:
    """End the command with one sentence on standard error."""
    print(f"segment-archive: {sentence}", file=sys.stderr)
    raise SystemExit(status)


def main(command: Callable[[], object]) -> NoReturn:
    """Run the console command to its end: never a traceback, always an exit status."""
    listen()
    try:
        try:
            with guarded():
                try:
                    command()
                finally:
                    sys.stdout.flush()  # Python would complain about a closed pipe while it ends
            _console.leave(0)
        except SystemExit as end:
            _console.leave(end.code)
    except Stopped as stop:  # Raised once, so not again: while the command was ending already, or by Ray's handler
        _console.print_stopped()
        _console.leave(stop.status)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Within, what a person should read ends the command by `fail`; a fault of ours leaves its traceback in a file."""
    try:
        yield
    except Stopped as stop:
        _console.print_stopped()
        raise SystemExit(stop.status) from None
    except (KeyboardInterrupt, EOFError):  # Raised by a library, or before we listened
        _console.print_stopped()
        raise SystemExit(128 + signal.SIGINT) from None
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich ends the program by itself
            _end_of_pipe()
        if "ray" in sys.modules:  # While it starts, it has a handler of its own that exits
            time.sleep(0.05)  # `_watch` hears of the signal in a thread
        if not _console.status:
            raise
        _console.print_stopped()
        raise SystemExit(_console.status) from None
    except BrokenPipeError:
        _end_of_pipe()
    except Exception as error:
        sentence, status = sentence_of(error)
        fail(sentence, status)


def _end_of_pipe() -> NoReturn:
    """`| head` has seen enough."""
    with contextlib.suppress(OSError, ValueError):  # What is still buffered goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(PIPE_CLOSED) from None


def sentence_of(error: Exception) -> tuple[str, int]:
    """What a person reads of an error, and the exit status."""
    from pydantic import ValidationError

    from tasks.errors import JobError, missing_package

    if isinstance(error, JobError):
        return visible(str(error)), FAILED
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        given = "" if isinstance(first["input"], dict) else f" (given: {first['input']!r})"
        return visible(f"{where}: {message}{given}." if where else f"{message}{given}."), WRONG_USAGE
    if isinstance(error, ModuleNotFoundError) and (sentence := missing_package(error)) is not None:
        return sentence, FAILED
    words = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {visible(words)}. This is a fault of ours; details: {_traceback_file()}", FAILED


def listen() -> None:
    """Turn Ctrl-C and SIGTERM into `Stopped`, and end the process where that does not end it in time."""
    _console.listen()


class _Console:
    """The one command of this process, and how it ends."""

    def __init__(self) -> None:
        self.goes_on = False
        """Whether the same command goes on with what was done."""

        self.status = 0
        """Exit status after a signal that came; 0 while none has."""

        self._stderr: int | None = None
        """Standard error as it was; while Ray starts, what is printed there is thrown away."""

        self._raises = True
        """Whether a signal raises `Stopped`: the first one, before the command ends."""

        self._printed = threading.Lock()

    def listen(self) -> None:
        with contextlib.suppress(OSError):  # It may be closed
            self._stderr = os.dup(2)
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(read,), daemon=True, name="signals").start()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        print_unraisable = sys.unraisablehook

        def unraisable(unraised: Any) -> None:
            if not isinstance(unraised.exc_value, Stopped):  # Raised in a destructor; `_watch` ends the process then
                print_unraisable(unraised)

        sys.unraisablehook = unraisable

    def _stop(self, number: int, frame: object) -> None:
        if self._raises:  # Another one changes nothing: what the first has begun ends within the grace
            self._raises = False
            self.status = 128 + number  # `_watch` may be later
            raise Stopped(number)

    def leave(self, code: object) -> NoReturn:
        """End the process; from here on no signal raises."""
        self._raises = False
        if self.status:
            for number in (signal.SIGINT, signal.SIGTERM):  # Python would restore the defaults while it ends
                signal.signal(number, signal.SIG_IGN)
            if "ray" in sys.modules:  # Which ends Python with a second signal while it finalizes
                for stream in (sys.stdout, sys.stderr):
                    with contextlib.suppress(OSError, ValueError):  # Closed, or nobody reads on
                        stream.flush()
                _kill_descendants(os.getpid())
                os._exit(self.status)
        raise SystemExit(code) from None

    def _watch(self, read: int) -> None:
        """In a thread: the main one may be in a library that returns late, or swallows exceptions."""
        while (number := os.read(read, 1)[0]) not in (signal.SIGINT, signal.SIGTERM):
            pass
        self.status = 128 + number
        time.sleep(_GRACE_S)
        self.print_stopped()
        _kill_descendants(os.getpid())
        os._exit(self.status)

    def print_stopped(self) -> None:
        """Once, and whole."""
        self._raises = False
        if not self._printed.acquire(blocking=False):
            return
        with contextlib.suppress(Exception):
            if sys.stderr.isatty():
                sys.stderr.write("\r\x1b[K\x1b[?25h")  # A progress bar hides the cursor
            sys.stderr.flush()
            words = f"{self._stopped()}\n"
            if self._stderr is not None:
                os.write(self._stderr, words.encode())
            else:
                sys.stderr.write(words)

    def _stopped(self) -> str:
        if not self.goes_on:
            return "Stopped."
        from tasks import progress

        state = progress.last()
        if state is None or state.total is None or state.unit == "bytes":
            return "Stopped. The same command goes on."
        unit = "" if state.unit == "images" else f" {state.unit}"
        return f"Stopped. {state.done} of {state.total}{unit} are done; the same command goes on."


_console = _Console()


def _kill_descendants(pid: int) -> None:
    """Kill every process that this one has started, and theirs."""
    parents: dict[int, list[int]] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):  # noqa: PTH208
            if name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat") as file:  # noqa: PTH123
                    parents.setdefault(int(file.read().rpartition(")")[2].split()[1]), []).append(int(name))
    waiting = parents.get(pid, [])
    while waiting:
        child = waiting.pop()
        waiting += parents.get(child, [])
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)


def _traceback_file() -> str:
    import traceback

    from tasks import cache, storage_faults

    with cache.new_log("fault") as file:
        file.write(storage_faults.scrub(traceback.format_exc()).encode("utf-8", "replace"))
    return file.name


def visible(text: str) -> str:
    """Control characters in other people's names do nothing to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
