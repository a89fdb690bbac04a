"""Names that a person types: one spelling, underscores; hyphens are accepted, and what is unknown gets a proposal."""

import difflib
from collections.abc import Iterable


def known(name: str, names: Iterable[str], what: str, listed_by: str = "") -> str:
    """The name among `names` that is meant. ValueError: none is; the sentence has the nearest ones.

    what: what a name stands for, such as "model". listed_by: command that lists them all.
    """
    there = list(names)
    spelled = {_plain(other): other for other in there}
    if name in there:
        return name
    if _plain(name) in spelled:
        return spelled[_plain(name)]
    near = difflib.get_close_matches(_plain(name), spelled, n=3, cutoff=0.6)
    words = f"There is no {what} {name!r}"
    if near:
        return _refuse(f"{words}; did you mean {' or '.join(spelled[other] for other in near)}?")
    return _refuse(f"{words}; `{listed_by}` lists them." if listed_by else f"{words}; there are {', '.join(there)}.")


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def _refuse(sentence: str) -> str:
    raise ValueError(sentence)
