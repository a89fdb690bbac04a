"""The default model by ONNX Runtime and by torch: size of either, ms an image on one core, scores and labels compared.

    python -m benchmarks.onnx [FOLDER of photographs] [--images 40]

Runs are interleaved: in each round every engine scores one photograph; what counts is its time of the processor, the
least and the median over the rounds. Labels are those of the network, without CRF.
"""

import argparse
import importlib.metadata
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.conditions import conditions
from benchmarks.photographs import FIVE
from segcore.images.decoding import decode
from segcore.models import checkpoint
from segcore.scoring.inference import InferenceParams, Scorer
from segcore.scoring.onnx_scorer import OnnxScorer
from tasks.segmentation.archive_job import DEFAULT_MODEL


def installed_mb(package: str) -> float:
    """Size of a package's files in 10^6 bytes."""
    files = importlib.metadata.files(package) or []
    return sum(Path(str(file.locate())).stat().st_size for file in files if Path(str(file.locate())).is_file()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="by default the five photographs of the benchmarks")
    parser.add_argument("--images", type=int, default=40)
    args = parser.parse_args()
    print(conditions())
    for package in ("onnxruntime", "flatbuffers", "protobuf", "torch", "sympy", "networkx", "mpmath"):
        print(f"  {package:<12} {installed_mb(package):6.0f} MB installed")
    torch.set_num_threads(1)
    model = checkpoint.load(DEFAULT_MODEL)
    engines = {
        "ONNX Runtime, fp32": OnnxScorer(model, InferenceParams(), num_threads=1),
        "torch, fp32": Scorer(model, InferenceParams(precision="fp32"), device="cpu"),
        "torch, bf16": Scorer(model, InferenceParams(precision="bf16"), device="cpu"),
    }
    files = FIVE
    if args.folder:
        files = sorted(file for file in args.folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    pictures = [decode(file.read_bytes(), 513, 10**9).image for file in files[: args.images]]
    while len(pictures) < args.images:  # Rounds enough for a median
        pictures += pictures[: args.images - len(pictures)]
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    equal: dict[str, list[float]] = {name: [] for name in engines}
    largest = dict.fromkeys(engines, 0.0)
    for scorer in engines.values():
        scorer(pictures[:1])
    for picture in pictures:
        found = {}
        for name, scorer in engines.items():
            started = time.process_time()
            (scored,) = scorer([picture])
            seconds[name].append(time.process_time() - started)
            found[name] = scored.scores.astype(np.float32)
        exact = found["torch, fp32"]
        for name, scores in found.items():
            equal[name].append(float((scores.argmax(0) == exact.argmax(0)).mean()))
            close = exact > -20  # Classes that a softmax can see; float16 is coarser below
            largest[name] = max(largest[name], float(abs(scores - exact)[close].max()))
    print(f"{len(pictures)} rounds over {len(files[: args.images])} photographs, long side 513 px:")
    for name, taken in seconds.items():
        print(
            f"  {name:<19} {1000 * min(taken):6.0f} ms at least, {1000 * statistics.median(taken):6.0f} median; "
            f"of torch's fp32: scores within {largest[name]:.1e} of {abs(exact).max():.0f}, "
            f"{100 * np.mean(equal[name]):.3f} % of labels equal"
        )


if __name__ == "__main__":
    main()
