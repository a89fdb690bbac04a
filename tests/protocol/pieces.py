"""Pieces of the work of `python -m tests.protocol`. Here, since a process that is spawned imports no `__main__`."""

import contextlib

from tests.protocol.bugs import BUGS, Bug
from tests.protocol.history import play

PIECE = 25


def replayed(seed: int, bug: str | None) -> str:
    """A history in words, with its plan before it."""
    planted = _known(bug)
    with planted.planted() if planted else contextlib.nullcontext():
        history = play(seed, **(planted.needs if planted else {}))
    return "\n".join([str(history.plan), *history.turns.log, history.violation or "The promise is kept."])


def _known(name: str | None) -> Bug | None:
    return next((bug for bug in BUGS if bug.name == name), None)


def violations(start: int, bug: str | None) -> list[str]:
    """Of a piece of histories, from this seed on: what each has broken; ends with the first that a bug has."""
    planted, found = _known(bug), list[str]()
    with planted.planted() if planted else contextlib.nullcontext():
        for seed in range(start, start + PIECE):
            found.append(play(seed, **(planted.needs if planted else {})).violation)
            if planted and found[-1]:
                break
    return found
