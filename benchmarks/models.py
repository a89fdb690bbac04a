"""Speed of every model, and what bfloat16 costs: python -m benchmarks.models [NAME ...]

On a CPU: images/s of each variant in fp32 and bf16, the two measured in turns on the same photographs scaled to
500 x 375, in wall-clock time and in CPU time (which a shared machine disturbs less); the largest difference of the
scores and the share of positions of the stride-8 map whose label changes. On CUDA: images/s at 513 x 513 over batch
sizes, eager and compiled with CUDA graphs, and the share of the device's peak.
Weights are seeded and untrained, unless a NAME is the path of a model: labels of an untrained network are close calls.
--others adds networks of others with random weights: SegFormer-B0, UperNet with ConvNeXt-Tiny and Mask2Former with
Swin-Tiny as `transformers` has them, of 150 classes, and PSPNet-50 of ours as an ONNX file. They are scored as the
archive scores them: in float32, and ONNX files in bfloat16 too where OpenVINO is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.conditions import conditions
from benchmarks.photographs import FIVE
from segcore import models
from segcore.models import checkpoint
from segcore.predictor import Predictor, PredictParams
from segcore.scoring.device import to_precision
from segcore.scoring.inference import InferenceParams, Scorer
from segcore.scoring.onnx_scorer import require_usable

# Dense bf16 peak in TFLOP/s, from the makers' data sheets.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}


def read_photographs(folder: Path | None, count: int) -> list[np.ndarray]:
    """(375, 500, 3) uint8 RGB each, the first `count` of the folder, or of the five of the benchmarks."""
    paths = FIVE
    if folder is not None:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise SystemExit(f"There are no photographs in {folder}; give another --photographs.")
    return [np.asarray(Image.open(path).convert("RGB").resize((500, 375))) for path in (paths * count)[:count]]


def load(name: str) -> checkpoint.LoadedModel:
    return checkpoint.load(name, untrained=name in models.NAMES)


def measure_cpu(names: list[str], photographs: list[np.ndarray], rounds: int, threads: int) -> None:
    """One line a model; fp32 and bf16 take turns, figures are medians over rounds."""
    print("| model | images/s fp32 | bf16 | CPU s fp32 | bf16 | ratio | largest difference | labels changed |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for place in names:
        model = load(place)
        name = Path(place).parent.name + ", ONNX" if place.endswith(".onnx") else Path(place).name
        scorers = scorers_of(model, threads)
        wall: dict[str, list[float]] = {precision: [] for precision in scorers}
        busy: dict[str, list[float]] = {precision: [] for precision in scorers}
        largest, changed, positions = 0.0, 0, 0
        for scorer in scorers.values():
            scorer(photographs[:1])
        for index in range(rounds):
            image = [photographs[index % len(photographs)]]
            scores = {}
            for precision, scorer in scorers.items():
                began, began_cpu = time.perf_counter(), time.process_time()
                scores[precision] = scorer(image)[0].scores.astype(np.float32)
                wall[precision].append(time.perf_counter() - began)
                busy[precision].append(time.process_time() - began_cpu)
            if len(scores) == 1:
                continue
            # Scores are relative to the best class, so that both precisions have the same zero.
            largest = max(largest, float(np.abs(scores["fp32"] - scores["bf16"]).max()))
            labels = {precision: values.argmax(0) for precision, values in scores.items()}
            changed += int((labels["fp32"] != labels["bf16"]).sum())
            positions += labels["fp32"].size
        rate = {precision: 1 / statistics.median(values) for precision, values in wall.items()}
        cpu = {precision: statistics.median(values) for precision, values in busy.items()}
        if len(scorers) == 1:
            print(f"| {name} | {rate['fp32']:.2f} | | {cpu['fp32']:.2f} | | | | |", flush=True)
            continue
        print(
            f"| {name} | {rate['fp32']:.2f} | {rate['bf16']:.2f} | {cpu['fp32']:.2f} | {cpu['bf16']:.2f} | "
            f"{cpu['fp32'] / cpu['bf16']:.1f} | {largest:.2f} | {changed / positions:.2%} |",
            flush=True,
        )
        del model, scorers, scorer
        gc.collect()
    print(f"\nPeak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB.")


def scorers_of(model: checkpoint.LoadedModel, threads: int) -> dict[str, Any]:
    """What scores a model in each precision: networks of ours by torch, others as the archive does."""
    found: dict[str, Any] = {}
    for precision in ("fp32", "bf16"):
        params = InferenceParams(precision=precision)
        if model.card.variant in models.NAMES:
            found[precision] = Scorer(model, params, device="cpu", num_threads=threads)
            continue
        with contextlib.suppress(ValueError):  # It has no bfloat16
            require_usable(model.card, params)
            found[precision] = Predictor(model, PredictParams(params, None), device="cpu", num_threads=threads).scorer
    return found


def write_others(folder: Path) -> list[str]:
    """Networks of others with random weights, as folders of Hugging Face and as an ONNX file; their paths."""
    import transformers

    from segcore.models.checkpoint import CARD_FILE
    from segcore.models.onnx_export import export

    backbone = transformers.ConvNextConfig(
        hidden_sizes=[96, 192, 384, 768], depths=[3, 3, 9, 3], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    kinds = {
        "segformer-b0": (transformers.SegformerForSemanticSegmentation, transformers.SegformerConfig()),
        "upernet-convnext-tiny": (
            transformers.UperNetForSemanticSegmentation,
            transformers.UperNetConfig(backbone_config=backbone),
        ),
        "mask2former-swin-tiny": (
            transformers.Mask2FormerForUniversalSegmentation,
            transformers.Mask2FormerConfig(),
        ),
    }
    paths = []
    for name, (kind, config) in kinds.items():
        config.id2label = {number: f"thing {number}" for number in range(150)}
        torch.manual_seed(0)
        kind(config).eval().save_pretrained(folder / name, safe_serialization=True)
        own = (
            transformers.Mask2FormerImageProcessorPil
            if "former-swin" in name
            else transformers.SegformerImageProcessorPil
        )
        own(do_resize=False).save_pretrained(folder / name)
        paths.append(str(folder / name))
    (folder / "pspnet50").mkdir()
    content, card = export(load("pspnet50"))
    (folder / "pspnet50" / "model.onnx").write_bytes(content)
    (folder / "pspnet50" / CARD_FILE).write_text(card.to_json())
    return [*paths, str(folder / "pspnet50" / "model.onnx")]


def flops(name: str) -> int:
    """Floating-point operations of one 513 x 513 image, multiplications and additions counted each."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        models.build(name).eval()(torch.empty(1, 3, 513, 513))
    return int(counter.get_total_flops())


