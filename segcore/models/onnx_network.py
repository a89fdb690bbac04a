"""The networks of `models/lite.py` as ONNX models, made from their weights file: NumPy in, bytes out, no torch.

ONNX Runtime computes them in float32 with batch normalisation folded in; scores are torch's in float32 to 1e-3
(`python -m benchmarks.onnx`). The weights stay the one safetensors file: only the list of operators is made, within
milliseconds. Averages over cells and bilinear resizing are products with small matrices that are inputs of the model,
so that it takes photographs of any size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segcore.models.card import ModelCard
from segcore.models.lite_stages import EPS, LITE0, LITE2, STAGES, placed, scaled

_OPSET = 17
_IR_VERSION = 8

_DEFAULTS = {"bins": (1, 2, 3, 6), "atrous_rates": (3, 6, 9, 12), "output_stride": 16}
"""Of the variants' functions in `models/lite.py`; a test holds the two together."""

_PLAIN_EPS = 1e-5
"""Of the batch normalisations outside the backbone, `resnet.ConvBn`'s default."""


@dataclass(frozen=True)
class OnnxNetwork:
    """A network as ONNX Runtime takes it."""

    model: bytes
    """A ModelProto. Inputs: "images" (1, 3, H, W) float32, normalised, sides k x stride + 1, and the matrices of
    `matrices`. Output: (1, C, (H - 1) / 8 + 1, (W - 1) / 8 + 1) float32 logits."""

    stride: int
    """Pixels between the positions of the coarser grid, 8 or 16."""

    bins: tuple[int, ...]
    """Cells a side of the pyramid's levels; empty where the head has none."""

    def matrices(self, height: int, width: int) -> dict[str, np.ndarray]:
        """The other inputs for images of so many pixels, float32."""
        found: dict[str, np.ndarray] = {}
        for side, length in (("rows", height), ("columns", width)):
            coarse, fine = (length - 1) // self.stride + 1, (length - 1) // 8 + 1
            made = {f"fine_{side}": interpolation(coarse, fine)} if coarse != fine else {}
            for cells in self.bins:
                made[f"average{cells}_{side}"] = averages(coarse, cells)
                made[f"grow{cells}_{side}"] = interpolation(cells, coarse)
            found |= {name: np.ascontiguousarray(m if side == "rows" else m.T) for name, m in made.items()}
        return found


_SIZES = {"deeplab_v2_lite0": LITE0, "deeplab_v2_lite2": LITE2, "pspnet_lite0": LITE0, "pspnet_lite2": LITE2}


def takes(card: ModelCard) -> bool:
    """Whether `network` can make the model of this card."""
    return card.variant in _SIZES


