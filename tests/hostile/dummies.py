"""Readers that do what none should, so that the trial is tried itself."""

import ctypes
import sys
import time


def prepare() -> None:
    """Nothing."""


def make(number: int, seed: int) -> tuple[str, int]:
    """The number alone."""
    return "dummy", number


def read(number: int) -> str:
    """One misdeed for each number."""
    if number == 0:
        print("a warning", file=sys.stderr)
    elif number == 1:
        ctypes.string_at(0)  # A real segmentation fault
    elif number == 2:
        time.sleep(60)
    elif number == 3:
        return str(1 // 0)
    elif number == 4:
        bytes(8 << 30)  # More than the bound: MemoryError
    elif number == 5:
        sys.stdout.flush()
        ctypes.CDLL(None)._exit(7)
    return "refused"
