"""What the cluster has, and how its CPUs and GPUs are divided among the stages of the archive pipeline.

Also how this program gets to the nodes of a cluster: as the working folder of their runtime environment.
"""

import atexit
import contextlib
import ctypes
import functools
import importlib.util
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ray

from tasks import cache, progress, ray_servers, storage, storage_faults
from tasks.errors import InterruptedJobError, JobError
from tasks.processes import usable_cpus
from tasks.storage import Location

GPU_SCORE_CPUS = 1.0
READ_CPUS = 0.25
FINISH_CPUS = 0.25
"""Share of a CPU that a worker of each stage books where scoring has GPUs. Without, a worker does whole units, and
books a CPU."""

_PATIENCE_S = 10.0
_ASK_EVERY_S = 0.05
_GROWTH_PATIENCE_S = 600.0
_LOOK_AT_HANDLER_S = 0.005

_PACKAGES = ("segcore", "tasks")
_SHIPPED = (".py", ".toml", ".so")


@dataclass(frozen=True)
class Share:
    """The workers of one node."""

    whole: int = 0
    """Those that do whole units, one a CPU."""

    scorers: int = 0
    """Those that hold a GPU, with a CPU beside it."""

    finishers: int = 0
    """Those that refine and commit what was scored; so many units are read at a time, too."""


def shares(nodes: Mapping[str, tuple[float, float]], *, on_gpus: bool | None = None) -> dict[str, Share]:
    """Divide a cluster among workers, node by node; nodes without room for any are left out.

    nodes: CPUs and GPUs by Ray's number of the node. on_gpus: whether scoring is done on GPUs; by default where there
    are any.
    """
    gpus = any(has[1] >= 1 and has[0] >= GPU_SCORE_CPUS for has in nodes.values()) if on_gpus is None else on_gpus
    if not gpus:
        return {node: Share(whole=int(cpus)) for node, (cpus, _) in nodes.items() if cpus >= 1}
    divided = {}
    for node, (cpus, node_gpus) in nodes.items():
        scorers = min(int(node_gpus), int(cpus / GPU_SCORE_CPUS))
        divided[node] = Share(scorers=scorers, finishers=_finishers(cpus, scorers))
    if not any(share.finishers for share in divided.values()):  # One GPU fewer leaves a CPU to finish on
        node, share = max(divided.items(), key=lambda item: item[1].scorers)
        if share.scorers > 1:
            fewer = share.scorers - 1
            divided[node] = Share(scorers=fewer, finishers=_finishers(nodes[node][0], fewer))
    return {node: share for node, share in divided.items() if share != Share()}


def _finishers(cpus: float, scorers: int) -> int:
    return int((cpus - scorers * GPU_SCORE_CPUS) / (READ_CPUS + FINISH_CPUS) + 1e-6)


def require_room(nodes: Mapping[str, tuple[float, float]]) -> None:
    """Raises JobError where the cluster is too small for one worker of each stage."""
    divided = shares(nodes).values()
    if any(share.whole for share in divided) or any(share.finishers for share in divided):
        return
    cpus, gpus = (sum(has[index] for has in nodes.values()) for index in (0, 1))
    needed = f"{GPU_SCORE_CPUS + READ_CPUS + FINISH_CPUS:g} CPUs" if divided else "a node with 1 CPU"
    raise JobError(
        f"The cluster has {cpus:g} CPUs and {gpus:g} GPUs, but reading, scoring and refining need {needed} at least: "
        "add a node, or start Ray with more CPUs."
    )


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """A Ray cluster: that of RAY_ADDRESS, the one that this process has already, or a local one that ends with it."""
    if ray.is_initialized():
        with _ray_words_in_a_file(), ray_servers.watched(head_may_return=is_shared()):
            yield
        return
    address = os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        try:
            # Never credentials: Ray writes the runtime environment to its logs. The nodes have their own
            environment = {"working_dir": package(), "env_vars": {storage.FOLDER: os.getcwd()}}  # noqa: PTH109
            with _own_signals():
                ray.init(address=address, runtime_env=environment, **quiet)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise JobError(
                f"Cannot reach the Ray cluster at RAY_ADDRESS={address}: {reason}. Is it running, and are "
                "RAY_AUTH_MODE and its token set? Unset RAY_ADDRESS to run on this machine alone."
            ) from None
    else:
        try:
            with _quiet_start(), _own_signals():
                _start_local(quiet)
            _mark_session()
        except OSError as error:
            if storage_faults.is_full(error):
                raise JobError(storage_faults.explain(error, scratch())) from None
            raise
        except Exception as error:  # Ray has no kind of its own for this
            ray.shutdown()  # What has started of it
            reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
            raise InterruptedJobError(
                f"Ray did not start on this machine: {reason}. Run the same command again."
            ) from None
    try:
        with _ray_words_in_a_file(), ray_servers.watched(head_may_return=is_shared()):
            yield
    finally:
        with _own_signals():
            ray.shutdown()
        if not address:
            _remove_session()


