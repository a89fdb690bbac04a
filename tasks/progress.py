"""Progress of a job: one state, and listeners that show it. A listener that fails never stops the job.

Listeners here: the terminal, and its lines where standard error is no terminal. Prefect's lives in `flows/`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from tasks.words import counted

_LINE_EVERY_S = 10.0
_REDRAW_EVERY_S = 0.1

_MEANING_S = 4.0
_MEANING_STEPS = 2
"""No rate before so much time and so many reports after the first: units are committed in bursts."""


@dataclass
class State:
    """How far a job is."""

    total: int | None
    """Of `unit`; None where nobody knows."""

    done: int = 0
    """Done by this session or an earlier one."""

    errors: int = 0
    """Error rows made in this session."""

    rate: float = 0.0
    """`unit` per second in this session; 0 until it means something."""

    title: str = "segmenting"
    unit: str = "images"
    """What is counted; "bytes" are shown as MB."""

    rest: float = 1.0
    """What one that is left costs, relative to one done in this session."""

    note: str = ""
    """What else a person wants to know at the moment: loss, device."""

    @property
    def left_s(self) -> float | None:
        """Seconds to the end; None before a rate means something."""
        if not self.rate or self.total is None:
            return None
        return max(0.0, (self.total - self.done) / self.rate * self.rest)

    def words(self) -> str:
        """Amount, rate, errors and time left in one line."""
        scale, name = (1e6, "MB") if self.unit == "bytes" else (1, self.unit)
        of = f" of {self.total / scale:,.0f}" if self.total else ""
        parts = [f"{self.done / scale:,.0f}{of} {name}"]
        parts += [f"{self.rate / scale:,.1f} {name}/s"] if self.rate else []
        parts += [self.note] if self.note else []
        parts += [counted(self.errors, "error")] if self.errors else []
        left = self.left_s
        parts += [f"{duration(left)} left"] if left is not None else []
        return ", ".join(parts)


class Listener(Protocol):
    """Shows or records progress."""

    def begin(self, state: State) -> None: ...
    def advance(self, state: State) -> None: ...
    def end(self, state: State) -> None: ...
    def say(self, text: str) -> None: ...


class Terminal:
    """A progress bar on standard error; a line every ten seconds where that is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._last_line = 0.0

    def begin(self, state: State) -> None:
        self._last_line = time.monotonic()
        if not self.console.is_terminal:
            return
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[words]}", markup=False),
            console=self.console,
            transient=True,
            refresh_per_second=4,
        )
        self._bar.start()
        self._task = self._bar.add_task(state.title, total=state.total, completed=state.done, words="starting")

    def advance(self, state: State) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=state.done, words=state.words())
        elif time.monotonic() - self._last_line > _LINE_EVERY_S:
            self._last_line = time.monotonic()
            self.say(f"{state.title}: {state.words()}")

    def end(self, state: State) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


_listeners: list[Listener] = []
_last: State | None = None


@contextlib.contextmanager
def told_to(*listeners: Listener) -> Iterator[None]:
    """Within, jobs of this process also report to these listeners."""
    _listeners.extend(listeners)
    try:
        yield
    finally:
        for listener in listeners:
            _listeners.remove(listener)


def say(text: str) -> None:
    """Print a sentence to a person who watches."""
    for listener in _listeners:
        with contextlib.suppress(Exception):
            listener.say(text)


def last() -> State | None:
    """The state that was reported last in this process; None where no job has reported any."""
    return _last


def duration(seconds: float) -> str:
    """A length of time for a person."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Tracker:
    """Counts, and reports to the listeners; a listener that fails is not asked again."""

    def __init__(
        self,
        total: int | None,
        done: int = 0,
        *,
        title: str = "segmenting",
        unit: str = "images",
        cost: Callable[[int, int], float] | None = None,
    ) -> None:
        """cost: of the units from one count to another, where some cost more than others."""
        global _last
        self._cost = cost
        self.state = _last = State(total, done, title=title, unit=unit)
        self._start: float | None = None
        self._done_before, self._reports = done, 0
        self._listeners = list(_listeners)
        self._report("begin")

    def advance(self, amount: int, errors: int = 0, note: str = "") -> None:
        """So many more are done, these many of them with an error row."""
        state = self.state
        state.done += amount
        state.errors += errors
        state.note = note
        now = time.monotonic()
        if self._start is None:  # From the first commit: the start of the workers says nothing of the rest
            self._start, self._done_before = now, state.done
        else:
            self._reports += 1
            if now - self._start >= _MEANING_S and self._reports >= _MEANING_STEPS:
                state.rate = (state.done - self._done_before) / (now - self._start)
                state.rest = self._relative_rest()
        self._report("advance")

    def _relative_rest(self) -> float:
        done, total, before = self.state.done, self.state.total, self._done_before
        if self._cost is None or total is None or not before < done < total:
            return 1.0
        return self._cost(done, total) / (total - done) * (done - before) / self._cost(before, done)

    def restart(self, done: int) -> None:
        """Go on counting from here: what was done since is lost, and its rate with it."""
        self.state.done, self.state.rate, self._start, self._reports = done, 0.0, None, 0

    def end(self) -> None:
        """The session is over."""
        self._report("end")

    def _report(self, what: str) -> None:
        for listener in list(self._listeners):
            try:
                getattr(listener, what)(self.state)
            except Exception:  # A dead Prefect server or a closed terminal is no reason to stop an archive
                self._listeners.remove(listener)


@contextlib.contextmanager
def measured(title: str, total: int | None, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Within, the yielded function reports how much is done in all."""
    tracker = Tracker(total, title=title, unit=unit)
    last_report = 0.0

    def report(done: int) -> None:
        nonlocal last_report
        now = time.monotonic()
        if now - last_report < _REDRAW_EVERY_S and done != total:  # Downloads report every block
            return
        last_report = now
        tracker.advance(done - tracker.state.done)

    try:
        yield report
    finally:
        tracker.end()
