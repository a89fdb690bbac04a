"""Three of the faults of `make faults`, once each and on fewer photographs; docs/reliability.md has the others."""

import pytest

from tests.faults.bench import Bench
from tests.faults.registry import FAULTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    made = Bench(tmp_path_factory.mktemp("faults"), num_photographs=48)
    made.prepare()
    return made


@pytest.mark.parametrize("name", ["scorer", "s3-storm", "s3-read-only"])
def test_nothing_is_lost_duplicated_or_different(name, bench):
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    outcome = fault.run(bench, 0)
    assert outcome.times > 0 and outcome.clean, outcome
    if name == "s3-read-only":
        assert any("No permission for s3://masks/out" in sentence for sentence in outcome.sentences), outcome.sentences


def test_every_fault_has_a_name_of_its_own():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 19