def _mark_session() -> None:
    """Say whose Ray's folder of this session is, so that the next run removes what a killed one left there."""
    for left in Path(scratch().path).glob(f"session_*/{_MARK}"):
        pid = left.parent.name.rpartition("_")[2]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left.parent, ignore_errors=True)
    with contextlib.suppress(OSError):
        for own in Path(scratch().path).glob(f"session_*_{os.getpid()}"):
            (own / _MARK).touch()


def _remove_session() -> None:
    """Remove Ray's folder of this session: logs and sockets, by megabytes, that nothing reads any more."""
    for own in Path(scratch().path).glob(f"session_*_{os.getpid()}"):
        if (own / _MARK).exists():
            shutil.rmtree(own, ignore_errors=True)


_MARK = "of-segment-archive"


@contextlib.contextmanager
def _ray_words_in_a_file() -> Iterator[None]:
    """Within, what Ray's own threads print of lost workers and short memory goes to a log; a person reads where it is.

    They print walls of text to standard output, where it would also end up in a result that a program reads.
    """
    log = _RayLog()
    kept = sys.stdout, sys.stderr
    replaced = tuple(_WithoutRay(stream, log) for stream in kept)
    sys.stdout, sys.stderr = replaced
    try:
        yield
    finally:
        if (sys.stdout, sys.stderr) == replaced:
            sys.stdout, sys.stderr = kept
        log.close()


class _RayLog:
    """What Ray printed; the file is made when there is something."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None

    def write(self, text: str) -> None:
        if self._file is None:
            self._file = cache.new_log("ray")
            short = "memory pressure" in text or "low on memory" in text
            told = "A node is short of memory, and Ray ended a worker" if short else "Ray lost a worker"
            words = f"{told}; what it says of that: {self._file.name}"
            # In a thread of ours, whose words are printed
            threading.Thread(target=progress.say, args=(words,), daemon=True, name="of-ray").start()
        with contextlib.suppress(ValueError):  # Closed, by now
            self._file.write(text.encode("utf-8", "replace"))
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _WithoutRay:
    """A stream that hands what Ray's threads write to a log."""

    def __init__(self, stream: Any, log: _RayLog) -> None:
        self._stream, self._log = stream, log

    def write(self, text: str) -> int:
        if threading.current_thread().name.startswith("ray_"):  # As all of Ray's listeners are named
            self._log.write(text)
            return len(text)
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def is_shared() -> bool:
    """Whether the work is done by a cluster of its own, whose nodes need not see the files of this machine."""
    return bool(os.environ.get("RAY_ADDRESS"))


@functools.cache
def package() -> str:
    """A folder with the code of this program as it runs here, the compiled CRF engine included, and nothing else.

    Ray sends it to every node under the digest of its content and starts the workers in it, so that all nodes run the
    driver's version. What the program depends on (torch, ...) is installed there, with the same versions of Python and
    Ray.
    """
    stage = Path(tempfile.mkdtemp(prefix="segment-archive-"))
    atexit.register(shutil.rmtree, stage, ignore_errors=True)
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        source = Path(spec.origin).parent
        for file in source.rglob("*"):
            if file.suffix in _SHIPPED and file.is_file() and not any(p.startswith(".") for p in file.parts[-3:]):
                target = stage / name / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    # An editable installation keeps the engine away from its sources
    engine = importlib.util.find_spec("segcore._crf")
    if engine is not None and engine.origin is not None:
        shutil.copyfile(engine.origin, stage / "segcore" / Path(engine.origin).name)
    return str(stage)


