"""The CRF on 300 real photographs: native engine and pydensecrf interleaved, time, equality, memory, scaling and IoU.

Usage: python -m benchmarks.crf [--images 300] [--skip scaling iou ...]
Data: SEGMENT_ARCHIVE_DATA, by default ../shared/data beside the repository. All times are CPU time of the one thread
that does the work, since the machine may be shared; pydensecrf gets its unary potentials ready-made, the native engine
starts from float16 scores and also upsamples them, takes their softmax and counts classes.
"""

import argparse
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.queues import Queue
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.conditions import conditions
from segcore.crf import dense_crf
from segcore.crf.dense_crf import CRF_PRESETS, CrfParams, refine, refine_scores

FREQUENT = (0, 8, 10, 12, 13, 15, 17)
"""Background, cat, cow, dog, horse, person, sheep: the classes with enough images for a mean that means something."""

TIMED = ("deeplab_v2_resnet101", "deeplab_v1")

Photograph = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Image (H, W, 3) uint8, scores (21, 33, 33) float16, truth (H, W) uint8."""


def data_folder() -> Path:
    root = Path(__file__).resolve().parents[1]
    return Path(os.environ.get("SEGMENT_ARCHIVE_DATA", root.parent / "shared" / "data")) / "voc2012"


def photographs(num_images: int) -> list[Photograph]:
    folder = data_folder()
    stored = np.load(folder / "scores_val_have.npz")
    found = []
    for image_id, scores in list(zip(stored["ids"], stored["logits"], strict=True))[:num_images]:
        image = np.array(Image.open(folder / "JPEGImages" / f"{image_id}.jpg").convert("RGB"))
        found.append((image, scores, np.array(Image.open(folder / "SegmentationClassAug" / f"{image_id}.png"))))
    return found


def timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Milliseconds of thread CPU time, and the result."""
    start = time.thread_time()
    result = work()
    return 1e3 * (time.thread_time() - start), result


