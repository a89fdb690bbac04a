"""A session of the archive job: doing what remains of its run, on an engine.

What is done stands in the mask files alone, so a session may end anywhere; the run record says how it went.
"""

import contextlib
import itertools
import random
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from tasks import engines, logs, progress, storage, storage_faults
from tasks.archive import runs
from tasks.archive.output import Output
from tasks.engines import Engine
from tasks.errors import JobError
from tasks.segmentation.archive_job import (
    ArchiveJob,
    ArchivePlan,
    Identity,
    identify,
    remaining_copies,
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
            company = _Company(output, plan.run_id, _facts(job, identity, plan))
        for _ in range(_PASSES):  # Again where another session has listed images meanwhile
            done_before = session.images
            manifest = output.manifest(identity.source_id)
            # Rows must not outlive a listing that another session has written and not yet made durable
            storage.make_durable(manifest.folder, output.place)
            # Copies take the masks of what is committed by then
            for remaining in (remaining_units, remaining_copies) if job.skip_duplicates else (remaining_units,):
                units = remaining(manifest, output, identity)
                for report in engine.units(company.share(units), work, meter):
                    if not session.seconds_to_first:
                        session.seconds_to_first = time.monotonic() - start
                    meter.add(report)
                    session.images = meter.images
                    tracker.advance(report.images, report.errors.total())
                    company.look()
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
        kept = "" if "What is done is kept" in reason else f" What is done is kept{again}."
        raise type(error)(f"The archive stopped after {session.images} images of this session: {said}{kept}") from error
    except BaseException:  # Cancelled, or interrupted at the keyboard
        _note_end(output, plan.run_id, runs.STOPPED, _measured(session, meter, start))
        raise
    finally:
        tracker.end()
    return _measured(session, meter, start)


class _Company:
    """Other sessions of the same run: sharing what remains costs them one look a minute, and no lock.

    A unit that is committed is not done again, so sessions need only take their units in different orders.
    """

    def __init__(self, output: Output, run_id: str, facts: dict[str, Any]) -> None:
        self._place, self._run_id = output.place, run_id
        self._turn, others = runs.begin(output.place, run_id, facts)
        self._next_look = time.monotonic()  # Another may have begun at the same moment
        self._said = False
        self._say(others)

    def look(self) -> None:
        """Note that this session is at work, and see who else is."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + runs.BEAT_S
        with contextlib.suppress(Exception):  # Where the storage fails, the next commit finds it
            self._turn, others = runs.beat(self._place, self._run_id)
            self._say(others)

    def share(self, units: Iterator[Unit]) -> Iterator[Unit]:
        """The first session takes units from the front, the second from the back, any further at random."""
        while block := deque(itertools.islice(units, _BLOCK_UNITS)):
            while block:
                if self._turn > 1:
                    block.rotate(random.randrange(len(block)))
                yield block.pop() if self._turn == 1 else block.popleft()

    def _say(self, others: list[str]) -> None:
        if others and not self._said:
            self._said = True
            progress.say(f"Another session of this job is at work ({', '.join(others)}): they share what is left.")


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
        "class_colours": [list(colour) for colour in identity.colours],
        "model_digest": identity.model_digest,
        "crf_engine": identity.predict.crf_engine,
        "images": plan.images,
    }


def _note_end(output: Output, run_id: str, status: str, session: SessionReport, **facts: str) -> None:
    facts = {name: storage_faults.scrub(text) for name, text in facts.items()}
    logs.event(f"session {status} after {session.images} images", run=run_id, stage="session", facts=facts)
    with contextlib.suppress(Exception):  # The storage may be what failed
        runs.end(output.place, run_id, status, asdict(session) if session.images else None, **facts)
