"""The fully connected CRF of the DeepLab papers, from network scores to labels of one image.

Owns the parameters, their published values, the checks at the door and the choice of engine. The engine itself is
`segcore/_crf` (C++ in `segcore/crf`); where it is missing, pydensecrf does the work at a tenth of the speed. On request
a GPU does it (`gpu.py`).
Spreading images over cores and machines is left to `tasks`.
"""

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType, ModuleType
from typing import Annotated, Any, Literal

import annotated_types
import numpy as np
from numpy.typing import NDArray

from segcore import extras, voc
from segcore.names import known

try:
    from segcore import _crf as native
except ImportError as problem:  # pragma: no cover - the wheel always has it
    native = None  # type: ignore[assignment]
    missing = str(problem)

logger = logging.getLogger(__name__)

ENGINE_VERSION = "3"
"""Changes whenever the same input may give other labels; part of what identifies a run."""

LEAST_PROBABILITY = 1e-5
"""Unary potentials are -log(clip(p, 1e-5, 1))."""

SUM_TOLERANCE = 1e-3
"""How far the probabilities of a pixel may be from summing to one."""

MOST_CLASSES = 255
"""Of the engines, whose labels are uint8; of more, `refine_scores` gives an image's most probable ones to them."""

Backend = Literal["auto", "native", "pydensecrf", "cuda"]
Normalization = Literal["symmetric", "caffe"]


@dataclass(frozen=True)
class CrfParams:
    """Kernels and mean-field iterations of the fully connected CRF (DeepLab v1 section 4, v2 section 3.3).

    The pairwise energy of two pixels with different labels is
    w1 exp(-|p-p'|^2 / 2 xy^2 - |I-I'|^2 / 2 rgb^2) + w2 exp(-|p-p'|^2 / 2 xy2^2). The defaults are those of DeepLab v2
    ResNet-101.
    """

    bilateral_weight: Annotated[float, annotated_types.Interval(ge=0, le=1e4)] = 4.0
    """Weight of the appearance kernel, w1, a pure number; 0 leaves the kernel out. DeepLab v2 ResNet-101: 4."""

    bilateral_xy_std_px: Annotated[float, annotated_types.Interval(ge=0.01, le=1e5)] = 67.0
    """Reach of the appearance kernel in the plane, sigma alpha, in pixels. DeepLab v2 ResNet-101: 67."""

    bilateral_rgb_std: Annotated[float, annotated_types.Interval(ge=0.01, le=1e5)] = 3.0
    """Reach of the appearance kernel in colour, sigma beta, on the scale 0 to 255. DeepLab v2 ResNet-101: 3."""

    gaussian_weight: Annotated[float, annotated_types.Interval(ge=0, le=1e4)] = 3.0
    """Weight of the smoothness kernel, w2, a pure number; 0 leaves the kernel out. DeepLab v1 and v2: 3."""

    gaussian_xy_std_px: Annotated[float, annotated_types.Interval(ge=0.01, le=1e5)] = 1.0
    """Reach of the smoothness kernel, sigma gamma, in pixels. DeepLab v2 ResNet-101: 1, DeepLab v1: 3."""

    iterations: Annotated[int, annotated_types.Interval(ge=1, le=100)] = 10
    """Mean-field iterations. 10 in both papers."""

    normalization: Normalization = "symmetric"
    """How kernels are normalised: "symmetric" divides by the roots of the kernel sums of both pixels (pydensecrf and
    the later code of its authors), "caffe" by the sum of the receiving pixel (the code that came with DeepLab)."""

    min_probability: Annotated[float, annotated_types.Interval(ge=0, lt=1)] = 0.005
    """Classes whose probability is nowhere in the image above this, and which win no pixel, take no part: about five of
    21 are left. Labels agree with the full CRF on more than 99.99 % of the pixels; 0 keeps every class."""

    def __post_init__(self) -> None:
        for name, low, high, what in _BOUNDS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not low <= value <= high:
                raise ValueError(f"{name} must be {what} from {low:g} to {high:g}, got {value!r}")
        if self.iterations != int(self.iterations):
            raise ValueError(f"iterations must be a whole number, got {self.iterations!r}")
        if self.normalization not in ("symmetric", "caffe"):
            raise ValueError(f'normalization must be "symmetric" or "caffe", got {self.normalization!r}')


