"""Scores on a CPU by ONNX Runtime, or by OpenVINO in bfloat16: of the small models, and of ONNX files of others."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from segcore import extras
from segcore.images.errors import ErrorKind, ImageError
from segcore.models import onnx_file, onnx_network
from segcore.models.card import HUGGING_FACE, ONNX, PYTHON, ModelCard
from segcore.models.checkpoint import LoadedModel
from segcore.scoring import hardware, openvino_session
from segcore.scoring.inference import InferenceParams, ScoreMap, check_images, check_params, padded_px, score_map

# ONNX Runtime reports to its maker by default, and keeps a database for that in the home folder. Read at its import
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def is_better(model: LoadedModel, params: InferenceParams, device: str) -> bool:
    """Whether to score without torch here: there is none, or ONNX Runtime takes less time for the same."""
    if not extras.is_here("torch") or model.onnx is not None:
        return True
    if not extras.is_here("onnxruntime") or _obstacle(model.card, params, device) is not None:
        return False
    return hardware.scores_in_float32(params.precision, device)


def is_possible_in_bf16(model: LoadedModel, params: InferenceParams, device: str) -> bool:
    """Whether OpenVINO is here, and computes this network of ours as asked."""
    if not openvino_session.is_usable() or model.onnx is not None:
        return False
    return _obstacle(model.card, replace(params, precision="bf16"), device) is None


def _precisions() -> tuple[str, ...]:
    return ("auto", "fp32", "bf16") if openvino_session.is_usable() else ("auto", "fp32")


def require_usable(card: ModelCard, params: InferenceParams) -> None:
    """ValueError, with the remedy, where torch is not installed and this model or these parameters need it, and for
    what ONNX files cannot do."""
    if card.variant == ONNX:
        _require_plain(card, params, "auto")
        return
    if card.variant in (HUGGING_FACE, PYTHON):
        _require_one_pass(card, params)
        for package in ("torch", "transformers") if card.variant == HUGGING_FACE else ("torch",):
            if not extras.is_here(package):
                raise ValueError(extras.sentence(package, card.shown_name))
        return
    if not extras.is_here("torch") and (obstacle := _obstacle(card, params, "auto")) is not None:
        raise ValueError(extras.sentence("torch", obstacle))


def _obstacle(card: ModelCard, params: InferenceParams, device: str) -> str | None:
    """What torch is needed for, if it is."""
    for needed, what in (
        (not onnx_network.takes(card) or card.untrained, card.shown_name),
        (device not in ("auto", "cpu"), f"The device {device!r}"),
        (params.precision not in _precisions(), f"Precision {params.precision}"),
        (
            params.scales != (1.0,)
            or params.mirror
            or (params.crop_px is not None and params.long_side_px is not None),
            "Test-time augmentation",
        ),
        (card.convention != "caffe", f"The convention {card.convention}"),
    ):
        if needed:
            return what
    return None


def _require_one_pass(card: ModelCard, params: InferenceParams) -> None:
    """ValueError for what is asked of a network of others that only ours do."""
    precisions: tuple[str, ...] = ("auto", "fp32")
    leave_out = "leave --precision out"
    if card.variant == ONNX:
        precisions, leave_out = _precisions(), f"{leave_out}, or pip install 'segment-archive[openvino]' for bf16"
    for asked, what, remedy in (
        (params.precision not in precisions, f"precision {params.precision}", leave_out),
        (params.scales != (1.0,) or params.mirror, "several views of an image", "leave --scales and --mirror out"),
        (params.crop_px is not None and params.long_side_px is not None, "sliding windows", "leave --crop out"),
    ):
        if asked:
            raise ValueError(f"{card.shown_name} is scored in float32 and in one pass, without {what}: {remedy}.")


def _require_plain(card: ModelCard, params: InferenceParams, device: str) -> None:
    """ValueError for what is asked of an ONNX file that only networks of torch do."""
    if device not in ("auto", "cpu"):
        raise ValueError(f"An ONNX model is scored on the CPU, without the device {device!r}: leave it out.")
    _require_one_pass(card, params)


class OnnxScorer:
    """Scores photographs with one model: in float32 by ONNX Runtime, in bfloat16 by OpenVINO.

    num_threads: of this scorer; None takes every core. ValueError, with the remedy: a model, a device, a precision or
    views that need torch.
    """

    place = "cpu/fp32"
    """Device and precision, as `Scorer.place`."""

    _sized_by = "--long-side"
    """Option that says how large a picture the network is given."""

    _ends: onnx_file.Ends | None = None
    """Of somebody else's graph; None of a network of ours."""

    def __init__(
        self,
        model: LoadedModel,
        params: InferenceParams,
        *,
        device: str = "auto",
        num_threads: int | None = None,
    ) -> None:
        check_params(params)
        self._read(model)
        self._sized_by = "--crop" if params.long_side_px is None else "--long-side"
        in_bf16 = params.precision == "bf16"
        if in_bf16:
            self.place = "cpu/bf16 by OpenVINO"
        if model.onnx is not None:
            _require_plain(model.card, params, device)
            self._session: Any = onnx_file.open_session(model.onnx, model.name, num_threads)
            output = str(model.card.options.get("output", ""))
            self._ends = onnx_file.ends(self._session, model.name, output, self._num_classes)
            if in_bf16:
                self._session = openvino_session.Session(model.onnx, model.name, num_threads)
            return
        if (obstacle := _obstacle(model.card, params, device)) is not None:
            raise ValueError(extras.sentence("torch", obstacle))
        tensors = model.tensors
        if tensors is None:
            tensors = {name: value.numpy() for name, value in model.module.state_dict().items()}
        try:
            self._network = onnx_network.network(model.card, tensors)
        except ValueError as error:
            raise ValueError(f"The weights of {model.name} do not fit its card: {error}.") from None
        open_session = openvino_session.Session if in_bf16 else onnx_file.open_session
        self._session = open_session(self._network.model, model.name, num_threads)

    def _read(self, model: LoadedModel) -> None:
        """What the card says."""
        preprocessing = model.card.preprocessing
        self.name = model.name
        self._channels = [2, 1, 0] if preprocessing.colour_order == "BGR" else [0, 1, 2]
        self._mean = np.array(preprocessing.mean, np.float32)
        self._std = np.array(preprocessing.std, np.float32)
        self._num_classes = len(model.card.classes)
        self._stride = int(model.card.options.get("stride", 32))
        self._probabilities = bool(model.card.options.get("probabilities", False))
        self._aligned = model.card.convention == "caffe"
        self._matrices: dict[tuple[int, int], dict[str, np.ndarray]] = {}

    @property
    def ends(self) -> onnx_file.Ends:
        """Input and output of somebody else's graph."""
        assert self._ends is not None, "a network of ours is built for the scorer"
        return self._ends

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
        if self._ends is not None:
            return self._score_given(image, self._ends)
        height, width = image.shape[:2]
        extent_px = (padded_px(height), padded_px(width))
        stride = self._network.stride
        # Up to a rectangle on whose corners both grids have a position
        rows, columns = (-(-(side - 1) // stride) * stride + 1 for side in extent_px)
        if (rows, columns) not in self._matrices:
            if len(self._matrices) >= 64:  # An archive of any sizes
                self._matrices.clear()
            self._matrices[rows, columns] = self._network.matrices(rows, columns)
        canvas = self._canvas(image, rows, columns)
        (scores,) = self._run(None, {"images": canvas, **self._matrices[rows, columns]}, (height, width))
        return score_map(
            scores[0, :, : (extent_px[0] - 1) // 8 + 1, : (extent_px[1] - 1) // 8 + 1], extent_px, self.name
        )

    def _score_given(self, image: np.ndarray, ends: onnx_file.Ends) -> ScoreMap:
        """By somebody else's graph: scores at the size of the image, or by the convention "caffe" on its own grid."""
        height, width = image.shape[:2]
        canvas = self.input_of(image, ends)
        rows, columns = canvas.shape[1:3] if ends.channels_last else canvas.shape[2:]
        (scores,) = self._run([ends.output], {ends.input: canvas}, (height, width))
        if scores.ndim == 4 and ends.output_channels_last:
            scores = scores.transpose(0, 3, 1, 2)
        if scores.ndim != 4 or scores.shape[0] != 1 or scores.shape[1] != self._num_classes or 0 in scores.shape:
            raise ValueError(
                f"{self.name} gave scores of shape {scores.shape}, its card names {self._num_classes} classes: "
                "expected (1, C, h, w)."
            )
        found = scores[0].astype(np.float32)
        if self._probabilities:
            found = np.log(np.maximum(found, 1e-30))
        if self._aligned:
            return score_map(found, (rows, columns), self.name)
        found = _resized(found, (rows, columns))[:, :height, :width]
        return score_map(found, (height, width), self.name)

    def input_of(self, image: np.ndarray, ends: onnx_file.Ends) -> np.ndarray:
        """What somebody else's graph is given for an image: (1, 3, rows, columns) or (1, rows, columns, 3) float32.

        image: (H, W, 3) uint8 RGB. ValueError for one that does not fit into a graph of a fixed size.
        """
        height, width = image.shape[:2]
        stride, more = self._stride, int(self._aligned)
        least = 33 if self._aligned else 1  # As `padded_px`
        rows, columns = (
            given or -(-(max(side, least) - more) // stride) * stride + more
            for side, given in zip((height, width), ends.size, strict=True)
        )
        if rows < height or columns < width:
            raise ValueError(
                f"{self.name} takes pictures of {columns} x {rows} px alone, this one is {width} x {height} px at "
                f"working size: give {self._sized_by} {max(33, min(rows, columns))}."
            )
        canvas = self._canvas(image, rows, columns)
        return np.ascontiguousarray(canvas.transpose(0, 2, 3, 1)) if ends.channels_last else canvas

    def _canvas(self, image: np.ndarray, rows: int, columns: int) -> np.ndarray:
        """(1, 3, rows, columns) float32, normalised; the padding at the bottom and on the right is 0, the mean."""
        height, width = image.shape[:2]
        canvas = np.zeros((1, 3, rows, columns), np.float32)
        values = (image[..., self._channels].astype(np.float32) - self._mean) / self._std  # (H, W, 3)
        canvas[0, :, :height, :width] = values.transpose(2, 0, 1)
        return canvas

    def _run(self, outputs: list[str] | None, inputs: dict[str, np.ndarray], size: tuple[int, int]) -> list[np.ndarray]:
        try:
            found: list[np.ndarray] = self._session.run(outputs, inputs)
        except Exception as error:  # Its exceptions have no class of their own for this
            if isinstance(error, MemoryError) or "allocate memory" in str(error) or "bad_alloc" in str(error):
                raise ImageError(
                    ErrorKind.MEMORY,
                    f"scoring it at {size[0]} x {size[1]} px needs more memory than this machine has free: "
                    "a smaller long side needs less",
                ) from None
            raise
        return found


def _resized(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(C, h, w) float32 to (C, *size), bilinear, pixels as areas: torch's `align_corners=False`."""
    for axis, wanted in ((1, size[0]), (2, size[1])):
        given = maps.shape[axis]
        if given == wanted:
            continue
        at = np.maximum((np.arange(wanted) + 0.5) * (given / wanted) - 0.5, 0)
        low = np.minimum(at.astype(int), given - 1)
        share = (at - low).astype(np.float32).reshape((1, -1, 1) if axis == 1 else (1, 1, -1))
        maps = maps.take(low, axis) * (1 - share) + maps.take(np.minimum(low + 1, given - 1), axis) * share
    return maps
