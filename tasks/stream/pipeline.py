"""The stream: read, score, refine. One Ray Data pipeline whose blocks are units of a few dozen images.

The stages are thin: what happens to an image is in `segcore`, where bytes come from in `tasks.archive`. A unit enters
as a list of entries and leaves as one committed Parquet file and a few counts; nothing else is written. Between the
stages travel one row per unit (Ray Data splits blocks between rows, never within one) with uint8 pixels at working
size and stride-8 scores in float16, never full-resolution probabilities.
"""

import functools
import itertools
import logging
import pickle
import platform
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segcore import masks
from segcore.checkpoint import PackedModel
from segcore.images import ImageError, Photograph
from segcore.inference import ScoreMap
from segcore.memory import DeviceShortError
from segcore.predictor import Predictor
from tasks import logs, storage
from tasks.archive.entries import Entry
from tasks.archive.entry_bytes import read_entries
from tasks.cluster import READ_CPUS, REFINE_CPUS, Plan
from tasks.errors import JobError
from tasks.storage import Location
from tasks.stream import care
from tasks.stream.apart import Apart
from tasks.stream.care import Watched
from tasks.stream.model import predictor_of
from tasks.stream.rows import GREY, MaskRows, failure_of, give_back_memory
from tasks.stream.units import (
    HANDED_ON,
    STAGES,
    WAITED,
    Destination,
    MaskParams,
    Record,
    Unit,
    UnitReport,
    open_row,
    split,
    unit_columns,
    unit_row,
    wait,
)

GREY_FILE = ("decode", masks.encode_mask(GREY[:, :, 0]))

_INIT_DEATHS = 2  # Workers of a stage in a row that may die while they begin


