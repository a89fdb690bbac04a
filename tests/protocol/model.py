"""A small model of the commit protocol, explored in full: every order of its steps, with a crash after any of them.

Three images a, b, c. Segment S of the manifest lists them as two units, 0 (a, b) and 1 (c); segment R lists a and c
again as unit 2, since they were replaced. Two writers, one of which refreshes; one sealer, which expires; one reader;
two crashes. Steps are named after the functions whose effect they are, so that a path here can be followed there. A
step is what one call of a store does: between any two, others go on.

`Rules` says what the protocol is; without any of them the exploration finds the state in which it breaks.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

Rows = frozenset[str]
"""Rows of a file: an image and its version, a1, a2, b1, c1, c2."""

UNITS = ("a1 b1", "c1", "a2 c2")


_SEAL, _ABSENT = 3, 4
"""In the place of a unit: the seal that is alone; from 4 on, units that were not there and have no rows to hold."""


@dataclass(frozen=True)
class Rules:
    """What the protocol does."""

    first_commit_wins: bool = True
    """`storage.write_once` rather than `write_whole` for a unit."""

    dropped_stays_as_empty: bool = True
    """A file all of whose rows are dropped, or that nobody needs any more, stands empty (`_drop_foreign`)."""

    what_nobody_owns_is_overwritten: bool = True
    """That empty file is written over one that has come since `_check_all` looked, as `storage.write_whole` does."""

    manifest_is_listed_again: bool = True
    """`check_run` believes what it read only where no segment has come since."""

    what_is_not_there_is_not_removed: bool = True
    """`_give_up` removes files that lack rows; another may have committed what was not there."""

    files_outvote_the_record: bool = True
    """`Output.choose_files` calls a run unfinished where files are of a segment that its record does not name."""

    alone_before_removal: bool = True
    """`_expire` says that small files do not count before it removes them."""

    alone_or_taken_back: bool = True
    """One name for both, so that `unseal` and `_expire` cannot both have their way with a seal."""

    grace: bool = True
    """`_expire` waits until who read when the seal came is done."""

    versions_are_looked_at: bool = True
    """A reader opens the file that it listed, or ends with a sentence."""


class Writer(NamedTuple):
    """A session of the archive job."""

    step: str = "list_archive"
    todo: tuple[tuple[int, Rows], ...] = ()
    """Units to commit, or files to write again, with their rows."""

    knows_r: bool = False
    """Whether the manifest that it works with has segment R."""


class State(NamedTuple):
    """The store, and who is at what."""

    has_r: bool = False
    files: tuple[Rows | None, Rows | None, Rows | None] = (None, None, None)
    """Small mask files of the units."""

    seal: tuple[tuple[Rows, Rows], str, bool] | None = None
    """Small files 0 and 1 that it stands for; "copy", "alone" or "taken back"; whether it is older than the grace."""

    record: str = ""
    """Empty, "running", or the segments that are proved: "S", "SR"."""

    writers: tuple[Writer, Writer] = (Writer(), Writer())
    sealer: tuple[str, tuple[Rows, Rows] | None] = ("compact", None)
    reader: tuple[str, tuple[tuple[str, Rows], ...], Rows] = ("choose_files", (), frozenset())
    """Step, what it listed and has not read, rows that it has read; "torn" where a file was not what it listed."""

    crashes: int = 2


def view(state: State, rules: Rules) -> tuple[list[tuple[str, Rows]], bool]:
    """What whoever opens the run finds: files with their rows, and whether the run is finished."""
    small = [(str(n), rows) for n, rows in enumerate(state.files) if rows is not None]
    if state.seal is not None:
        stands_for, mark, _ = state.seal
        there = state.files[:2]
        if mark == "alone" or (mark == "copy" and there in (stands_for, (None, None))):
            small = [("large", stands_for[0] | stands_for[1]), *(pair for pair in small if pair[0] == "2")]
    finished = state.record in ("S", "SR")
    if rules.files_outvote_the_record and state.record == "S" and state.files[2] is not None:
        finished = False
    return small, finished


def steps(state: State, rules: Rules) -> Iterator[tuple[str, State]]:
    """Every step that can come next, by its name."""
    for number, writer in enumerate(state.writers):
        for what, after, then in _writer_steps(state, writer, number, rules):
            writers = tuple(then if n == number else w for n, w in enumerate(after.writers))
            yield f"writer{number}: {what}", after._replace(writers=writers)  # type: ignore[arg-type]
        if writer.step not in ("list_archive", "over") and state.crashes:
            writers = tuple(Writer() if n == number else w for n, w in enumerate(state.writers))
            yield f"writer{number}: SIGKILL", state._replace(writers=writers, crashes=state.crashes - 1)  # type: ignore[arg-type]
    yield from _sealer_steps(state, rules)
    yield from _reader_steps(state, rules)


def _writer_steps(state: State, me: Writer, number: int, rules: Rules) -> Iterator[tuple[str, State, Writer]]:
    """A session: its step, the store afterwards, itself afterwards."""
    files, sealed = list(state.files), state.seal is not None and state.seal[1] == "alone"
    if me.step == "list_archive":  # The second refreshes
        has_r = state.has_r or number == 1
        yield "list_archive", state._replace(has_r=has_r), Writer("begin")
    elif me.step == "begin":
        yield "runs.begin", state._replace(record="running"), Writer("remaining_units")
    elif me.step == "remaining_units":
        owned = [_owned(n, state.has_r) for n in range(3 if state.has_r else 2)]
        todo = [(n, rows) for n, rows in enumerate(owned) if files[n] is None and rows and not (sealed and n < 2)]
        yield "remaining_units", state, Writer("commit", tuple(todo if number == 0 else reversed(todo)))
    elif me.step == "commit" and me.todo:
        (unit, rows), *rest = me.todo
        if files[unit] is None or not rules.first_commit_wins:
            files[unit] = rows
        yield f"write_once {unit}", state._replace(files=tuple(files)), me._replace(todo=tuple(rest))  # type: ignore[arg-type]
    elif me.step == "commit":
        yield "Output.manifest", state, Writer("check", knows_r=state.has_r)
    elif me.step == "check":
        missing, foreign = _check_all(state, me.knows_r, rules)
        yield "_check_all", state, Writer(missing or "found", tuple(foreign), me.knows_r)
    elif me.step == "found" or me.step.startswith("missing"):
        if rules.manifest_is_listed_again and state.has_r != me.knows_r:
            yield "segment_names: more", state, Writer("check", knows_r=True)
        elif me.step == "found":
            yield "segment_names", state, me._replace(step="unseal" if any(u <= _SEAL for u, _ in me.todo) else "drop")
        else:
            for unit in me.step.removeprefix("missing "):
                files[int(unit)] = None
            yield "_give_up", state._replace(files=tuple(files), record="running"), Writer("over")  # type: ignore[arg-type]
    elif me.step == "unseal":
        if me.todo[0][0] == _SEAL or state.seal is None or (sealed and not rules.alone_or_taken_back):
            yield "unseal: nothing", state, me._replace(step="drop")
        elif sealed:  # A sealing was faster
            yield "unseal: JobError", state, Writer("over")
        else:
            taken = (state.seal[0], "taken back", state.seal[2])
            yield "unseal", state._replace(seal=taken), me._replace(step="drop")
    elif me.step == "drop" and me.todo:
        (unit, rows), *rest = me.todo
        after = state
        if unit == _SEAL:  # The one that is alone, written again
            assert state.seal is not None
            after = state._replace(seal=((rows, frozenset()), "alone", state.seal[2]))
        elif unit >= _ABSENT:
            if files[unit - _ABSENT] is None or rules.what_nobody_owns_is_overwritten:
                files[unit - _ABSENT] = rows
            after = state._replace(files=tuple(files))  # type: ignore[arg-type]
        else:
            files[unit] = rows if rows or rules.dropped_stays_as_empty else None
            after = state._replace(files=tuple(files))  # type: ignore[arg-type]
        yield f"_drop_foreign {unit}", after, me._replace(todo=tuple(rest))
    elif me.step == "drop":
        yield "runs.end", state._replace(record="SR" if me.knows_r else "S"), Writer("over")


def _owned(unit: int, knows_r: bool) -> Rows:
    """What a unit has by a manifest with or without segment R (`Part.entries`)."""
    rows = frozenset(UNITS[unit].split())
    return rows - {"a1", "c1"} if knows_r else rows


def _check_all(state: State, knows_r: bool, rules: Rules) -> tuple[str, list[tuple[int, Rows]]]:
    """Units that lack rows and go therefore, after "missing"; what is written again without the rows of others."""
    missing, foreign = "", []  # type: ignore[var-annotated]
    alone = state.seal is not None and state.seal[1] == "alone"
    if alone and state.seal is not None:
        held, owned = state.seal[0][0] | state.seal[0][1], _owned(0, knows_r) | _owned(1, knows_r)
        if held - owned:
            foreign.append((_SEAL, owned))
    for unit in range(2 if alone else 0, 3 if knows_r else 2):
        rows, owned = state.files[unit], _owned(unit, knows_r)
        if owned - (rows or frozenset()):
            missing = missing or "missing "
            if rows is not None or not rules.what_is_not_there_is_not_removed:
                missing += str(unit)
        elif rows is not None and rows - owned:
            foreign.append((unit, owned))
    for unit in () if alone or not rules.dropped_stays_as_empty else (0, 1):
        if state.files[unit] is None and not _owned(unit, knows_r):
            foreign.append((_ABSENT + unit, frozenset()))
    return missing, foreign


def _sealer_steps(state: State, rules: Rules) -> Iterator[tuple[str, State]]:
    step, small = state.sealer
    there = state.files[:2]

    def on(what: str, next_step: str, after: State = state) -> tuple[str, State]:
        return f"sealer: {what}", after._replace(sealer=(next_step, small))

    finished = view(state, rules)[1]
    if step == "compact" and finished and None not in there and state.seal is None:
        yield "sealer: _write_file", state._replace(sealer=("_changed", there))  # type: ignore[arg-type]
    elif step == "_changed":
        yield on("_changed", "_write_seal" if finished and there == small else "over")
    elif step == "_write_seal":
        assert small is not None
        yield on("_write_seal", "_changed again", state._replace(seal=(small, "copy", False)))
    elif step == "_changed again":
        same = finished and there == small
        yield on("_changed", "_expire" if same else "over", state if same else state._replace(seal=None))
    elif step == "_expire" and state.seal is not None and (state.seal[2] or not rules.grace):
        yield on("compact, expire", "_make_alone" if finished and there == small else "over")
    elif step == "_make_alone" and state.seal is not None:
        if state.seal[1] == "taken back" and rules.alone_or_taken_back:
            yield on("_make_alone: taken back", "over")
        else:
            seal = (state.seal[0], "alone" if rules.alone_before_removal else "copy", True)
            yield on("_make_alone", "look again", state._replace(seal=seal))
    elif step == "look again" and state.seal is not None:
        if there != small:  # The run went on
            yield on("remove alone", "over", state._replace(seal=(state.seal[0], "copy", True)))
        else:
            yield on("look", "remove 0")
    elif step in ("remove 0", "remove 1"):
        unit = int(step[-1])
        files = tuple(None if n == unit else rows for n, rows in enumerate(state.files))
        yield on(f"remove {unit}", "remove 1" if unit == 0 else "over", state._replace(files=files))  # type: ignore[arg-type]
    # Whoever began to read before is done by the time that a seal is older than the grace
    if state.seal is not None and not state.seal[2] and state.reader[0] != "read":
        yield "time passes", state._replace(seal=(state.seal[0], state.seal[1], True))
    if step not in ("compact", "over") and state.crashes:
        yield "sealer: SIGKILL", state._replace(sealer=("over", None), crashes=state.crashes - 1)


def _reader_steps(state: State, rules: Rules) -> Iterator[tuple[str, State]]:
    step, listed, read = state.reader
    if step == "choose_files":
        files, finished = view(state, rules)
        if finished:
            yield "reader: open_results", state._replace(reader=("read", tuple(files), frozenset()))
    elif step == "read" and not listed:
        yield "reader: over", state._replace(reader=("over", (), read))
    elif step == "read":
        (name, rows), *rest = listed
        now = rows if name == "large" else state.files[int(name)]  # Large files stay longer than any grace
        if now is None:
            yield f"reader: {name} is gone", state._replace(reader=("gone", (), read))
        elif now != rows and rules.versions_are_looked_at:
            yield f"reader: {name} was replaced", state._replace(reader=("told", (), read))
        else:
            torn = read & now
            reader = ("torn" if torn else "read", tuple(rest), read | now)
            yield f"reader: reads {name}", state._replace(reader=reader)


def violation(state: State, rules: Rules) -> str:
    """What is wrong with a state; empty where it is as promised."""
    files, finished = view(state, rules)
    rows = [row for _, held in files for row in held]
    images = sorted(row[0] for row in rows)
    if finished and images != ["a", "b", "c"]:
        return f"a finished run has rows of {' '.join(images)}"
    step, _, read = state.reader
    if step == "gone":
        return "a file was gone that a reader needed"
    if step == "torn" or (step == "over" and sorted(row[0] for row in read) != ["a", "b", "c"]):
        return f"a reader has read {' '.join(sorted(read))}"
    return ""


def lost(before: State, after: State, rules: Rules) -> str:
    """Images whose rows a step has taken away."""
    had, has = ({row[0] for _, rows in view(s, rules)[0] for row in rows} for s in (before, after))
    return " ".join(sorted(had - has))


def explore(rules: Rules = Rules()) -> tuple[int, int, list[str]]:
    """All states that can be reached: how many, how many steps, and the shortest way to one that breaks the promise."""
    start = State()
    came: dict[State, tuple[State, str] | None] = {start: None}
    waiting, taken = deque([start]), 0
    while waiting:
        state = waiting.popleft()
        for what, after in steps(state, rules):
            taken += 1
            gone = lost(state, after, rules)
            seen = after in came
            if not seen:
                came[after] = (state, what)
                waiting.append(after)
            if gone or (not seen and violation(after, rules)):
                way = [f"VIOLATION: {violation(after, rules) or f'rows of {gone} are gone'}", what]
                here: State | None = state
                while here is not None and (step := came[here]) is not None:
                    here, name = step
                    way.append(name)
                return len(came), taken, way[::-1]
    return len(came), taken, []


if __name__ == "__main__":
    states, taken, way = explore()
    print(f"{states} states, {taken} steps", *way, sep="\n")
