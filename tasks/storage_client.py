"""The client of a store: its file system, made once in each process, and calls of it that are tried again.

Its settings come from the environment: `AWS_ENDPOINT_URL`, the ordinary AWS credentials, a time-out. Faults that may
pass are tried again, credentials that have expired are fetched anew.
"""

from __future__ import annotations

import functools
import os
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec

from tasks.location import Location
from tasks.storage_faults import ATTEMPTS, credentials_may_have_expired, endpoint, may_pass

T = TypeVar("T")

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 20.0

TIMEOUT = "SEGMENT_ARCHIVE_STORAGE_TIMEOUT_S"
"""Environment variable: how long a connection to an object store may be silent, in s; 60 by default."""


def filesystem(location: Location) -> Any:
    """The fsspec file system of a location, made once per process (s3fs hangs when it is carried over a fork)."""
    return _filesystem(location.protocol, os.getpid())


def patient_filesystem(location: Location) -> Any:
    """The file system for open files, whose single requests nobody but itself can try again."""
    return _filesystem(location.protocol, os.getpid(), patient=True)


def arrow_filesystem(location: Location) -> Any:
    """The storage of a location for Arrow, which fetches ranges itself: nothing is read ahead."""
    import pyarrow.fs

    if location.protocol == "file":
        return pyarrow.fs.LocalFileSystem()
    store = _filesystem(location.protocol, os.getpid(), patient=True, sparse=True)
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(store))


def retried(call: Callable[[], T]) -> T:
    """Result of a call to remote storage, tried again with back-off and jitter where the fault may pass.

    That is 5xx, 503 SlowDown and other throttling, resets, time-outs, an upload that did not arrive as it was sent, and
    credentials that have expired: for these the file systems are made anew, which reads the credentials again.
    """
    refreshed = False
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except Exception as error:
            expired = not refreshed and credentials_may_have_expired(error)
            if attempt == ATTEMPTS - 1 or not (expired or may_pass(error)):
                raise
            if expired:
                refreshed = True
                refresh()
                continue
            wait = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**attempt)
            # Full jitter: a thousand workers that were slowed down together must not come back together
            time.sleep(wait * random.uniform(0.25, 1.25))
    raise AssertionError("unreachable")


def refresh() -> None:
    """Make the file systems anew at their next use, with the credentials and settings that are there then."""
    _filesystem.cache_clear()


@functools.lru_cache(maxsize=16)
def _filesystem(protocol: str, process: int, patient: bool = False, sparse: bool = False) -> Any:
    options: dict[str, Any] = {"skip_instance_cache": True}
    if protocol == "s3":
        timeout_s = float(os.environ.get(TIMEOUT) or 60)
        if sparse:
            options["default_cache_type"] = "none"
        options["use_listings_cache"] = False  # Other processes write to the same prefix
        options["config_kwargs"] = {
            # One layer alone tries again, or their tries multiply: a store that is silent for a minute each time would
            # be asked 150 times
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "connect_timeout": min(10.0, timeout_s),
            "read_timeout": timeout_s,
            # Other stores than Amazon's answer a range with the checksum of the whole object
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
        if address := endpoint():
            options["endpoint_url"] = address
    made = fsspec.filesystem(protocol, **options)
    if protocol == "s3":
        from s3fs.core import set_custom_error_handler

        made.retries = ATTEMPTS if patient else 1
        set_custom_error_handler(may_pass)
    return made