def stream(
    units: Iterable[Unit],
    params: MaskParams,
    destination: Destination,
    plan: Plan,
    last: type[MaskRows] = MaskRows,
    packed: "ray.ObjectRef[PackedModel] | None" = None,
    datasets: list[ray.data.Dataset] | None = None,
) -> Iterator[UnitReport]:
    """Send units through the three stages on the connected Ray cluster; yield a report as each is committed.

    last: what becomes of the scores.
    packed: the model, where the workers cannot read it by its path.
    datasets: takes what is streamed, for who may have to end it from another thread.
    Memory is bounded by Ray Data's back-pressure, not by the number of units.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # The run record and the progress say what it says
    context.print_on_execution_start = False
    # One node on which a worker cannot begin is not the end of it; Ray's own bound is none
    context.max_consecutive_actor_init_deaths = _INIT_DEATHS
    context.execution_options.preserve_order = False
    rows = [unit_columns(unit) for unit in units]
    if not rows:
        return
    # Without a bound on Ray's side: `tasks.stream.care` counts, and finds the image that a worker dies of.
    # Ray 2.60 announces other names for the retries below, and does not have them yet
    warnings.filterwarnings("ignore", message=".*ray_remote_args(_fn)?. is deprecated")
    whole: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    dataset = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(
            cast(Any, read_unit),
            fn_kwargs={"params": params, "destination": destination},
            num_cpus=READ_CPUS,
            max_retries=-1,
            compute=TaskPoolStrategy(size=min(plan.num_readers, len(rows))),
            **whole,
        )
        .map_batches(
            Score,
            fn_constructor_kwargs={"params": params, "packed": packed},
            num_cpus=plan.score_cpus,
            num_gpus=plan.score_gpus or None,
            max_task_retries=-1,
            compute=_pool(min(plan.num_scorers, len(rows))),
            ray_remote_args_fn=_placed(plan.score_nodes[: len(rows)]),
            **whole,
        )
        .map_batches(
            Refine,
            fn_constructor_kwargs={"params": params, "destination": destination, "last": last},
            num_cpus=REFINE_CPUS,
            max_task_retries=-1,
            compute=_pool(min(plan.num_refiners, len(rows))),
            ray_remote_args_fn=_placed(plan.refine_nodes[: len(rows)]),
            **whole,
        )
    )
    if datasets is not None:
        datasets.append(dataset)
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        table: Any = batch
        for report in table["report"].to_pylist():
            yield pickle.loads(report)


def _placed(nodes: tuple[str, ...]) -> Callable[[], dict[str, Any]] | None:
    """What Ray Data asks before it starts each actor: where to; None leaves that to Ray."""
    if not nodes:
        return None
    turns = itertools.cycle(nodes)
    # Soft: where the node is gone, an actor that is started again goes elsewhere
    return lambda: {"scheduling_strategy": NodeAffinitySchedulingStrategy(next(turns), soft=True)}


def _pool(size: int) -> ActorPoolStrategy:
    """Actors with one unit at work and one that waits.

    With the misleading option a unit is worked on in the thread that Ray runs its task in, which alone knows the
    attempt (`tasks.stream.care`); there is one task at a time with it and without.
    """
    return ActorPoolStrategy(
        size=size, max_tasks_in_flight_per_actor=2, max_concurrent_calls_per_actor=1, enable_true_multi_threading=True
    )


def read_unit(table: pa.Table, params: MaskParams, destination: Destination) -> pa.Table:
    """Stage 1: read and decode the images of a unit, scaled to working size."""
    start = time.perf_counter()
    logs.in_worker()
    name: str = table["unit"][0].as_py()
    with storage.explained(destination.masks):
        committed = storage.exists(destination.file_of(name))
    if committed:
        return unit_row(name, None, 0.0, [], [])
    entries: tuple[Entry, ...] = pickle.loads(zlib.decompress(table["entries"][0].as_py()))
    give_back_memory()
    records, pixels = [], []
    reading = functools.partial(Reading, destination.source, params)
    with care.in_hands(name, reading, lambda: reading, "reading", params.limits, GREY_FILE) as hands:
        for entry, data in _bytes_of(destination.source, entries, hands):
            record = Record(entry)  # Of the bytes that were read, where they are newer than the listing
            try:
                if isinstance(data, ImageError):
                    raise data
                record.size = len(data)
                photograph = hands("decode", data)
            except ImageError as error:
                record.error = error
            else:
                record.width, record.height = photograph.width, photograph.height
                record.note = photograph.note
                record.shape = (photograph.image.shape[0], photograph.image.shape[1])
                pixels.append(photograph.image)
            records.append(record)
    return unit_row(name, records, time.perf_counter() - start, pixels, [])


def _bytes_of(
    root: Location, entries: tuple[Entry, ...], hands: Watched | Apart
) -> Iterator[tuple[Entry, bytes | ImageError]]:
    if not hands.apart:
        yield from read_entries(root, entries)  # Those of one container together
        return
    for entry in entries:
        try:
            yield hands("fetch", entry, limited=False)  # An outage is no image's fault, however long it lasts
        except ImageError as error:
            yield entry, error


class Score:
    """Stage 2: actor that scores; holds the model."""

    def __init__(self, params: MaskParams, packed: "ray.ObjectRef[PackedModel] | None" = None) -> None:
        logs.in_worker()
        self.params, self.packed = params, packed
        self.predictor = predictor_of(params, None if packed is None else ray.get(packed))
        self.device = self.predictor.device

    def __call__(self, table: pa.Table) -> pa.Table:
        start = time.perf_counter()
        name, records, seconds, pixels, _ = open_row(table)
        if records is None:
            return table
        give_back_memory()
        seconds |= wait("score", seconds)
        usable = [record for record in records if not record.error]
        images = split(pixels, [(*record.shape, 3) for record in usable])
        scores = []
        for record, outcome in zip(usable, self._score(name, images), strict=True):
            if isinstance(outcome, Exception):
                record.error = failure_of("scoring", outcome)
                continue
            record.scores_shape, record.extent_px = outcome.scores.shape, outcome.extent_px
            scores.append(outcome.scores)
        kept = [image for record, image in zip(usable, images, strict=True) if not record.error]
        seconds = {**seconds, "score": time.perf_counter() - start, HANDED_ON: time.time()}
        return unit_row(name, records, seconds, kept, scores, device=self.device)

    def _score(self, unit: str, images: list[np.ndarray]) -> list[ScoreMap | Exception]:
        control = ("score", [GREY])
        with care.in_hands(unit, self._here, self._anew, "scoring", self.params.limits, control) as hands:
            if not hands.apart:
                try:
                    return [*self.predictor.score(images, each_batch=hands.touch)]
                except Exception:  # One image may have spoilt its batch: ask again for each alone
                    pass
            outcomes: list[ScoreMap | Exception] = []
            proven = False
            for image in images:
                try:
                    outcomes += hands("score", [image])
                except (JobError, DeviceShortError):
                    raise
                except Exception as error:
                    outcomes.append(error)
                    if not isinstance(error, ImageError):
                        hands.renew(error)
                    if not proven:
                        # Where a plain grey image fails too, it is not the images' fault, and no row may say so
                        hands("score", [GREY])
                        proven = True
            return outcomes

    def _here(self) -> Predictor:
        """The predictor of this process."""
        return self.predictor

    def _anew(self) -> "functools.partial[Predictor]":
        """What makes the same in another process, which is to have the memory of the device for itself."""
        if self.device.split("/")[0] != "cpu":
            self.predictor.release()
        return functools.partial(predictor_of, self.params, None if self.packed is None else ray.get(self.packed))


class Reading:
    """What reading does to one image, in a worker or apart from it."""

    def __init__(self, root: Location, params: MaskParams) -> None:
        self.root, self.predictor = root, predictor_of(params)

    def fetch(self, entry: Entry) -> tuple[Entry, bytes | ImageError]:
        """The bytes of one image."""
        return next(read_entries(self.root, [entry]))

    def decode(self, data: bytes) -> Photograph:
        """The photograph at working size. Raises ImageError."""
        return self.predictor.decode(data)


class Refine:
    """Stage 3: actor that takes the last step of a unit."""

    def __init__(self, params: MaskParams, destination: Destination, last: type[MaskRows] = MaskRows) -> None:
        logs.in_worker()
        self.rows = last(params, destination)
        self.node = f"{platform.node()} {ray.get_runtime_context().get_node_id()[:8]}" if ray.is_initialized() else ""

    def __call__(self, table: pa.Table) -> pa.Table:
        start = time.perf_counter()
        name, records, seconds, pixels, scores = open_row(table)
        report = UnitReport(name, node=self.node)
        if records is None:
            report.done_elsewhere = True
            return pa.table({"report": [pickle.dumps(report)]})
        give_back_memory()
        last = self.rows
        seconds |= wait("refine", seconds)
        last.begin(records)
        usable = [record for record in records if not record.error]
        images = iter(split(pixels, [(*record.shape, 3) for record in usable]))
        maps = iter(split(scores.view(np.float16), [record.scores_shape for record in usable]))
        device = table["device"][0].as_py()
        rows = []
        with care.in_hands(
            name, lambda: last, lambda: functools.partial(_itself, last), last.what, last.params.limits, last.control()
        ) as hands:
            for record in records:
                row = last.base_row(record)
                if record.error is None:
                    try:
                        row |= hands("columns", record, next(images), next(maps), device)
                    except JobError:
                        raise
                    except Exception as error:
                        record.error = failure_of(last.what, error)
                        row = last.base_row(record)
                rows.append(row)
                report.images += 1
                if record.error is not None:
                    report.errors[record.error.kind.value] += 1
        with storage.explained(last.destination.masks):
            last.commit(name, rows)
        report.seconds = {"refine": time.perf_counter() - start}
        report.seconds |= {stage: seconds[stage] for stage in STAGES if stage in seconds}
        report.waits = {stage: seconds[WAITED + stage] for stage in STAGES if WAITED + stage in seconds}
        if report.errors:
            logs.event(
                f"unit {name} has {report.errors.total()} error rows",
                run=last.destination.run_id,
                stage="refine",
                level=logging.WARNING,
                unit=name,
                errors={row["image_id"]: row["error"] for row in rows if row.get("error")},
            )
        return pa.table({"report": [pickle.dumps(report)]})


def _itself(last: MaskRows) -> MaskRows:
    return last
