"""The stream: read, score, refine. One Ray Data pipeline whose blocks are units of a few dozen images.

The stages are thin: what happens to an image is in `segcore`, where bytes come from in `tasks.archive`. A unit enters
as a list of entries and leaves as one committed Parquet file and a few counts; nothing else is written. Between the
stages travel one row per unit (Ray Data splits blocks between rows, never within one) with uint8 pixels at working
size and stride-8 scores in float16, never full-resolution probabilities.
"""

import contextlib
import ctypes
import functools
import io
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
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segcore import checkpoint, masks
from segcore.checkpoint import LoadedModel, PackedModel
from segcore.images import ErrorKind, ImageError, Photograph
from segcore.inference import ScoreMap
from segcore.memory import DeviceShortError, is_out_of_memory
from segcore.predictor import Predictor
from tasks import logs, storage
from tasks.archive.entries import Entry
from tasks.archive.entry_bytes import read_entries
from tasks.archive.schema import MASKS, empty_row
from tasks.cluster import READ_CPUS, REFINE_CPUS, Plan
from tasks.errors import JobError
from tasks.models.remote import local_model
from tasks.storage import Location
from tasks.stream import care
from tasks.stream.apart import Apart
from tasks.stream.care import Watched
from tasks.stream.png_files import write_png
from tasks.stream.units import (
    HANDED_ON,
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

STAGES = ("read", "score", "refine")

_GREY = np.full((65, 65, 3), 128, np.uint8)
"""An image that nothing can be wrong with: where it fails too, the photographs are not to blame."""

_GREY_FILE = ("decode", masks.encode_mask(_GREY[:, :, 0]))

_INIT_DEATHS = 2  # Workers of a stage in a row that may die while they begin

_ROW_GROUP_BYTES = 32 * 2**20  # Row groups are cut by bytes: a binary column of one chunk overflows past 2 GiB


def stream(
    units: Iterable[Unit],
    params: MaskParams,
    destination: Destination,
    plan: Plan,
    last: "type[Refine] | None" = None,
    packed: "ray.ObjectRef[PackedModel] | None" = None,
    datasets: list[ray.data.Dataset] | None = None,
) -> Iterator[UnitReport]:
    """Send units through the three stages on the connected Ray cluster; yield a report as each is committed.

    last: what becomes of the scores; `Refine`, or a kind of it that writes other rows (the evaluation's).
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
            last or Refine,
            fn_constructor_kwargs={"params": params, "destination": destination},
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
    _give_back_memory()
    records, pixels = [], []
    reading = functools.partial(Reading, destination.source, params)
    with care.in_hands(name, reading, lambda: reading, "reading", params.limits, _GREY_FILE) as hands:
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
        _give_back_memory()
        seconds |= wait("score", seconds)
        usable = [record for record in records if not record.error]
        images = split(pixels, [(*record.shape, 3) for record in usable])
        scores = []
        for record, outcome in zip(usable, self._score(name, images), strict=True):
            if isinstance(outcome, Exception):
                record.error = _failure("scoring", outcome)
                continue
            record.scores_shape, record.extent_px = outcome.scores.shape, outcome.extent_px
            scores.append(outcome.scores)
        kept = [image for record, image in zip(usable, images, strict=True) if not record.error]
        seconds = {**seconds, "score": time.perf_counter() - start, HANDED_ON: time.time()}
        return unit_row(name, records, seconds, kept, scores, device=self.device)

    def _score(self, unit: str, images: list[np.ndarray]) -> list[ScoreMap | Exception]:
        control = ("score", [_GREY])
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
                        hands("score", [_GREY])
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


def predictor_of(params: MaskParams, packed: PackedModel | None = None) -> Predictor:
    """What takes the images of a job to masks, in any worker; the model is loaded where something is scored."""
    try:
        # One thread: there is a worker on every core
        return Predictor(functools.partial(_load, params, packed), params.predict, num_threads=1)
    except ValueError as error:  # The CRF engine that the run began with
        raise JobError(f"Not every node can do this job. {error}") from None


def _load(params: MaskParams, packed: PackedModel | None) -> LoadedModel:
    if packed is not None:
        model = checkpoint.load_packed(packed)
    else:
        model = checkpoint.load(local_model(params.model), untrained=params.untrained, seed=params.seed)
    if model.digest != params.model_digest:
        raise JobError(f"The model {params.model} is not the one that the run began with: was it replaced?")
    return model


def _failure(what: str, error: Exception) -> ImageError:
    if isinstance(error, ImageError):
        return error
    return ImageError(ErrorKind.MEMORY if is_out_of_memory(error) else ErrorKind.FAILED, f"{what} failed: {error}")


class Refine:
    """Stage 3: actor that sharpens, encodes and commits a unit.

    Who wants other rows than masks overrides `begin`, `base_row`, `columns` and `commit`.
    """

    what = "refinement"
    """What an error row says has failed."""

    def __init__(self, params: MaskParams, destination: Destination) -> None:
        logs.in_worker()
        self.params, self.destination = params, destination
        self.predictor = predictor_of(params)
        self.node = platform.node()
        if ray.is_initialized():
            self.node += f" {ray.get_runtime_context().get_node_id()[:8]}"

    def __call__(self, table: pa.Table) -> pa.Table:
        start = time.perf_counter()
        name, records, seconds, pixels, scores = open_row(table)
        report = UnitReport(name, node=self.node)
        if records is None:
            report.done_elsewhere = True
            return pa.table({"report": [pickle.dumps(report)]})
        _give_back_memory()
        seconds |= wait("refine", seconds)
        self.begin(records)
        usable = [record for record in records if not record.error]
        images = iter(split(pixels, [(*record.shape, 3) for record in usable]))
        maps = iter(split(scores.view(np.float16), [record.scores_shape for record in usable]))
        device = table["device"][0].as_py()
        rows = []
        with care.in_hands(
            name, lambda: self, lambda: functools.partial(_itself, self), self.what, self.params.limits, self.control()
        ) as hands:
            for record in records:
                row = self.base_row(record)
                if record.error is None:
                    try:
                        row |= hands("columns", record, next(images), next(maps), device)
                    except JobError:
                        raise
                    except Exception as error:
                        record.error = _failure(self.what, error)
                        row = self.base_row(record)
                rows.append(row)
                report.images += 1
                if record.error is not None:
                    report.errors[record.error.kind.value] += 1
        with storage.explained(self.destination.masks):
            self.commit(name, rows)
        report.seconds = {"refine": time.perf_counter() - start}
        report.seconds |= {stage: seconds[stage] for stage in STAGES if stage in seconds}
        report.waits = {stage: seconds[WAITED + stage] for stage in STAGES if WAITED + stage in seconds}
        if report.errors:
            logs.event(
                f"unit {name} has {report.errors.total()} error rows",
                run=self.destination.run_id,
                stage="refine",
                level=logging.WARNING,
                unit=name,
                errors={row["image_id"]: row["error"] for row in rows if row.get("error")},
            )
        return pa.table({"report": [pickle.dumps(report)]})

    def begin(self, records: list[Record]) -> None:
        """Called once a unit, before its images are refined."""

    def control(self) -> tuple[Any, ...] | None:
        """A call for columns of an image that nothing is wrong with."""
        record = Record(Entry("", "", "file", b"", 0, None, ""), None, 65, 65, (65, 65), extent_px=(65, 65))
        return "columns", record, _GREY, np.zeros((len(self.params.classes), 9, 9), np.float16), ""

    def base_row(self, record: Record) -> dict[str, Any]:
        """The row of an image as far as no mask is needed, with its error where it has one."""
        entry = record.entry
        row = empty_row() | {
            "image_id": entry.image_id,
            "run_id": self.destination.run_id,
            "uri": entry.uri,
            "source_size": entry.size if entry.size is not None else record.size,
            "source_etag": entry.version,
            "width": record.width or None,
            "height": record.height or None,
            "model": self.params.model_name,
            "note": record.note or None,
        }
        if record.error is not None:
            row |= {"error_kind": record.error.kind.value, "error": str(record.error)}
        return row

    def columns(self, record: Record, image: np.ndarray, scores: np.ndarray, device: str) -> dict[str, Any]:
        """What the scores of an image add to its row."""
        refined = self.predictor.refine(image, ScoreMap(scores, record.extent_px))
        mask = self.predictor.mask(refined.labels, record.width, record.height)
        height, width = mask.shape
        classes = masks.summarise(refined.labels, refined.class_confidence, width, height)
        columns = {
            "mask": masks.encode_mask(mask),
            "mask_width": width,
            "mask_height": height,
            "classes": [
                {
                    "index": c.index,
                    "name": self.params.classes[c.index],
                    "pixels": c.pixels,
                    "confidence": c.confidence,
                    "box": dict(zip(("x0", "y0", "x1", "y1"), c.box, strict=True)),
                }
                for c in classes
            ],
            "confidence": refined.confidence,
            "entropy": refined.entropy,
            "changed_by_crf": refined.changed,
            "device": device,
        }
        if self.params.keep_mask_before_crf:
            columns["mask_before_crf"] = masks.encode_mask(
                self.predictor.mask(refined.labels_before, record.width, record.height)
            )
        return columns

    def commit(self, unit: str, rows: list[dict[str, Any]]) -> None:
        """Write the rows of a unit, whole or not at all."""
        if self.destination.png is not None:
            for row in rows:
                write_png(self.destination.png, row["image_id"], row["mask"])
        # Last, since its existence means that the unit is done
        write_rows(self.destination.file_of(unit), rows)


def _give_back_memory() -> None:
    """Return what the last unit has left free to the system: buffers of ever other sizes leave holes that add up."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # Only the GNU C library has it
        ctypes.CDLL(None).malloc_trim(0)


def _itself(refine: Refine) -> Refine:
    return refine


def write_rows(place: Location, rows: list[dict[str, Any]] | pa.Table) -> None:
    """Write one mask file, whole or not at all."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=MASKS)
    buffer = io.BytesIO()
    per_row = max(1, table.nbytes // max(1, table.num_rows))
    # PNG and identities are dense already; the other columns are small
    pq.write_table(table, buffer, compression="zstd", row_group_size=max(1, _ROW_GROUP_BYTES // per_row))
    storage.write_whole(place, buffer.getvalue())
