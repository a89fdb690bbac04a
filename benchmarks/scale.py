"""Planning of large archives: seconds and memory of what the driver does alone, for 10^4, 10^5 and 10^6 images.

    python -m benchmarks.scale plan [--images 10000 100000 1000000] [--source folder|parquet|s3] [--profile]

Makes a source of that many entries, then runs the job's own planning over it, each step in a process of its own:
first listing (list the source, write the manifest, reckon what remains), the second listing (nothing new), what
remains once every image has its row, the finish check over mask files, and the same after `segment-archive compact`.
folder: empty files in sub-folders of 500. parquet: rows with an identity. s3: empty objects of the local test server.
The mask files have rows with classes and masks of 400 bytes; their files are those that the job would have written.
"""

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.conditions import conditions

_FOLDER_FILES = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    plan = commands.add_parser("plan", help="seconds and memory of planning")
    plan.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    plan.add_argument("--source", choices=["folder", "parquet"], default="folder")
    plan.add_argument("--profile", action="store_true", help="print where the time of each step goes")
    step = commands.add_parser("step", help="one step, in this process")
    step.add_argument("name", choices=list(STEPS))
    step.add_argument("source")
    step.add_argument("output")
    step.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    if args.what == "step":
        _step(args.name, args.source, args.output, args.profile)
        return
    print(conditions())
    print(f"\n{args.source}; seconds (peak memory of the process in MiB, of which its imports)\n")
    names = list(STEPS)
    print(f"| images | {' | '.join(names)} |\n|{'---|' * (1 + len(names))}")
    for num_images in args.images:
        with tempfile.TemporaryDirectory() as folder:
            source, output = f"{folder}/source", f"{folder}/output"
            make_source(Path(source), num_images, args.source)
            cells = []
            for name in names:
                if name == "all done":
                    make_masks(source, output)
                cells.append(_told(name, source, output, args.profile))
            print(f"| {num_images:,} | {' | '.join(cells)} |", flush=True)


def make_source(folder: Path, num_images: int, kind: str) -> None:
    """A source of entries whose bytes nobody will read."""
    folder.mkdir(parents=True)
    if kind == "parquet":
        for number, start in enumerate(range(0, num_images, 100_000)):
            ids = [f"{n:09d}.jpg" for n in range(start, min(start + 100_000, num_images))]
            table = pa.table({"id": ids, "image": pa.nulls(len(ids), pa.binary())})
            pq.write_table(table, folder / f"part-{number:05d}.parquet")
        return
    for number in range(num_images):
        place = folder / f"{number // _FOLDER_FILES:06d}"
        if number % _FOLDER_FILES == 0:
            place.mkdir()
        os.close(os.open(place / f"{number:09d}.jpg", os.O_CREAT | os.O_WRONLY))


def make_masks(source: str, output: str) -> None:
    """The mask files of a run in which every image has its row, and its record."""
    from tasks.archive import runs
    from tasks.archive.manifest import Manifest
    from tasks.archive.output import Output
    from tasks.archive.schema import MASKS
    from tasks.segmentation import archive_job as archive
    from tasks.storage import locate
    from tasks.stream.units import mask_file

    place, identity = locate(output), archive.identify(_job(source, output))
    folder = Path(Output(place).masks_folder(identity.run_id).path)
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    classes = [
        {"index": i, "name": name, "pixels": 1000, "confidence": 0.9, "box": {"x0": 0, "y0": 0, "x1": 9, "y1": 9}}
        for i, name in enumerate(("background", "cat", "dog"))
    ]
    row = {
        "run_id": identity.run_id,
        "uri": "/somewhere/a.jpg",
        "width": 500,
        "height": 375,
        "mask_width": 500,
        "mask_height": 375,
        "mask": random.bytes(400),
        "classes": classes,
        "confidence": 0.9,
        "entropy": 0.1,
        "changed_by_crf": 0.01,
        "model": "benchmark",
    }
    pattern = pa.Table.from_pylist([{"image_id": "", **row}] * 64, schema=MASKS)
    manifest = Manifest(Output(place).manifest_folder(identity.source_id))
    for part in manifest.parts():
        for name, start, end in archive.units_of(part, identity.unit_images):
            if (folder / mask_file(name)).exists():
                continue
            ids = part.image_ids(start, end)
            rows = pattern.slice(0, len(ids)).set_column(0, MASKS.field(0), pa.array(ids, pa.string()))
            pq.write_table(rows, folder / mask_file(name), compression="zstd")
    segments = [segment.name for segment in manifest.segments]
    runs.begin(place, identity.run_id, {"model": "benchmark", "images": manifest.num_images})
    runs.end(place, identity.run_id, runs.FINISHED, None, segments=segments)


def _job(source: str, output: str) -> Any:
    from tasks.segmentation.archive_job import ArchiveJob

    return ArchiveJob(source=source, output=output)


def _list(source: str, output: str) -> Callable[[], str]:
    from tasks.segmentation.archive_job import list_archive

    def call() -> str:
        plan = list_archive(_job(source, output))
        return f"{plan.images} images, {plan.added} new, {plan.remaining_images} remain"

    return call


def _check(source: str, output: str) -> Callable[[], str]:
    from tasks.archive.output import Output
    from tasks.segmentation.archive_job import identify
    from tasks.segmentation.verify import check_run

    def call() -> str:
        report = check_run(Output.at(output), identify(_job(source, output)))
        return f"{report.images} images, {report.masks} masks"

    return call


def _compact(source: str, output: str) -> Callable[[], str]:
    from tasks.results.sealing import CompactJob, compact

    return lambda: str(compact(CompactJob(output=output, expire=True, grace_minutes=0)).files)


STEPS: dict[str, Callable[[str, str], Callable[[], str]]] = {
    "first listing": _list,
    "second listing": _list,
    "all done": _list,
    "finish check": _check,
    "compact --expire": _compact,
    "listing after it": _list,
    "finish check after it": _check,
}
"""What is measured, in this order: each gives the call that is timed, its imports done."""


def _step(name: str, source: str, output: str, profile: bool) -> None:

    call = STEPS[name](source, output)
    before = _peak_mib()
    profiler = cProfile.Profile() if profile else None
    start = time.perf_counter()
    if profiler is not None:
        profiler.enable()
    told = call()
    if profiler is not None:
        profiler.disable()
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumulative").print_stats(35)
    seconds = time.perf_counter() - start
    print(json.dumps({"told": told, "seconds": seconds, "peak": _peak_mib(), "before": before}))


def _told(name: str, source: str, output: str, profile: bool) -> str:
    command = [sys.executable, "-m", "benchmarks.scale", "step", name, source, output]
    done = subprocess.run([*command, *(["--profile"] if profile else [])], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed")
    found = json.loads(done.stdout.splitlines()[-1])
    cell = f"{found['seconds']:.1f} s ({found['peak']:.0f}, {found['before']:.0f})"
    print(f"{name}: {found['told']}: {cell}", file=sys.stderr)
    return cell


def _peak_mib() -> float:
    # Not getrusage: its peak is handed down from the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main()
