"""One history: up to three jobs of one run, sealings, readers and a source that changes, on a store of `store.py`.

Everything that lists, stores, names, seals, expires, proves and reads is the program's own code; only the scores are
those of a cheap function, which makes an image's bytes its mask. `play` makes the history of a seed, and looks after
every change of the store whether the promise holds:

- a run whose record says that it is finished has each of its images in exactly one row;
- no row is of bytes that were never there under its name, or of another version than it says;
- a row that was there stays there, until a refresh has given its image another;
- a reader that opens such a run reads each image once, or ends with a sentence; within the grace nothing is expired
  that it needs;
- in the end one more job finishes the run, proves it, and every row is of the bytes that are there.
"""

import contextlib
import dataclasses
import datetime
import functools
import io
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import tasks.ahead
from segcore.images.decoding import Photograph
from segcore.scoring.inference import ScoreMap
from tasks import storage, storage_client
from tasks.archive import manifest as manifests
from tasks.archive import output as outputs
from tasks.archive import runs, sources
from tasks.archive.output import Output
from tasks.errors import JobError
from tasks.results import reading, sealing
from tasks.results.reading import Results, open_results
from tasks.results.sealing import CompactJob, compact
from tasks.segmentation import session, verify
from tasks.segmentation.archive_job import ArchiveJob, identify, list_archive
from tasks.segmentation.finish import publish_report
from tasks.segmentation.session import segment_remaining
from tasks.stream import rows, worker
from tasks.stream.rows import MaskRows
from tasks.stream.units import Unit, UnitReport
from tasks.stream.worker import UnitWork, UnitWorker
from tests.protocol.store import Bucket, Disk
from tests.protocol.turns import Task, Turns, Weather

GRACE_S = 6.0
_MOST_TURNS = 4000
_COLUMNS = ["image_id", "run_id", "mask", "source_size", "source_etag", "error_kind"]


@dataclass(frozen=True)
class Plan:
    """What a history is made of, all of it from its seed."""

    seed: int
    disk: bool
    start: str
    """What is there at first: nothing, a finished run, one that is sealed too, or one whose small files are gone."""

    jobs: tuple[bool, ...]
    """Of each job whether it does replaced images again."""

    other: bool
    """Whether a job with other parameters writes to the same output."""

    sealings: int
    readers: int
    changes: int
    power_cuts: int
    conditional: str
    stale: float
    weather: Weather

    @property
    def may_expire(self) -> bool:
        """Beside a refresh, expiry is promised where a store has conditional PUT: of two marks under one name no other
        store tells which was first."""
        return self.conditional == "honoured" or not any(self.jobs)

    @classmethod
    def of(cls, seed: int) -> "Plan":
        """The plan of a seed."""
        dice = random.Random(seed)
        disk = dice.random() < 0.35
        conditional = "honoured" if disk else dice.choice(("honoured", "honoured", "ignored", "refused"))
        # Where a store has no conditional PUT, one session at a time is what is promised
        jobs = dice.choice((1, 2, 2, 3)) if conditional == "honoured" else 1
        weather = Weather(
            stay=dice.choice((0.0, 0.5, 0.9, 0.97)),
            kill=dice.choice((0.0, 0.002, 0.01)),
            pause=dice.choice((0.0, 0.01, 0.05)),
            error=0.0 if disk else dice.choice((0.0, 0.02, 0.1)),
            clock=dice.choice((0.0, 0.0, 0.01)),
        )
        return cls(
            seed,
            disk,
            dice.choice(("nothing", "finished", "finished", "sealed", "expired")),
            tuple(dice.random() < 0.6 for _ in range(jobs)),
            dice.random() < 0.15,
            dice.choice((0, 1, 1, 2)),
            dice.choice((1, 2, 3)),
            dice.choice((0, 1, 2, 3)),
            int(disk and dice.random() < 0.5),
            conditional,
            0.0 if disk else dice.choice((0.0, 0.0, 0.0, 0.3)),
            weather,
        )


