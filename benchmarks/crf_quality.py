"""`python -m benchmarks.crf_quality [--images 300]`: what sharpens masks, and what it costs, on one core.

Every method gets the same scores of the same real photographs (`benchmarks.crf`). Its parameters are chosen on every
tenth photograph from the grid in `METHODS`; the table is of the others: mean IoU over background and six frequent
classes, gain over the enlarged scores, and CPU time of one thread. But for the native engine, which begins at the
stride-8 scores, probabilities at full size are ready-made and not timed. All but the rows that say so are told only of
classes that can win, as the native engine tells itself.

`pip install opencv-contrib-python-headless crfseg` brings the guided filter and crfseg; a package that is not there is
left out, and said. Stated again here, since nobody ships them so that they can be called: ConvCRF (Teichmann and
Cipolla 2018), and the fast bilateral solver (Barron and Poole 2016), which PyPI's OpenCV is compiled without. SimpleCRF
0.2.1.1 does not compile against NumPy 2.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch.nn import functional

from benchmarks.conditions import conditions
from benchmarks.crf import Photograph, energies, mean_iou, photographs, run_pydensecrf, timed
from segcore.crf.dense_crf import CRF_PRESETS, CrfParams, refine_scores

Prepared = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Image (H, W, 3) uint8, scores (21, h, w) float16, probabilities (C, H, W) float32 of the classes that can win, and
those classes (C,)."""


def prepare(image: np.ndarray, scores: np.ndarray) -> Prepared:
    probabilities = np.exp(-energies(image, scores)).reshape(len(scores), *image.shape[:2])
    probabilities /= probabilities.sum(axis=0)
    winners = probabilities.reshape(len(scores), -1).max(axis=1) > CrfParams().min_probability
    winners |= np.bincount(probabilities.argmax(axis=0).ravel(), minlength=len(scores)) > 0
    classes = np.flatnonzero(winners)
    return image, scores, np.ascontiguousarray(probabilities[classes]), classes


def winning(of: Prepared, planes: np.ndarray) -> np.ndarray:
    """(H, W) labels of the largest of `planes` (C, H, W)."""
    labels: np.ndarray = of[3][planes.argmax(axis=0)]
    return labels


def native(of: Prepared, preset: str, exact: bool = False) -> np.ndarray:
    params = CRF_PRESETS[preset]
    return refine_scores(of[0], of[1], replace(params, min_probability=0) if exact else params).labels


def dense_crf(of: Prepared, preset: str) -> np.ndarray:
    energy = -np.log(np.clip(of[2], 1e-5, 1)).reshape(len(of[3]), -1)
    labels: np.ndarray = of[3][run_pydensecrf(of[0], np.ascontiguousarray(energy), CRF_PRESETS[preset])]
    return labels


def dense_crf_all(of: Prepared, preset: str) -> np.ndarray:
    return run_pydensecrf(of[0], energies(of[0], of[1]), CRF_PRESETS[preset])


def guided_filter(of: Prepared, radius: int, eps: float) -> np.ndarray:
    """He, Sun, Tang 2010, each class by itself."""
    import cv2

    guide = cv2.ximgproc.createGuidedFilter(of[0], radius, (255 * eps) ** 2)
    return winning(of, np.stack([guide.filter(plane) for plane in of[2]]))


def bilateral_solver(of: Prepared, spatial: float, colour: float, smooth: float) -> np.ndarray:
    """Barron and Poole 2016, algorithm 1 and section 3, each class by itself, sure where the largest probability is."""
    height, width = of[0].shape[:2]
    luma = of[0] @ np.array([0.299, 0.587, 0.114])
    chroma = 0.5 * (of[0] - luma[..., None])[..., [0, 2]]
    rows, columns = np.mgrid[:height, :width]
    cells = [rows / spatial, columns / spatial, luma / colour, chroma[..., 0] / colour, chroma[..., 1] / colour]
    grid = np.stack([np.floor(cell).astype(np.int64) + 256 for cell in cells], axis=-1).reshape(-1, 5)
    factors = np.array([1024**4, 1024**3, 1024**2, 1024, 1])
    vertices, vertex_of = np.unique(grid @ factors, return_inverse=True)
    count = len(vertices)

    def splat(values: np.ndarray) -> np.ndarray:
        return np.bincount(vertex_of, values.ravel(), count)

    blur = 10.0 * sparse.identity(count, format="csr")
    for factor in factors:
        place = np.minimum(np.searchsorted(vertices, vertices + factor), count - 1)
        there = np.flatnonzero(vertices[place] == vertices + factor)
        step = sparse.csr_matrix((np.ones(len(there)), (there, place[there])), (count, count))
        blur = blur + step + step.T
    mass = splat(np.ones(height * width))
    scale = np.ones(count)
    for _ in range(10):  # algorithm 1: bistochastic
        scale = np.sqrt(scale * mass / (blur @ scale))
    mass = scale * (blur @ scale)
    sure = of[2].max(axis=0)
    scaled = sparse.diags(scale)
    matrix = smooth * (sparse.diags(mass) - scaled @ blur @ scaled) + sparse.diags(splat(sure))
    easier = sparse.diags(1 / np.maximum(matrix.diagonal(), 1e-5))
    planes = []
    for plane in of[2]:
        begin = splat(plane) / splat(np.ones(height * width))
        solved, _ = sparse.linalg.cg(matrix, splat(sure * plane), x0=begin, rtol=1e-4, maxiter=25, M=easier)
        planes.append(solved[vertex_of].reshape(height, width))
    return winning(of, np.stack(planes))


