"""Whole units in one process: read, score, refine, encode, commit, image by image, with nothing handed on.

Every engine that gives a unit to one process uses this; `staged.py` takes the same steps apart.
"""

import functools
import logging
import platform
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from segcore import large_pictures
from segcore.images import masks
from segcore.images.decoding import Photograph
from segcore.images.errors import ImageError
from segcore.images.regions import ArrayRegions, TiffRegions
from segcore.images.tiff import Content
from segcore.models.checkpoint import PackedModel
from segcore.scoring.inference import ScoreMap
from segcore.scoring.memory import DeviceShortError
from tasks import logs, storage
from tasks.archive.entries import Entry
from tasks.archive.entry_bytes import read_entries
from tasks.errors import JobError
from tasks.storage import Location
from tasks.stream.isolation import Apart, ImageLimits
from tasks.stream.model import predictor_of, require_crf_engine
from tasks.stream.rows import GREY, MaskRows, failure_of, give_back_memory
from tasks.stream.units import Destination, MaskParams, Record, Unit, UnitReport

UNWATCHED = ("fetch", "commit", "")
"""Stages in which a worker may wait for the storage: an outage is no image's fault, however long it lasts."""

_READ_AHEAD = 4
"""Images that are fetched while others are computed, where fetching one means waiting for a network."""


@dataclass(frozen=True)
class UnitWork:
    """What is done to units: a job's parameters, where rows go, and the last step. Small, and picklable."""

    params: MaskParams
    destination: Destination
    last: type[MaskRows] = MaskRows
    """What becomes of the scores."""

    packed: PackedModel | None = None
    """The model, where workers cannot read it by its path."""

    @property
    def of_any_size(self) -> bool:
        """Whether photographs are scored at their own size, so that they may be too large for the memory."""
        return self.params.predict.inference.long_side_px is None

    @property
    def limits(self) -> ImageLimits:
        """What one image may take in one stage."""
        return self.params.limits

    def worker(self) -> "UnitWorker":
        """What does it in this process; the model is loaded by the first score, or by `UnitWorker.warm`."""
        return UnitWorker(self)


class Beat(Protocol):
    """Called before each stage of each image, so that who watches the process knows what it is at."""

    def __call__(self, stage: str) -> None: ...


