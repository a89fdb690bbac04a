"""Where faults are tried: real photographs, the job, and the rows of a run that nobody disturbed."""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks import storage
from tasks.storage import Location, locate
from tests.bad_files import write_bad_files
from tests.conftest import ROOT
from tests.faults.fault import Outcome
from tests.processes import end_all, marked

MARK = "SEGMENT_ARCHIVE_FAULTS"
"""In the environment of all processes of a trial, Ray's servers included."""

NUM_PHOTOGRAPHS = 48
LONG_SIDE_PX = 257
PATIENCE_S = 1200.0
"""For whatever must come in the end, also on a machine that is busy with other things."""

Rows = dict[str, str]
"""By image: digest of its mask, or its kind of error."""


@dataclasses.dataclass
class Job:
    """A job at work, with everything that it has started."""

    process: subprocess.Popen
    mark: str
    log: Path

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """Exit status."""
        return self.process.wait(patience_s)

    @property
    def told(self) -> str:
        """Everything that it has said."""
        return self.log.read_text(errors="replace")

    @property
    def sentences(self) -> list[str]:
        """With which its sessions have ended."""
        return [line.removeprefix("SENTENCE: ") for line in self.told.splitlines() if line.startswith("SENTENCE: ")]

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def workers(self, title: str) -> list[int]:
        """Process identities of the workers whose title (Ray names them by what they do) holds this."""
        found, mine = [], f"{MARK}={self.mark}".encode()
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                # There are many processes, and few have the title
                titled = title.encode() in (place / "cmdline").read_bytes()
                if titled and mine in (place / "environ").read_bytes().split(b"\0"):
                    found.append(int(place.name))
        return found

    def kill_all(self) -> None:
        """SIGKILL to the driver and everything that it has started, at once."""
        for pid in marked(MARK, self.mark):
            kill(pid)
        self.process.wait()

    def end(self) -> None:
        """Leave nothing of it behind."""
        end_all(MARK, self.mark)
        self.process.wait()


class Bench:
    """A folder of its own for each trial, one source and one undisturbed run for all."""

    def __init__(self, folder: Path, num_photographs: int = NUM_PHOTOGRAPHS) -> None:
        self.folder = folder
        self.num_photographs = num_photographs
        self.source = folder / "photographs"

    def prepare(self) -> None:
        """Photographs, and a few files that are none."""
        if self.source.is_dir():
            return
        data = Path(os.environ.get("SEGMENT_ARCHIVE_DATA", ROOT.parent / "shared" / "data"))
        found = sorted((data / "voc2012" / "JPEGImages").glob("*.jpg"))
        found = found or sorted((ROOT / "examples" / "photographs").glob("*.jpg"))
        making = self.folder / "making"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        for number in range(self.num_photographs):
            file = found[number % len(found)]
            shutil.copyfile(file, making / f"{number:03d}-{file.name}")
        write_bad_files(making / "bad")
        making.rename(self.source)

    def dice(self, fault: str, trial: int) -> random.Random:
        """Random moments: the same for the same trial, as far as the machine's own chance allows."""
        return random.Random(f"{fault} {trial}")

    def fresh(self, fault: str, trial: int) -> Path:
        """An empty folder for a trial."""
        place = self.folder / "trials" / f"{fault}-{trial}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        return place

    def start(
        self,
        output: str,
        log: Path,
        source: str = "",
        engine: str = "local",
        limits: dict[str, float] | None = None,
        **environment: str,
    ) -> Job:
        """The job without Prefect, as the head of a process group of its own.

        engine: as in `tests/faults/job.py`. limits: fields of the job, where they are not its defaults.
        """
        mark = secrets.token_hex(8)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
        inherited |= {MARK: mark, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.faults.job"]
        command += [source or str(self.source), output, str(LONG_SIDE_PX), engine, json.dumps(limits or {})]
        with log.open("ab") as opened:
            process = subprocess.Popen(
                command, cwd=ROOT, env=inherited | environment, stdout=opened, stderr=opened, start_new_session=True
            )
        return Job(process, mark, log)

    def undisturbed(self, source: str = "", **environment: str) -> Rows:
        """Rows of a run of the same source that nobody disturbed; made once, and kept."""
        key = hashlib.sha256(f"{source} {LONG_SIDE_PX} {self.num_photographs}".encode()).hexdigest()[:12]
        kept = self.folder / f"undisturbed-{key}.json"
        if not kept.is_file():
            place = self.fresh("undisturbed", 0)
            job = self.start(str(place / "out"), place / "log", source, **environment)
            try:
                assert job.wait() == 0, job.told
                rows, counts = rows_of(locate(str(place / "out")))
            finally:
                job.end()
            assert max(counts.values()) == 1
            temporary = kept.with_suffix(".new")
            temporary.write_text(json.dumps(rows))
            temporary.rename(kept)
        return json.loads(kept.read_text())

    def undisturbed_in_bucket(self) -> Rows:
        """The same of the photographs in a bucket, where a link that leads nowhere cannot be."""
        return {image: kind for image, kind in self.undisturbed().items() if not image.endswith("link-to-nowhere.jpg")}

    def judge(self, output: str, expected: Rows | None = None) -> Outcome:
        """What a finished output has lost, has twice, or has otherwise than the undisturbed run."""
        rows, counts = rows_of(locate(output))
        expected = self.undisturbed() if expected is None else expected
        return Outcome(
            times=0,
            lost=len(expected.keys() - rows.keys()),
            duplicated=sum(count > 1 for count in counts.values()),
            differing=sum(rows.get(image, kind) != kind for image, kind in expected.items())
            + len(rows.keys() - expected.keys()),
        )


def mask_files(output: Location) -> set[str]:
    """Names of what is committed."""
    files = storage.list_files(output / "masks")
    return {file.path for file in files if file.path.endswith(".parquet")}


def rows_of(output: Location) -> tuple[Rows, collections.Counter[str]]:
    """By image what its row says, and how many rows it has. Raises where a file is not whole."""
    rows: Rows = {}
    counts: collections.Counter[str] = collections.Counter()
    for name in sorted(mask_files(output)):
        data = storage.read_bytes(output / "masks" / name)
        for row in pq.read_table(pa.BufferReader(data), partitioning=None).to_pylist():
            counts[row["image_id"]] += 1
            rows[row["image_id"]] = row["error_kind"] or hashlib.sha256(row["mask"]).hexdigest()
    return rows, counts


def wait_for_commits(job: Job, output: Location, more_than: int, patience_s: float = PATIENCE_S) -> bool:
    """Wait until more files than these are committed; False where the job ended before."""
    deadline = time.monotonic() + patience_s
    while len(mask_files(output)) <= more_than:
        if not job.running:
            return len(mask_files(output)) > more_than
        assert time.monotonic() < deadline, f"Nothing was committed for {patience_s:.0f} s:\n{job.told[-3000:]}"
        time.sleep(0.1)
    return True


def kill(pid: int) -> None:
    """SIGKILL, where there is still such a process."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
