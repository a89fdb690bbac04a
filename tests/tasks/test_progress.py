"""How far a job is, and how long the rest takes."""

from collections.abc import Iterable

import pytest

from tasks import progress


def advance(tracker: progress.Tracker, amount: int, times: Iterable[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Report so many more at each of these times, in seconds."""
    for time_s in times:
        monkeypatch.setattr(progress.time, "monotonic", lambda time_s=time_s: time_s)
        tracker.advance(amount)


def test_the_time_left_knows_that_later_steps_cost_more(monkeypatch):
    costs = [1, 1, 1, 1, 1, 4, 4, 4, 4, 4]
    tracker = progress.Tracker(10, unit="steps", cost=lambda start, end: sum(costs[start:end]))
    advance(tracker, 1, (0, 5, 10, 15), monkeypatch)
    assert tracker.state.left_s == pytest.approx(5 + 5 * 20)
    assert tracker.state.words().endswith("105 s left")
    tracker.restart(6)
    advance(tracker, 1, (20, 40, 60), monkeypatch)
    assert tracker.state.left_s == pytest.approx(20)


def test_without_a_cost_all_that_is_left_is_like_what_was_done(monkeypatch):
    tracker = progress.Tracker(10)
    advance(tracker, 2, (0, 5, 10), monkeypatch)
    assert tracker.state.left_s == pytest.approx(10)