@dataclass
class History:
    """A history that is being played."""

    plan: Plan
    turns: Turns
    store: Bucket | Disk
    seen: set[str] = field(default_factory=set)
    """Images that had a row of the run at some moment."""

    acknowledged: set[str] = field(default_factory=set)
    """Images whose unit a worker has reported as committed."""

    violation: str = ""
    looks: int = 0

    @property
    def source(self) -> str:
        return _places(self.plan.disk)[0]

    @property
    def output(self) -> str:
        return _places(self.plan.disk)[1]

    def job(self, refresh: bool) -> ArchiveJob:
        return ArchiveJob(source=self.source, output=self.output, refresh_changed=refresh)

    @functools.cached_property
    def run_id(self) -> str:
        return identify(self.job(False)).run_id

    def fail(self, what: str) -> None:
        """Note the first violation."""
        if not self.violation:
            self.violation = what
            self.turns.note(f"VIOLATION {what}")

    # What is done

    def run_job(self, job: ArchiveJob) -> None:
        """The command, again where its sentence says so."""
        for _ in range(4):
            try:
                plan = list_archive(job)
                publish_report(job, plan, segment_remaining(job, plan, _Engine(self)))
                return
            except JobError as error:
                self.turns.note(f"JobError: {error}")
                reason = error
        raise reason

    def seal(self, *, expire: bool, grace_s: float = GRACE_S) -> None:
        try:
            job = CompactJob(output=self.output, run=self.run_id, expire=expire, grace_minutes=grace_s / 60)
            self.turns.note(compact(job).told().replace("\n", " "))
        except JobError as error:
            self.turns.note(f"JobError: {error}")

    def sealer(self) -> None:
        self.seal(expire=False)
        self.turns.sleep(self.turns.dice.choice((0.5, GRACE_S, 2 * GRACE_S)))
        self.seal(expire=self.plan.may_expire)

    def reader(self) -> None:
        """Opens the run and reads it, a few times."""
        for _ in range(3):
            self.read()
            self.turns.sleep(self.turns.dice.uniform(0, 4))

    def read(self) -> None:
        opened_at = self.turns.now
        try:
            opened = open_results(self.output, self.run_id)
        except JobError as error:
            self.turns.note(f"JobError: {error}")
            return
        if not opened.is_finished:
            return
        read: list[dict[str, Any]] = []
        try:
            for file in opened.files:
                for table in Results.read_file(file, _COLUMNS):
                    read += table.to_pylist()
        except JobError as error:
            self.turns.note(f"JobError: {error}")
            # Of a stale listing a file may have been gone before
            within = self.turns.now - opened_at < GRACE_S and not self.turns.clocks and not self.plan.stale
            by_expiry = any(self.turns.removed.get(f.place.path, "").startswith("sealer") for f in opened.files)
            if within and "Open it again" in str(error) and by_expiry:
                self.fail(f"expiry took what a reader needed within its grace: {error}")
            return
        self.judge(read, opened.record, "a reader")

    def change(self) -> None:
        """Somebody replaces a photograph, or adds one."""
        dice = self.turns.dice
        name = dice.choice(_IMAGES) if dice.random() < 0.7 else f"new{dice.randrange(3)}.jpg"
        data = f"{name} {dice.randrange(10**6)}".encode()
        self.turns.note(f"{name} is replaced")
        place = _key(self.plan.disk, self.source, name)
        # In place only where clocks agree, by which it is told how young a file is
        if isinstance(self.store, Disk) and not self.plan.weather.clock and dice.random() < 0.5:
            self.store.overwrite(place, data)
        else:
            self.store.put(place, data)

    # What must hold

    def judge(self, read: Iterable[dict[str, Any]], record: dict[str, Any], who: str) -> None:
        """Rows of a run whose record says that it is finished."""
        read = list(read)
        counts = Counter(row["image_id"] for row in read)
        proven = self.listed(tuple(record["segments"]))
        if self.plan.stale and who != _IN_THE_END:
            return  # Only the end is promised where a store's listings are not up to date
        if twice := sorted(i for i, count in counts.items() if count > 1):
            self.fail(f"{who} finds {', '.join(twice)} in two rows of a finished run")
        if lost := sorted(proven - counts.keys()):
            self.fail(f"{who} finds no row of {', '.join(lost)} in a finished run")
        for row in read:
            self.judge_row(row, who)

    def judge_row(self, row: dict[str, Any], who: str) -> None:
        place = _key(self.plan.disk, self.source, row["image_id"])
        if row["run_id"] != self.run_id:
            self.fail(f"{who} finds a row of run {row['run_id']} for {row['image_id']}")
        if row["error_kind"] is None and row["mask"] not in self.store.ever.get(place, ()):
            self.fail(f"{who} finds a row of {row['image_id']} with bytes that were never there")
        if row["error_kind"] is None and row["source_size"] != len(row["mask"]):
            self.fail(f"{who} finds a row of {row['image_id']} that says another version than that of its bytes")

    def listed(self, segments: tuple[str, ...]) -> set[str]:
        """Images of segments of the manifest."""
        folder = Output.at(self.output).manifest_folder(identify(self.job(False)).source_id)
        found: set[str] = set()
        for name in segments:
            data = self.store.objects[f"{folder.path}/{name}.parquet"]
            found.update(_ids_of_segment(data))
        return found

    def look(self) -> None:
        """What whoever opens the run in this very moment finds. No task has its turn meanwhile."""
        self.looks += 1
        output = Output.at(self.output)
        rows: list[dict[str, Any]] = []
        try:
            record, look = output.choose_files(self.run_id)
            files = output.files(self.run_id, look)
        except JobError as error:
            if output.record(self.run_id):
                self.fail(f"the run cannot be read: {error}")
            return
        for file in files:
            data = self.store.objects.get(file.place.path)
            if data is None:
                self.fail(f"{file.place.path} is listed and not there")
                return
            try:
                rows += _rows_of(data)
            except Exception as error:
                self.fail(f"{file.place.path} is no whole file: {error}")
                return
        here = {row["image_id"] for row in rows}
        if not self.plan.stale and (gone := sorted(self.seen - here)):
            self.fail(f"rows that were there are gone: {', '.join(gone)}")
        self.seen |= here
        if outputs.is_finished(record):
            self.judge(rows, record, "whoever looks now")
        else:
            for row in rows:
                self.judge_row(row, "whoever looks now")

    # The whole

    def play(self) -> None:
        """From the start to a finished run."""
        dice, plan, turns = self.turns.dice, self.plan, self.turns
        turns.weather, turns.after = plan.weather, self.look
        if isinstance(self.store, Bucket):
            self.store.conditional, self.store.stale = plan.conditional, plan.stale
        self.look()
        for number, refresh in enumerate(plan.jobs):
            run = functools.partial(self.run_job, self.job(refresh))
            turns.start(f"job{number}", run, f"machine{number}", dice.choice((0, 0, 1, 4)))
        if plan.other:
            other = ArchiveJob(source=self.source, output=self.output, max_pixels=10**6)
            turns.start("other", functools.partial(self.run_job, other), "machine9", dice.uniform(0, 3))
        for number in range(plan.sealings):
            turns.start(f"sealer{number}", self.sealer, f"machine{5 + number}", dice.uniform(0, 12))
        for number in range(plan.readers):
            turns.start(f"reader{number}", self.reader, "machine8", dice.uniform(0, 20))
        for _ in range(plan.changes):
            turns.start("somebody", self.change, "machine8", dice.uniform(0, 6))
        if plan.power_cuts:
            assert isinstance(self.store, Disk)
            turns.run(dice.randrange(20, 600))
            self.seen &= self.acknowledged
            self.store.power_cut()
            for number, refresh in enumerate(plan.jobs):
                turns.start(f"again{number}", functools.partial(self.run_job, self.job(refresh)), f"machine{number}")
        turns.run(_MOST_TURNS)
        turns.kill_all()
        self.finish()

    def finish(self) -> None:
        """One more job, and one more sealing, that nobody disturbs."""
        turns = self.turns
        turns.weather, turns.clocks = Weather(stay=1.0), {}
        turns.now += 20 * runs.ALIVE_S
        if isinstance(self.store, Bucket):
            self.store.stale = 0.0
        for what, run in (
            ("last", functools.partial(self.run_job, self.job(True))),
            ("seal", functools.partial(self.seal, expire=True, grace_s=0)),
            ("proof", functools.partial(self.run_job, self.job(True))),
        ):
            task = turns.start(what, run, "machine7")
            turns.run(_MOST_TURNS)
            if task.error is not None or not task.over:
                self.fail(f"the run does not finish: {task.error!r}")
                return
            record = Output.at(self.output).record(self.run_id)
            if not outputs.is_finished(record):
                self.fail(f"the run is {record.get('status')} after its last job")
            rows = [
                row
                for f in Output.at(self.output).files(self.run_id)
                for row in _rows_of(self.store.objects[f.place.path])
            ]
            self.judge(rows, record, _IN_THE_END)
            prefix = _key(self.plan.disk, self.source, "")
            there = {k.removeprefix(prefix): data for k, data in self.store.objects.items() if k.startswith(prefix)}
            masks = {row["image_id"]: row["mask"] for row in rows}
            if wrong := sorted(i for i, data in there.items() if masks.get(i) != data):
                self.fail(f"in the end {', '.join(wrong)} have no row of the bytes that are there")


