"""Processes of this machine: what it has for them, starting one that ends with this one, and how one has ended."""

import contextlib
import ctypes
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)


def start(
    main: str, environment: dict[str, str] | None = None, stderr: IO[bytes] | None = None
) -> tuple[subprocess.Popen[bytes], Connection]:
    """A fresh Python process that calls `main` ("module:function"), and the connection to it.

    The function is to call `connect`, which gives it the other end. Nothing is forked: s3fs and torch hang after it.
    """
    ours, theirs = Pipe()
    module, _, function = main.partition(":")
    # What this process finds, the new one must find: the code may have come with the job
    found = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", f"from {module} import {function}; {function}()", str(theirs.fileno())]
    process = subprocess.Popen(
        command,
        pass_fds=[theirs.fileno()],
        env=os.environ | found | (environment or {}),
        stdin=subprocess.DEVNULL,
        stderr=stderr,
    )
    theirs.close()
    return process, ours


def connect() -> Connection:
    """In a process that `start` has started: the connection to the one that did, with which this one ends."""
    _end_with_parent()
    return Connection(int(sys.argv[1]))


def _end_with_parent() -> None:
    """Die when the parent dies, whatever is under way; go first where the system runs out of memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent is told, and ends this process
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("1000")
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):  # Linux has it
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@contextlib.contextmanager
def without_pandas() -> Iterator[None]:
    """Within, pandas counts as not installed, unless it is loaded: pyarrow loads it, half a second, to ask of a list of
    ours whether it is a series."""
    sys.meta_path.insert(0, _NoPandas)
    try:
        yield
    finally:
        allow_pandas()


def allow_pandas() -> None:
    """End what `without_pandas` began: code of others may need it."""
    if _NoPandas in sys.meta_path:
        sys.meta_path.remove(_NoPandas)


class _NoPandas(MetaPathFinder):
    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        # A specification that cannot be loaded: torch and transformers ask for it without an import
        return ModuleSpec(name, _Refusing()) if name == "pandas" else None


class _Refusing(Loader):
    def create_module(self, spec: ModuleSpec) -> None:
        raise ModuleNotFoundError("pandas is not needed here", name=spec.name)

    def exec_module(self, module: object) -> None:
        """Never reached."""


def ending(code: int) -> str:
    """How a process has ended, by its exit code."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def survives_pickling(error: Exception) -> Exception:
    """The error, or one that says the same: exceptions with arguments of their own often do not come out again."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def anonymous_bytes(pid: int | str = "self") -> int:
    """Memory that a process holds for itself alone; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/statm") as file:  # noqa: PTH123
            _, resident, shared, *_ = file.read().split()
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * _PAGE_BYTES


def usable_memory() -> int:
    """Bytes of the machine, or of the container where that has fewer."""
    memory = os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/memory.max") as file:  # noqa: PTH123
        memory = min(memory, int(file.read()))
    return memory


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity, and the container's quota where there is one."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        with open("/sys/fs/cgroup/cpu.max") as file:  # noqa: PTH123
            quota, period = file.read().split()[:2]
        if quota != "max":
            cpus = min(cpus, max(1, int(int(quota) / int(period))))
    return cpus
