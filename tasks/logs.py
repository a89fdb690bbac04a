"""Structured logs: one JSON object a line with run id and stage, never with a credential.

Ray's workers write theirs to their log files. In the process that drives a job, the logger `segment_archive` is handed
to Prefect (`PREFECT_LOGGING_EXTRA_LOGGERS`), and with SEGMENT_ARCHIVE_LOG=json to standard error.
"""

import datetime
import functools
import json
import logging
import os
import platform
import sys
from typing import Any

from tasks import storage_faults

logger = logging.getLogger("segment_archive")

_FACTS = "facts"


def event(what: str, *, run: str, stage: str, level: int = logging.INFO, **facts: Any) -> None:
    """Log one event. what: words for a person; facts: values for a machine, each a field of its own."""
    _prepare()
    logger.log(level, "%s", what, extra={_FACTS: {"run": run, "stage": stage, **facts}})


def in_worker() -> None:
    """Send this process's events to standard error, which Ray keeps in the worker's log file."""
    _to_stderr()


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "host": platform.node(),
            "pid": record.process,
            **getattr(record, _FACTS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return storage_faults.scrub(json.dumps(line, ensure_ascii=False, default=str))


class _Scrubbing(logging.Filter):
    """Other handlers, Prefect's among them, write the message as it is: without credentials by then."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = storage_faults.scrub(record.getMessage()), ()
        return True


@functools.cache
def _prepare() -> None:
    logger.addFilter(_Scrubbing())
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if os.environ.get("SEGMENT_ARCHIVE_LOG") == "json":
        _to_stderr()
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
        logger.propagate = False  # A person at a terminal is told in words instead


@functools.cache
def _to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
