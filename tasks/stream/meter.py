"""How the stages of a running job stand: throughput, busy share, queues, errors; told in numbers and in words.

The driver counts what each committed unit reports, so that nothing is counted twice when a worker has died. The same
figures go to the run record and, as metrics, to Ray's exporter for Prometheus.
"""

import collections
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from tasks import logs, progress
from tasks.stream.units import STAGES, UnitReport

_NAMES = {"read": "reading", "score": "scoring", "refine": "refinement"}
_WORKERS = {"read": "reading", "score": "scoring", "refine": "refining"}
_IDLE_SHARE = 0.4
"""A stage that waits for longer than this share of the time is worth a word."""

_BUSY_SHARE = 0.6
"""A stage that is busy for less does not hold up another."""

_READ_SHARE = 0.5
_FIRST_LOOK_S = 120.0
_LOOK_EVERY_S = 600.0


class Meter:
    """Counts of one session of a run."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.images = 0
        self.errors: collections.Counter[str] = collections.Counter()
        self.busy: collections.Counter[str] = collections.Counter()
        self.waits: collections.Counter[str] = collections.Counter()
        self.workers: collections.Counter[str] = collections.Counter()
        self.nodes: collections.Counter[str] = collections.Counter()
        """Images refined on each node, by its name and address."""

        self.gpus = False
        self._most: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        self._worker_seconds: collections.Counter[str] = collections.Counter()
        self._start = self._changed = time.monotonic()
        self._looked = self._start + _FIRST_LOOK_S - _LOOK_EVERY_S
        self._said = ""
        self._metrics: _Metrics | None = None

    def export(self) -> None:
        """From now on Ray's exporter shows the figures too."""
        self._metrics = self._metrics or _Metrics(self.run_id)

    def begin(self, workers: Mapping[str, int], *, gpus: bool = False) -> None:
        """These workers take part from now on, by stage. gpus: whether scoring has devices of its own."""
        self._settle(workers)
        self.gpus |= gpus
        self._most |= self.workers
        if self._metrics is not None:
            self._metrics.workers(self.workers)

    def end(self, workers: Mapping[str, int]) -> None:
        """These workers have gone."""
        self._settle(workers, -1)
        if self._metrics is not None:
            self._metrics.workers(self.workers)

    def add(self, report: UnitReport) -> None:
        """A unit was committed."""
        self.images += report.images
        self.errors.update(report.errors)
        self.busy.update(report.seconds)
        self.waits.update(report.waits)
        self.nodes[report.node] += report.images
        if self._metrics is not None:
            self._metrics.add(report)
        logs.event(
            f"unit {report.unit} committed: {report.images} images",
            run=self.run_id,
            stage="commit",
            unit=report.unit,
            images=report.images,
            errors=dict(report.errors),
            seconds={stage: round(s, 3) for stage, s in report.seconds.items()},
            waits={stage: round(s, 3) for stage, s in report.waits.items()},
            node=report.node,
        )
        now = time.monotonic()
        if now - self._looked > _LOOK_EVERY_S:
            self._looked = now
            self.warn()

    def stages(self) -> dict[str, dict[str, float]]:
        """By stage: busy_s, busy_share of its workers' time, images_per_s of one worker, queue_units: how many units
        waited before it on average."""
        self._settle()
        seconds = max(1e-9, time.monotonic() - self._start)
        return {
            stage: {
                "busy_s": round(self.busy[stage], 3),
                "busy_share": round(self.busy[stage] / max(1e-9, self._worker_seconds[stage]), 4),
                "images_per_s": round(self.images / max(1e-9, self.busy[stage]), 3),
                # Little's law: what waits on average is the time that all units have waited, over the time
                "queue_units": round(self.waits[stage] / seconds, 3),
            }
            for stage in STAGES
        }

    def describe(self) -> str:
        """Workers that have taken part, in one line."""
        return ", ".join(f"{most} {_WORKERS[stage]}" for stage, most in self._most.items())

    def warn(self) -> str:
        """Say it, once, where one stage starves another; returns what there is to say."""
        said = starving(self.stages(), gpus=self.gpus)
        if said and said != self._said:
            progress.say(said)
            logs.event(said, run=self.run_id, stage="pipeline", level=logging.WARNING, stages=self.stages())
        self._said = said
        return said

    def _settle(self, change: Mapping[str, int] | None = None, sign: int = 1) -> None:
        with self._lock:  # Streams begin and end in threads of their own
            now = time.monotonic()
            self._worker_seconds.update({stage: n * (now - self._changed) for stage, n in self.workers.items()})
            self._changed = now
            if change is not None:
                self.workers.update({stage: sign * n for stage, n in change.items()})


def starving(stages: dict[str, dict[str, float]], *, gpus: bool) -> str:
    """Which stage waits for which, and what to add; empty where they are in balance.

    stages: as `Meter.stages` gives them. gpus: whether scoring has devices of its own. Without, all stages share the
    same cores, and only storage can hold them up.
    """
    busy = {stage: figures["busy_share"] for stage, figures in stages.items()}
    if not gpus:
        total = sum(figures["busy_s"] for figures in stages.values())
        share = stages["read"]["busy_s"] / max(1e-9, total)
        if share <= _READ_SHARE:
            return ""
        return (
            f"Scoring and refinement wait for reading, which takes {share:.0%} of the work: the storage is slow; bring "
            "the workers nearer to it, or add CPUs, which read more at the same time."
        )
    limit = max(busy, key=lambda stage: busy[stage])
    idle = 1 - busy["score"]
    if limit != "score" and idle > _IDLE_SHARE and busy[limit] > _BUSY_SHARE:
        more = "add CPUs" if limit == "refine" else "add CPUs, or bring the workers nearer to the storage"
        return f"Scoring waits for {_NAMES[limit]} {idle:.0%} of the time: {more}."
    idle = 1 - busy["refine"]
    if limit == "score" and idle > 2 * _IDLE_SHARE and busy["score"] > _BUSY_SHARE:
        return f"Refinement waits for scoring {idle:.0%} of the time: add GPUs, or take fewer CPUs."
    return ""


class _Metrics:
    """The same counts for Prometheus. The mean queue before a stage is `rate(..._waiting_seconds_total)`, its busy
    share `rate(..._busy_seconds_total) / ..._workers`."""

    def __init__(self, run_id: str) -> None:
        from ray.util.metrics import Counter, Gauge

        tag: dict[str, Any] = {"run": run_id}

        def made(kind: Any, name: str, words: str, *keys: str) -> Any:
            metric = kind(f"segment_archive_{name}", description=words, tag_keys=("run", *keys))
            metric.set_default_tags(tag)
            return metric

        self._images = made(Counter, "images", "Images that have got their row")
        self._errors = made(Counter, "errors", "Error rows by kind", "kind")
        self._busy = made(Counter, "busy_seconds", "Time that the workers of a stage have worked", "stage")
        self._waiting = made(Counter, "waiting_seconds", "Time that units have waited before a stage", "stage")
        self._workers = made(Gauge, "workers", "Workers of a stage", "stage")

    def workers(self, counts: collections.Counter[str]) -> None:
        for stage, count in counts.items():
            self._workers.set(float(count), tags={"stage": stage})

    def add(self, report: UnitReport) -> None:
        if report.images:
            self._images.inc(float(report.images))
        for kind, count in report.errors.items():
            self._errors.inc(float(count), tags={"kind": kind})
        for metric, values in ((self._busy, report.seconds), (self._waiting, report.waits)):
            for stage, seconds in values.items():
                if seconds > 0:
                    metric.inc(seconds, tags={"stage": stage})
