"""ONNX files in eight bits: the labels of float32 but for a few, a fraction of the bytes, refusals in one sentence."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from segcore.models import checkpoint
from segcore.scoring.inference import InferenceParams
from segcore.scoring.onnx_scorer import OnnxScorer

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from segcore.models.card import ONNX, ModelCard  # noqa: E402
from segcore.models.preprocessing import BY_RANGE  # noqa: E402
from segcore.scoring.onnx_int8 import quantise  # noqa: E402

CLASSES = 6


def model_of(channels: int = 48) -> checkpoint.LoadedModel:
    """Two convolutions with a bound between them, then one to the classes."""
    dice = np.random.default_rng(0)
    widths, shapes = (3, channels, channels, CLASSES), ((3, 4), (3, 1), (1, 1))
    weights, nodes, given = [], [], "images"
    for number, (side, stride) in enumerate(shapes):
        fan = widths[number] * side**2
        weight = dice.normal(0, (2 / fan) ** 0.5, (widths[number + 1], widths[number], side, side)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{number}"))
        attributes = {"kernel_shape": [side] * 2, "strides": [stride] * 2, "pads": [side // 2] * 4}
        out = "scores" if number == 2 else f"c{number}"
        nodes.append(helper.make_node("Conv", [given, f"w{number}"], [out], name=f"conv{number}", **attributes))
        if number < 2:
            nodes.append(helper.make_node("Relu", [out], [f"r{number}"], name=f"relu{number}"))
            given = f"r{number}"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width, f"h{width}", f"w{width}"])
        for name, width in (("images", 3), ("scores", CLASSES))
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    content = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    names = tuple(f"class {number}" for number in range(CLASSES))
    card = ModelCard(
        ONNX, names, BY_RANGE["-1..1"], {"name": "net", "stride": 4, "output": "scores"}, convention="areas"
    )
    return checkpoint.LoadedModel(None, card, "digest", onnx=content)


def photographs(count: int) -> list[np.ndarray]:
    dice = np.random.default_rng(1)
    small = [Image.fromarray(dice.integers(0, 255, (5, 7, 3), dtype=np.uint8)) for _ in range(count)]
    sizes = [(97 + 16 * (k % 3), 80 + 8 * (k % 2)) for k in range(count)]  # Of several sizes
    return [np.asarray(s.resize(size, Image.Resampling.BICUBIC)) for s, size in zip(small, sizes, strict=True)]


def test_labels_stay_and_weights_are_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of()
    pictures = photographs(12)
    made = quantise(model, pictures[:8])
    kinds = {node.op_type for node in onnx.load_from_string(made).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds
    held = {tensor.name: tensor for tensor in onnx.load_from_string(made).graph.initializer}
    of_bytes = [name for name, tensor in held.items() if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4]
    assert len(of_bytes) == 2  # The last convolution keeps float32
    scales = [tensor for name, tensor in held.items() if name.startswith(("w0", "w1")) and name.endswith("scale")]
    assert scales and all(tensor.dims == [48] for tensor in scales)  # One for each channel
    params = InferenceParams()
    exact = OnnxScorer(model, params)(pictures[8:])
    coarse = OnnxScorer(dataclasses.replace(model, onnx=made), params)(pictures[8:])
    same = [np.mean(a.scores.argmax(0) == b.scores.argmax(0)) for a, b in zip(exact, coarse, strict=True)]
    assert 0.97 < np.mean(same) < 1  # Something was rounded, and hardly a label changed
    assert capsys.readouterr().out == ""


def test_too_few_photographs_are_refused() -> None:
    with pytest.raises(ValueError, match="7 photographs are too few to calibrate int8 by"):
        quantise(model_of(8), photographs(7))


def test_what_cannot_be_quantised_is_one_sentence() -> None:
    model = model_of(8)
    spoilt = [np.zeros((40, 40, 3), np.uint8)] * 7 + [np.zeros((40, 40), np.uint8)]
    with pytest.raises(ValueError, match=r"net cannot be quantised: .*\.$"):
        quantise(model, spoilt)
