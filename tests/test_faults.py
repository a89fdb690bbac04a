"""One of the faults of `make faults`, once and on fewer photographs; docs/reliability.md has the others."""

import dataclasses
import json

import pytest

import tests.faults.__main__ as command
from tests.conftest import ROOT
from tests.faults.bench import Bench
from tests.faults.fault import Outcome
from tests.faults.registry import FAULTS


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_of_killed_workers_nothing_is_lost_duplicated_or_different(tmp_path):
    bench = Bench(tmp_path, num_photographs=48)
    bench.prepare()
    (fault,) = (fault for fault in FAULTS if fault.name == "scorer")
    outcome = fault.run(bench, 0)
    assert outcome.times > 0 and outcome.clean, outcome


def test_every_fault_has_a_name_of_its_own():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 28


def test_trials_are_published_once_and_the_document_has_their_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "FOLDER", tmp_path)
    monkeypatch.setattr(command, "PUBLISHED", tmp_path / "trials.json")
    (tmp_path / "results").mkdir()
    for seconds in (2.04, 4.0):
        trial = dataclasses.asdict(Outcome(times=5, recovery_s=[seconds]))
        (tmp_path / "results" / "scorer.json").write_text(json.dumps([trial]))
        command.publish("HEAD")
    kept = json.loads((tmp_path / "trials.json").read_text())
    assert [trial["outcome"]["recovery_s"] for trial in kept["scorer"]] == [[2.0], [4.0]] and not command.outcomes(
        next(fault for fault in FAULTS if fault.name == "scorer")
    )
    monkeypatch.undo()
    monkeypatch.setattr("sys.argv", ["faults", "--published"])
    command.main()
    assert capsys.readouterr().out.strip() in (ROOT / "docs" / "reliability.md").read_text()
