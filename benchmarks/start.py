"""How long a person waits for small jobs, and the parts of it: `python -m benchmarks.start [SOURCE]`.

Each figure is the wall time of a whole command, the least of `REPEATS`; the parts of `run` are those that its steps
take. For figures worth printing the machine must be quiet: the load is printed beside them.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 3
ROOT = Path(__file__).resolve().parent.parent

PARTS = """
import sys, time
began = time.perf_counter()
from flows import jobs
from tasks.segmentation.job import ArchiveJob
print(f"    {'imports':<20} {time.perf_counter() - began:6.2f} s")
def step(function, again=False):
    def timed(*arguments):
        start = time.perf_counter()
        result = function(*arguments)
        print(f"    {function.__name__:<20} {time.perf_counter() - start:6.2f} s")
        if function.__name__ == "segment_remaining":
            print(f"      first unit after   {result.seconds_to_first:6.2f} s")
            for stage, figures in result.stages.items():
                print(f"      {stage:<18} {figures['busy_s']:6.2f} s of work")
        return result
    return timed
jobs.segment_archive(ArchiveJob(source=sys.argv[1], output=sys.argv[2], engine="local"), step)
"""


def seconds(*arguments: str) -> float:
    """Wall time of one console command."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "flows.cli", *arguments]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print one line each."""
    source = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "examples" / "photographs").resolve()
    photographs = sorted(file for file in source.iterdir() if file.is_file() and not file.name.startswith("."))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs; least of {REPEATS}")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        one = work / "one"
        one.mkdir()
        (one / photographs[0].name).write_bytes(photographs[0].read_bytes())
        rows = {"--help": [seconds("--help") for _ in range(REPEATS)]}
        for name, place in ((f"run, {len(photographs)} photographs", source), ("run, 1 photograph", one)):
            outputs = [str(work / f"{place.name}-{n}") for n in range(REPEATS)]
            rows[name] = [seconds("run", str(place), output) for output in outputs]
        rows["run, finished"] = [seconds("run", str(source), str(work / f"{source.name}-0")) for _ in range(REPEATS)]
        for name, found in rows.items():
            print(f"{name:<24} {min(found):6.2f} s")
        print("parts of one run:")
        print(
            subprocess.run(
                [sys.executable, "-c", PARTS, str(source), str(work / "parts")],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.rstrip()
        )


if __name__ == "__main__":
    main()
