"""What an archive will cost: seconds of each stage on a sample of its images, and time and price on given nodes.

The sample goes through the pipeline's own stages in this process, on one core each; the rest is arithmetic.
"""

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tasks import storage
from tasks.archive.entries import Entry
from tasks.errors import JobError
from tasks.segmentation.archive_job import START_S, ArchiveJob, identify, list_images, mask_params
from tasks.stream.staged import StagedWorker
from tasks.stream.units import STAGES, Destination, Unit
from tasks.stream.worker import UnitWork

_WARM_UP_IMAGES = 1


@dataclass(frozen=True)
class Nodes:
    """Machines that could do the work."""

    count: int
    cpus: int
    """Of each."""

    gpus: int
    """Of each."""

    price_per_hour: float
    """Of each, in any currency."""


@dataclass(frozen=True)
class Sample:
    """What was measured."""

    images_listed: int
    images: int
    errors: int
    """Of the images of the sample."""

    seconds: dict[str, float]
    """Of each stage, per image, on one core; of scoring, on `device`."""

    device: str
    """Where it was scored, and in which precision: "cpu/bf16"."""


@dataclass(frozen=True)
class Estimate:
    """What some nodes would need."""

    images_per_s: float
    seconds: float
    price: float
    limit: str
    """The stage that limits, in words."""


def measure(job: ArchiveJob, num_sample: int, seed: int = 0) -> Sample:
    """List a source, and time the stages on images drawn from all of it.

    Writes nothing but a temporary folder. Raises JobError where there are no images.
    """
    source = job.listed
    listed, entries = _draw(list_images(job), num_sample + 1, seed)
    if not entries:
        raise JobError(f"{job.source} holds no images: is it the right folder or prefix? Hidden files do not count.")
    params = mask_params(job, identify(job))
    destination = Destination(storage.locate(job.output) / "masks", "estimate", source.location)
    worker = StagedWorker(UnitWork(params, destination))
    seconds = dict.fromkeys(STAGES, 0.0)
    errors = measured = 0
    for number, entry in enumerate(entries):
        read = worker.read_unit(Unit(f"sample-{number}", (entry,)), _unwatched)
        report = worker.finish_unit(read, worker.score_unit(read, _unwatched), _unwatched)
        # The first image pays for what is made once: kernels, lattices, connections
        if number < _WARM_UP_IMAGES and len(entries) > 1:
            continue
        measured += 1
        errors += report.errors.total()
        for stage in STAGES:
            seconds[stage] += report.seconds[stage]
    device = worker.predictor.device
    return Sample(listed, measured, errors, {s: seconds[s] / measured for s in STAGES}, device)


def estimate(sample: Sample, nodes: Nodes, gpu_images_per_s: float | None = None) -> Estimate:
    """Time and price of the whole source on these nodes.

    gpu_images_per_s: of one GPU, where the sample was not scored on one. Raises JobError where that is missing.
    """
    cpus, gpus = nodes.count * nodes.cpus, nodes.count * nodes.gpus
    beside = sample.seconds["read"] + sample.seconds["refine"]
    if not gpus:
        rate = cpus / (beside + sample.seconds["score"])
        dearest = max(STAGES, key=lambda stage: sample.seconds[stage])
        limit = f"the CPUs, which spend the most on {_WORDS[dearest]}"
    else:
        if gpu_images_per_s is None and not sample.device.startswith("cuda"):
            raise JobError("The sample was scored on a CPU: give the speed of one GPU with --gpu-images-per-s.")
        scored = gpus * (gpu_images_per_s or 1 / sample.seconds["score"])
        if cpus <= gpus:
            raise JobError("Each GPU needs a CPU beside it, and others read and refine: give the nodes more CPUs.")
        served = (cpus - gpus) / beside
        rate = min(scored, served)
        others = "refinement" if sample.seconds["refine"] >= sample.seconds["read"] else "reading"
        limit = "scoring: more GPUs make it faster" if scored < served else f"{others}: more CPUs make it faster"
    seconds = START_S + sample.images_listed / rate
    return Estimate(rate, seconds, nodes.count * nodes.price_per_hour * seconds / 3600, limit)


_WORDS = {"read": "reading", "score": "scoring", "refine": "refinement"}


def _draw(entries: Iterator[Entry], wanted: int, seed: int) -> tuple[int, list[Entry]]:
    """How many there are, and some of them drawn evenly, without holding them all."""
    dice = random.Random(seed)
    kept: list[tuple[float, int, Entry]] = []
    number = 0
    for number, entry in enumerate(entries, start=1):
        heapq.heappush(kept, (dice.random(), number, entry))
        if len(kept) > wanted:
            heapq.heappop(kept)
    return number, [entry for _, _, entry in kept]


def _unwatched(stage: str) -> None:
    """Nobody watches: the sample is measured where it is asked for."""
