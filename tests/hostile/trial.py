"""Hostile files read in processes of their own, with a bound on memory and time: what became of each."""

import importlib
import json
import os
import resource
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]

TIME_LIMIT_S = 30.0
"""A file that takes longer counts as a hang."""

MEMORY_BYTES = 3 << 30
"""Address space that a reader may take beyond what its process has before the first file."""


@dataclass
class Group:
    """What became of the files of one format."""

    files: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_ms: float = 0.0
    peak_mib: float = 0.0
    """Most memory of a process while one file was read, beyond what it had before."""

    printed: int = 0
    """Files of which something was printed."""

    crashes: int = 0
    hangs: int = 0
    faults: list[str] = field(default_factory=list)
    """Files, with what was wrong."""


def run(kind: str, numbers: range, seed: int, workers: int = 2) -> dict[str, Group]:
    """Read hostile files in worker processes; by format.

    kind: module of tests.hostile with `make(number, seed)` and `read(data)`.
    """
    groups: dict[str, Group] = {}
    share = -(-len(numbers) // workers)
    queues = [list(numbers[k * share : (k + 1) * share]) for k in range(workers)]
    with selectors.DefaultSelector() as selector:
        running = [_Reader(kind, queue, seed) for queue in queues if queue]
        for reader in running:
            reader.start(selector)
        while any(reader.process for reader in running):
            for key, _ in selector.select(timeout=0.5):
                key.data.receive(groups)
            for reader in running:
                reader.supervise(selector, groups)
    return dict(sorted(groups.items()))


class _Reader:
    def __init__(self, kind: str, queue: list[int], seed: int) -> None:
        self.kind, self.queue, self.seed = kind, queue, seed
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, selector: selectors.BaseSelector) -> None:
        numbers = f"{self.queue[0]}-{self.queue[-1]}"
        command = [sys.executable, "-m", "tests.hostile.trial", self.kind, numbers, str(self.seed)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": ""}
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        selector.register(self.process.stdout, selectors.EVENT_READ, self)
        self.rest, self.format, self.since, self.started = b"", "", time.monotonic(), False

    def receive(self, groups: dict[str, Group]) -> None:
        assert self.process is not None and self.process.stdout is not None
        lines = (self.rest + (self.process.stdout.read() or b"")).split(b"\n")
        self.rest = lines.pop()
        for line in lines:
            told = json.loads(line)
            self.since, self.started = time.monotonic(), True
            if "outcome" not in told:
                self.format = told["format"]
                continue
            self.queue.pop(0)
            group = groups.setdefault(told["format"], Group())
            group.files += 1
            if told["outcome"].startswith("FAULT"):
                group.faults.append(f"{self.kind} {told['number']} ({told['format']}): {told['outcome'][7:]}")
                group.outcomes["fault"] += 1
            else:
                group.outcomes[told["outcome"]] += 1
            group.printed += told["printed"]
            group.slowest_ms = max(group.slowest_ms, told["ms"])
            group.peak_mib = max(group.peak_mib, told["mib"])

    def supervise(self, selector: selectors.BaseSelector, groups: dict[str, Group]) -> None:
        if self.process is None:
            return
        limit = TIME_LIMIT_S if self.started else 120.0
        hangs = time.monotonic() - self.since > limit
        if self.process.poll() is None and not hangs:
            return
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.receive(groups)
        selector.unregister(self.process.stdout)
        self.process.stdout.close()
        status, self.process = self.process.returncode, None
        if self.queue:
            assert self.started, f"the reader of {self.kind} could not start: status {status}"
            number = self.queue.pop(0)
            group = groups.setdefault(self.format, Group())
            group.files += 1
            group.hangs += hangs
            group.crashes += not hangs
            what = f"no answer for {limit:.0f} s" if hangs else f"its process ended with status {status}"
            group.faults.append(f"{self.kind} {number} ({self.format}): {what}")
            if self.queue:
                self.start(selector)


def sound(groups: dict[str, Group]) -> bool:
    """Whether every file came to an end that was allowed, in silence."""
    return not any(group.faults or group.printed for group in groups.values())


def table(groups: dict[str, Group]) -> str:
    """The groups as a Markdown table with their sum."""
    outcomes = sorted({name for group in groups.values() for name in group.outcomes} - {"fault"})
    head = ["", "files", *outcomes, "slowest, ms", "peak, MiB", "printed", "other ends", "crashes", "hangs"]
    rows = [_row(name, group, outcomes) for name, group in groups.items()]
    rows.append(_row("all", _sum(list(groups.values())), outcomes))
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(name: str, group: Group, outcomes: list[str]) -> list[str]:
    numbers = [group.files, *(group.outcomes[outcome] for outcome in outcomes)]
    numbers += [round(group.slowest_ms), round(group.peak_mib), group.printed, group.outcomes["fault"]]
    return [name, *(f"{number:,}" for number in [*numbers, group.crashes, group.hangs])]


def _sum(groups: list[Group]) -> Group:
    whole = Group()
    for group in groups:
        whole.files += group.files
        whole.outcomes += group.outcomes
        whole.printed += group.printed
        whole.crashes += group.crashes
        whole.hangs += group.hangs
        whole.slowest_ms = max(whole.slowest_ms, group.slowest_ms)
        whole.peak_mib = max(whole.peak_mib, group.peak_mib)
    return whole


def _serve(kind: str, numbers: range, seed: int) -> None:
    """Read one file after another; a line before and a line after each."""
    module = importlib.import_module(f"tests.hostile.{kind}")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    with tempfile.TemporaryFile() as heard:  # Whatever Python or a library prints
        os.dup2(heard.fileno(), 1)
        os.dup2(heard.fileno(), 2)
        module.prepare()  # What is imported and made once is no file's memory
        before = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (before + MEMORY_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in numbers:
            format_, data = module.make(number, seed)
            answers.write(json.dumps({"format": format_}) + "\n")
            length = _printed(heard)
            at_rest = _forget_peak()
            start = time.perf_counter()
            try:
                outcome = module.read(data)
            except BaseException as error:  # Whatever gets through is the finding
                outcome = f"FAULT: {type(error).__name__}: {str(error)[:200]}"
            milliseconds = (time.perf_counter() - start) * 1000
            peak = (_status("VmHWM") - at_rest) / 1024
            printed = _printed(heard) > length
            answers.write(
                json.dumps(
                    {
                        "number": number,
                        "format": format_,
                        "outcome": outcome,
                        "ms": milliseconds,
                        "mib": max(0.0, peak),
                        "printed": printed,
                    }
                )
                + "\n"
            )


def _printed(heard: IO[bytes]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    return os.fstat(heard.fileno()).st_size


def _forget_peak() -> int:
    """Let the kernel begin the peak anew; KiB that are held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


if __name__ == "__main__":
    first, last = sys.argv[2].split("-")
    _serve(sys.argv[1], range(int(first), int(last) + 1), int(sys.argv[3]))
