"""All faults, in the order of the table."""

from tests.faults import driver, node, prefect, weather, workers
from tests.faults.fault import Fault

FAULTS: tuple[Fault, ...] = (*driver.FAULTS, *workers.FAULTS, *node.FAULTS, *prefect.FAULTS, *weather.FAULTS)
