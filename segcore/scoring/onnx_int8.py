"""An ONNX file in eight bits: static quantisation of its convolutions, calibrated on photographs.

QDQ, weights of 7 bits per channel, activations by the values that all but one in 10,000 keep within. The last
convolution, whose outputs are the scores, keeps float32. Needs the package `onnx`.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segcore import extras
from segcore.models.checkpoint import LoadedModel
from segcore.scoring.inference import InferenceParams
from segcore.scoring.onnx_scorer import OnnxScorer

LEAST_PHOTOGRAPHS = 8
"""With fewer, what a layer can give is unknown."""

_CROP_PX = 321  # Of the middle of a photograph


def quantise(model: LoadedModel, photographs: Sequence[np.ndarray]) -> bytes:
    """The ONNX file of the same model with convolutions of int8.

    model: an ONNX file. photographs: (h, w, 3) uint8 RGB each, at working size. ValueError in one sentence: too few of
    them, a package that is missing, a graph that cannot be quantised.
    """
    if not extras.is_here("onnx"):
        raise ValueError(extras.sentence("onnx", "Quantisation"))
    if len(photographs) < LEAST_PHOTOGRAPHS:
        raise ValueError(
            f"{len(photographs)} photographs are too few to calibrate int8 by: give a folder of "
            f"{LEAST_PHOTOGRAPHS} or more like those to be segmented; a hundred are better."
        )
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    assert model.onnx is not None, "an ONNX file"
    scorer = OnnxScorer(model, InferenceParams())
    ends = scorer.ends
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        given, prepared, made = (Path(folder) / f"{part}.onnx" for part in ("given", "prepared", "made"))
        given.write_bytes(model.onnx)
        try:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # Its tools tell of themselves
            quant_pre_process(str(given), str(prepared), skip_symbolic_shape=True)
            last = _last_convolution(onnx.load(str(prepared)), ends.output)
            quantize_static(
                str(prepared),
                str(made),
                _Photographs(scorer, photographs),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                nodes_to_exclude=last,
                per_channel=True,
                # Weights of 7 bits: on processors without VNNI two products are added in 16 bits, and 8 overflow there
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.Percentile,
                # One photograph at a time: all that a network computes of it is held
                extra_options={"CalibPercentile": 99.99, "CalibStridedMinMax": 1},
            )
        except Exception as error:  # Whatever its tools trip over
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise ValueError(f"{model.name} cannot be quantised: {reason or type(error).__name__}.") from None
        return made.read_bytes()


class _Photographs:
    """What the calibration asks for: inputs of the network by number."""

    def __init__(self, scorer: OnnxScorer, photographs: Sequence[np.ndarray]) -> None:
        self.scorer, self.photographs = scorer, photographs
        self.numbers = iter(range(len(photographs)))

    def __len__(self) -> int:
        return len(self.photographs)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Give these next."""
        self.numbers = iter(range(start_index, end_index))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input by its name; None at the end."""
        number = next(self.numbers, None)
        if number is None:
            return None
        image, ends = self.photographs[number], self.scorer.ends
        top, left = (max(0, (side - _CROP_PX) // 2) for side in image.shape[:2])
        return {ends.input: self.scorer.input_of(image[top : top + _CROP_PX, left : left + _CROP_PX], ends)}


def _last_convolution(model: Any, output: str) -> list[str]:
    """Names of the convolutions that the scores come from without another convolution between."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    found, waiting, seen = [], [output], set[str]()
    while waiting:
        node = made_by.get(waiting.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type == "Conv":
            found.append(node.name)
        else:
            waiting.extend(node.input)
    return found
