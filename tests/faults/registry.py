"""All faults, in the order of the table."""

from tests.faults import driver, weather, workers
from tests.faults.fault import Fault

FAULTS: tuple[Fault, ...] = (*driver.FAULTS, *workers.FAULTS, *weather.FAULTS)
