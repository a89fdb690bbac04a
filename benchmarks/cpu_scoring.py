"""Ways to score on a CPU, measured side by side: python -m benchmarks.cpu_scoring [NAME ...] [--voc FOLDER]

torch in float32, bfloat16 and compiled (where g++ is), ONNX Runtime in float32 and int8, OpenVINO in float32, bfloat16
and int8 (where it is installed): ms an image of 500 x 375 px, the least of the rounds, at one
thread (of the processor's time, which other work disturbs less) and at two (wall-clock), each in a process of its
own; then again on a processor without AMX. ONNX Runtime has no kernels of bfloat16 for x86. That processor is this one,
whose kernel refuses AMX to the process (a seccomp filter on arch_prctl, which every library asks; nothing is said of
processors without AVX-512).

Labels are compared with torch's float32 on the stride-8 grid. With --voc (a folder in VOC's layout with an image set
val_have) mean IoU of the network without CRF over its images, for models with trained weights. int8 is calibrated on
images of the set train_full_have, else on the examples. The scorers are the archive's own but for torch.compile and
OpenVINO in float32 and int8, which get the same inputs.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from benchmarks.conditions import conditions
from benchmarks.photographs import FIVE

NAMES = ("pspnet_lite2", "deeplab_v2_resnet101", "pspnet50")
WAYS = (
    "torch fp32",
    "torch bf16",
    "torch bf16 compiled",
    "ONNX Runtime fp32",
    "ONNX Runtime int8",
    "OpenVINO fp32",
    "OpenVINO bf16",
    "OpenVINO int8",
)
CALIBRATION = 12

Score = Callable[[np.ndarray], np.ndarray]
"""(H, W, 3) uint8 RGB to (C, h, w) scores."""


def refuse_amx() -> None:
    """Have the kernel refuse the tiles of AMX to this process, before a library asks for them."""
    load, equal, answer = 0x20, 0x15, 0x06  # BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K
    allow, refuse = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO | EPERM
    program = [
        (load, 0, 0, 0),  # Number of the system call
        (equal, 0, 3, 158),  # arch_prctl
        (load, 0, 0, 16),  # Its first argument
        (equal, 0, 1, 0x1023),  # ARCH_REQ_XCOMP_PERM
        (answer, 0, 0, refuse),
        (answer, 0, 0, allow),
    ]
    code = b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    filter_ = struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    if libc.prctl(22, 2, ctypes.create_string_buffer(filter_), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise SystemExit(f"seccomp: {os.strerror(ctypes.get_errno())}")


def make_files(name: str, folder: Path, voc: Path | None) -> None:
    """The model as ONNX files of float32 and int8."""
    from segcore.images.decoding import decode
    from segcore.models import checkpoint
    from segcore.models.onnx_export import export
    from segcore.scoring.onnx_int8 import quantise

    content, card = export(load(name))
    (folder / "fp32.onnx").write_bytes(content)
    (folder / "card.json").write_text(card.to_json())
    files = FIVE
    if voc is not None:
        names = (voc / "ImageSets/Segmentation/train_full_have.txt").read_text().split()
        files = [voc / "JPEGImages" / f"{image}.jpg" for image in names]
    pictures = [decode(file.read_bytes(), 513).image for file in (files * CALIBRATION)[:CALIBRATION]]
    model = checkpoint.LoadedModel(None, card, "", onnx=content)
    (folder / "int8.onnx").write_bytes(quantise(model, pictures))


def load(name: str) -> Any:
    """The model, with seeded weights where there are no trained ones."""
    from segcore.models import checkpoint

    try:
        return checkpoint.load(name)
    except ValueError:
        return checkpoint.load(name, untrained=True)


def scorer_of(way: str, name: str, folder: Path, threads: int) -> Score:
    """One way to score."""
    from segcore.models import checkpoint
    from segcore.models.card import ModelCard
    from segcore.scoring.inference import InferenceParams, Scorer
    from segcore.scoring.onnx_scorer import OnnxScorer

    if way.startswith("torch"):
        import torch

        precision = way.split()[1]
        scorer = Scorer(load(name), InferenceParams(precision=precision), device="cpu", num_threads=threads)  # type: ignore[arg-type]
        if way.endswith("compiled"):
            scorer.runner.module = torch.compile(scorer.runner.module)
        return lambda image: scorer([image])[0].scores
    file = "int8" if way.endswith("int8") else "fp32"
    card = ModelCard.from_json((folder / "card.json").read_text())
    model = checkpoint.LoadedModel(None, card, "", onnx=(folder / f"{file}.onnx").read_bytes())
    precision: Literal["auto", "bf16"] = "bf16" if way == "OpenVINO bf16" else "auto"
    given = OnnxScorer(model, InferenceParams(precision=precision), num_threads=threads)
    if way.startswith("ONNX") or precision == "bf16":
        return lambda image: given([image])[0].scores
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(str(folder / f"{file}.onnx"), "CPU", settings)
    return lambda image: np.asarray(compiled([given.input_of(image, given.ends)])[0])[0]


def measure(
    way: str, name: str, folder: Path, threads: int, rounds: int, compared: bool, voc: Path | None, images: int
) -> None:
    """Print ms an image, the share of labels of float32, and mean IoU, as JSON."""
    import torch

    torch.set_num_threads(threads)
    score = scorer_of(way, name, folder, threads)
    files = FIVE
    pictures = [np.asarray(Image.open(file).convert("RGB").resize((500, 375))) for file in files]
    score(pictures[0])
    taken, clock = [], time.process_time if threads == 1 else time.perf_counter
    for number in range(rounds):
        began = clock()
        score(pictures[number % len(pictures)])
        taken.append(clock() - began)
    found: dict[str, Any] = {"ms": 1000 * min(taken)}
    if compared:
        labels = [score(picture)[:, :48, :63].argmax(0) for picture in pictures[:3]]
        kept = folder / "labels.npy"
        if way == "torch fp32":
            np.save(kept, labels)
        found["same"] = float(np.mean([np.mean(a == b) for a, b in zip(labels, np.load(kept), strict=True)]))
    if voc is not None:
        from segcore.crf.dense_crf import refine_scores
        from segcore.images.decoding import decode
        from segcore.images.masks import decode_mask
        from segcore.metrics.evaluation import count_pixels, iou
        from segcore.scoring.inference import padded_px, score_map

        counts = np.zeros((21, 3), np.int64)
        for image in (voc / "ImageSets/Segmentation/val_have.txt").read_text().split()[:images]:
            picture = decode((voc / "JPEGImages" / f"{image}.jpg").read_bytes(), 513).image
            truth = decode_mask((voc / "SegmentationClassAug" / f"{image}.png").read_bytes())
            extent = (padded_px(picture.shape[0]), padded_px(picture.shape[1]))
            scores = score_map(score(picture).astype(np.float32), extent, way).scores
            counts += count_pixels(truth, refine_scores(picture, scores, None, extent_px=extent).labels, 21)
        found["miou"] = float(100 * np.nanmean(iou(counts)))
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--voc", type=Path)
    parser.add_argument("--images", type=int, default=100, help="of VOC's val, for mean IoU")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, metavar="WAY")
    parser.add_argument("--prepare", action="store_true", help="make the files alone")
    parser.add_argument("--files", type=Path, help="keep the ONNX files here, and take those that are there")
    parser.add_argument("--compared", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=4, metavar=("WAY", "AMX", "THREADS", "FILES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        way, amx, threads, files = args.one
        if amx == "no":
            refuse_amx()
        measure(way, args.names[0], Path(files), int(threads), args.rounds, args.compared, args.voc, args.images)
        return
    here = importlib.util.find_spec
    ways = [w for w in args.ways if not w.startswith("OpenVINO") or here("openvino")]
    ways = [w for w in ways if not w.endswith("compiled") or shutil.which("g++")]
    print(f"{conditions()}\n")
    columns = [(amx, n) for amx in ("yes", "no") for n in args.threads]
    heads = [f"{'AMX' if amx == 'yes' else 'no AMX'}, {n} thread{'s' if n > 1 else ''}" for amx, n in columns]
    print(f"| model | way | ms: {' | '.join(heads)} | labels of fp32 | mean IoU, % |")
    print(f"|---|---|{'---:|' * len(columns)}---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.names:
            folder = (args.files or Path(temporary)) / name
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "int8.onnx").exists():
                make_files(name, folder, args.voc)
            if args.prepare:
                continue
            voc = [] if args.voc is None or load(name).card.untrained else ["--voc", str(args.voc)]
            for way in ways:
                line: list[dict[str, Any]] = []
                for number, (amx, threads) in enumerate(columns):
                    command = [sys.executable, "-m", "benchmarks.cpu_scoring", name, "--rounds", str(args.rounds)]
                    command += ["--one", way, amx, str(threads), str(folder), "--images", str(args.images)]
                    once = [] if number else ["--compared", *voc]
                    done = subprocess.run([*command, *once], capture_output=True, text=True)
                    if done.returncode:
                        print(f"| {name} | {way} | {done.stderr.splitlines()[-1][:90]} |", flush=True)
                        break
                    line.append(json.loads(done.stdout.splitlines()[-1]))
                else:
                    figures = " | ".join(f"{found['ms']:.0f}" for found in line)
                    miou = line[0].get("miou")
                    told = f"{line[0]['same']:.2%} | {'' if miou is None else f'{miou:.1f}'}"
                    print(f"| {name} | {way} | {figures} | {told} |", flush=True)


if __name__ == "__main__":
    main()
