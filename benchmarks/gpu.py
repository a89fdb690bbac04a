"""What runs on a GPU, tried and measured part by part: `make gpu`. On a machine without one, the same in miniature.

    python -m benchmarks.gpu OUTPUT [PART ...]      the parts that OUTPUT has no result of, then OUTPUT/report.md
    python -m benchmarks.gpu --list                 the parts
    python -m benchmarks.gpu --carry FOLDER         what a bare machine needs beside torch, in files below 55 MB
    python -m benchmarks.gpu --install FOLDER       installs that there, without the internet

Each part is a command of its own, a minute or so long, whose output is kept whole: a trial that was stopped goes on
with the next part, one that failed is tried again. A part that fails stops no other. In miniature the parts only show
that they work; their figures say nothing of a GPU, and the report says that none was there.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.conditions import conditions
from benchmarks.models import read_photographs
from segcore import extras, models

ROOT = Path(__file__).resolve().parent.parent
HERE = torch.cuda.is_available()
"""Whether there is a GPU: without one, all is smaller."""

VOC = Path(os.environ.get("SEGMENT_ARCHIVE_DATA", ROOT.parent / "shared" / "data")) / "voc2012"
ME = "benchmarks.gpu"
CARRIED_BYTES = 55_000_000
ALIKE = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1}
"""Largest difference of scores that is no fault, relative to their spread."""


def parts() -> dict[str, list[str]]:
    """Arguments of Python, by the name of the part, in the order in which they are worth having."""
    device = [] if HERE else ["--cpu"]
    small = ["pspnet14", "pspnet_lite2", "deeplab_v2_resnet18"]
    found = {f"parity-{name}": ["-m", ME, "--do", "parity", name] for name in models.NAMES}
    found["tests"] = ["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "-rs", "tests"]
    for name in models.NAMES if HERE else small:
        sizes = ["--batches", "1", "8", "32", "64"] if HERE else ["--rounds", "1", "--threads", "2"]
        found[f"speed-{name}"] = ["-m", "benchmarks.models", name, *sizes, *device]
    for name in ("deeplab_v2_resnet101", "pspnet101") if HERE else ("fast_pspnet14",):
        sizes = ["--batches", "8", "16"] if HERE else ["--crop", "65", "--batch", "2", "--steps", "1"]
        found[f"training-{name}"] = ["-m", "benchmarks.training", name, *sizes, *device]
    found["resume"] = ["-m", ME, "--do", "resume"]
    found["archive"] = ["-m", ME, "--do", "archive", "deeplab_v2_resnet101" if HERE else "pspnet14"]
    found["crf"] = ["-m", ME, "--do", "crf"]
    if HERE or extras.is_here("triton"):  # A gigabyte, which comes with PyTorch for CUDA
        found["crf-gpu"] = ["-m", ME, "--do", "crf-gpu"]
    return found


def parity(name: str) -> None:
    """Scores of a variant on the CPU in float32 against those of the GPU in three formats."""
    from segcore.models import checkpoint
    from segcore.scoring.inference import InferenceParams, Scorer

    model = checkpoint.load(name, untrained=True)
    side = (375, 500) if HERE else (65, 81)
    images = [np.asarray(Image.fromarray(image).resize(side[::-1])) for image in read_photographs(None, 2)]
    expected = [
        m.scores.astype(np.float32) for m in Scorer(model, InferenceParams(precision="fp32"), device="cpu")(images)
    ]
    spread = float(np.mean([scores.std() for scores in expected]))
    print(f"{name}, 2 photographs of {side[1]} x {side[0]} px, seeded weights\n")
    print("| format | largest difference / spread of the scores | labels changed | |\n| --- | ---: | ---: | --- |")
    for precision in ("fp32", "bf16", "fp16") if HERE else ("fp32", "bf16"):
        scorer = Scorer(model, InferenceParams(precision=precision), device="cuda" if HERE else "cpu")
        found = [m.scores.astype(np.float32) for m in scorer(images)]
        pairs = list(zip(found, expected, strict=True))
        largest = max(float(np.abs(a - b).max()) for a, b in pairs) / spread
        changed = float(np.mean([(a.argmax(0) != b.argmax(0)).mean() for a, b in pairs]))
        verdict = "" if largest <= ALIKE[precision] else f"more than {ALIKE[precision]:g}"
        print(f"| {scorer.place} | {largest:.4f} | {changed:.2%} | {verdict} |")


def _archive(folder: Path, images: int) -> Path:
    """Photographs of 500 x 375 px, all different files."""
    source = folder / "photographs"
    source.mkdir()
    pictures = read_photographs(None, 5)
    for number in range(images):
        shifted = np.roll(pictures[number % len(pictures)], 7 * number, axis=1)
        Image.fromarray(shifted).save(source / f"{number:06d}.jpg", quality=90)
    return source


def archive(name: str) -> None:
    """The whole job, JPEG to committed Parquet, with one GPU, against the network alone on decoded photographs."""
    from segcore.models import checkpoint
    from segcore.scoring.inference import Scorer

    images = 3000 if HERE else 8
    with tempfile.TemporaryDirectory() as folder:
        source = _archive(Path(folder), images)
        command = ["-m", "flows.cli", "run", "--engine", "ray" if HERE else "local", "--model", name, "--untrained"]
        for crf in ([], ["--no-crf"], *([["--crf-engine", "cuda"]] if HERE else [])):
            began = time.perf_counter()
            output = Path(folder) / f"masks{len(crf)}"
            subprocess.run([sys.executable, *command, *crf, str(source), str(output)], cwd=ROOT, check=True)
            seconds = time.perf_counter() - began
            print(
                f"whole job {' '.join(crf)}: {images} photographs in {seconds:.1f} s, start included",
                flush=True,
            )
    decoded = read_photographs(None, 64 if HERE else 2)
    scorer = Scorer(checkpoint.load(name, untrained=True))
    scorer(decoded)
    rounds, began = 10 if HERE else 1, time.perf_counter()
    for _ in range(rounds):
        scorer(decoded)
    rate = rounds * len(decoded) / (time.perf_counter() - began)
    print(f"network alone, {scorer.place}: {rate:.1f} images/s")


def resume() -> None:
    """A training that is killed after its first checkpoint, and goes on."""
    recipe = "deeplab_v2_resnet101" if HERE else "fast_pspnet14"
    options = [] if HERE else ["--crop", "65", "--batch-size", "4", "--precision", "fp32"]
    with tempfile.TemporaryDirectory() as folder:
        mine, dataset, output = (Path(folder) / name for name in ("mine", "dataset", "training"))
        (mine / "masks").mkdir(parents=True)
        _archive(mine, 32).rename(mine / "images")
        for file in (mine / "images").iterdir():
            mask = np.zeros((375, 500), np.uint8)
            mask[100:250, 120:300] = 1
            Image.fromarray(mask).save(mine / "masks" / f"{file.stem}.png")
        prepare = ["prepare", str(dataset), "--data", str(mine), "--classes", "ground,box"]
        train = [
            "train",
            str(dataset),
            str(output),
            "--recipe",
            recipe,
            "--iterations",
            "12",
            "--checkpoint-every",
            "4",
        ]
        train += ["--workers", "1", "--validation-images", "0", *options]
        subprocess.run([sys.executable, "-m", "flows.cli", *prepare], cwd=ROOT, check=True)
        process = subprocess.Popen([sys.executable, "-m", "flows.cli", *train], cwd=ROOT, start_new_session=True)
        while process.poll() is None and not list((output / "checkpoints").glob("step-*4.pt")):
            time.sleep(0.2)
        if process.poll() is not None:
            raise SystemExit("The training ended before it could be killed.")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        print("killed after the first checkpoint", flush=True)
        subprocess.run([sys.executable, "-m", "flows.cli", *train], cwd=ROOT, check=True)
        if not (output / "model" / "card.json").exists():
            raise SystemExit("The training that went on made no model.")


def _scored(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A photograph and scores of it: a network's, where the data folder is here, else smooth random ones."""
    if (VOC / "scores_val_have.npz").exists():
        stored = np.load(VOC / "scores_val_have.npz")
        number %= len(stored["ids"])
        with Image.open(VOC / "JPEGImages" / f"{stored['ids'][number]}.jpg") as picture:
            return np.asarray(picture.convert("RGB")), stored["logits"][number]
    rng = np.random.default_rng(number)
    centres = rng.normal(0, 1, (21, 9, 12)).astype(np.float32)
    scores = np.stack([np.asarray(Image.fromarray(c).resize((63, 47), Image.Resampling.BICUBIC)) for c in centres]) * 6
    return read_photographs(None, 5)[number % 5], scores.astype(np.float16)


