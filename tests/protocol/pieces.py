"""Pieces of the work of `python -m tests.protocol`. Here, since a process that is spawned imports no `__main__`."""

import contextlib

from tests.protocol.bugs import BUGS
from tests.protocol.history import play

PIECE = 25


def replayed(seed: int, bug: str | None) -> str:
    """A history in words, with its plan before it."""
    with _with(bug):
        history = play(seed)
    return "\n".join([str(history.plan), *history.turns.log, history.violation or "The promise is kept."])


def _with(bug: str | None) -> contextlib.AbstractContextManager[None]:
    return next(known for known in BUGS if known.name == bug).planted() if bug else contextlib.nullcontext()


def violations(start: int, bug: str | None) -> list[str]:
    """Of a piece of histories, from this seed on: what each has broken; ends with the first that a bug has."""
    found: list[str] = []
    with _with(bug):
        for seed in range(start, start + PIECE):
            found.append(play(seed).violation)
            if bug is not None and found[-1]:
                break
    return found
