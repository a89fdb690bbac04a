"""One of the faults of `make faults`, once and on fewer photographs; docs/reliability.md has the others."""

import pytest

from tests.faults.bench import Bench
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
