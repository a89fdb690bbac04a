"""Tasks that take turns, one call of a store at a time: who is next, who dies and what time it is follow from a seed.

A task is a greenlet; it stands for a process. Before each of its calls to a store it comes here, and another may go
first. A killed task never comes back from there: what it does while it unwinds has no effect, as after SIGKILL.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from greenlet import getcurrent, greenlet


class KilledError(BaseException):
    """In the place of SIGKILL: nothing catches it."""


@dataclass(eq=False)
class Task:
    """A process."""

    name: str
    machine: str
    thread: greenlet
    parent: "Task | None"
    wakes_at: float = 0.0
    blocked: Callable[[], bool] | None = None
    """What it waits for, other than its turn."""

    killed: bool = False
    result: Any = None
    error: Exception | None = None

    @property
    def over(self) -> bool:
        return self.thread.dead


@dataclass
class Weather:
    """What may happen at a turn, as probabilities."""

    stay: float = 0.5
    """That the same task goes on."""

    kill: float = 0.0
    pause: float = 0.0
    """That the task which is next does nothing for a long time, as a halted machine or a slow request."""

    error: float = 0.0
    """That a call fails, half of the time after it had its effect."""

    clock: float = 0.0
    """That the clock of a machine is set, by up to an hour."""


@dataclass
class Turns:
    """Decides who is next."""

    dice: random.Random
    weather: Weather = field(default_factory=Weather)
    now: float = 1.8e9
    """Time, in s; every machine has it but for `clocks`."""

    clocks: dict[str, float] = field(default_factory=dict)
    tasks: list[Task] = field(default_factory=list)
    current: Task | None = None
    log: list[str] = field(default_factory=list)
    removed: dict[str, str] = field(default_factory=dict)
    """Who has removed what was under a name."""

    kills: int = 0
    after: Callable[[], None] = lambda: None
    """Called when a store has changed."""

    def __post_init__(self) -> None:
        self._hub = getcurrent()

    def start(self, name: str, run: Callable[[], Any], machine: str, delay_s: float = 0.0) -> Task:
        """A task of that name, which begins after a delay."""

        def body() -> None:
            if task.killed:
                return
            try:
                task.result = run()
            except KilledError:
                pass
            except Exception as error:
                task.error = error

        task = Task(name, machine, greenlet(body, self._hub), self.current, self.now + delay_s)
        self.tasks.append(task)
        return task

    def call(self, what: str) -> None:
        """A task is about to call a store: others go first. Outside of tasks nothing happens."""
        task = self.current
        if task is None:
            return
        if not task.killed:
            self.note(what)
            self._hub.switch()
        if task.killed:
            raise KilledError

    def fault(self) -> bool:
        """Whether the call of this task fails."""
        return self.current is not None and self.dice.random() < self.weather.error

    def changed(self) -> None:
        """A store has changed."""
        task, self.current = self.current, None
        try:
            self.after()
        finally:
            self.current = task

    def sleep(self, seconds: float) -> None:
        if self.current is not None:
            self.current.wakes_at = self.now + seconds
            self.call(f"sleeps {seconds:.1f} s")

    def wait(self, until: Callable[[], bool]) -> None:
        """Let others go on until this holds."""
        task = self.current
        assert task is not None
        task.blocked = until
        self.call("waits")
        task.blocked = None

    def clock(self) -> float:
        """What the clock of this task's machine shows."""
        return self.now + (self.clocks.get(self.current.machine, 0.0) if self.current else 0.0)

    @property
    def name(self) -> str:
        """Of the task whose turn it is."""
        return self.current.name if self.current else "-"

    def note(self, what: str) -> None:
        self.log.append(f"{self.now - 1.8e9:9.3f} {self.name:12} {what}")

    def kill(self, task: Task) -> None:
        """End a task; its children may live on for a moment."""
        self.note(f"SIGKILL to {task.name}")
        task.killed = True
        self.kills += 1
        self._go_on(task)  # Lets it unwind, without effect
        for child in [t for t in self.tasks if t.parent is task and not t.over]:
            if self.dice.random() < 0.5:
                self.kill(child)

    def run(self, most: int) -> None:
        """Let all tasks take turns until none is left, or so many turns are over; then they are killed."""
        last: Task | None = None
        for _ in range(most):
            living = [task for task in self.tasks if not task.over]
            if not living:
                return
            ready = [t for t in living if t.wakes_at <= self.now and (t.blocked is None or t.blocked())]
            if not ready:
                self.now = max(self.now + 0.01, min((t.wakes_at for t in living if t.wakes_at > self.now), default=0))
                continue
            self.now += self.dice.uniform(0.005, 0.05)
            stays = last in ready and self.dice.random() < self.weather.stay
            task = last if stays and last is not None else self.dice.choice(ready)
            chance = self.dice.random()
            if chance < self.weather.kill:
                self.kill(task)
            elif chance < self.weather.kill + self.weather.pause:
                task.wakes_at = self.now + self.dice.choice((0.5, 3, 15))
            else:
                if self.dice.random() < self.weather.clock:
                    self.clocks[task.machine] = step = self.dice.uniform(-3600, 3600)
                    self.note(f"the clock of {task.machine} is set to {step:+.0f} s")
                self._go_on(task)
                last = task
        self.kill_all()

    def kill_all(self) -> None:
        """End every task, as a power cut does."""
        for task in self.tasks:
            if not task.over:
                self.kill(task)
        self.tasks.clear()

    def _go_on(self, task: Task) -> None:
        before, self.current = self.current, task
        task.thread.switch()
        self.current = before
