"""A session of the archive job: doing what remains of its run, on an engine.

What is done stands in the mask files alone, so a session may end anywhere; the run record says how it went.
"""

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from tasks import engines, logs, progress, storage, storage_faults
from tasks.archive import runs
from tasks.archive.output import Output
from tasks.engines import Engine
from tasks.errors import JobError
from tasks.segmentation.job import (
    ArchiveJob,
    ArchivePlan,
    Identity,
    identify,
    remaining_units,
    unit_work,
)
from tasks.stream.meter import Meter
from tasks.stream.units import Unit

_PASSES = 5
_BLOCK_UNITS = 4096


@dataclass
class SessionReport:
    """What one session of a run did."""

    images: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    """From the first unit sent to the last committed, the start of the workers included."""

    seconds_to_first: float = 0.0
    """Until the first unit was committed."""

    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    """By stage: busy_s, busy_share (of its workers' time), images_per_s (of one worker), queue_units (units that wait
    before it, on average)."""

    workers: str = ""

    nodes: dict[str, int] = field(default_factory=dict)
    """Images refined on each node of the cluster."""

    warning: str = ""
    """Which stage starved another, and what to add; empty where they were in balance."""


def segment_remaining(job: ArchiveJob, plan: ArchivePlan, engine: Engine | None = None) -> SessionReport:
    """Give every image that has no committed row a mask or a reason.

    engine: by default the one that is open, or the job's, for this call.
    """
    if engine is None:
        with engines.at_hand(job.engine, cpus=job.cpus, gpus=job.gpus) as at_hand:
            return segment_remaining(job, plan, at_hand)
    session = SessionReport()
    if not plan.remaining_units:
        return session
    output = Output.at(job.output)
    identity = identify(job)
    work = unit_work(job, identity)
    start = time.monotonic()
    meter = Meter(plan.run_id)
    tracker = progress.Tracker(plan.images, plan.images - plan.remaining_images)
    logs.event(f"{plan.remaining_images} images remain", run=plan.run_id, stage="session", images=plan.images)
    try:
        with storage.explained(output.place):
            other = runs.begin(output.place, plan.run_id, _facts(job, identity, plan))
        if other is not None:
            progress.say(
                f"Another session of this job is at work ({other}): this one begins at the other end, and both share "
                "what is left."
            )
        for _ in range(_PASSES):  # Again where another session has listed images meanwhile
            units = remaining_units(output.manifest(identity.source_id), output, identity)
            done_before = session.images
            for report in engine.units(_from_other_end(units) if other is not None else units, work, meter):
                if not session.seconds_to_first:
                    session.seconds_to_first = time.monotonic() - start
                meter.add(report)
                session.images = meter.images
                tracker.advance(report.images, report.errors.total())
                if report.done_elsewhere and other is None:
                    progress.say("Another session of this job is at work; both share what is left.")
                    other = "elsewhere"
            if session.images == done_before:
                break
        session.warning = meter.warn()
    except JobError as error:
        _note_end(output, plan.run_id, runs.FAILED, _measured(session, meter, start), failure=str(error))
        reason = str(error)
        if not session.images:
            raise
        said = reason if reason.endswith("?") else reason.rstrip(".") + "."
        again = "" if "same command again" in reason else "; run the same command again to go on"
        raise type(error)(
            f"The archive stopped after {session.images} images of this session: {said} What is done is kept{again}."
        ) from error
    except BaseException:  # Cancelled, or interrupted at the keyboard
        _note_end(output, plan.run_id, runs.STOPPED, _measured(session, meter, start))
        raise
    finally:
        tracker.end()
    return _measured(session, meter, start)


def _from_other_end(units: Iterator[Unit]) -> Iterator[Unit]:
    """Some thousands at a time from their end: two sessions meet once in each, and pass by what the other has done."""
    while block := list(itertools.islice(units, _BLOCK_UNITS)):
        yield from reversed(block)


def _measured(session: SessionReport, meter: Meter, start: float) -> SessionReport:
    """The session with what was measured until now."""
    session.seconds = time.monotonic() - start
    if meter.images:
        session.errors = dict(meter.errors)
        session.stages = meter.stages()
        session.workers = meter.describe()
        session.nodes = {node: images for node, images in meter.nodes.items() if images}
    return session


def _facts(job: ArchiveJob, identity: Identity, plan: ArchivePlan) -> dict[str, Any]:
    """What the record says that the run is."""
    return {
        "job": job.model_dump(mode="json"),
        "deciding": identity.deciding,
        "model": identity.model_name,
        "class_names": list(identity.classes),
        "model_digest": identity.model_digest,
        "crf_engine": identity.predict.crf_engine,
        "images": plan.images,
    }


def _note_end(output: Output, run_id: str, status: str, session: SessionReport, **facts: str) -> None:
    facts = {name: storage_faults.scrub(text) for name, text in facts.items()}
    logs.event(f"session {status} after {session.images} images", run=run_id, stage="session", facts=facts)
    with contextlib.suppress(Exception):  # The storage may be what failed
        runs.end(output.place, run_id, status, asdict(session) if session.images else None, **facts)
