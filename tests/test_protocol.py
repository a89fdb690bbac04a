"""The commit protocol: its model explored in full, its code in simulated histories; `make prove` plays many more."""

import dataclasses
import random
import subprocess
import sys

import pytest

from tasks import storage
from tasks.storage import locate
from tests.conftest import ROOT
from tests.protocol import model
from tests.protocol.bugs import BUGS
from tests.protocol.history import History, Plan, in_place, play
from tests.protocol.store import Bucket, Disk
from tests.protocol.turns import Turns, Weather

RULES = [field.name for field in dataclasses.fields(model.Rules)]


def test_no_order_of_steps_breaks_the_promise():
    states, steps, way = model.explore()
    assert way == []
    assert states > 20_000 and steps > 2 * states


@pytest.mark.parametrize("rule", RULES)
def test_without_any_of_its_rules_the_protocol_breaks(rule):
    _, _, way = model.explore(model.Rules(**{rule: False}))
    assert way and "VIOLATION" in way[-1]


def test_histories_keep_the_promise():
    for seed in range(40):
        assert not (history := play(seed)).violation, "\n".join([f"seed {seed}", *history.turns.log])


def test_a_history_is_played_again_from_its_seed():
    first, second = play(8), play(8)
    assert first.turns.log == second.turns.log and len(first.turns.log) > 100


@pytest.mark.parametrize(("condition", "wins"), [("honoured", True), ("ignored", False), ("refused", False)])
def test_whether_a_bucket_has_one_winner_is_tried(condition, wins):
    turns = Turns(random.Random(0))
    bucket = Bucket(turns)
    bucket.conditional = condition
    with in_place(History(Plan.of(0), turns, bucket)):
        place = locate("s3://masks/out")
        assert storage.one_winner(place) is wins
        assert storage.write_once(place / "x", b"first") and not storage.write_once(place / "x", b"second")
    assert bucket.objects == {"masks/out/x": b"first"}


def test_an_answer_that_is_lost_is_no_other_winner():
    """The same call again is refused by what the first has written: it stands."""
    turns = Turns(random.Random(1), Weather(error=0.15))
    bucket = Bucket(turns)
    with in_place(History(Plan.of(0), turns, bucket)):
        for number in range(20):
            turns.start(str(number), lambda n=number: storage.write_once(locate("s3://masks") / f"{n}", b"x"), "m")
        turns.run(4000)
    assert sum(key.startswith("masks/") and ".tmp" not in key for key in bucket.objects) == 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(2154, id="a-refresh-between-a-readers-two-listings"),  # Its row was in neither
        pytest.param(7533, id="a-sealing-that-takes-a-newer-seal-for-a-leftover"),
        pytest.param(10837, id="and-one-that-is-not-yet-marked"),
        pytest.param(1447, id="rows-of-a-listing-that-a-power-cut-takes"),  # Another session's, not yet durable
    ],
)
def test_histories_that_have_found_a_fault(seed):
    assert not play(seed).violation


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "start", [pytest.param(start, marks=pytest.mark.xdist_group(f"histories {start}")) for start in range(0, 1000, 250)]
)
def test_more_histories_keep_the_promise(start):
    for seed in range(start, start + 250):  # `make prove` plays 100,000
        assert not (history := play(seed)).violation, "\n".join([f"seed {seed}", *history.turns.log])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug):
    with bug.planted():
        found = next((violation for seed in range(60) if (violation := play(seed, **bug.needs).violation)), "")
    assert found, bug.what
    assert "TypeError" not in found and "AttributeError" not in found, "the bug does not fit the program any more"


@pytest.mark.parametrize("durable", [False, True])
def test_what_is_durable_is_there_after_a_power_cut_whoever_made_its_folder(durable):
    folder = locate("/masks/out/masks/run=r")
    for seed in range(20):
        turns = Turns(random.Random(seed))
        disk = Disk(turns)
        with in_place(History(Plan.of(0), turns, disk)):
            storage.write_whole(folder / ".probe", b"tried", durable=durable)
            storage.write_whole(folder / "part.parquet", b"rows")
            disk.power_cut()
            assert storage.read_bytes(folder / "part.parquet") == b"rows"


def test_a_planted_bug_leaves_nothing_behind():
    """Not even in what histories begin with, which the program writes once."""
    with next(bug for bug in BUGS if bug.name == "name-without-run").planted():
        play(0)
    assert not play(0).violation


@pytest.mark.slow
def test_the_command_plays_on_all_cores_and_goes_on_later():
    command = [sys.executable, "-m", "tests.protocol", "--histories", "50", "--minutes", "0.1"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode in (0, 1) and not told.stderr, told.stderr
    assert "| planted bug | found by | after histories |" in told.stdout
