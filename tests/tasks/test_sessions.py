"""Sessions of one run at the same time: who is known to be at work, and how they share what remains."""

import itertools
import json
import os
import platform
import subprocess
import sys
import time

import pytest

from tasks import progress, storage
from tasks.archive import runs
from tasks.archive.output import Output
from tasks.segmentation.session import _Company


@pytest.fixture
def output(tmp_path):
    return Output.at(str(tmp_path / "out"))


def enter(output, **facts):
    """Another session in the record: by default one of another host that has just been heard of."""
    record = runs.read(output.place, "run")
    session = {"host": "far", "pid": 1, "born": "1", "seen": time.time()} | facts
    record["at_work"] = [*record.get("at_work", []), session]
    storage.write_whole(runs.record_of(output.place, "run"), json.dumps(record).encode())


def test_a_session_alone_has_the_first_turn_and_leaves_nothing(output):
    assert runs.begin(output.place, "run", {}) == (0, [])
    assert runs.beat(output.place, "run") == (0, [])
    record = runs.read(output.place, "run")
    assert [session["pid"] for session in record["at_work"]] == [os.getpid()] and record["status"] == runs.RUNNING
    assert runs.end(output.place, "run", runs.FINISHED, None)["at_work"] == []


def test_the_others_are_named_in_the_order_of_their_beginning(output):
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    enter(output, host=platform.node(), pid=other.pid, born=runs._born(other.pid))
    enter(output)
    assert runs.begin(output.place, "run", {}) == (2, [f"this machine, process {other.pid}", "far"])
    other.communicate(b"")
    assert runs.beat(output.place, "run") == (1, ["far"])  # A process that has ended is seen at once
    runs.end(output.place, "run", runs.STOPPED, None)
    assert [session["host"] for session in runs.read(output.place, "run")["at_work"]] == ["far"]


def test_a_session_killed_on_another_host_is_not_at_work_for_ever(output):
    enter(output, seen=time.time() - runs.ALIVE_S / 2)
    assert runs.begin(output.place, "run", {}) == (1, ["far"])
    output = Output.at(output.uri + "2")
    enter(output, seen=time.time() - runs.ALIVE_S - 1)
    assert runs.begin(output.place, "run", {}) == (0, [])


def test_records_of_before_knew_one_session_without_a_time(output):
    record = {"status": "running", "at_work": {"host": "far", "pid": 1, "born": "1"}}
    storage.write_whole(runs.record_of(output.place, "run"), json.dumps(record).encode())
    assert runs.begin(output.place, "run", {}) == (0, [])


def test_of_two_that_began_at_the_same_moment_one_makes_way(output, capsys, monkeypatch):
    monkeypatch.setattr(progress, "say", print)
    mine = _Company(output, "run", {})
    # The other has read the record before this session wrote it, and has written it after
    storage.write_whole(runs.record_of(output.place, "run"), b"{}")
    enter(output)
    units = mine.share(iter(range(10)))
    assert next(units) == 0
    mine.look()
    assert capsys.readouterr().out == "Another session of this job is at work (far): they share what is left.\n"
    assert list(itertools.islice(units, 3)) == [9, 8, 7]
    assert [s["host"] for s in runs.read(output.place, "run")["at_work"]] == ["far", platform.node()]


@pytest.mark.parametrize("sessions", [1, 2, 3, 5])
def test_sessions_share_what_remains_and_repeat_little(sessions, output):
    total, in_hand = 400, 2
    done, repeated = set(), 0
    shares = []
    for number in range(sessions):
        company = _Company(Output.at(f"{output.uri}-{number}"), "run", {})
        company._turn = number
        shares.append([company.share(iter(range(total))), []])
    while shares:
        for share in list(shares):
            units, hands = share
            while len(hands) < in_hand and (unit := next((u for u in units if u not in done), None)) is not None:
                hands.append(unit)
            if not hands:
                shares.remove(share)
                continue
            unit = hands.pop(0)
            repeated += unit in done
            done.add(unit)
    assert done == set(range(total))
    assert repeated <= 0.1 * total  # Of units that two had in hand at the same time
