"""A session of the archive job: doing what remains of its run, wave by wave.

What is done stands in the mask files alone, so a session may end anywhere; the run record says how it went.
"""

import contextlib
import itertools
import random
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import ray

from segcore import checkpoint
from tasks import cluster, logs, progress, storage, storage_faults
from tasks.archive import runs
from tasks.archive.output import Output
from tasks.errors import InterruptedJobError, JobError
from tasks.segmentation.job import (
    ArchiveJob,
    ArchivePlan,
    Identity,
    identify,
    mask_params,
    remaining_units,
)
from tasks.stream.growth import stream_growing
from tasks.stream.meter import Meter
from tasks.stream.units import Destination, Unit

WAVE_UNITS = 2048
"""Units handed to Ray at a time: bounds the driver's memory, and lets a grown cluster be planned anew. More on a large
cluster, `wave_units`, whose workers take as long to start as those of a small one."""

_WAVE_UNITS_OF_A_CPU = 16

_PASSES = 5


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


def segment_remaining(job: ArchiveJob, plan: ArchivePlan) -> SessionReport:
    """Stream every image that has no committed row through reading, scoring and refinement."""
    session = SessionReport()
    if not plan.remaining_units:
        return session
    output = Output.at(job.output)
    identity = identify(job)
    params = mask_params(job, identity)
    destination = Destination(
        output.masks_folder(plan.run_id),
        plan.run_id,
        storage.locate(job.source),
        output.png_folder(plan.run_id) if job.png else None,
    )
    free = (1.0, 0.0)
    start = time.monotonic()
    meter: Meter | None = None
    tracker = progress.Tracker(plan.images, plan.images - plan.remaining_images)
    logs.event(f"{plan.remaining_images} images remain", run=plan.run_id, stage="session", images=plan.images)
    try:
        with storage.explained(output.place):
            # Where another session of this run may be at work, begin elsewhere: both then share what is left
            busy_already = runs.status(output.place, plan.run_id) == runs.RUNNING
            spread_seed = random.randrange(2**32) if busy_already else None
            runs.begin(output.place, plan.run_id, _facts(job, identity, plan))
        with cluster.connected():
            cluster.grow(job.cpus, job.gpus)
            packed = _packed(job)
            for _ in range(_PASSES):  # Again where another session has listed images meanwhile
                units = remaining_units(output.manifest(identity.source_id), output, identity)
                waves = iter(lambda: list(itertools.islice(units, wave_units(free[0]))), [])  # noqa: B023
                done_before = session.images
                for wave in waves:
                    free = cluster.free_resources(free)
                    workers = cluster.plan_nodes(cluster.free_nodes())
                    session.workers = workers.describe()
                    meter = meter or Meter(plan.run_id)
                    for report in stream_growing(
                        _spread(wave, spread_seed), params, destination, workers, meter, packed=packed
                    ):
                        if not session.seconds_to_first:
                            session.seconds_to_first = time.monotonic() - start
                        meter.add(report)
                        session.images = meter.images
                        tracker.advance(report.images, report.errors.total())
                if session.images == done_before:
                    break
            if meter is not None:
                session.warning = meter.warn()
    except JobError:
        _note_end(output, plan.run_id, runs.FAILED, _measured(session, meter, start))
        raise
    except Exception as error:
        reason = cluster.explain(error)
        said = reason if reason.endswith("?") else reason.rstrip(".") + "."
        _note_end(output, plan.run_id, runs.FAILED, _measured(session, meter, start), failure=reason)
        kind = InterruptedJobError if cluster.may_pass(error) else JobError
        again = "" if "same command again" in reason else "; run the same command again to go on"
        raise kind(
            f"The archive stopped after {session.images} images of this session: {said} What is done is kept{again}."
        ) from error
    except BaseException:  # Cancelled, or interrupted at the keyboard
        _note_end(output, plan.run_id, runs.STOPPED, _measured(session, meter, start))
        raise
    finally:
        tracker.end()
    return _measured(session, meter, start)


def _measured(session: SessionReport, meter: Meter | None, start: float) -> SessionReport:
    """The session with what was measured until now."""
    session.seconds = time.monotonic() - start
    if meter is not None:
        session.errors = dict(meter.errors)
        session.stages = meter.stages()
        session.nodes = {node: images for node, images in meter.nodes.items() if images}
    return session


def _packed(job: ArchiveJob) -> "ray.ObjectRef[checkpoint.PackedModel] | None":
    """The model in Ray's object store, where the workers do not see the files of this machine."""
    if not cluster.is_shared() or job.untrained or "://" in job.model:
        return None
    return ray.put(checkpoint.pack(job.model))


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


def wave_units(cpus: float) -> int:
    """Units of one wave on a cluster with this many CPUs free: ten minutes of work and more against a start of 20 s."""
    return max(WAVE_UNITS, int(_WAVE_UNITS_OF_A_CPU * cpus))


def _spread(units: list[Unit], seed: int | None) -> list[Unit]:
    """Start somewhere else in the list, so that two sessions of one run share the work instead of racing."""
    if seed is None or not units:
        return units
    start = random.Random(seed).randrange(len(units))
    return units[start:] + units[:start]
