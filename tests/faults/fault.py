"""What a fault is, and what a trial of it has shown."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.bench import Bench


@dataclass
class Outcome:
    """What one trial has shown: a job that was disturbed, and finished in the end."""

    times: int = 1
    """How often the fault struck in this trial."""

    lost: int = 0
    """Images without a row at the end."""

    duplicated: int = 0
    """Images with more than one row, at the end or at any moment at which the trial looked."""

    differing: int = 0
    """Images whose row has another mask or another kind of error than the undisturbed run gave it."""

    recovery_s: list[float] = field(default_factory=list)
    """Seconds from each fault (or, where it lasts, from its end) to the next commit."""

    sentences: list[str] = field(default_factory=list)
    """What a session that ended for the fault has told the person."""

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.differing)

    def __add__(self, other: "Outcome") -> "Outcome":
        mine, others = dataclasses.asdict(self), dataclasses.asdict(other)
        return Outcome(**{name: mine[name] + others[name] for name in mine})


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    name: str
    """What the command line calls it."""

    what: str
    """What the table calls it."""

    run: "Callable[[Bench, int], Outcome]"
    """One trial, given where to work and the number of the trial, from 0; raises where the promise cannot be told."""

    trials: int = 3
    """Trials for the table; each may strike several times."""