_IN_THE_END = "whoever looks in the end"
_IMAGES = [f"{letter}.jpg" for letter in "abcdef"]


def _places(disk: bool) -> tuple[str, str]:
    return ("file:///photographs", "file:///masks/out") if disk else ("s3://photographs", "s3://masks/out")


def _key(disk: bool, source: str, name: str) -> str:
    return f"{source.removeprefix('file://' if disk else 's3://')}/{name}"


@functools.lru_cache(2048)
def _rows_of(data: bytes) -> list[dict[str, Any]]:
    return _parsed(data).read(_COLUMNS).to_pylist()


@functools.lru_cache(2048)
def _ids_of_segment(data: bytes) -> list[str]:
    return _parsed(data).read(["image_id"])["image_id"].to_pylist()


@functools.cache
def written_before(disk: bool, start: str) -> dict[str, bytes]:
    """The files of a store in which a run was begun, finished, sealed or expired."""
    source = _places(disk)[0]
    files = {_key(disk, source, name): name.encode() for name in _IMAGES}
    if start == "nothing":
        return files
    plan = dataclasses.replace(Plan.of(0), disk=disk, jobs=(False,), weather=Weather())
    turns = Turns(random.Random(0))
    turns.now -= 3600
    history = History(plan, turns, Disk(turns, files) if disk else Bucket(turns, files))
    with in_place(history):
        turns.start("job", lambda: history.run_job(history.job(False)), "m")
        turns.run(_MOST_TURNS)
        if start != "finished":
            turns.start("seal", lambda: history.seal(expire=start == "expired", grace_s=0), "m")
            turns.run(_MOST_TURNS)
    return history.store.objects


