"""The archive pipeline against a plain script on the same cores, and its memory against the archive's size.

    python -m benchmarks.archive [speed|memory] [--images 100] [--rounds 2]

speed: whole jobs in processes of their own, start and end included, interleaved; ratios are medians over the rounds.
memory: proportional set size of the whole process tree (shared memory counted once), sampled every half second.
speed runs one of three models (--model):
  sharp    deeplab_v1_largefov with seeded weights and a bias that lets 6 of its 21 classes win: the CRF of a trained
           network has 5.5 of 21 to deal with, on average over the stored scores of `shared/data`. The masks mean
           nothing, the work is that of a trained network
  vague    the same without the scaling: uncertain everywhere, so that the CRF can leave no class out, its worst case
  default  the bundled default model
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.conditions import conditions
from segcore.crf.dense_crf import CrfParams
from tasks.segmentation.job import DEFAULT_MODEL

SHARP_CLASSES = 6

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SEGMENT_ARCHIVE_DATA", ROOT.parent / "shared" / "data")) / "voc2012" / "JPEGImages"

# The job without Prefect, since the plain script has none; Prefect's own start is 5 to 10 s however large the archive
JOB = """
import sys
from tasks.segmentation.job import ArchiveJob, list_archive
from tasks.segmentation.session import segment_remaining
from tasks.segmentation.finish import publish_report
source, output, engine, long_side, model = sys.argv[1:]
job = ArchiveJob(
    source=source, output=output, model=model, crf_engine=engine, inference={"long_side_px": int(long_side)},
)
plan = list_archive(job)
session = segment_remaining(job, plan)
report = publish_report(job, plan, session)
assert report.masks == report.images
rate = (session.images - 1) / (session.seconds - session.seconds_to_first)
busy = ", ".join(f"{name} {stage['busy_share']:.0%}" for name, stage in session.stages.items())
print(f"first commit after {session.seconds_to_first:.1f} s, then {rate:.2f} images/s; busy: {busy}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["speed", "memory", "all"], default="all")
    parser.add_argument("--images", type=int, default=100, help="photographs of the speed comparison")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", choices=["sharp", "vague", "default"], default="sharp")
    parser.add_argument("--memory-images", type=int, nargs=2, default=[400, 4000])
    parser.add_argument("--memory-long-side", type=int, default=257, help="working size of the memory comparison")
    args = parser.parse_args()
    photographs = sorted(DATA.glob("*.jpg"))
    if not photographs:
        raise SystemExit(f"The photographs are not at {DATA}; set SEGMENT_ARCHIVE_DATA.")
    print(conditions())
    with tempfile.TemporaryDirectory() as folder:
        if args.what in ("speed", "all"):
            speed(photographs[: args.images], args.rounds, args.model, Path(folder))
        if args.what in ("memory", "all"):
            memory(photographs, args.memory_images, args.memory_long_side, Path(folder))


def prepare_model(kind: str, photographs: list[Path], folder: Path) -> str:
    """Name or path of the model of this kind; prints what it leaves to the CRF."""
    from segcore.images.decoding import decode
    from segcore.models import checkpoint
    from segcore.scoring.inference import Scorer

    model = (
        checkpoint.load(DEFAULT_MODEL) if kind == "default" else checkpoint.load("deeplab_v1_largefov", untrained=True)
    )
    if kind == "sharp":
        classifier = [layer for layer in model.module.modules() if isinstance(layer, torch.nn.Conv2d)][-1]
        assert classifier.bias is not None
        classifier.bias.data[SHARP_CLASSES:] -= 20.0
    kept = []
    for scores, _ in Scorer(model)([decode(file.read_bytes(), 513, 10**9).image for file in photographs[:12]]):
        powers = np.exp(scores.astype(np.float32))
        kept.append(int(((powers / powers.sum(axis=0)).max(axis=(1, 2)) > CrfParams().min_probability).sum()))
    print(f"{kind}: {model.name}; the CRF is told of {np.median(kept):.0f} of 21 classes in the median photograph")
    if kind == "default":
        return DEFAULT_MODEL
    checkpoint.save(folder / "model", model.module, model.card)
    return str(folder / "model")


def speed(photographs: list[Path], rounds: int, kind: str, folder: Path) -> None:
    """Time the contestants in turn; print seconds, images/s and ratios."""
    model = prepare_model(kind, photographs, folder)
    source = folder / "photographs"
    source.mkdir()
    for file in photographs:
        (source / file.name).symlink_to(file)
    contestants = {
        "plain script": lambda out: [sys.executable, "-m", "benchmarks.plain_script", str(source), str(out), model],
        "pipeline, pydensecrf": lambda out: job(source, out, "pydensecrf", model),
        "pipeline, native CRF": lambda out: job(source, out, "native", model),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    steady: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, command in contestants.items():
            out = folder / f"{name}-{number}".replace(" ", "-").replace(",", "")
            start = time.perf_counter()
            told = subprocess.run(command(out), cwd=ROOT, check=True, capture_output=True, text=True)
            seconds[name].append(time.perf_counter() - start)
            if "then" in told.stdout:
                steady[name].append(float(told.stdout.partition("then ")[2].split()[0]))
            print(f"round {number + 1}, {name}: {seconds[name][-1]:.1f} s {told.stdout.strip()}", flush=True)
            shutil.rmtree(out)
    plain = seconds["plain script"]
    what = f"{kind}, {len(photographs)} photographs at 513 px, {rounds} rounds"
    print(f"\n| {what} | images/s, whole job | against the plain script | images/s after the first commit |")
    print("|---|---|---|---|")
    for name, times in seconds.items():
        ratio = statistics.median(p / t for p, t in zip(plain, times, strict=True))
        rate = f"{statistics.median(steady[name]):.2f}" if steady[name] else ""
        print(f"| {name} | {len(photographs) / statistics.median(times):.2f} | {ratio:.2f}x | {rate} |")


def job(source: Path, out: Path, engine: str, model: str, long_side: int = 513) -> list[str]:
    return [sys.executable, "-c", JOB, str(source), str(out), engine, str(long_side), model]


def memory(photographs: list[Path], sizes: list[int], long_side: int, folder: Path) -> None:
    """Peak memory of the process tree for archives of growing size."""
    peaks = []
    print(f"\n| archive at {long_side} px | peak memory of the process tree | seconds |\n|---|---|---|")
    for size in sizes:
        source = folder / f"archive-{size}"
        source.mkdir()
        for number in range(size):
            file = photographs[number % len(photographs)]
            (source / f"{number:06d}-{file.name}").symlink_to(file)
        out = folder / f"out-{size}"
        command = job(source, out, "native", DEFAULT_MODEL, long_side)
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_bytes(process.pid))
            time.sleep(0.5)
        if process.returncode:
            raise SystemExit(f"the job over {size} images failed")
        peaks.append(peak)
        print(f"| {size} images | {peak / 2**20:.0f} MiB | {time.perf_counter() - start:.0f} |", flush=True)
    print(f"\nTen times the archive, {100 * (peaks[-1] / peaks[0] - 1):+.1f} % peak memory.")


def tree_bytes(root: int) -> int:
    """Proportional set size of a process and everything below it; Ray's own servers are its children too."""
    parents: dict[int, int] = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    total = 0
    for process in parents:
        ancestor = process
        while ancestor not in (root, 0, 1):
            ancestor = parents.get(ancestor, 0)
        if ancestor == root:
            total += _pss(process)
    return total


def _pss(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    main()
