"""`segment-archive run` against what else does the same work on the same cores, and its memory.

    python -m benchmarks.archive overhead [--images 100] [--rounds 2] [--model NAME]
    python -m benchmarks.archive speed [--images 400] [--rounds 1] [--model NAME] [--former CHECKOUT]
    python -m benchmarks.archive memory [--engines local ray] [--sizes 400 1000 4000]

overhead: the whole command, and a throw-away pool of processes over `segcore.load(...).segment`, which is no more than
    the photographs' own work; then the parts of a run, and which share of the cores is work on photographs.
speed: the same two, the Ray engine, a plain script, and the program of another checkout, in turns.
memory: proportional set size of the whole process tree (shared memory counted once), sampled every half second.

Contestants are whole jobs in processes of their own, start and end included; ratios are medians over the rounds. CPU
seconds are of a job and of everything that it waited for, which beside other work says more than the time; those of
Ray's servers are not in it. Models beside those with a name, for the plain script's sake:
  sharp    deeplab_v1_largefov with seeded weights and a bias that lets 6 of its 21 classes win: the CRF of a trained
           network has 5.5 of 21 to deal with, on average over the stored scores of `shared/data`. The masks mean
           nothing, the work is that of a trained network
  vague    the same without the scaling: uncertain everywhere, so that the CRF can leave no class out, its worst case
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import start
from benchmarks.conditions import conditions
from tasks.segmentation.archive_job import DEFAULT_MODEL

SHARP_CLASSES = 6

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SEGMENT_ARCHIVE_DATA", ROOT.parent / "shared" / "data")) / "voc2012" / "JPEGImages"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for what, images, rounds in (("overhead", 100, 2), ("speed", 400, 1)):
        command = commands.add_parser(what)
        command.add_argument("--images", type=int, default=images)
        command.add_argument("--rounds", type=int, default=rounds)
        command.add_argument("--model", default=DEFAULT_MODEL, help="name or path of a model; sharp, vague")
    command.add_argument("--former", type=Path, help="checkout of another version, with its .venv")
    command.add_argument("--only", nargs="+", help="contestants: beginnings of their names")
    command = commands.add_parser("memory")
    command.add_argument("--engines", nargs="+", choices=["local", "ray"], default=["local", "ray"])
    command.add_argument("--sizes", type=int, nargs="+", default=[400, 1000, 4000])
    command.add_argument("--long-side", type=int, default=65, help="working size in px")
    command = commands.add_parser("pool", help="the throw-away pool alone")
    for name in ("source", "output", "model"):
        command.add_argument(name)
    args = parser.parse_args()
    if args.what == "pool":
        pool(Path(args.source), Path(args.output), args.model)
        return
    photographs = sorted(DATA.glob("*.jpg"))
    if not photographs:
        raise SystemExit(f"The photographs are not at {DATA}; set SEGMENT_ARCHIVE_DATA.")
    print(conditions())
    with tempfile.TemporaryDirectory() as folder:
        if args.what == "memory":
            memory(photographs, args.engines, args.sizes, args.long_side, Path(folder))
            return
        model = prepare_model(args.model, photographs, Path(folder))
        source = Path(folder) / "photographs"
        source.mkdir()
        for file in photographs[: args.images]:
            (source / file.name).symlink_to(file)
        if args.what == "overhead":
            overhead(source, args.rounds, model, Path(folder))
        else:
            commands_of = contestants(source, model, args.former)
            wanted = [name for name in commands_of if any(name.startswith(o) for o in args.only or [""])]
            speed({name: commands_of[name] for name in wanted}, source, args.rounds, Path(folder))


def prepare_model(kind: str, photographs: list[Path], folder: Path) -> str:
    """Name or path of a model; of the two made here, prints what they leave to the CRF."""
    if kind not in ("sharp", "vague"):
        return kind
    import numpy as np
    import torch

    from segcore.crf.dense_crf import CrfParams
    from segcore.images.decoding import decode
    from segcore.models import checkpoint
    from segcore.scoring.inference import Scorer

    model = checkpoint.load("deeplab_v1_largefov", untrained=True)
    if kind == "sharp":
        classifier = [layer for layer in model.module.modules() if isinstance(layer, torch.nn.Conv2d)][-1]
        assert classifier.bias is not None
        classifier.bias.data[SHARP_CLASSES:] -= 20.0
    kept = []
    for scores, _ in Scorer(model)([decode(file.read_bytes(), 513, 10**9).image for file in photographs[:12]]):
        powers = np.exp(scores.astype(np.float32))
        kept.append(int(((powers / powers.sum(axis=0)).max(axis=(1, 2)) > CrfParams().min_probability).sum()))
    print(f"{kind}: {model.name}; the CRF is told of {np.median(kept):.0f} of 21 classes in the median photograph")
    checkpoint.save(folder / "model", model.module, model.card)
    return str(folder / "model")


_segmenter: Any = None


def _load(model: str) -> None:
    global _segmenter
    import segcore

    _segmenter = segcore.load(model, num_threads=1)


def _segment(file: Path, mask: Path) -> None:
    _segmenter.segment(file).save(mask)


def pool(source: Path, output: Path, model: str) -> None:
    """The throw-away script: one process a core, the library, PNG files, nothing else."""
    output.mkdir(parents=True)
    files = [(file, output / f"{file.stem}.png") for file in sorted(source.iterdir())]
    os.environ |= {"OMP_NUM_THREADS": "1"}
    cores = len(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(cores, _load, (model,)) as processes:
        processes.starmap(_segment, files, chunksize=1)


def contestants(source: Path, model: str, former: Path | None) -> dict[str, tuple[Path, list[str]]]:
    """By name: working folder and command, to which the output is added."""

    def ours(*arguments: str) -> tuple[Path, list[str]]:
        return ROOT, [sys.executable, "-m", *arguments]

    found = {
        "local": ours("flows.cli", "run", "--engine", "local", "--model", model, str(source)),
        "pool": ours("benchmarks.archive", "pool", str(source)),
        "ray": ours("flows.cli", "run", "--engine", "ray", "--model", model, str(source)),
        "plain script": ours("benchmarks.plain_script", str(source)),
    }
    if former is not None:
        command = [str(former.resolve() / ".venv" / "bin" / "segment-archive"), "run", "--model", model, str(source)]
        found["former"] = (former, command)
    return {
        name: (folder, [*command, "{output}", *([model] if name in ("pool", "plain script") else [])])
        for name, (folder, command) in found.items()
    }


def timed(folder: Path, command: Sequence[str]) -> tuple[float, float]:
    """Wall time of a command, and CPU time of it and of what it waited for, in s."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read()[-2000:]}")
    return time.perf_counter() - begun, usage.ru_utime + usage.ru_stime