def crfseg(of: Prepared, size: int, weight: float, theta: float) -> np.ndarray:
    """Mean field with one Gaussian over positions; of colours it knows nothing."""
    from crfseg import CRF

    crf = CRF(2, size, 5, False, "logits", weight, theta)
    with torch.inference_mode():
        found = crf(torch.from_numpy(np.log(np.clip(of[2], 1e-5, 1)))[None])
    return winning(of, found[0].numpy())


def conv_crf(of: Prepared, window: int, weight: float, rgb: float) -> np.ndarray:
    """Teichmann and Cipolla 2018, sections 4 and 5: bilateral (80 px) and spatial (3 px) kernels, five iterations."""
    coarse = 4
    with torch.inference_mode():
        unary = torch.from_numpy(np.log(np.clip(of[2], 1e-5, 1)))[None]
        pixels = torch.from_numpy(of[0].astype(np.float32)).permute(2, 0, 1)[None]
        pixels = functional.avg_pool2d(pixels, coarse, ceil_mode=True)
        height, width = pixels.shape[2:]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = coarse * torch.stack([rows, columns])[None].float()

        def around(values: torch.Tensor) -> torch.Tensor:
            windows = functional.unfold(values, window, padding=window // 2)
            return windows.view(values.shape[1], window**2, height, width)

        inside = around(torch.ones(1, 1, height, width))
        moved = (around(places) - places[0, :, None]).square().sum(dim=0)
        colours = (around(pixels) - pixels[0, :, None]).square().sum(dim=0)
        kernel = torch.exp(-moved / (2 * 80**2) - colours / (2 * rgb**2)) + 0.3 * torch.exp(-moved / (2 * 3**2))
        kernel = kernel * inside[0]
        kernel[window**2 // 2] = 0
        kernel = kernel / kernel.sum(dim=0)
        belief = functional.softmax(unary, dim=1)
        for _ in range(5):
            small = functional.avg_pool2d(belief, coarse, ceil_mode=True)
            message = (kernel * around(small)).sum(dim=1)[None]
            message = functional.interpolate(message, unary.shape[2:], mode="bilinear")
            belief = functional.softmax(unary + weight * message, dim=1)
    return winning(of, belief[0].numpy())


METHODS: dict[str, tuple[str, Callable[..., np.ndarray], dict[str, tuple[Any, ...]]]] = {
    "native engine, pruned": ("segcore", native, {"preset": tuple(CRF_PRESETS)}),
    "native engine, exact": ("segcore", native, {"preset": tuple(CRF_PRESETS), "exact": (True,)}),
    "pydensecrf, classes that can win": ("pydensecrf", dense_crf, {"preset": tuple(CRF_PRESETS)}),
    "pydensecrf, all 21 classes": ("pydensecrf", dense_crf_all, {"preset": tuple(CRF_PRESETS)}),
    "ConvCRF": ("torch", conv_crf, {"window": (7, 11), "weight": (2.0, 5.0, 10.0), "rgb": (5.0, 13.0)}),
    "fast bilateral solver": (
        "scipy",
        bilateral_solver,
        {"spatial": (8.0, 16.0), "colour": (4.0, 8.0), "smooth": (8.0, 32.0, 128.0)},
    ),
    "guided filter": ("cv2", guided_filter, {"radius": (8, 16, 32), "eps": (0.02, 0.05, 0.1)}),
    "crfseg": ("crfseg", crfseg, {"size": (11,), "weight": (1.0, 3.0), "theta": (1.0, 3.0)}),
}
"""By name: the package that it needs, the function, and the grid of its parameters."""

SAME_LABELS = {
    "native engine, exact": "native engine, pruned",
    "pydensecrf, classes that can win": "native engine, pruned",
    "pydensecrf, all 21 classes": "native engine, pruned",
}
"""Whose choice is taken: their labels are equal but for some in a million pixels."""


def judge(images: list[Photograph], prepared: list[Prepared], function: Callable[..., np.ndarray], **given: Any) -> Any:
    """Mean IoU in percent, and the median of CPU milliseconds."""
    pairs, times = [], []
    for (_, _, truth), of in zip(images, prepared, strict=True):
        ms, labels = timed(lambda of=of: function(of, **given))  # type: ignore[misc]
        pairs.append((truth, labels))
        times.append(ms)
    return mean_iou(pairs), float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--only", nargs="+", default=list(METHODS), choices=list(METHODS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = photographs(args.images)
    choose, report = images[::10], [image for number, image in enumerate(images) if number % 10]
    print(f"{conditions()}\n{len(choose)} photographs to choose on, {len(report)} others\n")
    to_choose, to_report = ([prepare(*image[:2]) for image in part] for part in (choose, report))
    before = mean_iou(
        [(truth, of[3][of[2].argmax(axis=0)]) for (_, _, truth), of in zip(report, to_report, strict=True)]
    )
    print("| method | mean IoU | gain | ms, one core | parameters |\n|---|---|---|---|---|")
    print(f"| enlarged scores | {before:.2f} | | | |", flush=True)
    chosen: dict[str, dict[str, Any]] = {}
    for name in args.only:
        package, function, grid = METHODS[name]
        if importlib.util.find_spec(package) is None:
            print(f"| {name} | not measured: {package} is not installed | | | |", flush=True)
            continue
        if package == "cv2":
            import cv2

            cv2.setNumThreads(1)
        points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        if SAME_LABELS.get(name) in chosen:
            points = [point for point in points if point["preset"] == chosen[SAME_LABELS[name]]["preset"]]
        if len(points) > 1:
            points.sort(key=lambda point: judge(choose, to_choose, function, **point)[0], reverse=True)
        chosen[name] = points[0]
        after, ms = judge(report, to_report, function, **points[0])
        told = ", ".join(f"{key} {value}" for key, value in points[0].items() if value is not True)
        print(f"| {name} | {after:.2f} | {after - before:+.2f} | {ms:.0f} | {told} |", flush=True)


if __name__ == "__main__":
    main()
