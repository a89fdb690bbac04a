"""Scores by ONNX Runtime, on machines without torch: what `inference.Scorer` does, for the small models, on a CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np

from segcore import extras
from segcore.images.decoding import ErrorKind, ImageError
from segcore.models import onnx_network
from segcore.models.card import ModelCard
from segcore.models.checkpoint import LoadedModel
from segcore.scoring.inference import InferenceParams, ScoreMap, check_images, check_params, finite, padded_px

# ONNX Runtime reports to its maker by default, and keeps a database for that in the home folder. Read at its import
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_LOWEST = -65504.0
"""Of float16."""


def is_better(model: LoadedModel, params: InferenceParams, device: str) -> bool:
    """Whether to score by ONNX Runtime here: there is no torch, or it would take longer."""
    if not extras.is_here("torch"):
        return True
    if not extras.is_here("onnxruntime") or _obstacle(model.card, params, device) is not None:
        return False
    import torch

    from segcore.scoring.device import choose_device, choose_precision

    chosen = choose_device(device)
    return chosen.type == "cpu" and choose_precision(params.precision, chosen) == torch.float32


def require_usable(card: ModelCard, params: InferenceParams) -> None:
    """ValueError, with the remedy, where torch is not installed and this model or these parameters need it."""
    if not extras.is_here("torch") and (obstacle := _obstacle(card, params, "auto")) is not None:
        raise ValueError(extras.sentence("torch", obstacle))


def _obstacle(card: ModelCard, params: InferenceParams, device: str) -> str | None:
    """What torch is needed for, if it is."""
    for needed, what in (
        (not onnx_network.takes(card) or card.untrained, card.shown_name),
        (device not in ("auto", "cpu"), f"The device {device!r}"),
        (params.precision not in ("auto", "fp32"), f"Precision {params.precision}"),
        (params.scales != (1.0,) or params.mirror or params.crop_px is not None, "Test-time augmentation"),
        (card.convention != "caffe", f"The convention {card.convention}"),
    ):
        if needed:
            return what
    return None


class OnnxScorer:
    """Scores photographs with one model by ONNX Runtime, in float32.

    num_threads: of this scorer; None takes every core. ValueError, with the remedy: a model, a device, a precision or
    views that need torch.
    """

    place = "cpu/fp32"
    """Device and precision, as `Scorer.place`."""

    def __init__(
        self,
        model: LoadedModel,
        params: InferenceParams,
        *,
        device: str = "auto",
        num_threads: int | None = None,
    ) -> None:
        check_params(params)
        if (obstacle := _obstacle(model.card, params, device)) is not None:
            raise ValueError(extras.sentence("torch", obstacle))
        import onnxruntime

        tensors = model.tensors
        if tensors is None:
            tensors = {name: value.numpy() for name, value in model.module.state_dict().items()}
        self.name = model.name
        preprocessing = model.card.preprocessing
        self._channels = [2, 1, 0] if preprocessing.colour_order == "BGR" else [0, 1, 2]
        self._mean = np.array(preprocessing.mean, np.float32)
        self._std = np.array(preprocessing.std, np.float32)
        try:
            self._network = onnx_network.network(model.card, tensors)
        except ValueError as error:
            raise ValueError(f"The weights of {model.name} do not fit its card: {error}.") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # Its warnings are for who makes a graph
        self._session = onnxruntime.InferenceSession(self._network.model, options, providers=["CPUExecutionProvider"])
        self._matrices: dict[tuple[int, int], dict[str, np.ndarray]] = {}

    def __call__(self, images: Sequence[np.ndarray], each_batch: Callable[[], None] | None = None) -> list[ScoreMap]:
        """Score maps in the order of the images, as `Scorer.__call__`; each image is a batch.

        ValueError: an image of another form; scores that are not finite. ImageError (memory): one that does not fit.
        """
        check_images(images)
        found = []
        for image in images:
            if each_batch is not None:
                each_batch()
            found.append(self._score(image))
        return found

    def release(self) -> None:
        """Nothing is held on a device."""

    def _score(self, image: np.ndarray) -> ScoreMap:
        height, width = image.shape[:2]
        extent_px = (padded_px(height), padded_px(width))
        stride = self._network.stride
        # Up to a rectangle on whose corners both grids have a position; 0 is the mean
        rows, columns = (-(-(side - 1) // stride) * stride + 1 for side in extent_px)
        canvas = np.zeros((1, 3, rows, columns), np.float32)
        values = (image[..., self._channels].astype(np.float32) - self._mean) / self._std  # (H, W, 3)
        canvas[0, :, :height, :width] = values.transpose(2, 0, 1)
        if (rows, columns) not in self._matrices:
            if len(self._matrices) >= 64:  # An archive of any sizes
                self._matrices.clear()
            self._matrices[rows, columns] = self._network.matrices(rows, columns)
        try:
            (scores,) = self._session.run(None, {"images": canvas, **self._matrices[rows, columns]})
        except Exception as error:  # Its exceptions have no class of their own for this
            if isinstance(error, MemoryError) or "allocate memory" in str(error):
                raise ImageError(
                    ErrorKind.MEMORY,
                    f"scoring it at {height} x {width} px needs more memory than this machine has free: "
                    "a smaller long side needs less",
                ) from None
            raise
        scores = scores[0, :, : (extent_px[0] - 1) // 8 + 1, : (extent_px[1] - 1) // 8 + 1]
        with np.errstate(invalid="ignore"):
            scores = np.where(np.isfinite(scores), scores, np.nan)
            scores = np.maximum(scores - scores.max(axis=0), _LOWEST).astype(np.float16)
        return ScoreMap(finite(scores, self.name), extent_px)
