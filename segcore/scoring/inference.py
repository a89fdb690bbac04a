"""From photographs to score maps: padding, grouping by shape, batching, scoring.

Images arrive decoded and scaled (`images/decoding.py`); scales, mirror and windows are in `tta.py`, the device is in
`device.py`, what becomes of the scores (upsampling, CRF, labels) is in `crf/dense_crf.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Interval, MinLen

from segcore.images.errors import ErrorKind, ImageError
from segcore.scoring.memory import DeviceShortError, is_out_of_memory

if TYPE_CHECKING:
    import torch

    from segcore.models.checkpoint import LoadedModel
    from segcore.scoring.device import Upload


@dataclass(frozen=True)
class InferenceParams:
    """Everything that decides the scores of an image; part of the identity of a run."""

    long_side_px: Annotated[int, Interval(ge=33, le=16384)] | None = 513
    """Images whose longer side is longer than this many pixels are scaled down before scoring; None scores them at
    their own size, through windows where they are larger than one (of `crop_px`, else 1025 px)."""

    scales: Annotated[tuple[Annotated[float, Interval(ge=0.1, le=4.0)], ...], MinLen(1)] = (1.0,)
    """Sizes that each image is scored at, relative to the working size; DeepLab v2 uses 0.5, 0.75, 1."""

    fusion: Literal["max", "mean"] = "max"
    """How views are fused: "max" takes the largest logit over scales (DeepLab v2) and averages logits over mirrored
    and overlapping views; "mean" averages probabilities over all of them (PSPNet)."""

    mirror: bool = False
    """Score the left-right mirrored image too, and average the two."""

    crop_px: Annotated[int, Interval(ge=33, le=4097)] | None = None
    """Side of the sliding window in pixels (473 for PSPNet; rounded down to 8k + 1), or None for the whole image at
    once. An image no larger than one window is scored in one pass."""

    crop_stride: Annotated[float, Interval(gt=0.0, le=1.0)] = 2 / 3
    """Distance between windows as a share of their side; rounded down to 8 px, or up to 1 px as semseg does where the
    weights are from there."""

    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number format of the network; auto is bf16 where the device multiplies it in hardware, else fp32."""


# Multi-scale inputs of DeepLab v2 (section 4.1.2); the images go in at their own size, VOC's being 500 px at most.
DEEPLAB_V2_MSC = InferenceParams(scales=(0.5, 0.75, 1.0), fusion="max")

# PSPNet's test on VOC (section 5.3 and hszhao/semseg): crops of 473, mirrored, six scales of a long side of 512.
PSPNET_MULTI_SCALE = InferenceParams(
    long_side_px=512, scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), fusion="mean", mirror=True, crop_px=473
)


WINDOW_PX = 1025
"""Side of a window of images at their own size where `InferenceParams.crop_px` names none."""


def window_px(params: InferenceParams) -> int:
    """Side of a window of images at their own size, 8k + 1."""
    return ((params.crop_px or WINDOW_PX) - 1) // 8 * 8 + 1


_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


LOWEST = -65504.0
"""Of float16."""


class ScoreMap(NamedTuple):
    """Scores of one image on the network's grid."""

    scores: np.ndarray
    """(C, h, w) float16: logits or log-probabilities, 0 for the best class of each position, others below. By the
    conventions of other repositories (`segcore.models.card.CONVENTIONS`) at the size of the image."""

    extent_px: tuple[int, int]
    """Height and width of the padded image: the grid's corner positions lie on the corner pixels of this rectangle
    (`align_corners=True`), and the image is its top-left part."""


class Batch(NamedTuple):
    """Images that are computed together."""

    shape: tuple[int, int]
    """Height and width that all are padded to."""

    members: list[int]
    """Indices into the call's list."""


