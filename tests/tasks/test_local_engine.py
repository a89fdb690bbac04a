"""The local engine: order and exceptions of map, and workers that are killed over a unit or with their parent."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks.archive.output import Output
from tasks.engines.local import LocalEngine
from tasks.errors import InterruptedJobError, JobError
from tasks.segmentation.archive_job import ArchiveJob, identify, list_archive, remaining_units, unit_work
from tasks.stream.meter import Meter
from tests.conftest import ROOT, photograph
from tests.tasks.test_archive import rows_of


def double(piece: int, offset: int) -> int:
    time.sleep(0.02 * (piece % 3))
    return 2 * piece + offset


def refuse(piece: int) -> int:
    if piece == 7:
        raise JobError("piece seven cannot be done.")
    if piece == 9:
        raise KeyError("nine")
    return piece


def die_once(piece: int, folder: str) -> int:
    mark = Path(folder, str(piece))
    if piece == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return piece


def die(piece: int) -> int:
    os.kill(os.getpid(), signal.SIGSEGV)
    return piece


@pytest.fixture(scope="module")
def engine():
    with LocalEngine(2) as opened:
        yield opened


def test_results_come_in_the_order_of_the_pieces(engine):
    assert list(engine.map(double, range(40), 5)) == [2 * piece + 5 for piece in range(40)]
    assert list(engine.map(double, [], 5)) == []
    first = engine.map(double, range(1000), 0)
    assert [next(first) for _ in range(3)] == [0, 2, 4]
    first.close()  # Who leaves early leaves no work behind
    assert list(engine.map(double, range(5), 1)) == [1, 3, 5, 7, 9]


def test_what_a_worker_raises_is_raised_here(engine):
    with pytest.raises(JobError, match=r"^piece seven cannot be done\.$"):
        list(engine.map(refuse, range(9)))
    with pytest.raises(JobError, match=r"A worker failed: KeyError: 'nine'\. Details: ") as told:
        list(engine.map(refuse, [1, 2, 9]))
    assert "Traceback" in Path(str(told.value).rpartition(" ")[2]).read_text()
    assert list(engine.map(refuse, [1, 2, 3])) == [1, 2, 3]


def test_a_worker_that_dies_is_replaced_and_its_piece_done_again(engine, tmp_path):
    assert list(engine.map(die_once, range(8), str(tmp_path))) == list(range(8))
    with pytest.raises(InterruptedJobError, match=r"ended 4 times over the same work \(SIGSEGV\)"):
        list(engine.map(die, [1]))


@pytest.fixture
def job(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(9):
        photograph(number, (100 + number % 5, 80)).save(folder / f"{number}.png")
    return ArchiveJob(
        source=str(folder),
        output=str(tmp_path / "out"),
        model="deeplab_v1_largefov",
        untrained=True,
        inference={"long_side_px": 65, "precision": "fp32"},
    )


def units_and_work(job):
    list_archive(job)
    identity = identify(job)
    output = Output.at(job.output)
    work = unit_work(job, identity)
    return list(remaining_units(output.manifest(identity.source_id), output, identity)), work, identity


def rows(job, identity):
    return rows_of(type("Report", (), {"output": job.output, "run_id": identity.run_id}))


def test_workers_killed_in_the_middle_lose_nothing(job):
    units, work, identity = units_and_work(job)
    with LocalEngine(2) as engine:
        over = threading.Event()

        def kill() -> None:
            for _ in range(3):
                over.wait(1.0)
                for pid in [worker.process.pid for worker in engine._workers][:1]:
                    os.kill(pid, signal.SIGKILL)

        killing = threading.Thread(target=kill)
        killing.start()
        reports = list(engine.units(units, work, Meter(identity.run_id)))
        over.set()
        killing.join()
    assert sum(report.images for report in reports) == 9 and not any(report.errors for report in reports)
    assert len(rows(job, identity)) == 9


def test_workers_end_with_a_parent_that_is_killed():
    code = (
        "from tasks.engines.local import LocalEngine\nimport time\n"
        "with LocalEngine(2) as engine:\n    engine.begin()\n"
        "    print(*(worker.process.pid for worker in engine._workers), flush=True)\n    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    time.sleep(1.0)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