def play(seed: int, **needs: Any) -> History:
    """The history of a seed. needs: of its plan, what does not follow from the seed."""
    plan = dataclasses.replace(Plan.of(seed), **needs)
    files = written_before(plan.disk, plan.start)
    turns = Turns(random.Random(f"history {seed}"))
    history = History(plan, turns, Disk(turns, files) if plan.disk else Bucket(turns, files))
    with in_place(history):
        history.play()
    return history


# The program's own modules, with this store, this clock and these scores


@contextlib.contextmanager
def in_place(history: History) -> Iterator[None]:
    """Within, the program works on the store of a history, and its tasks take turns."""
    turns, store = history.turns, history.store
    dice = turns.dice

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Clock":
            return cls.fromtimestamp(turns.clock(), tz)

    dates = SimpleNamespace(datetime=Clock, UTC=datetime.UTC, timedelta=datetime.timedelta)
    clock = SimpleNamespace(time=turns.clock, sleep=turns.sleep, monotonic=lambda: turns.now)
    host = SimpleNamespace(node=lambda: turns.current.machine if turns.current else "nowhere", python_version=str)
    names = SimpleNamespace(uuid4=lambda: uuid.UUID(int=dice.getrandbits(128)))
    replaced: list[tuple[object, str, object]] = [
        (storage_client, "time", clock),
        (storage_client, "random", dice),
        (storage, "time", clock),
        (storage, "uuid", names),
        (runs, "time", clock),
        (runs, "datetime", dates),
        (runs, "platform", host),
        (runs, "versions", dict),
        (sources, "time", SimpleNamespace(time_ns=lambda: int(turns.clock() * 1e9))),
        (sealing, "datetime", dates),
        (sealing, "time", clock),
        (session, "time", clock),
        (session, "random", dice),
        (manifests, "SEGMENT_IMAGES", 4),
        (worker, "predictor_of", lambda *_: _Cheap()),
        (rows, "predictor_of", lambda *_: _Cheap()),
        (worker, "_ahead", lambda pairs: pairs),  # A thread
        *((module, "pq", _PARQUET) for module in (manifests, verify, sealing, reading)),
        *((module, "ThreadPoolExecutor", _Inline) for module in (tasks.ahead, verify, sealing, outputs)),
    ]
    if isinstance(store, Bucket):
        replaced.append((storage_client, "_filesystem", lambda *_, **__: store))
    else:
        replaced += [(storage, "os", store.shown_as_os()), (storage, "Path", store.shown_as_path())]
        replaced.append((storage, "shutil", store.shown_as_shutil()))
    kept = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    for module, name, value in replaced:
        setattr(module, name, value)
    storage._has_one_winner.cache_clear()  # What was tried in another store
    storage._make_name_durable.cache_clear()
    try:
        yield
    finally:
        turns.kill_all()
        storage._has_one_winner.cache_clear()
        storage._make_name_durable.cache_clear()
        for module, name, value in kept:
            setattr(module, name, value)