def _refined(number: int) -> int:
    """Photographs that a process refines in some seconds."""
    from segcore.crf.dense_crf import CrfParams, refine_scores

    image, scores = _scored(number)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < (5.0 if HERE else 0.5):
        refine_scores(image, scores, CrfParams())
        done += 1
    return done


def crf() -> None:
    """Photographs of 500 x 375 px refined a second, by one core and by all."""
    cores = len(os.sched_getaffinity(0))
    for count in (1, cores):
        began = time.perf_counter()
        with multiprocessing.get_context("spawn").Pool(count) as pool:
            pool.map(_refined, range(count))  # Started, and the code loaded
            began = time.perf_counter()
            done = sum(pool.map(_refined, range(count)))
        print(f"{count} cores: {done / (time.perf_counter() - began):.1f} images/s")


def _by_pydensecrf(problem: tuple[np.ndarray, np.ndarray, Any]) -> np.ndarray:
    from segcore.crf.dense_crf import refine_scores

    image, scores, params = problem
    return refine_scores(image, scores, params, backend="pydensecrf").labels


def crf_gpu() -> None:
    """The CRF on the GPU: labels against pydensecrf's of all classes, and time an image over batches."""
    if not HERE:
        os.environ["TRITON_INTERPRET"] = "1"  # Before Triton's first import
    from segcore.crf import gpu
    from segcore.crf.dense_crf import CRF_PRESETS

    gpu.DEVICE = "cuda" if HERE else "cpu"
    problems = [_scored(number) for number in range(300 if HERE else 2)]
    if not HERE:  # Interpreted
        problems = [(image[:24, :31], scores[:, :4, :5]) for image, scores in problems]
    sizes = [(image.shape[0], image.shape[1]) for image, _ in problems]
    print("| parameters, classes | batch | ms an image | equal labels, mean | worst image |")
    print("| --- | ---: | ---: | ---: | ---: |")
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        for name in ("deeplab_v2_resnet101", "deeplab_v1"):
            pruned = CRF_PRESETS[name]
            exact = dataclasses.replace(pruned, min_probability=0)
            expected = pool.map(_by_pydensecrf, [(*problem, exact) for problem in problems], chunksize=1)
            for params, classes in ((exact, "all"), (pruned, "that can win")):
                for batch in (1, 4, 12) if HERE else (2,):
                    equal, seconds = [], 0.0
                    for first in range(-batch, len(problems), batch):  # The first batch twice: it compiles
                        part = slice(max(first, 0), max(first, 0) + batch)
                        images, scores = zip(*problems[part], strict=True)
                        began = time.perf_counter()
                        found = gpu.refine_scores(images, scores, params, sizes[part])  # Ends with labels on the CPU
                        if first < 0:
                            continue
                        seconds += time.perf_counter() - began
                        equal += [float((f.labels == e).mean()) for f, e in zip(found, expected[part], strict=True)]
                    row = f"{name}, {classes} | {batch} | {1e3 * seconds / len(problems):.1f}"
                    print(f"| {row} | {np.mean(equal):.5%} | {min(equal):.4%} |", flush=True)