class Scorer:
    """Scores photographs with one model on one device.

    num_threads: sets torch's threads for the whole process; None leaves them alone.
    batch_size: images of one padded shape that are computed together; by default 1 on a CPU (a batch gains nothing
        there) and 16 on CUDA.
    """

    def __init__(
        self,
        model: LoadedModel,
        params: InferenceParams = InferenceParams(),
        *,
        device: str = "auto",
        num_threads: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        import torch

        from segcore.scoring.device import DeviceRunner, choose_device, choose_precision

        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self.params = params
        self.device = choose_device(device)
        self.dtype = choose_precision(params.precision, self.device)
        self.name = model.name
        self.num_classes = len(model.card.classes)
        self.convention = model.card.convention
        check_params(params)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else 16)
        self.runner = DeviceRunner(model.module, model.card.preprocessing, self.device, self.dtype)
        self._fitted_pixels = 0  # Of the largest padded image that there was memory for

    @property
    def place(self) -> str:
        """Device and precision: "cpu/bf16", "cuda/fp16"."""
        precision = str(self.dtype).removeprefix("torch.")
        return f"{self.device.type}/{_PRECISIONS.get(precision, precision)}"

    def release(self) -> None:
        """Give the memory of the device back; of no use afterwards."""
        self.runner.let_go()

    def __call__(self, images: Sequence[np.ndarray], each_batch: Callable[[], None] | None = None) -> list[ScoreMap]:
        """Score maps in the order of the images.

        images: (H, W, 3) uint8 RGB each, any mix of sizes from 1 px up. Batches are formed from the list alone:
        images of one padded shape in their order. each_batch: called before each batch is computed.
        A batch for which there is no memory is halved, and the batches of later calls are as small.
        ValueError: an image of another form; scores that are not finite. ImageError (memory): an image that does not
        fit alone. DeviceShortError: one that does not fit though as large a one has fitted before.
        """
        check_images(images)
        results: list[ScoreMap | None] = [None] * len(images)
        waiting = self._batches(images)
        while waiting:
            if self._fits(images, waiting, results, each_batch):
                break
            self.runner.give_back_memory()
            # Several were under way: whether it is the first that does not fit is seen when it is alone
            waiting = [batch for batch in waiting if results[batch.members[0]] is None]
            first = waiting.pop(0)
            if not self._fits(images, [first], results, each_batch):
                waiting[:0] = self._halves(first)
        return [result for result in results if result is not None]

    def _fits(
        self,
        images: Sequence[np.ndarray],
        batches: list[Batch],
        results: list[ScoreMap | None],
        each_batch: Callable[[], None] | None,
    ) -> bool:
        """Compute batches, as far as there is memory for them; whether there was."""
        try:
            self._compute(images, batches, results, each_batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _halves(self, batch: Batch) -> list[Batch]:
        height, width = batch.shape
        if len(batch.members) == 1:
            if height * width <= self._fitted_pixels:
                raise DeviceShortError(
                    f"{self.device.type.upper()} memory ran out at an image of {height} x {width} px, though as large "
                    "a one has fitted before: something else holds the memory of this device."
                )
            raise ImageError(
                ErrorKind.MEMORY,
                f"scoring it at {height} x {width} px needs more memory than the {self.device.type.upper()} has free: "
                "a smaller long side, fewer scales or sliding windows need less",
            )
        middle = len(batch.members) // 2
        self.batch_size = min(self.batch_size, len(batch.members) - middle)
        return [Batch(batch.shape, batch.members[:middle]), Batch(batch.shape, batch.members[middle:])]

    def _compute(
        self,
        images: Sequence[np.ndarray],
        batches: list[Batch],
        results: list[ScoreMap | None],
        each_batch: Callable[[], None] | None,
    ) -> None:
        import torch

        from segcore.scoring.tta import score_views

        waiting: deque[tuple[Batch, Callable[[], np.ndarray]]] = deque()

        def collect() -> None:
            batch, wait = waiting.popleft()
            for index, scores in zip(batch.members, finite(wait(), self.name), strict=True):
                results[index] = ScoreMap(scores, batch.shape)
            self._fitted_pixels = max(self._fitted_pixels, batch.shape[0] * batch.shape[1])

        with torch.inference_mode():
            following: Upload | None = self._upload(images, batches[0])
            for number, batch in enumerate(batches):
                upload = following
                assert upload is not None
                if each_batch is not None:
                    each_batch()
                # The next batch travels while this one is computed, and the last result while this one is.
                following = self._upload(images, batches[number + 1]) if number + 1 < len(batches) else None
                sizes = [(images[index].shape[0], images[index].shape[1]) for index in batch.members]
                normalised = self.runner.normalise(upload, sizes)
                scores = score_views(self.runner.forward, normalised, self.params, self.batch_size, self.convention)
                waiting.append((batch, self.runner.download(_to_float16(scores))))
                if len(waiting) > 1:
                    collect()
            while waiting:
                collect()

    def _batches(self, images: Sequence[np.ndarray]) -> list[Batch]:
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            size = (image.shape[0], image.shape[1])
            if self.convention == "caffe":
                size = (padded_px(size[0]), padded_px(size[1]))
            groups.setdefault(size, []).append(index)
        return [
            Batch(shape, members[start : start + self.batch_size])
            for shape, members in groups.items()
            for start in range(0, len(members), self.batch_size)
        ]

    def _upload(self, images: Sequence[np.ndarray], batch: Batch) -> Upload:
        pixels = np.zeros((len(batch.members), *batch.shape, 3), dtype=np.uint8)
        for canvas, index in zip(pixels, batch.members, strict=True):
            image = images[index]
            canvas[: image.shape[0], : image.shape[1]] = image
        return self.runner.upload(pixels)


def check_params(params: InferenceParams) -> None:
    """ValueError for what the annotations forbid, where nobody has validated them."""
    if not params.scales or not all(scale > 0 for scale in params.scales):
        raise ValueError(f"scales must be one or more numbers above 0, got {params.scales!r}.")
    if params.crop_px is not None and (params.crop_px < 33 or not 0 < params.crop_stride <= 1):
        raise ValueError("crop_px must be at least 33 and crop_stride in (0, 1].")


def check_images(images: Sequence[np.ndarray]) -> None:
    """ValueError for what is no (H, W, 3) uint8 RGB."""
    for index, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"Image {index} is {image.dtype} {image.shape}; expected (H, W, 3) uint8 RGB.")


