"""All faults, in the order of the table."""

from tests.faults import driver, kills, node, poison, prefect, weather, workers
from tests.faults.fault import Fault

FAULTS: tuple[Fault, ...] = (
    *driver.FAULTS,
    *workers.FAULTS,
    *poison.FAULTS,
    *node.FAULTS,
    *prefect.FAULTS,
    *weather.FAULTS,
    *kills.FAULTS,
)