def fits(card: ModelCard, tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether this is all that a file of the model holds, and nothing else; where not, torch can say what is wrong."""
    known = {"output_stride", "bins", "auxiliary"} if card.variant.startswith("pspnet") else {*_DEFAULTS} - {"bins"}
    if not takes(card) or not card.options.keys() <= known or card.options.get("auxiliary", "bins" in known):
        return False
    asked = _Asked(tensors)
    try:
        network(card, asked)
    except Exception:  # Options of a card are anybody's
        return False
    counted = {name.replace(".running_mean", ".num_batches_tracked") for name in asked.names if "running_mean" in name}
    return tensors.keys() == asked.names | counted


class _Asked(dict[str, np.ndarray]):
    """Tensors that know which of them were asked for."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        super().__init__(tensors)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.names.add(name)
        return super().__getitem__(name)


def network(card: ModelCard, tensors: Mapping[str, np.ndarray]) -> OnnxNetwork:
    """The network of a card that `takes` accepts. ValueError in one sentence: a tensor that is missing or does not fit.

    tensors: float32 by their names in the weights file; those of an auxiliary head are not needed.
    """
    stride = int(card.options.get("output_stride", _DEFAULTS["output_stride"]))
    graph = _Graph(tensors)
    stages = [graph.conv_bn("images", "trunk.stem", stride=2, eps=EPS, bound=6)]
    sizes = zip(STAGES, placed(stride), scaled(_SIZES[card.variant]), strict=True)  # type: ignore[arg-type]
    for number, (stage, at, (depth, width)) in enumerate(sizes, start=1):
        features = stages[-1]
        for index in range(depth):
            block = f"trunk.stage{number}.{index}"
            wide = features
            if stage.expansion > 1:
                wide = graph.conv_bn(features, f"{block}.expand", eps=EPS, bound=6)
            step, dilation = (at.stride, at.first_dilation) if index == 0 else (1, at.dilation)
            deep = graph.conv_bn(
                wide, f"{block}.depthwise", stride=step, dilation=dilation, depthwise=True, eps=EPS, bound=6
            )
            projected = graph.conv_bn(deep, f"{block}.project", eps=EPS)
            if graph.channels[projected] != width:
                raise ValueError(f"{block}.project has {graph.channels[projected]} channels instead of {width}")
            shortcut = step == 1 and graph.channels[features] == graph.channels[projected]
            features = graph.add(features, projected) if shortcut else projected
        stages.append(features)
    fine = graph.classifier(graph.conv_bn(stages[3], "skip.conv", bound=math.inf), "skip.classifier")
    bins: tuple[int, ...] = ()
    if card.variant.startswith("pspnet"):
        bins = tuple(card.options.get("bins", _DEFAULTS["bins"]))
        scores = graph.pyramid(stages[-1], bins)
        scores = graph.classifier(graph.conv_bn(scores, "head.1.conv", bound=math.inf), "head.1.classifier")
    else:
        rates = card.options.get("atrous_rates", _DEFAULTS["atrous_rates"])
        maps = [graph.classifier(stages[-1], f"head.branches.{n}", dilation=rate) for n, rate in enumerate(rates)]
        scores = maps[0]
        for other in maps[1:]:
            scores = graph.add(scores, other)
    if any(graph.channels[map_] != len(card.classes) for map_ in (fine, scores)):
        raise ValueError(f"it does not score {len(card.classes)} classes")
    if stride != 8:
        scores = graph.product("fine", scores)
    return OnnxNetwork(graph.model(graph.add(fine, scores)), stride, bins)


def averages(length: int, cells: int) -> np.ndarray:
    """(cells, length) float32: averages over the cells of adaptive pooling, which may overlap by one position."""
    matrix = np.zeros((cells, length), np.float32)
    for cell in range(cells):
        first, last = cell * length // cells, -(-(cell + 1) * length // cells)
        matrix[cell, first:last] = 1 / (last - first)
    return matrix


def interpolation(given: int, wanted: int) -> np.ndarray:
    """(wanted, given) float32: linear, end positions on end positions (`align_corners=True`)."""
    matrix = np.zeros((wanted, given), np.float32)
    at = np.arange(wanted) * ((given - 1) / max(1, wanted - 1))
    low = np.minimum(at.astype(int), max(given - 2, 0))
    matrix[np.arange(wanted), low] = 1 - (at - low)
    matrix[np.arange(wanted), np.minimum(low + 1, given - 1)] += at - low
    return matrix


class _Graph:
    """Operators and tensors of a graph, in protobuf's wire format by the field numbers of onnx/onnx.proto."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self._tensors = tensors
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []
        self._inputs = [_value("images", 4)]
        self.channels: dict[str, int] = {"images": 3}
        """Of every value by its name."""
        self._constant("0", np.array(0, np.float32))
        self._constant("6", np.array(6, np.float32))

    def conv_bn(
        self,
        given: str,
        name: str,
        *,
        stride: int = 1,
        dilation: int = 1,
        depthwise: bool = False,
        eps: float = _PLAIN_EPS,
        bound: float = 0,
    ) -> str:
        """Convolution, normalisation, and a ReLU up to `bound`; 0 is none, infinity has no bound."""
        weight = self._tensor(f"{name}.conv.weight", 4)
        scale, shift, mean, variance = (
            self._tensor(f"{name}.bn.{entry}", 1, len(weight))
            for entry in ("weight", "bias", "running_mean", "running_var")
        )
        scale = scale / np.sqrt(variance + np.float32(eps))
        output = self._convolution(
            given, name, weight * scale[:, None, None, None], shift - mean * scale, stride, dilation, depthwise
        )
        if bound == 0:
            return output
        return self._node("Relu", [output]) if math.isinf(bound) else self._node("Clip", [output, "0", f"{bound:g}"])

    def classifier(self, given: str, name: str, dilation: int = 1) -> str:
        weight = self._tensor(f"{name}.weight", 4)
        return self._convolution(given, name, weight, self._tensor(f"{name}.bias", 1, len(weight)), 1, dilation, False)

    def pyramid(self, features: str, bins: Sequence[int]) -> str:
        levels = [features]
        for number, cells in enumerate(bins):
            level = self.conv_bn(
                self.product(f"average{cells}", features), f"head.0.reductions.{number}", bound=math.inf
            )
            levels.append(self.product(f"grow{cells}", level))
        output = self._node("Concat", levels, axis=1)
        self.channels[output] = sum(self.channels[level] for level in levels)
        return output

    def product(self, matrices: str, given: str) -> str:
        """Rows and columns of each map by two matrices that are inputs of the model."""
        self._inputs += [_value(f"{matrices}_rows", 2), _value(f"{matrices}_columns", 2)]
        across = self._node("MatMul", [given, f"{matrices}_columns"], like=given)
        return self._node("MatMul", [f"{matrices}_rows", across], like=given)

    def add(self, first: str, second: str) -> str:
        return self._node("Add", [first, second])

    def model(self, output: str) -> bytes:
        graph = b"".join([*(_part(1, node) for node in self._nodes), _part(2, b"network")])
        graph += b"".join(_part(5, constant) for constant in self._constants)
        graph += b"".join(_part(11, value) for value in self._inputs) + _part(12, _value(output, 4))
        return _integer(1, _IR_VERSION) + _part(7, graph) + _part(8, _integer(2, _OPSET))

    def _convolution(
        self, given: str, name: str, weight: np.ndarray, bias: np.ndarray, stride: int, dilation: int, depthwise: bool
    ) -> str:
        side, width = weight.shape[2], self.channels[given]
        if weight.shape[2] != weight.shape[3] or weight.shape[1] != (1 if depthwise else width):
            raise ValueError(f"{name} has weights of shape {weight.shape} for {width} channels")
        self._constant(f"{name}.weight", weight)
        self._constant(f"{name}.bias", bias)
        output = self._node(
            "Conv",
            [given, f"{name}.weight", f"{name}.bias"],
            dilations=[dilation] * 2,
            group=width if depthwise else 1,
            kernel_shape=[side] * 2,
            pads=[(side - 1) // 2 * dilation] * 4,
            strides=[stride] * 2,
        )
        self.channels[output] = len(weight)
        return output

    def _tensor(self, name: str, axes: int, length: int | None = None) -> np.ndarray:
        if name not in self._tensors:
            raise ValueError(f"{name} is missing")
        value = self._tensors[name]
        if value.ndim != axes or (length is not None and len(value) != length):
            raise ValueError(f"{name} has shape {value.shape}")
        return value

    def _node(self, operator: str, inputs: Sequence[str], like: str = "", **attributes: int | Sequence[int]) -> str:
        output = f"{operator}{len(self._nodes)}"
        node = b"".join(_part(1, name.encode()) for name in inputs) + _part(2, output.encode())
        node += _part(4, operator.encode())
        for name, value in attributes.items():
            whole = isinstance(value, int)
            numbers = _integer(3, value) if isinstance(value, int) else b"".join(_integer(8, entry) for entry in value)
            node += _part(5, _part(1, name.encode()) + numbers + _integer(20, 2 if whole else 7))
        self._nodes.append(node)
        self.channels[output] = self.channels[like or inputs[0]]
        return output

    def _constant(self, name: str, value: np.ndarray) -> None:
        tensor = b"".join(_integer(1, length) for length in value.shape) + _integer(2, 1) + _part(8, name.encode())
        self._constants.append(tensor + _part(9, np.ascontiguousarray(value, "<f4").tobytes()))


def _value(name: str, axes: int) -> bytes:
    """A float32 tensor, each of its lengths by a name of its own: any."""
    lengths = b"".join(_part(1, _part(2, f"{name}.{axis}".encode())) for axis in range(axes))
    return _part(1, name.encode()) + _part(2, _part(1, _integer(1, 1) + _part(2, lengths)))


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _part(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