_BOUNDS = (
    ("bilateral_weight", 0, 1e4, "a finite weight"),
    ("bilateral_xy_std_px", 0.01, 1e5, "a standard deviation in pixels"),
    ("bilateral_rgb_std", 0.01, 1e5, "a standard deviation in colour"),
    ("gaussian_weight", 0, 1e4, "a finite weight"),
    ("gaussian_xy_std_px", 0.01, 1e5, "a standard deviation in pixels"),
    ("iterations", 1, 100, "a number of iterations"),
    ("min_probability", 0, math.nextafter(1, 0), "a probability below 1,"),
)

CRF_PRESETS: Mapping[str, CrfParams] = MappingProxyType(
    {
        "deeplab_v1": CrfParams(5, 50, 10, 3, 3),
        "deeplab_v1_msc": CrfParams(3, 95, 3, 3, 3),
        "deeplab_v1_coco": CrfParams(5, 67, 3, 3, 3),
        "deeplab_v1_largefov": CrfParams(4, 121, 5, 3, 3),
        "deeplab_v1_msc_largefov": CrfParams(4, 83, 5, 3, 3),
        "deeplab_v1_coco_largefov": CrfParams(5, 69, 5, 3, 3),
        "deeplab_v1_msc_coco_largefov": CrfParams(4, 59, 5, 3, 3),
        "deeplab_v2_vgg16": CrfParams(4, 65, 3, 2, 2),
        "deeplab_v2_resnet101": CrfParams(4, 67, 3, 3, 1),
        "dense_inference": CrfParams(10, 60, 20, 3, 3),
        "pydensecrf_example": CrfParams(10, 80, 13, 3, 3),
    }
)
"""Published values by model (w1, xy, rgb, w2, xy2), from the authors' configurations; shared/docs/papers.md 1.3."""


def preset(name: str) -> CrfParams:
    """The parameters of a name in CRF_PRESETS, hyphens for underscores allowed. ValueError: there is none."""
    return CRF_PRESETS[known(name, CRF_PRESETS, "CRF preset", "segment-archive presets")]


def named_params(value: Any) -> Any:
    """What a person may write in the place of CrfParams: the name of a preset, or `preset` beside other values."""
    if isinstance(value, str):
        return preset(value)
    if isinstance(value, Mapping) and value.get("preset") is not None:
        return asdict(preset(value["preset"])) | {key: item for key, item in value.items() if key != "preset"}
    return value


@dataclass(frozen=True)
class Refined:
    """Labels of one image, and how sure the network was of them."""

    labels: NDArray[np.unsignedinteger]
    """(H, W) uint8, or uint16 of more than 255 classes: most probable class after the CRF."""

    labels_before: NDArray[np.unsignedinteger]
    """(H, W), most probable class before the CRF."""

    class_pixels: NDArray[np.int64]
    """(C,), pixels of each class in `labels`."""

    class_confidence: NDArray[np.float64]
    """(C,), mean probability before the CRF of the class over its pixels in `labels`, 0 to 1; 0 where it has none."""

    confidence: float
    """Mean over all pixels of the probability before the CRF of the class that the pixel has in `labels`, 0 to 1."""

    entropy: float
    """Mean over all pixels of the entropy of the probabilities before the CRF, in nats."""

    changed: float
    """Share of the pixels whose label the CRF changed, 0 to 1."""


def refine(
    image: np.ndarray, probabilities: np.ndarray, params: CrfParams, backend: Backend = "auto"
) -> NDArray[np.float32]:
    """Sharpen class probabilities along the edges of the image, in the calling thread and without the GIL.

    image: (H, W, 3) uint8, RGB.
    probabilities: (C, H, W) float32 or float16, not negative, summing to 1 over C.
    backend: "native", "pydensecrf", "auto" for the first of them that is there, or "cuda".
    Returns probabilities of the same shape, float32.
    """
    image = _checked_image(image)
    probabilities = _checked_probabilities(probabilities, image.shape[:2])
    _check_reach(params, image.shape[:2])
    engine = _choose(backend)
    if engine == "cuda":
        from segcore.crf import gpu

        return gpu.refine(image, probabilities, params)
    if engine == "pydensecrf":
        return _refine_pydensecrf(image, probabilities, params)
    marginals = np.zeros(probabilities.shape, np.float32)
    native.refine(image, probabilities, _values(params), marginals)
    return marginals