def energies(image: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(C, H * W) float32, unary potentials as pydensecrf wants them."""
    probabilities = dense_crf._softmax(dense_crf._upsample(scores, image.shape[:2]))
    energy = -np.log(np.clip(probabilities, dense_crf.LEAST_PROBABILITY, 1)).reshape(len(scores), -1)
    return np.ascontiguousarray(energy, dtype=np.float32)


def run_pydensecrf(image: np.ndarray, energy: np.ndarray, params: CrfParams) -> np.ndarray:
    import pydensecrf.densecrf as densecrf

    height, width = image.shape[:2]
    crf = densecrf.DenseCRF2D(width, height, len(energy))
    crf.setUnaryEnergy(energy)
    crf.addPairwiseGaussian(sxy=params.gaussian_xy_std_px, compat=params.gaussian_weight)
    crf.addPairwiseBilateral(
        sxy=params.bilateral_xy_std_px, srgb=params.bilateral_rgb_std, rgbim=image, compat=params.bilateral_weight
    )
    return np.array(crf.inference(params.iterations)).argmax(0).reshape(height, width).astype(np.uint8)


def speed(images: list[Photograph], name: str) -> None:
    pruned = CRF_PRESETS[name]
    exact = replace(pruned, min_probability=0)
    rows = []
    for number, (image, scores, _) in enumerate(images):
        energy = energies(image, scores)
        probabilities = np.exp(-energy).reshape(len(scores), *image.shape[:2])
        probabilities /= probabilities.sum(axis=0)
        if number == 0:  # the first call allocates
            refine_scores(image, scores, exact)
        oracle_ms, oracle = timed(lambda: run_pydensecrf(image, energy, pruned))  # noqa: B023
        # The very job of pydensecrf: potentials at full size in, marginals out
        same_ms, same_labels = timed(lambda: refine(image, probabilities, exact).argmax(0))  # noqa: B023
        exact_ms, exact_labels = timed(lambda: refine_scores(image, scores, exact).labels)  # noqa: B023
        pruned_ms, pruned_labels = timed(lambda: refine_scores(image, scores, pruned).labels)  # noqa: B023
        equal = [(labels == oracle).mean() for labels in (same_labels, exact_labels, pruned_labels)]
        rows.append((oracle_ms, same_ms, exact_ms, pruned_ms, *equal))
    oracle_ms, same_ms, exact_ms, pruned_ms, same_equal, exact_equal, pruned_equal = np.array(rows).T
    print(f"| {name}, pydensecrf | {np.median(oracle_ms):.0f} | 1 | | | | |")
    native = {
        "exact, probabilities to marginals": (same_ms, same_equal),
        "exact, scores to labels": (exact_ms, exact_equal),
        "pruned, scores to labels": (pruned_ms, pruned_equal),
    }
    for what, (ms, equal) in native.items():
        ratio = oracle_ms / ms
        print(
            f"| {name}, {what} | {np.median(ms):.0f} | {np.median(ratio):.1f} | {ratio.min():.1f} | {ratio.max():.1f} "
            f"| {100 * equal.mean():.5f} % | {100 * equal.min():.4f} % |",
            flush=True,
        )


def mean_iou(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Over the frequent classes, %; pairs of truth and labels, void dropped."""
    matrix = np.zeros((21, 21), np.int64)
    for truth, labels in pairs:
        seen = truth != 255
        matrix += np.bincount(truth[seen].astype(int) * 21 + labels[seen], minlength=441).reshape(21, 21)
    hit = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - hit
    return float(100 * (hit / np.maximum(union, 1))[list(FREQUENT)].mean())


def accuracy(images: list[Photograph]) -> None:
    before = mean_iou([(truth, refine_scores(image, scores, None).labels) for image, scores, truth in images])
    print(f"\n### Mean IoU over background and six frequent classes, {len(images)} images\n")
    print("| parameters | without CRF | with CRF | gain | ms an image |")
    print("|---|---|---|---|---|")
    for name, params in CRF_PRESETS.items():
        pairs, times = [], []
        for image, scores, truth in images:
            ms, labels = timed(lambda: refine_scores(image, scores, params).labels)  # noqa: B023
            pairs.append((truth, labels))
            times.append(ms)
        after = mean_iou(pairs)
        gain = after - before
        print(f"| {name} | {before:.2f} | {after:.2f} | {gain:+.2f} | {np.median(times):.0f} |", flush=True)


def scaling(images: list[Photograph]) -> None:
    image, scores, _ = images[0]
    params = replace(CRF_PRESETS["deeplab_v2_resnet101"], min_probability=0)
    print("\n### Scaling, exact, deeplab_v2_resnet101\n")
    print("| pixels | classes | native ms | ns a pixel | pydensecrf ms |")
    print("|---|---|---|---|---|")
    sizes = [(side, 21) for side in (125, 250, 500, 1000)] + [(500, classes) for classes in (2, 5, 9, 50, 150)]
    rng = np.random.default_rng(0)
    for side, classes in sizes:
        picture = Image.fromarray(image)
        resized = np.array(picture.resize((side, side * image.shape[0] // image.shape[1]), Image.Resampling.BICUBIC))
        order = [*scores.max(axis=(1, 2)).argsort()[::-1], *rng.integers(0, 21, 150)][:classes]
        some = np.ascontiguousarray(scores[order])
        refine_scores(resized, some, params)
        ms = min(timed(lambda: refine_scores(resized, some, params).labels)[0] for _ in range(3))  # noqa: B023
        energy = energies(resized, some)
        oracle_ms = timed(lambda: run_pydensecrf(resized, energy, params))[0]  # noqa: B023
        pixels = resized.shape[0] * resized.shape[1]
        print(f"| {pixels} | {classes} | {ms:.0f} | {1e6 * ms / pixels:.0f} | {oracle_ms:.0f} |", flush=True)
    large = np.array(Image.fromarray(image).resize((4000, 3000), Image.Resampling.BICUBIC))
    for what, chosen in (("pruned", CRF_PRESETS["deeplab_v2_resnet101"]), ("21", params)):
        ms = timed(lambda: refine_scores(large, scores, chosen).labels)[0]  # noqa: B023
        print(f"| 12000000 | {what} | {ms:.0f} | {ms / 12:.0f} | not measured |", flush=True)

    print("\n| threads, each with images of its own | images a second |")
    print("|---|---|")
    params = CRF_PRESETS["deeplab_v2_resnet101"]
    some_images = images[:24]
    for num_threads in (1, 2):
        start = time.perf_counter()
        threads = [
            threading.Thread(
                target=lambda t=t, k=num_threads: [refine_scores(*p[:2], params) for p in some_images[t::k]]
            )
            for t in range(num_threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(f"| {num_threads} | {len(some_images) / (time.perf_counter() - start):.1f} |", flush=True)


def one_image(backend: str, params: CrfParams, go: "Queue[None]") -> None:
    """Loads everything, says so by waiting, then works."""
    image, scores, _ = photographs(1)[0]
    energy = energies(image, scores) if backend == "pydensecrf" else None
    refine_scores(image[:8, :8], scores, params)
    go.get()
    if energy is None:
        refine_scores(image, scores, params)
    else:
        run_pydensecrf(image, energy, params)


def peak_mib(backend: str, params: CrfParams) -> float:
    """MiB that one image adds to the resident memory of a fresh process, watched from outside."""
    context = multiprocessing.get_context("spawn")
    go: Queue[None] = context.Queue()
    process = context.Process(target=one_image, args=(backend, params, go))
    process.start()
    status = Path(f"/proc/{process.pid}/statm")

    def resident() -> float:
        fields = status.read_text().split() if process.is_alive() else []
        return int(fields[1]) * os.sysconf("SC_PAGESIZE") / 2**20 if len(fields) > 1 else 0.0

    time.sleep(5)
    before = peak = resident()
    go.put(None)
    while process.is_alive():
        peak = max(peak, resident())
        time.sleep(0.001)
    return peak - before


def memory() -> None:
    params = CRF_PRESETS["deeplab_v2_resnet101"]
    exact = replace(params, min_probability=0)
    print("\n### Memory of one image, deeplab_v2_resnet101\n")
    print("| engine | MiB |")
    print("|---|---|")
    for what, backend, chosen in (
        ("pydensecrf, beside its potentials", "pydensecrf", params),
        ("native, exact", "native", exact),
        ("native, pruned", "native", params),
    ):
        print(f"| {what} | {peak_mib(backend, chosen):.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--skip", nargs="*", default=[], choices=["speed", "iou", "scaling", "memory"])
    args = parser.parse_args()
    images = photographs(args.images)
    print(f"{conditions()}; engine {dense_crf.engine_name()}")
    print(f"{len(images)} images, median {np.median([i.shape[0] * i.shape[1] for i, _, _ in images]):.0f} pixels")
    if "speed" not in args.skip:
        print(
            "\n| parameters, engine | median ms | times pydensecrf, median | worst image | best | equal labels, mean ",
            end="",
        )
        print("| worst image |\n|---|---|---|---|---|---|---|")
        for name in TIMED:
            speed(images, name)
    if "memory" not in args.skip:
        memory()
    if "scaling" not in args.skip:
        scaling(images)
    if "iou" not in args.skip:
        accuracy(images)


if __name__ == "__main__":
    main()