def carry(folder: Path) -> None:
    """Wheels of everything that runs beside torch, which the machine has, as one archive in pieces."""
    pinned = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith(("#", "torch==", "nvidia", "triton"))
    ]
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "wanted.txt").write_text("\n".join(pinned))
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*download, "-r", f"{work}/wanted.txt", "-d", f"{work}/wheels"], check=True)
        packed = Path(shutil.make_archive(f"{work}/wheels", "tar", f"{work}/wheels"))
        with packed.open("rb") as whole:
            for number in range(-(-packed.stat().st_size // CARRIED_BYTES)):
                (folder / f"wheels-{number:02d}").write_bytes(whole.read(CARRIED_BYTES))
    print(f"{len(list(folder.iterdir()))} files in {folder}")


def install(folder: Path) -> None:
    """Install what `carry` made, beside the torch that is there, and this project with its extensions."""
    with tempfile.TemporaryDirectory() as work:
        packed = Path(work) / "wheels.tar"
        with packed.open("wb") as whole:
            for piece in sorted(folder.glob("wheels-*")):
                whole.write(piece.read_bytes())
        shutil.unpack_archive(packed, f"{work}/wheels", filter="data")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*pip, *map(str, Path(f"{work}/wheels").glob("*.whl"))], check=True)
        subprocess.run([*pip, "--no-build-isolation", "-e", str(ROOT)], check=True)


def trial(output: Path, wanted: list[str]) -> None:
    """Do the parts that have no result yet, and write the report."""
    output.mkdir(parents=True, exist_ok=True)
    known = parts()
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise SystemExit(f"{unknown[0]} is no part; --list names them.")
    for name in wanted or known:
        place, unfinished = output / f"{name}.txt", output / f"{name}.unfinished"
        if place.exists():
            continue
        began = time.perf_counter()
        with unfinished.open("w") as log:
            done = subprocess.run([sys.executable, *known[name]], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
            log.write(f"\n{time.perf_counter() - began:.0f} s\n")
        if done.returncode == 0:
            unfinished.rename(place)
        print(f"{name}: {'done' if done.returncode == 0 else f'failed, see {unfinished}'}", flush=True)
    gpu = torch.cuda.get_device_name() if HERE else "No GPU was there: this is the trial in miniature, on the CPU."
    sections = [f"# GPU trial\n\n{gpu}\n\n{conditions()}\n"]
    for name in known:
        done_place, failed = output / f"{name}.txt", output / f"{name}.unfinished"
        text = done_place if done_place.exists() else failed if failed.exists() else None
        said = "not done" if text is None else text.read_text()
        sections.append(f"## {name}{'' if text is None or text == done_place else ', failed'}\n\n{said}")
    (output / "report.md").write_text("\n".join(sections))
    missing = [name for name in known if not (output / f"{name}.txt").exists()]
    print(f"{len(known) - len(missing)} of {len(known)} parts; {output / 'report.md'}")
    if missing and not wanted:
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--carry", type=Path)
    parser.add_argument("--install", type=Path)
    parser.add_argument("--do", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.do:
        work: dict[str, Any] = {"parity": parity, "archive": archive, "resume": resume, "crf": crf, "crf-gpu": crf_gpu}
        work[args.do[0]](*args.do[1:])
    elif args.list:
        print("\n".join(parts()))
    elif args.carry or args.install:
        carry(args.carry) if args.carry else install(args.install)
    elif args.output is None:
        parser.error("say where OUTPUT is")
    else:
        trial(args.output, args.parts)


if __name__ == "__main__":
    main()
