"""The stream: read, score, refine. One Ray Data pipeline whose blocks are units of a few dozen images.

The stages are thin: what happens to an image is in `segcore`, where bytes come from in `tasks.sources`. A unit enters
as a list of entries and leaves as one committed Parquet file and a few counts; nothing else is written. Between the
stages travel one row per unit (Ray Data splits blocks between rows, never within one) with uint8 pixels at working
size and stride-8 scores in float16, never full-resolution probabilities.
"""

import collections
import contextlib
import ctypes
import dataclasses
import io
import itertools
import logging
import pickle
import platform
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segcore import checkpoint, masks, refinement
from segcore.checkpoint import PackedModel
from segcore.images import ErrorKind, ImageError, decode, resize_labels
from segcore.inference import InferenceParams, ScoreMap, Scorer
from segcore.refinement import Backend, CrfParams, Refined, refine_scores
from tasks import logs, storage
from tasks.cluster import READ_CPUS, REFINE_CPUS, Plan
from tasks.errors import JobError
from tasks.png_files import write_png
from tasks.remote_models import local_model
from tasks.schema import MASKS, empty_row
from tasks.sources import Entry, read_entries
from tasks.storage import Location

STAGES = ("read", "score", "refine")

_PRECISIONS = {"torch.bfloat16": "bf16", "torch.float16": "fp16", "torch.float32": "fp32"}

_HANDED_ON, _WAITED = "handed on at", "waited for "  # Beside the busy times of the stages, on the way with a unit

_RETRIES = 5  # Of a unit whose worker died under it; Ray's own bound is none

_INIT_DEATHS = 2  # Workers of a stage in a row that may die while they begin

_ROW_GROUP_BYTES = 32 * 2**20  # Row groups are cut by bytes: a binary column of one chunk overflows past 2 GiB


@dataclass(frozen=True)
class MaskParams:
    """Everything that the stages need to turn an image into a row."""

    model: str
    """Name, or path or URI of a model directory."""

    untrained: bool
    seed: int

    model_name: str
    """What the rows say of the model."""

    model_digest: str
    """What every scorer must have loaded."""

    classes: tuple[str, ...]
    """Names by label."""

    inference: InferenceParams
    crf: CrfParams | None
    crf_backend: Backend

    max_pixels: int
    """Larger photographs become error rows."""

    own_size: bool
    """Whether the mask has the photograph's size rather than the working size."""

    keep_mask_before_crf: bool


@dataclass(frozen=True)
class Unit:
    """What flows through as one piece and is committed as one file."""

    name: str
    """Of its mask file, without ending: a function of the manifest part."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Destination:
    """Where the rows of a run go."""

    masks: Location
    """Folder of the run's mask files."""

    run_id: str
    source: Location
    """What the entries are of."""

    png: Location | None = None
    """Folder for the masks as PNG files of their own."""

    def file_of(self, unit: str) -> Location:
        """The one file that a unit is committed as."""
        return self.masks / mask_file(unit)


@dataclass
class UnitReport:
    """What became of one unit."""

    unit: str
    images: int = 0
    errors: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Error rows by kind."""

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    """Busy time of each stage."""

    waits: dict[str, float] = dataclasses.field(default_factory=dict)
    """Time that the unit has waited before each stage, in s; between machines only as good as their clocks."""

    node: str = ""
    """Where it was refined: name and Ray's number of the node."""

    done_elsewhere: bool = False
    """Whether another run of the same job had committed it already."""


@dataclass
class Record:
    """One image on its way: pixels and scores travel beside it, in one buffer for the unit."""

    entry: Entry
    size: int | None = None
    width: int = 0
    height: int = 0
    shape: tuple[int, int] = (0, 0)
    scores_shape: tuple[int, int, int] = (0, 0, 0)
    extent_px: tuple[int, int] = (0, 0)
    error: ImageError | None = None