def refine_scores(
    image: np.ndarray,
    scores: np.ndarray,
    params: CrfParams | None,
    *,
    extent_px: tuple[int, int] | None = None,
    backend: Backend = "auto",
) -> Refined:
    """From the scores of a network at its own stride to labels at full resolution: upsample, softmax, CRF, argmax.

    image: (H, W, 3) uint8, RGB.
    scores: (C, h, w) float16, logits. Their corners are the corner pixels of a rectangle of `extent_px`.
    params: None leaves the CRF out, and with it the GPU.
    extent_px: (height, width) of that rectangle, at least (H, W); the image is its top left part, as where a network's
        input was padded at the bottom and on the right. None: the image alone.
    backend: "native", "pydensecrf", "auto" for the first of them that is there, or "cuda".
    """
    image, scores, (extent_height, extent_width) = _checked(image, scores, params, extent_px)
    height, width = image.shape[:2]
    if len(scores) > MOST_CLASSES:
        return _refine_many(image, scores, params, (extent_height, extent_width), backend)
    if params is None and backend == "cuda":
        backend = "auto"
    engine = _choose(backend)
    if params is not None and engine == "cuda":
        from segcore.crf import gpu

        return gpu.refine_scores([image], [scores], params, [(extent_height, extent_width)])[0]
    if engine == "pydensecrf":
        return _refine_scores_numpy(image, scores, params, (extent_height, extent_width))
    labels = np.empty((height, width), np.uint8)
    labels_before = np.empty((height, width), np.uint8)
    class_pixels = np.zeros(len(scores), np.int64)
    class_confidence = np.zeros(len(scores), np.float64)
    confidence, entropy, changed, _ = native.refine_scores(
        image,
        scores.view(np.uint16),
        extent_height,
        extent_width,
        _values(CrfParams() if params is None else params),
        params is not None,
        labels,
        labels_before,
        class_pixels,
        class_confidence,
    )
    return Refined(labels, labels_before, class_pixels, class_confidence, confidence, entropy, changed)


def refine_batch(
    images: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    params: CrfParams | None,
    extents_px: Sequence[tuple[int, int]],
    backend: Backend = "auto",
) -> list[Refined]:
    """`refine_scores` of many images, with the same labels; on a GPU together, elsewhere one after the other."""
    each = zip(images, scores, extents_px, strict=True)
    if params is None or choose_engine(backend) != "cuda" or any(len(of_image) > MOST_CLASSES for of_image in scores):
        return [refine_scores(image, s, params, extent_px=extent, backend=backend) for image, s, extent in each]
    from segcore.crf import gpu

    require_engine(backend)
    checked = [_checked(image, of_image, params, extent) for image, of_image, extent in each]
    return gpu.refine_scores([c[0] for c in checked], [c[1] for c in checked], params, [c[2] for c in checked])


def engine_digest() -> str:
    """Digest of the sources and compiler flags that the native engine was built from; "" where there is none."""
    return "" if native is None else str(getattr(native, "source_digest", ""))


def engine_name() -> str:
    """What "auto" means here: native-avx512, native-avx2, native-plain or pydensecrf."""
    return "pydensecrf" if native is None else str(native.engine_name())


def choose_engine(backend: Backend) -> Literal["native", "pydensecrf", "cuda"]:
    """The engine that a backend means here. ValueError, with the remedy, for one that is not here.

    Of "cuda" nothing is asked: who plans a job on a cluster may have no GPU (`require_engine`).
    """
    if backend not in ("auto", "native", "pydensecrf", "cuda"):
        raise ValueError(f'backend must be "auto", "native", "pydensecrf" or "cuda", got {backend!r}')
    if backend == "cuda":
        return "cuda"
    if native is None and backend == "native":
        raise ValueError(
            f"The native CRF engine is not built here ({missing}): install g++ and python3-dev, then run `make setup` "
            "or `pip install .` again; or choose the engine pydensecrf."
        )
    if native is not None and backend != "pydensecrf":
        return "native"
    if not extras.is_here("pydensecrf"):
        raise ValueError(extras.sentence("pydensecrf", "The CRF engine pydensecrf"))
    return "pydensecrf"


