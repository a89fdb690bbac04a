"""How far a job is, told to whoever listens: the terminal, a Prefect artifact. Telling never stops the job."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_ARTIFACT_EVERY_S = 5.0
_LINE_EVERY_S = 10.0


@dataclass
class State:
    """How far a job is."""

    total: int
    """Images in the archive."""

    done: int = 0
    """Images that have a row, by this session or an earlier one."""

    errors: int = 0
    """Error rows made in this session."""

    rate: float = 0.0
    """Images per second in this session."""


class Listener(Protocol):
    """Somebody who wants to know."""

    def begin(self, state: State) -> None: ...
    def advance(self, state: State) -> None: ...
    def end(self, state: State) -> None: ...
    def say(self, text: str) -> None: ...


class Terminal:
    """A progress bar on standard error; a line every now and then where that is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._last_line = 0.0

    def begin(self, state: State) -> None:
        if not self.console.is_terminal:
            return
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]segmenting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[errors]}"),
            console=self.console,
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=state.total, completed=state.done, rate="starting", errors="")

    def advance(self, state: State) -> None:
        errors = f"[red]{state.errors} errors" if state.errors else ""
        if self._bar is not None:
            rate = f"{state.rate:.1f} images/s" if state.rate else ""
            self._bar.update(self._task, completed=state.done, rate=rate, errors=errors)
        elif time.monotonic() - self._last_line > 10:
            self._last_line = time.monotonic()
            self.say(f"{state.done} of {state.total} images, {state.rate:.1f} images/s, {state.errors} errors")

    def end(self, state: State) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class PrefectArtifact:
    """A progress artifact of the running flow; silent outside of one."""

    def __init__(self) -> None:
        self._artifact: UUID | None = None
        self._last = 0.0

    def begin(self, state: State) -> None:
        if FlowRunContext.get() is None and TaskRunContext.get() is None:
            return
        share = 100.0 * state.done / max(1, state.total)
        created = create_progress_artifact(progress=share, description=self._text(state))
        self._artifact = created if isinstance(created, UUID) else None

    def advance(self, state: State) -> None:
        if self._artifact is not None and time.monotonic() - self._last > _ARTIFACT_EVERY_S:
            self._last = time.monotonic()
            self._update(state)

    def end(self, state: State) -> None:
        if self._artifact is not None:
            self._update(state)

    def say(self, text: str) -> None:
        pass

    def _update(self, state: State) -> None:
        assert self._artifact is not None
        share = 100.0 * state.done / max(1, state.total)
        update_progress_artifact(self._artifact, progress=share, description=self._text(state))

    @staticmethod
    def _text(state: State) -> str:
        return f"{state.done} of {state.total} images, {state.rate:.1f} images/s, {state.errors} errors"


_listeners: list[Listener] = []


@contextlib.contextmanager
def told_to(*listeners: Listener) -> Iterator[None]:
    """Within, jobs of this process also tell these listeners."""
    _listeners.extend(listeners)
    try:
        yield
    finally:
        for listener in listeners:
            _listeners.remove(listener)


def say(text: str) -> None:
    """Tell a sentence to a person who watches."""
    for listener in _listeners:
        with contextlib.suppress(Exception):
            listener.say(text)


@contextlib.contextmanager
def measured(title: str, total: int | None, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Within, the yielded function tells how much is done in all; a person sees speed and time left.

    unit: what is counted; "bytes" are shown as MB.
    """
    terminal = next((listener for listener in _listeners if isinstance(listener, Terminal)), None)
    if terminal is not None and terminal.console.is_terminal:
        amount: list[ProgressColumn] = [MofNCompleteColumn()]
        if unit == "bytes":
            amount = [DownloadColumn(), TransferSpeedColumn()]
        columns = [SpinnerColumn(), TextColumn(f"[bold]{title}"), BarColumn(), *amount, TimeRemainingColumn()]
        with Progress(*columns, console=terminal.console) as bar:
            shown = bar.add_task("", total=total)
            yield lambda done: bar.update(shown, completed=done)
        return
    begin = last = time.monotonic()
    first: int | None = None

    def tell(done: int) -> None:
        nonlocal last, first
        now = time.monotonic()
        first = done if first is None else first
        if now - last < _LINE_EVERY_S or done == first:
            return
        last = now
        rate = (done - first) / (now - begin)
        left = f", {(total - done) / rate:.0f} s left" if total and rate > 0 else ""
        scale, name = (1e6, "MB") if unit == "bytes" else (1, unit)
        of = f" of {total / scale:,.0f}" if total else ""
        say(f"{title}: {done / scale:,.0f}{of} {name}, {rate / scale:,.1f} {name}/s{left}")

    yield tell


class Tracker:
    """Counts, and tells the listeners; a listener that fails is not asked again."""

    def __init__(self, total: int, done: int) -> None:
        self.state = State(total, done)
        self._start: float | None = None
        self._done_before = done
        self._listeners: list[Listener] = [*_listeners, PrefectArtifact()]
        self._tell("begin")

    def advance(self, images: int, errors: int) -> None:
        """These many images have got their row, these many of them error rows."""
        state = self.state
        state.done += images
        state.errors += errors
        now = time.monotonic()
        if self._start is None:  # Reckoned from the first commit: the start of the workers says nothing of the rest
            self._start, self._done_before = now, state.done
        elif now > self._start:
            state.rate = (state.done - self._done_before) / (now - self._start)
        self._tell("advance")

    def end(self) -> None:
        """The session is over."""
        self._tell("end")

    def _tell(self, what: str) -> None:
        for listener in list(self._listeners):
            try:
                getattr(listener, what)(self.state)
            except Exception:  # A dead Prefect server or a closed terminal is no reason to stop an archive
                self._listeners.remove(listener)