class _Inline:
    """In the place of a pool of threads: each call is done when it is asked for."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> "_Inline":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def map(self, function: Callable[..., Any], items: Iterable[Any]) -> Iterator[Any]:
        return iter([function(item) for item in items])


class _Parsed:
    """In the place of a `ParquetFile`: what equal bytes hold is parsed once."""

    def __init__(self, data: bytes) -> None:
        self._file = pq.ParquetFile(io.BytesIO(data))
        self.metadata, self.schema_arrow = self._file.metadata, self._file.schema_arrow
        self._read: dict[object, Any] = {}

    def read(self, columns: list[str] | None = None) -> Any:
        return self._once(str(columns), lambda: self._file.read(columns, use_threads=False))

    def read_row_group(self, number: int, columns: list[str] | None = None) -> Any:
        return self._once((number, str(columns)), lambda: self._file.read_row_group(number, columns, use_threads=False))

    def _once(self, key: object, read: Callable[[], Any]) -> Any:
        if key not in self._read:
            self._read[key] = read()
        return self._read[key]


_parsed = functools.lru_cache(2048)(_Parsed)
_PARQUET = SimpleNamespace(**{**vars(pq), "ParquetFile": lambda source: _parsed(source.read())})


class _Cheap:
    """In the place of a predictor: an image's bytes are its pixels, and its mask."""

    device = "none"

    def open(self, data: bytes) -> Photograph:
        return Photograph(np.frombuffer(data, np.uint8)[None], len(data), 1)

    def in_windows(self, photograph: Photograph) -> None:
        return None

    def score(self, images: list[np.ndarray]) -> list[ScoreMap]:
        return [ScoreMap(np.zeros((1, 1, 1), np.float16), (1, 1)) for _ in images]


class _CheapRows(MaskRows):
    def columns(self, record: Any, image: np.ndarray, scores: np.ndarray, device: str) -> dict[str, Any]:
        return {"mask": image.tobytes(), "classes": []}


class _Engine:
    """Each unit in a process of its own, two at a time, as the engines do it; a worker that dies is replaced."""

    name = "local"

    def __init__(self, history: History) -> None:
        self.history, self.turns = history, history.turns

    def units(self, units: Iterable[Unit], work: UnitWork, meter: object) -> Iterator[UnitReport]:
        work = dataclasses.replace(work, last=_CheapRows)
        driver = self.turns.current
        assert driver is not None
        waiting: list[tuple[Unit, Task]] = []
        source = iter(units)
        while True:
            while len(waiting) < 2 and (unit := next(source, None)) is not None:
                waiting.append((unit, self._send(driver, unit, work)))
            if not waiting:
                return
            self.turns.wait(lambda: any(task.over for _, task in waiting))
            for pair in [pair for pair in waiting if pair[1].over]:
                waiting.remove(pair)
                unit, task = pair
                if task.error is not None:
                    raise task.error
                if task.killed:
                    waiting.append((unit, self._send(driver, unit, work)))
                else:
                    if work.destination.run_id == self.history.run_id:
                        self.history.acknowledged |= {entry.image_id for entry in unit.entries}
                    yield task.result

    def _send(self, driver: Task, unit: Unit, work: UnitWork) -> Task:
        def do() -> UnitReport:
            return UnitWorker(work)(unit, lambda stage: None)

        return self.turns.start(f"{driver.name}.{unit.name[-4:]}", do, driver.machine)