def require_engine(backend: Backend) -> None:
    """ValueError, with the remedy, where this process cannot refine by the engine that a backend means."""
    if choose_engine(backend) != "cuda":
        return
    if not _has_gpu():
        raise ValueError(
            "The CRF engine cuda needs a GPU on which PyTorch computes, and there is none here: leave the engine out, "
            "and the CRF runs on the cores."
        )
    if not extras.is_here("triton"):
        raise ValueError(
            "The CRF engine cuda needs Triton, which PyTorch's builds with CUDA bring on Linux: pip install triton, or "
            "leave the engine out, and the CRF runs on the cores."
        )


@functools.cache
def _has_gpu() -> bool:
    if not extras.is_here("torch"):
        return False
    import torch

    return torch.cuda.is_available()


def _choose(backend: Backend) -> str:
    engine = choose_engine(backend)
    if engine == "cuda":
        require_engine(backend)
    if native is None and backend == "auto":
        _say_slow()
    return engine


@functools.cache
def _say_slow() -> None:
    """Once per process."""
    logger.warning("No native CRF engine (%s); pydensecrf does its work, about ten times slower.", missing)


def _values(params: CrfParams) -> list[float]:
    values = [getattr(params, field.name) for field in fields(params)]
    return [float(value == "caffe") if isinstance(value, str) else float(value) for value in values]


def _checked(
    image: np.ndarray, scores: np.ndarray, params: CrfParams | None, extent_px: tuple[int, int] | None
) -> tuple[NDArray[np.uint8], NDArray[np.float16], tuple[int, int]]:
    """Image, scores and extent, as the engines take them."""
    image = _checked_image(image)
    scores = _checked_scores(scores)
    height, width = image.shape[:2]
    extent_height, extent_width = (height, width) if extent_px is None else extent_px
    if extent_height < height or extent_width < width:
        raise ValueError(f"extent_px {extent_height} x {extent_width} must hold the image, {height} x {width}")
    if params is not None:
        _check_reach(params, (height, width))
    return image, scores, (extent_height, extent_width)


def _checked_image(image: np.ndarray) -> NDArray[np.uint8]:
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    if image.size == 0:
        raise ValueError(f"image has no pixels: {image.shape}")
    return np.ascontiguousarray(image)


def _checked_probabilities(probabilities: np.ndarray, size: tuple[int, int]) -> NDArray[np.float32]:
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 3 or probabilities.dtype.kind != "f":
        raise ValueError(f"probabilities must be (C, H, W) float32, got {probabilities.shape} {probabilities.dtype}")
    if probabilities.shape[1:] != size:
        raise ValueError(f"probabilities are {probabilities.shape[1:]} pixels, the image is {size}")
    _check_classes("probabilities", len(probabilities))
    probabilities = np.ascontiguousarray(probabilities, dtype=np.float32)
    sums = probabilities.sum(axis=0)
    # One comparison finds NaN as well, since it compares false
    if not (probabilities.min() >= 0 and (np.abs(sums - 1) <= SUM_TOLERANCE).all()):
        bad = ~(probabilities >= 0)
        if bad.any():
            c, y, x = (int(i) for i in np.argwhere(bad)[0])
            value = probabilities[c, y, x]
            raise ValueError(
                f"probabilities must not be negative or NaN, got {value}: class {c} at row {y}, column {x}"
            )
        y, x = (int(i) for i in np.argwhere(~(np.abs(sums - 1) <= SUM_TOLERANCE))[0])
        raise ValueError(f"probabilities must sum to 1 over the classes, got {sums[y, x]} at row {y}, column {x}")
    return probabilities


