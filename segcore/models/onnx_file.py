"""ONNX models of others: what is refused before ONNX Runtime sees the file, and what the graph says of itself.

No package `onnx`: the file is walked in protobuf's wire format by the field numbers of onnx/onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnxruntime

MAX_FILE_BYTES = 2 << 30
"""Protobuf's own bound for one message."""

_MAX_DEPTH = 32

# Fields that may lead to a tensor, by message: (field, message inside)
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_LENGTHS, _EXTERNAL_DATA, _DATA_LOCATION = 1, 13, 14  # Of a tensor


@dataclass(frozen=True)
class Ends:
    """Input and output of a graph that maps pictures to scores."""

    input: str
    """Name of the input."""

    channels_last: bool
    """Whether the input is (1, H, W, 3) rather than (1, 3, H, W)."""

    size: tuple[int | None, int | None]
    """Height and width that it takes; None is any."""

    output: str
    """Name of the output."""

    classes: int | None
    """Channels of the output; None where the graph leaves them open."""

    output_channels_last: bool
    """Whether the output is (1, h, w, C) rather than (1, C, h, w)."""


def check(content: bytes | memoryview, where: str) -> int:
    """Parameters of a model whose tensors all lie in the file. ValueError in one sentence for anything else.

    content: the file. where: its path, for messages.
    """
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{where} is larger than 2 GiB, more than one ONNX file may be.")
    try:
        graphs = sum(1 for field, _ in _fields(memoryview(content)) if field == 7)
        parameters = _walk(memoryview(content), "model", where, 0) if graphs == 1 else 0
    except (IndexError, _BrokenError):
        graphs = parameters = 0
    if not graphs:
        raise ValueError(f"{where} is no ONNX model, or is cut short: bring it anew.")
    if graphs > 1:
        raise ValueError(f"{where} is no ONNX model: it holds {graphs} graphs.")
    return parameters


def open_session(content: bytes, where: str, num_threads: int | None = None) -> onnxruntime.InferenceSession:
    """A session on the CPU. ValueError in one sentence for a graph that ONNX Runtime cannot run.

    num_threads: None takes every core.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # What is wrong is raised too
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # Its exceptions share no base
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ValueError(f"{where} cannot be run by ONNX Runtime: {reason}.") from None


def ends(session: onnxruntime.InferenceSession, where: str, output: str = "", classes: int | None = None) -> Ends:
    """Input and output of a graph. ValueError in one sentence where it does not map one picture to scores.

    output: name of the output to take; empty takes the only one of four axes. classes: how many it must have.
    """
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
        told = ", ".join(f"{entry.name}: {entry.type} {_axes(entry.shape)}" for entry in inputs[:4])
        raise ValueError(f"{where} takes {told or 'nothing'}, not one float32 picture (1, 3, H, W): export it so.")
    shape = [length if isinstance(length, int) and length > 0 else None for length in inputs[0].shape]
    channels_last = shape[1] != 3 and shape[3] == 3
    channels, *size = (shape[3], shape[1], shape[2]) if channels_last else (shape[1], shape[2], shape[3])
    if channels not in (3, None) or shape[0] not in (1, None):
        raise ValueError(f"{where} takes {_axes(inputs[0].shape)}, not one picture of three channels: export it so.")
    found = [entry for entry in session.get_outputs() if not output or entry.name == output]
    maps = [entry for entry in found if entry.type in ("tensor(float)", "tensor(float16)") and len(entry.shape) == 4]
    if not maps or (len(maps) > 1 and not output):
        names = ", ".join(f"{entry.name}: {entry.type} {_axes(entry.shape)}" for entry in session.get_outputs()[:6])
        if maps:
            raise ValueError(f"{where} gives several maps ({names}): name the one of the scores with --scores-output.")
        raise ValueError(f"{where} gives {names}, not scores (1, C, h, w): export it before its argmax.")
    shape = [length if isinstance(length, int) and length > 0 else None for length in maps[0].shape]
    last = shape[1] is None and shape[3] is not None
    if classes is not None and classes in (shape[1], shape[3]):
        last = shape[1] != classes
    number = shape[3] if last else shape[1]
    if classes is not None and number not in (None, classes):
        raise ValueError(f"{where} gives scores of {number} classes, its card names {classes}: correct the card.")
    return Ends(inputs[0].name, channels_last, (size[0], size[1]), maps[0].name, number, last)


class _BrokenError(Exception):
    """No protobuf."""


def _walk(content: memoryview, message: str, where: str, depth: int) -> int:
    """Numbers in the tensors of a message. ValueError for one that lies in another file."""
    if depth > _MAX_DEPTH:
        raise _BrokenError
    if message == "tensor":
        count = 1
        for field, value in _fields(content):
            if field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value != 0):
                raise ValueError(
                    f"{where} keeps weights in other files, which are not read: save it as one file, "
                    "onnx.save(model, FILE, save_as_external_data=False)."
                )
            if field == _LENGTHS:
                for length in [value] if isinstance(value, int) else _packed(value):
                    count *= length
        return count
    inside = _INSIDE[message]
    found = 0
    for field, value in _fields(content):
        if field in inside and isinstance(value, memoryview):
            numbers = _walk(value, inside[field], where, depth + 1)
            # Constants of nodes are shapes and bounds, hardly weights
            found += numbers if message in ("graph", "model", "function") and inside[field] != "node" else 0
    return found


def _fields(content: memoryview) -> Iterator[tuple[int, Any]]:
    """Field number and value of each entry: a number, or the bytes of a part."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(content, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _varint(content, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise _BrokenError
        if at + length > len(content):
            raise _BrokenError
        yield key >> 3, content[at : at + length]
        at += length


def _packed(content: memoryview) -> Iterator[int]:
    at = 0
    while at < len(content):
        value, at = _varint(content, at)
        yield value


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise _BrokenError


def _axes(shape: list[Any]) -> str:
    return "(" + ", ".join(str(length)[:20] for length in shape) + ")"