def scratch() -> Location:
    """Where Ray keeps its logs, its sockets, and what does not fit into memory."""
    return storage.locate(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray"


def grow(cpus: int, gpus: int) -> None:
    """Ask an autoscaling cluster for nodes, and wait up to ten minutes until they are there; goes on with what came.

    The wish is a set of tasks that wait for the resources, so that it ends with this program, whatever ends it.
    """
    if not cpus and not gpus:
        return
    total = total_resources()
    if total[0] >= cpus and total[1] >= gpus:
        return

    @ray.remote(max_retries=0)
    def hold() -> None:
        time.sleep(1.0)

    wishes = [hold.options(num_cpus=1).remote() for _ in range(cpus)]
    wishes += [hold.options(num_cpus=1, num_gpus=1).remote() for _ in range(gpus)]
    try:
        deadline = time.monotonic() + _GROWTH_PATIENCE_S
        while time.monotonic() < deadline and (total[0] < cpus or total[1] < gpus):
            time.sleep(1.0)
            total = total_resources()
    finally:
        for wish in wishes:
            ray.cancel(wish, force=True)


def ready(references: list[Any], patience_s: float = float("inf"), *, number: int = 1) -> list[Any]:
    """References whose results are there: `number` of them, or fewer where time runs out.

    Asked again and again, since what a signal raises while Ray itself waits is lost: a cancellation among it.
    """
    deadline = time.monotonic() + patience_s
    while len(found := ray.wait(references, num_returns=number, timeout=0)[0]) < number and time.monotonic() < deadline:
        time.sleep(_ASK_EVERY_S)
        ray_servers.require()
    return found


def total_resources() -> tuple[float, float]:
    """CPUs and GPUs of all nodes, whoever holds them."""
    ray_servers.wait()
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return total.get("CPU", 0.0), total.get("GPU", 0.0)


def all_nodes() -> dict[str, tuple[float, float]]:
    """CPUs and GPUs, whoever holds them, by Ray's number of each living node that has CPUs."""
    ray_servers.wait()
    table: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    living = {node["NodeID"]: node["Resources"] for node in table if node["Alive"]}
    return {node: (has["CPU"], has.get("GPU", 0.0)) for node, has in living.items() if has.get("CPU")}


def may_pass(error: BaseException) -> bool:
    """Whether what has failed is the cluster (a node was lost, memory ran out) or the storage, not what ran on it."""
    if "InterruptedJobError: " in _reason(error):
        return True
    cause: BaseException | None = error
    for _ in range(8):
        if cause is None:
            break
        if isinstance(cause, ray.exceptions.RayError) and not isinstance(cause, ray.exceptions.RayTaskError):
            return True
        inner = getattr(cause, "cause", None)
        cause = inner if isinstance(inner, BaseException) else cause.__cause__
    return False


def _start_local(quiet: dict[str, Any]) -> None:
    # Ray's processes have dozens of threads; an allocation arena for each keeps what the others could use
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    ray.init(
        address="local",  # Never a cluster that somebody else has left running on this machine
        num_cpus=usable_cpus(),
        object_store_memory=_object_store_bytes(),
        include_dashboard=False,
        **quiet,
    )


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep who listens to SIGTERM: Ray would end the process itself, and Prefect calls that crashed, not cancelled."""
    listening = signal.getsignal(signal.SIGTERM)
    over = threading.Event()
    if callable(listening) and sys.platform != "win32":
        threading.Thread(target=_keep_handler, args=(over,), daemon=True, name="sigterm").start()
    try:
        yield
    finally:
        over.set()
        if threading.current_thread() is threading.main_thread() and listening is not None:
            signal.signal(signal.SIGTERM, listening)


def _keep_handler(over: threading.Event) -> None:
    """Until it is over, put Python's own handler of SIGTERM back as soon as Ray's C++ side has replaced it.

    That one ends the process with the signal itself, and Python never hears of it; `ray.shutdown` puts the system's
    default in its place. In a thread, since neither returns in between.
    """
    get, put = ctypes.pythonapi.PyOS_getsig, ctypes.pythonapi.PyOS_setsig
    get.argtypes, get.restype = [ctypes.c_int], ctypes.c_void_p
    put.argtypes, put.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    ours = get(signal.SIGTERM)
    while not over.wait(_LOOK_AT_HANDLER_S):
        if get(signal.SIGTERM) != ours:
            put(signal.SIGTERM, ours)


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    """Keep what Ray's C++ side prints while it starts off a person's terminal; its failures are exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def free_resources(expected: tuple[float, float] = (1.0, 0.0)) -> tuple[float, float]:
    """CPUs and GPUs that nobody holds.

    expected: waits up to ten seconds until that many are free; workers that have just ended give theirs back late.
    Raises JobError that says who is short of what where there is not even one CPU.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        ray_servers.wait()
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cpus, gpus = free.get("CPU", 0.0), free.get("GPU", 0.0)
        late = time.monotonic() > deadline
        if cpus >= 1.0 and (late or (cpus >= expected[0] and gpus >= expected[1])):
            return cpus, gpus
        if late:
            raise JobError(
                f"The Ray cluster has {total.get('CPU', 0.0):g} CPUs, of which {cpus:g} are free, but the pipeline "
                "needs at least 1: wait for the other jobs, add a node, or let the job ask an autoscaler for `cpus`."
            )
        time.sleep(0.5)


def explain(error: BaseException) -> str:
    """What went wrong in a worker, in one line, without Ray's wrapping."""
    return re.sub(r"^[\w.]*JobError: ", "", _reason(error))  # Which is a sentence already


def _reason(error: BaseException) -> str:
    text = _unwrapped(error)
    if "OutOfDiskError" in text:
        return (
            f"Ray has no disk left for what does not fit into its memory ({scratch().uri}, on the node that is full): "
            "make room there, or name another disk with RAY_TMPDIR"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # The remote tracebacks come as text, the innermost first; what follows it is wrapping
    wrapping = next((i for i, line in enumerate(lines) if line.startswith("The above exception was")), None)
    if wrapping:
        return lines[wrapping - 1]
    return lines[-1] if any(line.startswith("Traceback") for line in lines) else (lines or [type(error).__name__])[0]


def _unwrapped(error: BaseException) -> str:
    texts = []
    for _ in range(8):
        texts.append(f"{type(error).__name__}: {error}")
        inner = getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException):
            break
        error = inner
    return next((text for text in texts if "The above exception was" in text), texts[-1])


def _object_store_bytes() -> int:
    """Cap of the local object store: what lies between the stages, a fraction of the memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min(2 * 2**30, max(256 * 2**20, 0.1 * memory)))