def _checked_scores(scores: np.ndarray) -> NDArray[np.float16]:
    scores = np.asarray(scores)
    if scores.ndim != 3 or scores.dtype.kind != "f" or 0 in scores.shape[1:]:
        raise ValueError(f"scores must be (C, h, w) float16, got {scores.shape} {scores.dtype}")
    _check_classes("scores", len(scores), voc.MOST_CLASSES)
    with np.errstate(over="ignore"):
        scores = np.ascontiguousarray(scores, dtype=np.float16)
    if not np.isfinite(scores).all():
        c, y, x = (int(i) for i in np.argwhere(~np.isfinite(scores))[0])
        raise ValueError(f"scores must be finite as float16, got {scores[c, y, x]}: class {c} at row {y}, column {x}")
    return scores


def _check_classes(what: str, num_classes: int, most: int = MOST_CLASSES) -> None:
    if not 1 <= num_classes <= most:
        raise ValueError(f"{what} must have 1 to {most} classes, got {num_classes}")


def _check_reach(params: CrfParams, size: tuple[int, int]) -> None:
    """Lattice coordinates are float32; beyond this they have no fraction left."""
    for name in ("bilateral_xy_std_px", "gaussian_xy_std_px"):
        if max(size) / getattr(params, name) > 5e5:
            raise ValueError(f"{name} = {getattr(params, name)} is too small for an image of {size[0]} x {size[1]}")
    if size[0] * size[1] > 300_000_000:
        raise ValueError(f"an image of {size[0]} x {size[1]} is too large for the CRF; 300 megapixels are the limit")


def _densecrf() -> ModuleType:
    import pydensecrf.densecrf as densecrf

    return densecrf  # type: ignore[no-any-return]


def _refine_pydensecrf(
    image: NDArray[np.uint8], probabilities: NDArray[np.float32], params: CrfParams
) -> NDArray[np.float32]:
    densecrf: Any = _densecrf()
    kept = _taking_part(probabilities, params.min_probability)
    marginals = np.zeros(probabilities.shape, np.float32)
    if len(kept) == 1:
        marginals[kept] = 1
        return marginals
    height, width = probabilities.shape[1:]
    caffe = params.normalization == "caffe"
    normalization = densecrf.NORMALIZE_AFTER if caffe else densecrf.NORMALIZE_SYMMETRIC
    energy = -np.log(np.clip(probabilities[kept], LEAST_PROBABILITY, 1)).reshape(len(kept), -1)
    crf = densecrf.DenseCRF2D(width, height, len(kept))
    crf.setUnaryEnergy(np.ascontiguousarray(energy, dtype=np.float32))
    if params.gaussian_weight:
        crf.addPairwiseGaussian(
            sxy=params.gaussian_xy_std_px, compat=params.gaussian_weight, normalization=normalization
        )
    if params.bilateral_weight:
        crf.addPairwiseBilateral(
            sxy=params.bilateral_xy_std_px,
            srgb=params.bilateral_rgb_std,
            rgbim=np.array(image),  # a writable copy: pydensecrf refuses others
            compat=params.bilateral_weight,
            normalization=normalization,
        )
    inferred = np.array(crf.inference(int(params.iterations)), dtype=np.float32)
    marginals[kept] = inferred.reshape(len(kept), height, width)
    return marginals


def _taking_part(probabilities: NDArray[np.float32], min_probability: float) -> NDArray[np.intp]:
    """(K,), the classes that the CRF is told of: as in the engine, see `CrfParams.min_probability`."""
    wins = np.bincount(probabilities.argmax(axis=0).ravel(), minlength=len(probabilities))
    return np.flatnonzero((wins > 0) | (probabilities.max(axis=(1, 2)) > min_probability) | (min_probability <= 0))


