"""Compaction against the one promise: whoever reads, at any moment, finds each row once."""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import storage
from tasks.archive import runs, seals
from tasks.archive.entries import Entry
from tasks.archive.manifest import extend
from tasks.archive.output import Output
from tasks.archive.schema import MASKS
from tasks.errors import JobError
from tasks.results import sealing
from tasks.results.query import FindJob, ask, find
from tasks.results.reading import Results, open_results
from tasks.results.sealing import CompactJob, compact
from tasks.segmentation.archive_job import ArchiveJob, identify, remaining_units
from tasks.segmentation.outcome import ArchiveReport
from tasks.segmentation.verify import check_run
from tasks.storage import Location, locate
from tasks.stream.rows import write_rows
from tasks.stream.units import mask_file
from tests.outputs import error_row, mask_row, small_rows, write_run

RUN = "run0"
DATA = Path(__file__).parent.parent / "data" / "outputs"


class Archive:
    """A run whose images, commits and finishes a test decides, in the layout of the archive job."""

    def __init__(self, output: str) -> None:
        self.job = ArchiveJob(source="/nowhere", output=output)
        self.output, self.identity = Output.at(output), identify(self.job)
        self.run_id = self.identity.run_id
        self.added = 0
        self.versions: dict[str, str] = {}

    def add(self, images: int) -> None:
        """Images that are listed for the first time."""
        names = [f"{self.added + n:05d}.jpg" for n in range(images)]
        self.added += images
        self.versions |= dict.fromkeys(names, "1")
        self._list(refresh=False)

    def change(self, names: list[str], version: str) -> None:
        """Images that are listed again, because they were replaced."""
        self.versions |= dict.fromkeys(names, version)
        self._list(refresh=True)

    def _list(self, *, refresh: bool) -> None:
        runs.begin(self.output.place, self.run_id, {"model": "test"})
        entries = (Entry(n, f"/{n}", "file", n.encode(), 0, 1, v) for n, v in sorted(self.versions.items()))
        extend(self.output.manifest(self.identity.source_id), entries, refresh_changed=refresh)

    def commit(self) -> None:
        """The rows of every image that has none."""
        manifest = self.output.manifest(self.identity.source_id)
        for unit in remaining_units(manifest, self.output, self.identity):
            rows = [mask_row(e.image_id, f"version {e.version}", np.ones((2, 3), np.uint8)) for e in unit.entries]
            write_rows(self.output.masks_folder(self.run_id) / mask_file(unit.name), rows)

    def finish(self) -> ArchiveReport:
        """The proof of the run, and its record."""
        manifest = self.output.manifest(self.identity.source_id)
        report = check_run(self.output, self.identity, manifest)
        runs.end(self.output.place, self.run_id, runs.FINISHED, None, segments=[s.name for s in manifest.segments])
        return report

    def whole(self, images: int) -> None:
        """Images, listed, done and proved."""
        self.add(images)
        self.commit()
        self.finish()

    def read(self) -> dict[str, str]:
        """Version of each row by identity; fails where an image has two rows."""
        found: dict[str, str] = {}
        for file in self.output.files(self.run_id):
            for table in Results.read_file(file, ["image_id", "uri"]):
                for row in table.to_pylist():
                    assert row["image_id"] not in found, f"{row['image_id']} has two rows"
                    found[row["image_id"]] = row["uri"].removeprefix("version ")
        return found

    def small_files(self) -> int:
        return sum(1 for _ in storage.list_files(self.output.masks_folder(self.run_id)))


@pytest.fixture
def archive(tmp_path) -> Archive:
    return Archive(str(tmp_path / "out"))


@pytest.fixture(params=["local", "s3"])
def any_archive(request, tmp_path) -> Archive:
    if request.param == "local":
        return Archive(str(tmp_path / "out"))
    return Archive(f"s3://{request.getfixturevalue('bucket').name}/out")


class KilledError(BaseException):
    """In the place of SIGKILL: nothing catches it."""


