"""How long a person waits for small jobs, and the parts of it: `python -m benchmarks.start [SOURCE]`.

Each figure is the wall time of a whole command, the least of `REPEATS`; the parts of `run` are those that its steps
take. For figures worth printing the machine must be quiet: the load is printed beside them. Twenty pairs to check and
a hundred photographs come from SEGMENT_ARCHIVE_DATA, where it is.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.conditions import conditions
from benchmarks.photographs import FIVE

REPEATS = 3
ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SEGMENT_ARCHIVE_DATA", ROOT.parent / "shared" / "data")) / "voc2012"

PARTS = """
import sys, time
began = time.perf_counter()
import json
from flows import jobs
from tasks.segmentation.archive_job import ArchiveJob
found = {"steps": {"imports": time.perf_counter() - began}, "busy": {}}
def step(function, again=False):
    def timed(*arguments):
        start = time.perf_counter()
        result = function(*arguments)
        found["steps"][function.__name__] = time.perf_counter() - start
        if function.__name__ == "segment_remaining":
            found["first"] = result.seconds_to_first
            found["busy"] = {stage: figures["busy_s"] for stage, figures in result.stages.items()}
        return result
    return timed
asked = {"model": sys.argv[3]} if sys.argv[3] else {}
jobs.segment_archive(ArchiveJob(source=sys.argv[1], output=sys.argv[2], engine="local", **asked), step)
print(json.dumps(found))
"""


def parts(source: Path, output: Path, model: str = "") -> dict[str, Any]:
    """One run on the local engine: seconds of its `steps` and of `all`, of work by stage (`busy`), until the `first`
    unit was committed."""
    begun = time.perf_counter()
    command = [sys.executable, "-c", PARTS, str(source), str(output), model]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"all": time.perf_counter() - begun}


def print_parts(found: dict[str, Any]) -> None:
    """A line for each."""
    for name, value in found["steps"].items():
        print(f"    {name:<20} {value:6.2f} s")
        if name == "segment_remaining":
            print(f"      first unit after   {found['first']:6.2f} s")
            for stage, busy in found["busy"].items():
                print(f"      {stage:<18} {busy:6.2f} s of work")


def seconds(*arguments: str, statuses: tuple[int, ...] = (0,)) -> float:
    """Wall time of one console command."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "flows.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode not in statuses:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def linked(files: list[Path], folder: Path) -> Path:
    """A folder of links to these."""
    folder.mkdir(parents=True)
    for file in files:
        (folder / file.name).symlink_to(file)
    return folder


def main() -> None:
    """Measure, and print one line each."""
    photographs = FIVE
    if len(sys.argv) > 1:
        given = Path(sys.argv[1]).resolve()
        photographs = sorted(file for file in given.iterdir() if file.is_file() and not file.name.startswith("."))
    real = sorted((DATA / "JPEGImages").glob("*.jpg"))
    pairs = [file for file in real if (DATA / "SegmentationClassAug" / f"{file.stem}.png").exists()]
    print(f"{conditions()}; least of {REPEATS}")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = linked(photographs, work / "photographs")
        sources = [(len(photographs), source), (1, linked(photographs[:1], work / "one"))]
        sources += [(100, linked(real[:100], work / "hundred"))] if len(real) >= 100 else []
        rows = {"`--help`": [seconds("--help") for _ in range(REPEATS)]}
        for count, place in sources:
            outputs = [str(work / f"{place.name}-{n}") for n in range(REPEATS)]
            rows[f"`run` of {count} photograph{'s' * (count > 1)}"] = [
                seconds("run", str(place), output) for output in outputs
            ]
        rows["`run` of a finished job"] = [
            seconds("run", str(source), str(work / f"{source.name}-0")) for _ in range(REPEATS)
        ]
        if pairs:
            linked(pairs[:20], work / "pairs" / "JPEGImages")
            masks = [DATA / "SegmentationClassAug" / f"{file.stem}.png" for file in pairs[:20]]
            linked(masks, work / "pairs" / "SegmentationClassAug")
            checks = [seconds("prepare", "--check", str(work / "pairs"), statuses=(0, 1)) for _ in range(REPEATS)]
            rows["`prepare --check` of 20 pairs"] = checks
        print("\n| | seconds |\n|---|---|")
        for name, found in rows.items():
            print(f"| {name} | {min(found):.1f} |")
        print("\nparts of one run:")
        print_parts(parts(source, work / "parts"))


if __name__ == "__main__":
    main()