def _refine_scores_numpy(
    image: NDArray[np.uint8], scores: NDArray[np.float16], params: CrfParams | None, extent_px: tuple[int, int]
) -> Refined:
    height, width = image.shape[:2]
    probabilities = _softmax(_upsample(scores, extent_px)[:, :height, :width])
    before = probabilities.argmax(axis=0).astype(np.uint8)
    labels = before
    if params is not None:
        labels = _refine_pydensecrf(image, probabilities, params).argmax(axis=0).astype(np.uint8)
    of_label = np.take_along_axis(probabilities, labels[None].astype(np.intp), axis=0)[0].astype(np.float64)
    pixels = np.bincount(labels.ravel(), minlength=len(scores))
    sums = np.bincount(labels.ravel(), weights=of_label.ravel(), minlength=len(scores))
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-30))).sum(axis=0, dtype=np.float64)
    return Refined(
        labels=labels,
        labels_before=before,
        class_pixels=pixels.astype(np.int64),
        class_confidence=sums / np.maximum(pixels, 1),
        confidence=float(of_label.mean()),
        entropy=float(entropy.mean()),
        changed=float((labels != before).mean()),
    )


def _refine_many(
    image: NDArray[np.uint8],
    scores: NDArray[np.float16],
    params: CrfParams | None,
    extent_px: tuple[int, int],
    backend: Backend,
) -> Refined:
    """`refine_scores` of more than `MOST_CLASSES` classes: labels before the CRF of all of them, a band at a time.

    The CRF is told of the `MOST_CLASSES` that win most pixels, or else come nearest to one; where more win a pixel of
    one image, those of fewest pixels are lost to it.
    """
    (height, width), num_classes = image.shape[:2], len(scores)
    rows = max(1, _BAND_BYTES // (4 * num_classes * width))
    bands = [slice(top, min(height, top + rows)) for top in range(0, height, rows)]

    def probabilities(band: slice) -> NDArray[np.float32]:
        return _softmax(_upsample(scores, extent_px, (band, slice(0, width))))

    before = np.empty((height, width), np.uint16)
    most, entropy = np.zeros(num_classes, np.float32), 0.0
    for band in bands:
        found = probabilities(band)
        before[band] = found.argmax(axis=0)
        most = np.maximum(most, found.max(axis=(1, 2)))
        entropy -= float((found * np.log(np.maximum(found, 1e-30))).sum(dtype=np.float64))
    labels = before
    if params is not None:
        wins = np.bincount(before.ravel(), minlength=num_classes)
        kept = np.sort(np.lexsort((-most, -wins))[:MOST_CLASSES])
        kept = kept[(wins[kept] > 0) | (most[kept] > params.min_probability)]
        of_kept = refine_scores(image, scores[kept], params, extent_px=extent_px, backend=backend)
        labels = kept.astype(np.uint16)[of_kept.labels]
    sums = np.zeros(num_classes)
    for band in bands:
        of_label = np.take_along_axis(probabilities(band), labels[band][None].astype(np.intp), axis=0)[0]
        sums += np.bincount(labels[band].ravel(), weights=of_label.ravel(), minlength=num_classes)
    pixels = np.bincount(labels.ravel(), minlength=num_classes).astype(np.int64)
    return Refined(
        labels=labels,
        labels_before=before,
        class_pixels=pixels,
        class_confidence=sums / np.maximum(pixels, 1),
        confidence=float(sums.sum() / labels.size),
        entropy=entropy / labels.size,
        changed=float((labels != before).mean()),
    )


_BAND_BYTES = 64 << 20


def _upsample(
    scores: NDArray[np.float16], size_px: tuple[int, int], part: tuple[slice, slice] = (slice(None), slice(None))
) -> NDArray[np.float32]:
    """(C, h, w) to (C, height, width) or a part of it, bilinear, corners aligned with corners."""
    upsampled: NDArray[np.floating] = scores
    for axis, (pixels, shown) in enumerate(zip(size_px, part, strict=True), start=1):
        cells = upsampled.shape[axis]
        at = np.linspace(0, cells - 1, pixels)[shown]
        low = np.clip(at.astype(int), 0, max(cells - 2, 0))
        fraction = (at - low).astype(np.float32).reshape((1, -1, 1) if axis == 1 else (1, 1, -1))
        high = np.minimum(low + 1, cells - 1)
        upsampled = (
            upsampled.take(low, axis).astype(np.float32) * (1 - fraction)
            + upsampled.take(high, axis).astype(np.float32) * fraction
        )
    return np.asarray(upsampled, dtype=np.float32)


def _softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(scores - scores.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0), dtype=np.float32)