@contextlib.contextmanager
def every_write(before: Callable[[int], None], after: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within, before is told the number of each write and removal, and after is called when it is done."""
    count, busy = 0, False
    kept = {name: getattr(storage, name) for name in ("write_whole", "remove", "remove_folder")}
    lock = threading.RLock()

    def watched(name: str) -> Callable[..., None]:
        def call(*arguments: object, **options: object) -> None:
            nonlocal count, busy
            if busy:  # What the test itself does meanwhile, and other threads
                kept[name](*arguments, **options)
                return
            with lock:
                busy = True
                try:
                    before(count)
                    count += 1
                finally:
                    busy = False
                kept[name](*arguments, **options)
                after()

        return call

    for name in kept:
        setattr(storage, name, watched(name))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(storage, name, function)


def asked(archive: Archive, **options: object) -> CompactJob:
    return CompactJob(output=archive.output.uri, run=archive.run_id, **options)


def test_rows_and_masks_are_the_same_in_few_files(tmp_path):
    rows = [*small_rows(tmp_path / "photographs"), error_row("a/bad.jpg", "/a", "empty", "the file is empty")]
    output = str(tmp_path / "out")
    write_run(output, RUN, rows, per_file=4)
    before = open_results(output)
    expected, masks = list(before.rows(MASKS.names)), dict(before.masks())
    questions = "SELECT class, count(*), sum(pixels) FROM objects GROUP BY 1 ORDER BY 1"
    answer = list(ask(output, questions).rows())
    began = time.monotonic()
    report = compact(CompactJob(output=output))
    assert (report.sources, report.files, report.rows, report.waiting) == (8, 1, 31, 8)
    assert report.seconds <= time.monotonic() - began  # It had said the seconds since the machine began
    after = open_results(output)
    assert len(before.files) == 8 and len(after.files) == 1
    assert list(after.rows(MASKS.names)) == expected
    assert all(np.array_equal(after.mask(image_id), labels) for image_id, labels in masks.items())
    assert list(ask(output, questions).rows()) == answer
    assert len(list(find(output, FindJob(classes=("background",))).rows())) == 30
    # The small files go when they are asked to, and nothing changes for whoever reads
    assert compact(CompactJob(output=output, expire=True)).removed == 0  # Somebody may still be reading them
    assert compact(CompactJob(output=output, expire=True, grace_minutes=0)).removed == 8
    assert list(open_results(output).rows(MASKS.names)) == expected
    assert "Nothing to compact" in compact(CompactJob(output=output)).told()


def test_who_reads_longer_than_the_grace_is_told(archive):
    archive.whole(10)
    opened = open_results(archive.output.uri)
    compact(asked(archive, expire=True, grace_minutes=0))
    for read in (opened.rows, lambda: opened.rows(["mask"])):
        with pytest.raises(JobError, match=r"part-.*parquet is gone since the run was opened: .* Open it again"):
            list(read())
    assert len(list(open_results(archive.output.uri).rows())) == 10


def test_row_groups_stay_small_and_a_mask_is_found_in_one(tmp_path, monkeypatch):
    monkeypatch.setattr(sealing, "_GROUP_ROWS", 16)
    output = str(tmp_path / "out")
    rows = [error_row(f"{n:03d}", "x") for n in range(100)]
    rows[77] = mask_row("077", "x", np.full((3, 4), 5, np.uint8))
    write_run(output, RUN, rows, per_file=4)
    monkeypatch.setattr(sealing, "_FILE_BYTES", sum(file.size for file in Output.at(output).files(RUN)[:13]))
    compact(CompactJob(output=output))
    opened = open_results(output)
    assert [piece.rows for piece in opened.pieces[:4]] == [16, 16, 16, 4]  # A file of 13 small ones
    assert sum(piece.rows for piece in opened.pieces) == 100 and max(piece.rows for piece in opened.pieces) == 16
    assert np.array_equal(opened.mask("077"), np.full((3, 4), 5))
    assert [row["image_id"] for row in opened.rows_of(["099", "001", "050"])] == ["001", "050", "099"]
    assert len(opened.to_torch()) == 1 and opened.to_torch()[0][0] == "077"


def test_a_compacted_run_is_done_and_stays_proved(any_archive):
    any_archive.whole(20)
    compact(asked(any_archive, expire=True, grace_minutes=0))
    assert any_archive.small_files() == 0
    manifest = any_archive.output.manifest(any_archive.identity.source_id)
    assert list(remaining_units(manifest, any_archive.output, any_archive.identity)) == []
    report = any_archive.finish()
    assert (report.images, report.masks, report.compacted) == (20, 20, True)
    assert report.classes["aeroplane"].images == 20 and report.classes["aeroplane"].pixels == 120
    # New images come beside the large files, and are compacted in their turn
    any_archive.whole(9)
    assert len(any_archive.read()) == 29
    assert compact(asked(any_archive)).rows == 9
    assert any_archive.read() == dict.fromkeys(any_archive.versions, "1")


def test_a_refreshed_image_has_its_new_row_alone(archive):
    archive.whole(20)
    compact(asked(archive, expire=True, grace_minutes=0))
    archive.change(["00003.jpg", "00011.jpg"], "2")
    archive.commit()
    archive.finish()  # Takes the old rows out of the large file
    assert archive.read() == archive.versions
    before = set(storage.list_files(archive.output.sealed_folder(archive.run_id)))
    # The old large file stays for who reads it, then goes
    compact(asked(archive))
    assert before <= set(storage.list_files(archive.output.sealed_folder(archive.run_id))) | before
    compact(asked(archive, grace_minutes=0))
    assert archive.read() == archive.versions
    assert set(seals.by_prefix(archive.output.sealed_folder(archive.run_id))) == {the_seal(archive).prefix}
    # All of a segment's images: nothing of it is left to read
    archive.change([f"{n:05d}.jpg" for n in range(20)], "3")
    archive.commit()
    archive.finish()
    assert archive.read() == archive.versions
    assert archive.finish().masks == 20


def test_a_run_that_is_not_finished_is_refused(archive):
    archive.whole(10)
    archive.add(5)
    with pytest.raises(JobError, match=r"is not finished, its status is running: compact it when .* Nothing was"):
        compact(asked(archive))
    runs.end(archive.output.place, archive.run_id, runs.FINISHED, None, segments=None)
    with pytest.raises(JobError, match=r"does not say what was proved"):
        compact(asked(archive))


def test_a_run_that_goes_on_meanwhile_is_left_alone(archive):
    archive.whole(10)

    def go_on(number: int) -> None:
        if number == 0:  # Before the first large file is written
            archive.add(6)

    with every_write(go_on), pytest.raises(JobError, match=r"is not finished, .* Nothing was changed"):
        compact(asked(archive))
    assert not archive.output.look(archive.run_id).seals
    archive.commit()
    archive.finish()
    # Rows of the compacted segment that go while it is written
    victim = next(storage.list_files(archive.output.masks_folder(archive.run_id))).path
    place = archive.output.masks_folder(archive.run_id) / victim

    def drop(number: int) -> None:
        if number == 0:
            rows = pq.read_table(pa.BufferReader(storage.read_bytes(place)), partitioning=None)
            pq.write_table(rows.slice(1), place.path)

    with every_write(drop), pytest.raises(JobError, match=r"went on while it was compacted. Nothing was changed"):
        compact(asked(archive))


def the_seal(archive: Archive) -> seals.Seal:
    [seal] = archive.output.look(archive.run_id).seals.values()
    return seal


def test_a_seal_that_does_not_fit_hides_nothing(archive):
    """Small files that were changed, added or removed since count themselves; a seal that is alone counts whatever."""
    archive.whole(10)
    compact(asked(archive))
    assert len(archive.output.files(archive.run_id)) == 1
    folder = archive.output.masks_folder(archive.run_id)
    victim = folder / next(storage.list_files(folder)).path
    kept = storage.read_bytes(victim)
    storage.write_whole(victim, kept + b" ")
    assert len(archive.output.files(archive.run_id)) == 5
    storage.write_whole(victim, kept)
    assert len(archive.output.files(archive.run_id)) == 1 and archive.read() == archive.versions
    storage.remove(victim)
    [unit] = remaining_units(archive.output.manifest(archive.identity.source_id), archive.output, archive.identity)
    assert len(archive.read()) == 10 - len(unit.entries)
    archive.commit()
    compact(asked(archive, expire=True, grace_minutes=0))
    storage.write_whole(victim, kept)  # A session that was slow
    assert len(archive.output.files(archive.run_id)) == 1 and archive.read() == archive.versions
    assert compact(asked(archive, expire=True, grace_minutes=0)).removed == 1


@pytest.mark.parametrize("lost", ["alone", "seal-001.json", "000-of-001.parquet"])
def test_a_lost_file_of_a_seal_is_no_silent_hole(lost, archive):
    archive.whole(10)
    compact(asked(archive, expire=True, grace_minutes=0))
    storage.remove(archive.output.sealed_folder(archive.run_id) / the_seal(archive).prefix / lost)
    if not lost.endswith("parquet"):
        assert archive.read() == archive.versions
        return
    with pytest.raises(JobError, match=r"is gone since the run was opened"):
        archive.read()
    with pytest.raises(JobError, match=r"10 images have no row"):
        archive.finish()
    archive.commit()
    assert archive.finish().masks == 10 and archive.read() == archive.versions


def test_an_old_pointer_that_cannot_be_read_is_no_hole(tmp_path):
    shutil.copytree(DATA / "expired", tmp_path / "out")
    output = Output.at(str(tmp_path / "out"))
    run_id = str(output.choose()["run_id"])
    folder = output.sealed_folder(run_id) / "pointers"
    [file] = storage.list_files(folder)
    kept = storage.read_bytes(folder / file.path)
    for spoilt in (b"", b"{", b"[]", b'{"version": 1}', kept.replace(b'"prefix"', b'"x"')):
        storage.write_whole(folder / file.path, spoilt)
        with pytest.raises(JobError, match=r"is not a pointer of ours .*: put back a copy of it"):
            output.files(run_id)
    # Of two that were written at once, the higher revision of each segment counts
    storage.write_whole(folder / file.path, kept)
    later = json.loads(kept)
    [segment] = later["segments"]
    later["dropped"] = {segment: later["segments"].pop(segment)["revision"]}
    storage.write_whole(folder / "000009-0123abcd.json", json.dumps(later).encode())
    assert not output.look(run_id).seals


@pytest.mark.parametrize("kind", ["compacted", "expired"])
def test_an_old_compaction_is_gone_on_with(kind, tmp_path):
    shutil.copytree(DATA / kind, tmp_path / "out")
    output = Output.at(str(tmp_path / "out"))
    rows = sorted(open_results(output.uri).rows(MASKS.names), key=lambda row: row["image_id"])
    compact(CompactJob(output=output.uri))
    run_id = str(output.choose()["run_id"])
    [seal] = output.look(run_id).seals.values()
    assert not seal.is_old and seal.is_alone and "pointers" not in seals.by_prefix(output.sealed_folder(run_id))
    removed = compact(CompactJob(output=output.uri, expire=True, grace_minutes=0)).removed
    assert removed == (2 if kind == "compacted" else 0)
    assert sorted(open_results(output.uri).rows(MASKS.names), key=lambda row: row["image_id"]) == rows
    # What a refresh has given to other files is taken out of the large one
    held = set(seal_rows(output, run_id, seal))
    sealing.rewrite_without(output, run_id, seal, held - {"cat-0.jpg"}, segments=2)
    left = {row["image_id"] for row in open_results(output.uri).rows()}
    assert left == {row["image_id"] for row in rows} - {"cat-0.jpg"}


def seal_rows(output: Output, run_id: str, seal: seals.Seal) -> list[str]:
    place = output.sealed_folder(run_id) / seal.prefix
    found = [pq.read_table(pa.BufferReader(storage.read_bytes(place / file.path))) for file in seal.files]
    return [image_id for table in found for image_id in table["image_id"].to_pylist()]


def test_a_segment_that_was_given_up_is_compacted_again(archive):
    archive.whole(10)
    compact(asked(archive))
    sealing.give_up(archive.output, archive.run_id, the_seal(archive))
    assert archive.read() == archive.versions and len(archive.output.files(archive.run_id)) == 5
    for _ in range(2):  # From the same small files the same prefix, which is not to be cleaned as an old one
        compact(asked(archive, grace_minutes=0))
        assert archive.read() == archive.versions and len(archive.output.files(archive.run_id)) == 1


def test_a_large_file_that_went_missing_is_done_again(archive):
    archive.whole(10)
    compact(asked(archive, expire=True, grace_minutes=0))
    [file] = archive.output.files(archive.run_id)
    with pytest.raises(JobError, match=r"is not as it was written: no small file"):
        storage.remove(file.place)
        archive.add(1)
        archive.commit()
        write_rows(archive.output.masks_folder(archive.run_id) / _any_unit(archive), [error_row("x", "x")])
        look = archive.output.look(archive.run_id)
        sealing._expire(archive.output, archive.run_id, list(look.seals.values()), look)
    storage.remove(archive.output.masks_folder(archive.run_id) / _any_unit(archive))
    with pytest.raises(JobError, match=r"10 images have no row: .* Run the same command again"):
        archive.finish()
    archive.commit()
    assert archive.finish().masks == 11
    assert archive.read() == archive.versions


def _any_unit(archive: Archive) -> str:
    return f"part-{the_seal(archive).segment}-0000.parquet"


def test_two_compactions_at_once_name_each_row_once(archive):
    archive.whole(20)
    reports = []

    def other(number: int) -> None:
        if number == 1:  # The large file is there, the pointer is not
            reports.append(compact(asked(archive)))

    with every_write(other):
        reports.append(compact(asked(archive)))
    assert [report.rows for report in reports] == [20, 20]
    assert len(archive.output.files(archive.run_id)) == 1
    assert archive.read() == archive.versions
    # One expires what the other is about to compact
    archive.whole(8)

    def hasty(number: int) -> None:
        if number == 1:
            compact(asked(archive, expire=True, grace_minutes=0))

    with every_write(hasty):
        compact(asked(archive))
    assert archive.read() == archive.versions and archive.small_files() == 0


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_interleaved_each_row_is_found_once(seed, archive):
    dice = random.Random(seed)
    archive.whole(dice.randint(5, 30))

    def look() -> None:
        assert set(archive.read()) == done, "a row was lost or came twice"

    def disturbed(call: Callable[[], object]) -> None:
        """A call that is killed at a write of its own, or during which another compaction does all of its work."""
        kill_at, meddle_at = dice.randint(0, 8), dice.choice([None, 0, 1, 2])

        def before(number: int) -> None:
            look()
            if number == kill_at:
                raise KilledError
            if number == meddle_at and not meddling:
                meddling.append(True)
                with contextlib.suppress(JobError):
                    compact(asked(archive, expire=dice.random() < 0.5, grace_minutes=0))

        meddling: list[bool] = []
        with every_write(before, look), contextlib.suppress(KilledError, JobError):
            call()

    done = set(archive.versions)
    for _ in range(12):
        action = dice.choice(["compact", "compact", "expire", "expire", "add", "refresh"])
        if action == "compact":
            disturbed(lambda: compact(asked(archive)))
        elif action == "expire":
            disturbed(lambda: compact(asked(archive, expire=True, grace_minutes=0)))
        elif action == "add":
            archive.whole(dice.randint(1, 12))
        else:
            # Between the commit of a refresh and its finish an image has its old row and its new one, as ever
            names = dice.sample(sorted(archive.versions), dice.randint(1, 5))
            archive.change(names, archive.versions[names[0]] + "'")
            archive.commit()
            archive.finish()
        done = set(archive.versions)
        assert archive.read() == archive.versions
    compact(asked(archive, expire=True, grace_minutes=0))
    assert archive.read() == archive.versions
    assert archive.finish().masks == len(archive.versions)
    # Nothing is left of what was killed or replaced
    left = seals.by_prefix(archive.output.sealed_folder(archive.run_id))
    assert set(left) == {seal.prefix for seal in archive.output.look(archive.run_id).seals.values()}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["local", "s3"])
def test_killed_at_any_moment_nothing_is_lost(where, tmp_path, request):
    output = str(tmp_path / "out") if where == "local" else f"s3://{request.getfixturevalue('bucket').name}/out"
    rows = [mask_row(f"{n:05d}", "/x", np.full((4, 5), n % 20, np.uint8)) for n in range(400)]
    write_run(output, RUN, rows, per_file=4)
    program = (
        "import sys; from tasks.results import sealing; sealing._FILE_BYTES = 60_000; print('begun', flush=True);"
        "print(sealing.compact(sealing.CompactJob(output=sys.argv[1], expire=True, grace_minutes=0)).told())"
    )
    dice, kills, longest = random.Random(where), 0, 1.5
    for _ in range(6):
        command = [sys.executable, "-c", program, output]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        time.sleep(dice.uniform(0, longest))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        else:
            longest /= 2
        process.communicate()
        found = [row["image_id"] for row in open_results(output).rows(["image_id"])]
        assert sorted(found) == [row["image_id"] for row in rows]
    assert kills >= 2
    compact(CompactJob(output=output, expire=True, grace_minutes=0))
    opened = open_results(output)
    assert [row["image_id"] for row in opened.rows(["image_id"])] == [row["image_id"] for row in rows]
    assert not list(storage.list_files(Location(locate(output).protocol, f"{locate(output).path}/masks")))
    assert [int(labels[0, 0]) for _, labels in opened.masks()] == [n % 20 for n in range(400)]
