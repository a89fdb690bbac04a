"""The dense CRF of many images at once on a GPU: scores or probabilities in, labels or marginals out.

The engine "cuda" of `dense_crf`, which checks what comes in. Mean field on permutohedral lattices as in the native
engine, every class and every pixel speaking; float32 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from segcore.crf import gpu_lattice
from segcore.crf.dense_crf import LEAST_PROBABILITY, CrfParams, Refined
from segcore.crf.gpu_lattice import Lattice

DEVICE = "cuda"
"""Where all is computed."""

PIXELS_AT_ONCE = 2_000_000
"""Of the images of one batch; a pixel of 21 classes takes about 1 KB of the GPU's memory."""

_NOTHING = float("-inf")
"""Potential of a channel that is padding: its marginal is 0."""

_Sent = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Values at the vertices (rows, channels), rows and weights of each pixel (pixels, corners)."""


@dataclass(frozen=True)
class _Kernel:
    """A Gaussian kernel over all images, its weight and normalisation within what is splatted and sliced."""

    lattice: Lattice
    splatted: torch.Tensor
    sliced: torch.Tensor

    def message(self, marginals: torch.Tensor) -> _Sent:
        return self.lattice.send(marginals, self.splatted), self.lattice.rows, self.sliced


@dataclass
class _Surveyed:
    """What the scores of one image say before the CRF."""

    logits: torch.Tensor
    log_sum: torch.Tensor
    before: torch.Tensor
    best: torch.Tensor
    wins: torch.Tensor
    entropy: torch.Tensor


def refine_scores(
    images: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    params: CrfParams,
    extents_px: Sequence[tuple[int, int]],
) -> list[Refined]:
    """`dense_crf.refine_scores` of many images of any sizes, of at most 255 classes each, all checked.

    The labels of an image do not depend on the images beside it. Raises LatticeTooFineError.
    """
    refined: list[Refined] = []
    for batch in _batches(images):
        refined += _refine_batch(images[batch], scores[batch], params, extents_px[batch])
    return refined


def refine(image: np.ndarray, probabilities: np.ndarray, params: CrfParams) -> np.ndarray:
    """`dense_crf.refine` of one image that is checked. Raises LatticeTooFineError."""
    given = torch.tensor(probabilities, device=DEVICE).flatten(1)
    best, wins = given.amax(1), torch.bincount(given.argmax(0), minlength=len(given))
    kept = _kept(best.cpu().numpy(), wins.cpu().numpy(), params)
    channels = _padded(len(kept))
    unary = given.new_full((given.shape[1], channels), _NOTHING)
    unary[:, : len(kept)] = given[torch.tensor(kept, device=DEVICE)].clamp(LEAST_PROBABILITY, 1).log().T
    marginals = _marginals(unary, _kernels([image], params), params.iterations)
    out = np.zeros(probabilities.shape, np.float32)
    out[kept] = marginals[:, : len(kept)].T.reshape(len(kept), *image.shape[:2]).cpu().numpy()
    return out


def _batches(images: Sequence[np.ndarray]) -> list[slice]:
    """Images that are refined together."""
    batches, begin, pixels = [], 0, 0
    for number, image in enumerate(images):
        size = image.shape[0] * image.shape[1]
        if number > begin and pixels + size > PIXELS_AT_ONCE:
            batches.append(slice(begin, number))
            begin, pixels = number, 0
        pixels += size
    return [*batches, slice(begin, len(images))] if images else []


def _refine_batch(
    images: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    params: CrfParams,
    extents_px: Sequence[tuple[int, int]],
) -> list[Refined]:
    surveyed = [
        _survey(torch.tensor(of_image, device=DEVICE), extent, (image.shape[0], image.shape[1]))
        for image, of_image, extent in zip(images, scores, extents_px, strict=True)
    ]
    best, wins = (torch.stack([getattr(s, name) for s in surveyed]).cpu().numpy() for name in ("best", "wins"))
    kept = [_kept(b, w, params) for b, w in zip(best, wins, strict=True)]
    # Rows of one length together: how long they are decides roundings
    groups: dict[int, list[int]] = {}
    for number, classes in enumerate(kept):
        groups.setdefault(_padded(len(classes)), []).append(number)
    labels: dict[int, torch.Tensor] = {}
    for channels, group in groups.items():
        several = [(images[number], surveyed[number], kept[number]) for number in group]
        labels |= zip(group, _labels(several, channels, params), strict=True)
    each = zip(surveyed, images, strict=True)
    return [_refined(survey, labels[n], (image.shape[0], image.shape[1])) for n, (survey, image) in enumerate(each)]


def _survey(scores: torch.Tensor, extent_px: tuple[int, int], size: tuple[int, int]) -> _Surveyed:
    """Scores (C, h, w) at the pixels of the image, (C, H * W), bilinear, corners aligned with those of the extent."""
    upsampled = scores
    for axis, (pixels, shown) in enumerate(zip(extent_px, size, strict=True), start=1):
        cells = upsampled.shape[axis]
        at = torch.arange(shown, dtype=torch.float64, device=scores.device) * ((cells - 1) / max(pixels - 1, 1))
        low = at.to(torch.int64).clamp(0, max(cells - 2, 0))
        fraction = (at - low).to(torch.float32).view((1, -1, 1) if axis == 1 else (1, 1, -1))
        high = (low + 1).clamp(max=cells - 1)
        upsampled = (
            upsampled.index_select(axis, low).float() * (1 - fraction)
            + upsampled.index_select(axis, high).float() * fraction
        )
    logits = upsampled.flatten(1)
    most, before = logits.max(0)
    powers = (logits - most).exp()
    total = powers.sum(0)
    log_sum = most + total.log()
    # Entropy is log(sum) - mean of the logit; both from the largest, for the digits
    entropy = (total.log() - (powers * (logits - most)).sum(0) / total).sum(dtype=torch.float64)
    best = (powers / total).amax(1)
    return _Surveyed(logits, log_sum, before, best, torch.bincount(before, minlength=len(logits)), entropy)


def _labels(
    several: Sequence[tuple[np.ndarray, _Surveyed, np.ndarray]], channels: int, params: CrfParams
) -> list[torch.Tensor]:
    """(H * W,) int64 of each image, its scores and the classes that take part: the labels after the CRF."""
    from segcore.crf import gpu_kernels

    counts = [len(survey.before) for _, survey, _ in several]
    classes = [torch.tensor(kept, device=DEVICE) for _, _, kept in several]
    unary = torch.full((sum(counts), channels), _NOTHING, device=DEVICE)
    for rows, kept, (_, survey, _) in zip(torch.split(unary, counts), classes, several, strict=True):
        log_probabilities = (survey.logits[kept] - survey.log_sum).clamp(math.log(LEAST_PROBABILITY), 0)
        rows[:, : len(kept)] = log_probabilities.T
    kernels = _kernels([image for image, _, _ in several], params)
    found = torch.empty(len(unary), dtype=torch.uint8, device=DEVICE)
    messages = _messages(_marginals(unary, kernels, params.iterations - 1), kernels)
    gpu_kernels.update(unary, *messages, labels=found)
    return [kept[channel.to(torch.int64)] for kept, channel in zip(classes, torch.split(found, counts), strict=True)]


def _padded(channels: int) -> int:
    """Channels of a row: few widths, since each is compiled; multiples of 16 bytes."""
    return -(-channels // 4) * 4 if channels <= 24 else 1 << (channels - 1).bit_length()


def _kept(best: np.ndarray, wins: np.ndarray, params: CrfParams) -> np.ndarray:
    """(K,), the classes that take part: see `CrfParams.min_probability`."""
    return np.flatnonzero((wins > 0) | (best > params.min_probability) | (params.min_probability <= 0))


def _marginals(unary: torch.Tensor, kernels: tuple[_Kernel | None, _Kernel | None], iterations: int) -> torch.Tensor:
    """After so many steps of the mean field."""
    from segcore.crf import gpu_kernels

    marginals = torch.empty_like(unary)
    gpu_kernels.update(unary, None, None, marginals=marginals)
    for _ in range(iterations):
        gpu_kernels.update(unary, *_messages(marginals, kernels), marginals=marginals)
    return marginals


def _messages(
    marginals: torch.Tensor, kernels: tuple[_Kernel | None, _Kernel | None]
) -> tuple[_Sent | None, _Sent | None]:
    bilateral, spatial = (None if kernel is None else kernel.message(marginals) for kernel in kernels)
    return bilateral, spatial


def _kernels(images: Sequence[np.ndarray], params: CrfParams) -> tuple[_Kernel | None, _Kernel | None]:
    """The appearance and the smoothness kernel of all images; None for one without weight."""
    counts = [image.shape[0] * image.shape[1] for image in images]
    image_of = torch.repeat_interleave(torch.arange(len(images), device=DEVICE), torch.tensor(counts, device=DEVICE))
    places = []
    for image in images:
        y, x = (torch.arange(side, dtype=torch.float32, device=DEVICE) for side in image.shape[:2])
        places.append(torch.stack([x.repeat(len(y)), y.repeat_interleave(len(x))], 1))
    place = torch.cat(places)
    sides = [max(image.shape[axis] for image in images) - 1 for axis in (1, 0)]
    bilateral = spatial = None
    if params.bilateral_weight:
        xy, rgb = params.bilateral_xy_std_px, params.bilateral_rgb_std
        colour = torch.cat([torch.tensor(image, device=DEVICE).view(-1, 3) for image in images]).float()
        features = torch.cat([place / xy, colour / rgb], 1)
        largest = [side / xy for side in sides] + [255 / rgb] * 3
        bilateral = _kernel(features, image_of, largest, counts, params.bilateral_weight, params)
    if params.gaussian_weight:
        xy = params.gaussian_xy_std_px
        largest = [side / xy for side in sides]
        spatial = _kernel(place / xy, image_of, largest, counts, params.gaussian_weight, params)
    return bilateral, spatial


def _kernel(
    features: torch.Tensor,
    image_of: torch.Tensor,
    largest: list[float],
    counts: list[int],
    weight: float,
    params: CrfParams,
) -> _Kernel:
    """Raises LatticeTooFineError."""
    lattice = gpu_lattice.lay(features, image_of, largest, counts)
    norm = lattice.filtered(torch.ones_like(features[:, 0]))
    gain = weight * lattice.alpha
    if params.normalization == "symmetric":
        weights = lattice.weights * (1 / (norm + 1e-20).sqrt())[:, None]
        return _Kernel(lattice, lattice.of_items(weights), weights * gain)
    sliced = lattice.weights * (gain / (norm + 1e-20))[:, None]
    return _Kernel(lattice, lattice.of_items(lattice.weights), sliced)


def _refined(survey: _Surveyed, labels: torch.Tensor, size: tuple[int, int]) -> Refined:
    confidence = (survey.logits.gather(0, labels[None])[0] - survey.log_sum).clamp(max=0).exp()
    of_label = confidence.cpu().numpy().astype(np.float64)  # Added up on the CPU: the same bits each time
    found, before = (which.to(torch.uint8).cpu().numpy() for which in (labels, survey.before))
    num_classes = len(survey.logits)
    pixels = np.bincount(found, minlength=num_classes)
    sums = np.bincount(found, weights=of_label, minlength=num_classes)
    return Refined(
        labels=found.reshape(size),
        labels_before=before.reshape(size),
        class_pixels=pixels.astype(np.int64),
        class_confidence=sums / np.maximum(pixels, 1),
        confidence=float(of_label.mean()),
        entropy=float(survey.entropy) / len(before),
        changed=float((found != before).mean()),
    )