def relative_work(params: InferenceParams, parameters: int) -> float:
    """About what an image costs a network of so many parameters: 1 is LargeFOV at 513 px, about a second on a core.

    At their own size images have any; then it is what one window costs.
    """
    work = ((params.long_side_px or window_px(params)) / 513) ** 2 * sum(scale**2 for scale in params.scales)
    work *= (2 if params.mirror else 1) * parameters / 20_505_429
    if params.crop_px is not None and params.long_side_px is not None:
        work /= params.crop_stride**2
    return work


def padded_px(length_px: int) -> int:
    """The next 8k + 1 from 33 px up: the score maps of these lengths align with the image's corner pixels."""
    return max(33, -(-(length_px - 1) // 8) * 8 + 1)


def _to_float16(scores: torch.Tensor) -> torch.Tensor:
    """(N, C, h, w) float32 -> float16: each position's best class becomes 0, far ones stop at -65504.

    Positions with a score that is not finite become NaN, which `finite` finds on the host, since asking here would
    make the host wait for the device.
    """
    import torch

    scores = torch.where(torch.isfinite(scores), scores, torch.nan)
    return (scores - scores.amax(dim=1, keepdim=True)).clamp_(min=LOWEST).half()


def score_map(scores: np.ndarray, extent_px: tuple[int, int], name: str) -> ScoreMap:
    """A score map of (C, h, w) float32 scores: each position's best class becomes 0, far ones stop at -65504.

    ValueError for scores that are not finite; name: of the model, for the message.
    """
    with np.errstate(invalid="ignore"):
        scores = np.where(np.isfinite(scores), scores, np.nan)
        scores = np.maximum(scores - scores.max(axis=0), LOWEST).astype(np.float16)
    return ScoreMap(finite(scores, name), extent_px)


def finite(scores: np.ndarray, name: str) -> np.ndarray:
    """The same scores. ValueError for NaN among them."""
    if np.isnan(scores).any():
        raise ValueError(
            f"{name} gave scores that are not finite: its weights are damaged, or too large for the number format; "
            f"try precision fp32."
        )
    return scores