class UnitWorker:
    """Does whole units, one after another."""

    def __init__(self, work: UnitWork) -> None:
        self.work = work
        self.predictor = predictor_of(work.params, work.packed)
        self.last = work.last(work.params, work.destination)

    def warm(self) -> None:
        """Load the model, and let the libraries make what they make at the first image.

        Raises JobError where the CRF's GPU is not here.
        """
        require_crf_engine(self.predictor.params)
        self.predictor.score([GREY])

    def __call__(self, unit: Unit, beat: Beat, isolated: bool = False) -> UnitReport:
        """Give every image of the unit its row, and commit them as one file.

        isolated: each image in a process of its own, since a worker has died over this unit.
        """
        report = UnitReport(unit.name, node=platform.node())
        if self.is_committed(unit):  # By another session of the same job
            return report
        give_back_memory()
        seconds = dict.fromkeys(("read", "score", "refine"), 0.0)
        if isolated:
            with Apart(functools.partial(ready_worker, self.work), "reading", self.work.limits) as apart:
                rows = self._rows(unit, _Isolated(apart, self.last), report, seconds)
        else:
            self.last.begin([Record(entry) for entry in unit.entries])
            rows = self._rows(unit, Here(self, beat), report, seconds)
        start = time.perf_counter()
        self.commit(unit, rows, report, beat)
        seconds["refine"] += time.perf_counter() - start
        report.seconds = seconds
        return report

    def is_committed(self, unit: Unit) -> bool:
        """Whether another session has done the unit already."""
        destination = self.work.destination
        with storage.explained(destination.masks):
            there = storage.exists(destination.file_of(unit.name))
            if there:  # Who wrote it may have died before the name was durable
                storage.make_durable(destination.masks, destination.output or destination.masks)
            return there

    def commit(self, unit: Unit, rows: list[dict[str, Any]], report: UnitReport, beat: Beat) -> None:
        """Write the rows of a unit, whole or not at all, and log its error rows."""
        destination = self.work.destination
        rows = [*rows, *(self.last.copied(copy) for copy in unit.copies)]
        report.images += len(unit.copies)
        beat("commit")
        with storage.explained(destination.masks):
            self.last.commit(unit.name, rows)
        if report.errors:
            logs.event(
                f"unit {unit.name} has {report.errors.total()} error rows",
                run=destination.run_id,
                stage="refine",
                level=logging.WARNING,
                unit=unit.name,
                errors={row["image_id"]: row["error"] for row in rows if row.get("error")},
            )

    def _rows(
        self, unit: Unit, hands: "Here | _Isolated", report: UnitReport, seconds: dict[str, float]
    ) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        bytes_of = hands.bytes_of(self.work.destination.source, unit.entries)
        proven = False
        while True:
            start = time.perf_counter()
            entry, data = next(bytes_of, (None, b""))
            if entry is None:
                return rows
            record = Record(entry)  # Of the bytes that were read, where they are newer than the listing
            stage, columns = "read", {}
            try:
                photograph = decoded(record, data, hands.decode)
                start, stage = _add(seconds, stage, start), "score"
                if isinstance(photograph, TiffRegions) or self.predictor.in_windows(photograph) is not None:
                    columns = hands.through_windows(record, photograph)
                else:
                    scores = hands.score(photograph.image)
                    start, stage = _add(seconds, stage, start), "refine"
                    record.scores_shape, record.extent_px = scores.scores.shape, scores.extent_px
                    columns = hands.columns(record, photograph.image, scores.scores)
            except (JobError, DeviceShortError):
                raise
            except Exception as error:
                what = {"read": "reading", "score": "scoring", "refine": self.last.what}[stage]
                record.error, columns = failure_of(what, error), {}
                if stage == "score" and not isinstance(error, ImageError):
                    hands.renew(error)
                if stage == "score" and not proven:
                    # Where a plain grey image fails too, it is not the images' fault, and no row may say so
                    hands.score(GREY)
                    proven = True
            rows.append(self.last.base_row(record) | columns)
            report.count(record)
            _add(seconds, stage, start)

    # What is done to one image, here or in a process of its own

    def fetch(self, entry: Entry) -> tuple[Entry, Content | ImageError]:
        """The bytes of one image."""
        return next(read_entries(self.work.destination.source, [entry], large=self.work.of_any_size))

    def decode(self, data: Content) -> Photograph | TiffRegions:
        """The photograph at working size, or one that is read region by region. Raises ImageError."""
        return self.predictor.open(data)

    def through_windows(
        self, record: Record, photograph: Photograph | TiffRegions, each: Callable[[], None] | None = None
    ) -> tuple[dict[str, Any], str]:
        """What a photograph that needs windows adds to its row, and what of it was damaged.

        each: called before each window and each tile.
        """
        if isinstance(photograph, TiffRegions):
            tiles = self.predictor.tiles(photograph, each)
            columns = self.last.columns_in_file(record, photograph, tiles, self.predictor.device)
            return columns, photograph.note
        refined = self.predictor.whole(ArrayRegions(photograph.image), each)
        return self.last.columns_of(record, refined, self.predictor.device), photograph.note

    def score(self, image: np.ndarray) -> ScoreMap:
        """Scores of one image at working size."""
        return self.predictor.score([image])[0]

    def columns(self, record: Record, image: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
        """What the scores of one image add to its row."""
        return self.last.columns(record, image, scores, self.predictor.device)

    def columns_alone(self, record: Record, image: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
        """The same where the images before were somewhere else."""
        self.last.begin([record])
        return self.columns(record, image, scores)


def ready_worker(work: UnitWork) -> UnitWorker:
    """One that has loaded its model, so that no image's clock runs meanwhile."""
    worker = UnitWorker(work)
    worker.warm()
    return worker


def decoded(
    record: Record, data: Content | ImageError, decode: Callable[[Content], Photograph | TiffRegions]
) -> Photograph | TiffRegions:
    """The photograph of an image, noted in its record. Raises what is wrong with it."""
    if isinstance(data, ImageError):
        raise data
    record.size = len(data)
    photograph = decode(data)
    record.width, record.height, record.note = photograph.width, photograph.height, photograph.note
    if isinstance(photograph, Photograph):
        record.shape = (photograph.image.shape[0], photograph.image.shape[1])
    return photograph


def _add(seconds: dict[str, float], stage: str, start: float) -> float:
    """Count what has passed for a stage; the time now."""
    now = time.perf_counter()
    seconds[stage] += now - start
    return now


class Here:
    """The steps of one image in this process, which is watched from outside."""

    def __init__(self, worker: UnitWorker, beat: Beat) -> None:
        self.worker, self.beat = worker, beat

    def bytes_of(self, root: Location, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Content | ImageError]]:
        self.beat("fetch")
        found = read_entries(root, entries, large=self.worker.work.of_any_size)  # Those of one container together
        for pair in found if root.protocol == "file" else _ahead(found):
            yield pair
            self.beat("fetch")

    def decode(self, data: Content) -> Photograph | TiffRegions:
        self.beat("read")
        return self.worker.decode(data)

    def score(self, image: np.ndarray) -> ScoreMap:
        self.beat("score")
        return self.worker.score(image)

    def columns(self, record: Record, image: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
        self.beat("refine")
        return self.worker.columns(record, image, scores)

    def through_windows(self, record: Record, photograph: Photograph | TiffRegions) -> dict[str, Any]:
        columns, record.note = self.worker.through_windows(record, photograph, lambda: self.beat("score"))
        return columns

    def renew(self, error: Exception) -> None:
        if "CUDA error" in str(error):  # Which leaves the device unusable for its process
            raise SystemExit(1)


class _Isolated:
    """The steps of one image in a process of its own, which this one watches."""

    def __init__(self, apart: Apart, last: MaskRows) -> None:
        self.apart, self.last = apart, last

    def bytes_of(self, root: Location, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Content | ImageError]]:
        for entry in entries:
            self.apart.turn_to("reading", _GREY_FILE)
            try:
                yield self.apart("fetch", entry, limited=False)  # An outage is no image's fault, however long it lasts
            except ImageError as error:
                yield entry, error

    def decode(self, data: Content) -> Photograph | TiffRegions:
        self.apart.turn_to("reading", _GREY_FILE)
        return self.apart("decode", data)  # type: ignore[no-any-return]

    def score(self, image: np.ndarray) -> ScoreMap:
        self.apart.turn_to("scoring", ("score", GREY))
        return self.apart("score", image)  # type: ignore[no-any-return]

    def through_windows(self, record: Record, photograph: Photograph | TiffRegions) -> dict[str, Any]:
        self.apart.turn_to("scoring", ("score", GREY))
        width, height, inference = photograph.width, photograph.height, self.last.params.predict.inference
        windows = 2 * large_pictures.num_windows(width, height, inference)  # Tiles are fewer
        columns, record.note = self.apart("through_windows", record, photograph, times=windows)
        return columns  # type: ignore[no-any-return]

    def columns(self, record: Record, image: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
        control = self.last.control()
        self.apart.turn_to(self.last.what, None if control is None else ("columns", *control[1:4]))
        return self.apart("columns_alone", record, image, scores)  # type: ignore[no-any-return]

    def renew(self, error: Exception) -> None:
        self.apart.renew(error)


_GREY_FILE = ("decode", masks.encode_mask(GREY[:, :, 0]))


def _ahead(pairs: Iterator[tuple[Entry, Content | ImageError]]) -> Iterator[tuple[Entry, Content | ImageError]]:
    """The same pairs, the next few of them fetched by a thread meanwhile."""
    waiting: queue.Queue[Any] = queue.Queue(_READ_AHEAD)
    over = threading.Event()

    def put(item: Any) -> None:
        while not over.is_set():
            try:
                waiting.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def fetch() -> None:
        try:
            for pair in pairs:
                put(pair)
                if over.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    threading.Thread(target=fetch, daemon=True, name="fetch").start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        over.set()