@torch.inference_mode()
def measure_cuda(names: list[str], batches: list[int]) -> None:
    """One line a model and batch size: the network alone, its input on the device."""
    device = torch.device("cuda")
    peak = next((value for key, value in PEAK_TFLOPS.items() if key in torch.cuda.get_device_name()), None)
    print(f"{torch.cuda.get_device_name()}, bf16, 513 x 513, peak {peak or 'unknown'} TFLOP/s\n")
    print("| model | batch | eager images/s | compiled images/s | share of peak |\n| --- | ---: | ---: | ---: | ---: |")
    for name in names:
        module = to_precision(load(name).module, torch.bfloat16).to(device)
        work = flops(name) if name in models.NAMES else 0
        for batch in batches:
            images = torch.randn(batch, 3, 513, 513, device=device, dtype=torch.bfloat16)
            images = images.contiguous(memory_format=torch.channels_last)
            try:
                # Shapes are static: compiled anew for each batch, with CUDA graphs.
                compiled = torch.compile(module, mode="max-autotune", dynamic=False)
                rates = [_cuda_rate(network, images) for network in (module, compiled)]
            except torch.cuda.OutOfMemoryError:
                print(f"| {name} | {batch} | out of memory | | |")
                break
            share = f"{max(rates) * work / peak / 1e12:.0%}" if peak and work else ""
            print(f"| {name} | {batch} | {rates[0]:.0f} | {rates[1]:.0f} | {share} |", flush=True)
            torch._dynamo.reset()
        torch.cuda.empty_cache()


def _cuda_rate(network: torch.nn.Module, images: torch.Tensor) -> float:
    for _ in range(3):
        network(images)
    torch.cuda.synchronize()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < 2.0:
        for _ in range(5):
            network(images)
        torch.cuda.synchronize()
        count += 5 * len(images)
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models or paths of models; all models by default")
    parser.add_argument("--photographs", type=Path, help="a folder; by default the five of the benchmarks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 32, 64])
    parser.add_argument("--others", action="store_true", help="networks of others instead, on the CPU")
    parser.add_argument("--cpu", action="store_true", help="measure the CPU even where a GPU is at hand")
    args = parser.parse_args()
    names = args.names or list(models.NAMES)
    print(f"{conditions()}\n")
    if args.others:
        with tempfile.TemporaryDirectory() as folder:
            paths = write_others(Path(folder))
            measure_cpu(paths, read_photographs(args.photographs, args.rounds), args.rounds, args.threads)
        return
    if torch.cuda.is_available() and not args.cpu:
        measure_cuda(names, args.batches)
    else:
        print(f"{args.threads} threads, {args.rounds} rounds, photographs scaled to 500 x 375.\n")
        measure_cpu(names, read_photographs(args.photographs, args.rounds), args.rounds, args.threads)


if __name__ == "__main__":
    main()