def speed(
    commands: dict[str, tuple[Path, list[str]]], source: Path, rounds: int, folder: Path
) -> dict[str, tuple[float, float]]:
    """Time the contestants in turn; prints a table. Median wall and CPU seconds by name."""
    walls: dict[str, list[float]] = {name: [] for name in commands}
    cpus: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds):
        for name, (place, command) in commands.items():
            output = folder / "output"
            wall, cpu = timed(place, [part.replace("{output}", str(output)) for part in command])
            walls[name].append(wall)
            cpus[name].append(cpu)
            print(f"round {number + 1}, {name}: {wall:.1f} s, {cpu:.1f} CPU s", flush=True)
            shutil.rmtree(output)
    images = len(list(source.iterdir()))
    against = " | against ".join(walls)
    print(f"\n| {images} photographs, {rounds} rounds | s | CPU s | images/s | speed against {against} |")
    print(f"|---|---|---|---|{'---|' * len(walls)}")
    for name, times in walls.items():
        ratios = [f"{statistics.median(b / a for a, b in zip(times, walls[o], strict=True)):.2f}x" for o in walls]
        wall, cpu = statistics.median(times), statistics.median(cpus[name])
        shown = f"{cpu:.1f}" if name != "ray" and name != "former" else "not counted"
        print(f"| {name} | {wall:.1f} | {shown} | {images / wall:.2f} | {' | '.join(ratios)} |")
    return {name: (statistics.median(walls[name]), statistics.median(cpus[name])) for name in walls}


def overhead(source: Path, rounds: int, model: str, folder: Path) -> None:
    """The command against the pool, and the parts of a run."""
    commands = contestants(source, model, None)
    found = speed({name: commands[name] for name in ("local", "pool")}, source, rounds, folder)
    (wall, cpu), (pool_wall, pool_cpu) = found["local"], found["pool"]
    print(f"\nOver the pool: {wall / pool_wall - 1:+.1%} of the time, {cpu / pool_cpu - 1:+.1%} of the CPU seconds.")
    print("\nParts of one run:")
    parts = start.parts(source, folder / "parts", model)
    start.print_parts(parts)
    cores = len(os.sched_getaffinity(0))
    work = sum(parts["busy"].values())
    print(f"Work on photographs: {work:.1f} of {cores} x {parts['all']:.1f} s, {work / cores / parts['all']:.1%}")


def memory(photographs: list[Path], engines: list[str], sizes: list[int], long_side: int, folder: Path) -> None:
    """Peak memory of the process tree for archives of growing size."""
    for size in sizes:
        source = folder / f"archive-{size}"
        source.mkdir()
        for number in range(size):
            file = photographs[number % len(photographs)]
            (source / f"{number:06d}-{file.name}").symlink_to(file)
    print(f"\n| archive at {long_side} px, without CRF and gallery | engine | peak memory | s |\n|---|---|---|---|")
    told = []
    for engine in engines:
        peaks = []
        for size in sizes:
            command = [sys.executable, "-m", "flows.cli", "run", "--engine", engine, "--no-crf"]
            command += ["--gallery-images", "0", "--long-side", str(long_side)]
            command += [str(folder / f"archive-{size}"), str(folder / "output")]
            begun = time.perf_counter()
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            peak = 0
            while process.poll() is None:
                peak = max(peak, tree_bytes(process.pid))
                time.sleep(0.5)
            if process.returncode:
                raise SystemExit(f"the job over {size} images failed")
            peaks.append(peak)
            print(f"| {size} images | {engine} | {peak >> 20} MiB | {time.perf_counter() - begun:.0f} |", flush=True)
            shutil.rmtree(folder / "output")
        told.append(
            f"{engine}: {sizes[-1] / sizes[0]:g} times the archive, {peaks[-1] / peaks[0] - 1:+.1%} peak memory."
        )
    print("\n" + "\n".join(told))


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