def mask_file(unit: str) -> str:
    """File name of a unit's rows."""
    return f"part-{unit}.parquet"


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
    rows = [_row(unit) for unit in units]
    if not rows:
        return
    # Ray 2.60 announces other names for the retries below, and does not have them yet
    warnings.filterwarnings("ignore", message=".*ray_remote_args(_fn)?. is deprecated")
    whole: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    dataset = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(
            cast(Any, read_unit),
            fn_kwargs={"params": params, "destination": destination},
            num_cpus=READ_CPUS,
            max_retries=_RETRIES,
            compute=TaskPoolStrategy(size=min(plan.num_readers, len(rows))),
            **whole,
        )
        .map_batches(
            Score,
            fn_constructor_kwargs={"params": params, "packed": packed},
            num_cpus=plan.score_cpus,
            num_gpus=plan.score_gpus or None,
            max_task_retries=_RETRIES,
            compute=ActorPoolStrategy(size=min(plan.num_scorers, len(rows)), max_tasks_in_flight_per_actor=2),
            ray_remote_args_fn=_placed(plan.score_nodes[: len(rows)]),
            **whole,
        )
        .map_batches(
            last or Refine,
            fn_constructor_kwargs={"params": params, "destination": destination},
            num_cpus=REFINE_CPUS,
            max_task_retries=_RETRIES,
            compute=ActorPoolStrategy(size=min(plan.num_refiners, len(rows)), max_tasks_in_flight_per_actor=2),
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


def unit_table(unit: Unit) -> pa.Table:
    """What the first stage is handed."""
    return pa.Table.from_pylist([_row(unit)])


def _row(unit: Unit) -> dict[str, Any]:
    return {"unit": unit.name, "entries": zlib.compress(pickle.dumps(unit.entries))}


def read_unit(table: pa.Table, params: MaskParams, destination: Destination) -> pa.Table:
    """Stage 1: read and decode the images of a unit, scaled to working size."""
    start = time.perf_counter()
    logs.in_worker()
    name: str = table["unit"][0].as_py()
    with storage.explained(destination.masks):
        committed = storage.exists(destination.file_of(name))
    if committed:
        return _unit_row(name, None, 0.0, [], [])
    entries: tuple[Entry, ...] = pickle.loads(zlib.decompress(table["entries"][0].as_py()))
    _give_back_memory()
    records, pixels = [], []
    for entry, data in read_entries(destination.source, entries):
        record = Record(entry)  # Of the bytes that were read, where they are newer than the listing
        try:
            if isinstance(data, ImageError):
                raise data
            record.size = len(data)
            photograph = decode(data, params.inference.long_side_px, params.max_pixels)
        except ImageError as error:
            record.error = error
        else:
            record.width, record.height = photograph.width, photograph.height
            record.shape = (photograph.image.shape[0], photograph.image.shape[1])
            pixels.append(photograph.image)
        records.append(record)
    return _unit_row(name, records, time.perf_counter() - start, pixels, [])


class Score:
    """Stage 2: actor around `segcore.inference.Scorer`; holds the model."""

    def __init__(self, params: MaskParams, packed: "ray.ObjectRef[PackedModel] | None" = None) -> None:
        logs.in_worker()
        if packed is not None:
            self.model = checkpoint.load_packed(ray.get(packed))
        else:
            self.model = checkpoint.load(local_model(params.model), untrained=params.untrained, seed=params.seed)
        if self.model.digest != params.model_digest:
            raise JobError(f"The model {params.model} is not the one that the run began with: was it replaced?")
        # One thread on a CPU: there is a scorer on every core
        self.scorer = Scorer(self.model, params.inference, num_threads=1)
        self.device = f"{self.scorer.device.type}/{_PRECISIONS.get(str(self.scorer.dtype), self.scorer.dtype)}"

    def __call__(self, table: pa.Table) -> pa.Table:
        start = time.perf_counter()
        name, records, seconds, pixels, _ = _open_row(table)
        if records is None:
            return table
        _give_back_memory()
        seconds |= _wait("score", seconds)
        usable = [record for record in records if not record.error]
        images = _split(pixels, [(*record.shape, 3) for record in usable])
        scores = []
        for record, outcome in zip(usable, self._score(images), strict=True):
            if isinstance(outcome, Exception):
                record.error = ImageError(ErrorKind.FAILED, f"scoring failed: {outcome}")
                continue
            record.scores_shape, record.extent_px = outcome.scores.shape, outcome.extent_px
            scores.append(outcome.scores)
        kept = [image for record, image in zip(usable, images, strict=True) if not record.error]
        seconds = {**seconds, "score": time.perf_counter() - start, _HANDED_ON: time.time()}
        return _unit_row(name, records, seconds, kept, scores, device=self.device)

    def _score(self, images: list[np.ndarray]) -> list[ScoreMap | Exception]:
        try:
            return list(self.scorer(images))
        except Exception:  # One image may have spoilt its batch: ask again for each alone
            outcomes: list[ScoreMap | Exception] = []
            for image in images:
                try:
                    outcomes += self.scorer([image])
                except Exception as error:
                    outcomes.append(error)
            if any(isinstance(outcome, Exception) for outcome in outcomes):
                # Where a plain grey image fails too, it is not the images' fault, and no row may say so
                self.scorer([np.full((65, 65, 3), 128, np.uint8)])
            return outcomes


class Refine:
    """Stage 3: actor that sharpens, encodes and commits a unit.

    Who wants other rows than masks overrides `begin`, `base_row`, `columns` and `commit`.
    """

    what = "refinement"
    """What an error row says has failed."""

    def __init__(self, params: MaskParams, destination: Destination) -> None:
        logs.in_worker()
        if params.crf_backend == "native" and not refinement.engine_name().startswith("native"):
            raise JobError(
                "The run began with the native CRF engine, which is not built on every node: install the same image "
                "everywhere, or use --crf-engine pydensecrf."
            )
        self.params, self.destination = params, destination
        self.node = platform.node()
        if ray.is_initialized():
            self.node += f" {ray.get_runtime_context().get_node_id()[:8]}"

    def __call__(self, table: pa.Table) -> pa.Table:
        start = time.perf_counter()
        name, records, seconds, pixels, scores = _open_row(table)
        report = UnitReport(name, node=self.node)
        if records is None:
            report.done_elsewhere = True
            return pa.table({"report": [pickle.dumps(report)]})
        _give_back_memory()
        seconds |= _wait("refine", seconds)
        self.begin(records)
        usable = [record for record in records if not record.error]
        images = iter(_split(pixels, [(*record.shape, 3) for record in usable]))
        maps = iter(_split(scores.view(np.float16), [record.scores_shape for record in usable]))
        device = table["device"][0].as_py()
        rows = []
        for record in records:
            row = self.base_row(record)
            if record.error is None:
                try:
                    row |= self.columns(record, next(images), next(maps), device)
                except Exception as error:
                    record.error = ImageError(ErrorKind.FAILED, f"{self.what} failed: {error}")
                    row = self.base_row(record)
            rows.append(row)
            report.images += 1
            if record.error is not None:
                report.errors[record.error.kind.value] += 1
        with storage.explained(self.destination.masks):
            self.commit(name, rows)
        report.seconds = {"refine": time.perf_counter() - start}
        report.seconds |= {stage: seconds[stage] for stage in STAGES if stage in seconds}
        report.waits = {stage: seconds[_WAITED + stage] for stage in STAGES if _WAITED + stage in seconds}
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
        }
        if record.error is not None:
            row |= {"error_kind": record.error.kind.value, "error": str(record.error)}
        return row

    def columns(self, record: Record, image: np.ndarray, scores: np.ndarray, device: str) -> dict[str, Any]:
        """What the scores of an image add to its row."""
        refined: Refined = refine_scores(
            image, scores, self.params.crf, extent_px=record.extent_px, backend=self.params.crf_backend
        )
        height, width = (record.height, record.width) if self.params.own_size else record.shape
        classes = masks.summarise(refined.labels, refined.class_confidence, width, height)
        columns = {
            "mask": masks.encode_mask(resize_labels(refined.labels, width, height)),
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
            columns["mask_before_crf"] = masks.encode_mask(resize_labels(refined.labels_before, width, height))
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


def write_rows(place: Location, rows: list[dict[str, Any]] | pa.Table) -> None:
    """Write one mask file, whole or not at all."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=MASKS)
    buffer = io.BytesIO()
    per_row = max(1, table.nbytes // max(1, table.num_rows))
    # PNG and identities are dense already; the other columns are small
    pq.write_table(table, buffer, compression="zstd", row_group_size=max(1, _ROW_GROUP_BYTES // per_row))
    storage.write_whole(place, buffer.getvalue())


def _unit_row(
    name: str,
    records: list[Record] | None,
    seconds: float | dict[str, float],
    pixels: list[np.ndarray],
    scores: list[np.ndarray],
    device: str = "",
) -> pa.Table:
    if isinstance(seconds, float):
        seconds = {"read": seconds, _HANDED_ON: time.time()}
    return pa.table(
        {
            "unit": [name],
            "records": pa.array([pickle.dumps((records, seconds))], pa.large_binary()),
            "pixels": _join(pixels),
            "scores": _join(scores),
            "device": [device],
        }
    )


def _open_row(table: pa.Table) -> tuple[str, list[Record] | None, dict[str, float], np.ndarray, np.ndarray]:
    records, seconds = pickle.loads(table["records"][0].as_py())
    buffers = [np.frombuffer(table[c][0].as_buffer(), dtype=np.uint8) for c in ("pixels", "scores")]
    return table["unit"][0].as_py(), records, seconds, buffers[0], buffers[1]


def _wait(stage: str, seconds: dict[str, float]) -> dict[str, float]:
    """How long the unit has waited since the stage before handed it on; clocks of two machines may differ."""
    return {_WAITED + stage: max(0.0, time.time() - seconds.get(_HANDED_ON, time.time()))}


def _join(arrays: list[np.ndarray]) -> pa.Array:
    """One binary value of all the bytes. Made from buffers: `pa.array` of a memoryview never lets go of it (26.0)."""
    joined = np.concatenate([a.reshape(-1).view(np.uint8) for a in arrays]) if arrays else np.empty(0, np.uint8)
    offsets = pa.py_buffer(np.array([0, joined.size], np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(joined)])


def _split(flat: np.ndarray, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    arrays, start = [], 0
    for shape in shapes:
        end = start + int(np.prod(shape))
        arrays.append(flat[start:end].reshape(shape))
        start = end
    return arrays
