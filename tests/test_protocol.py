"""The commit protocol: its model explored in full, its code in simulated histories; `make prove` plays many more."""

import dataclasses

import pytest

from tests.protocol import model
from tests.protocol.bugs import BUGS
from tests.protocol.history import play

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


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_thousand_histories_keep_the_promise():
    for seed in range(2000):
        assert not (history := play(seed)).violation, "\n".join([f"seed {seed}", *history.turns.log])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug):
    with bug.planted():
        assert any(play(seed).violation for seed in range(2000)), bug.what
