"""Reads `.caffemodel` files without Caffe: the blobs of each layer, nothing of its settings.

A minimal message definition, the field numbers from BVLC/caffe `caffe.proto`, is built at import with the protobuf
library; both forms are read, the old `layers` (V1) and the new `layer`. What blobs mean in our names is in
`sources.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

MAX_FILE_BYTES = (1 << 31) - 1
"""The protobuf library reads no larger message; VGG-16 with its fully connected layers has 553 MB."""

_MAX_AXES = 8
_MAX_NAME_BYTES = 200

# V1LayerParameter.LayerType, of those that have blobs
_V1_TYPES = {4: "Convolution", 14: "InnerProduct", 39: "Deconvolution"}


def _net_parameter() -> Any:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="segment_archive/caffe_minimal.proto", package="caffe_minimal")
    messages: dict[str, list[tuple[str, int, int, bool, str]]] = {
        "BlobShape": [("dim", 1, field.TYPE_INT64, True, "")],
        "BlobProto": [
            ("num", 1, field.TYPE_INT32, False, ""),
            ("channels", 2, field.TYPE_INT32, False, ""),
            ("height", 3, field.TYPE_INT32, False, ""),
            ("width", 4, field.TYPE_INT32, False, ""),
            # Packed floats and doubles, declared as the bytes that they are on the wire: NumPy reads them at once,
            # where the library would make a Python object of each of 134 million numbers.
            ("data", 5, field.TYPE_BYTES, True, ""),
            ("shape", 7, field.TYPE_MESSAGE, False, "BlobShape"),
            ("double_data", 8, field.TYPE_BYTES, True, ""),
        ],
        # Names as bytes too: one that is not UTF-8 must not make the file unreadable.
        "LayerParameter": [
            ("name", 1, field.TYPE_BYTES, False, ""),
            ("type", 2, field.TYPE_BYTES, False, ""),
            ("blobs", 7, field.TYPE_MESSAGE, True, "BlobProto"),
        ],
        "V1LayerParameter": [
            ("name", 4, field.TYPE_BYTES, False, ""),
            ("type", 5, field.TYPE_INT32, False, ""),
            ("blobs", 6, field.TYPE_MESSAGE, True, "BlobProto"),
        ],
        "NetParameter": [
            ("layers", 2, field.TYPE_MESSAGE, True, "V1LayerParameter"),
            ("layer", 100, field.TYPE_MESSAGE, True, "LayerParameter"),
        ],
    }
    for name, entries in messages.items():
        message = file.message_type.add(name=name)
        for entry, number, kind, repeated, type_name in entries:
            added = message.field.add(
                name=entry,
                number=number,
                type=kind,
                label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL,
            )
            if type_name:
                added.type_name = f".caffe_minimal.{type_name}"
            if name == "BlobShape":
                added.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe_minimal.NetParameter"))


NetParameter: Any = _net_parameter()
"""Message class; tests write synthetic files with it."""


def read_caffemodel(path: str | Path) -> dict[str, np.ndarray]:
    """Every tensor of a file, float32, under `<layer>.<part>`.

    Parts: `weight` and `bias` of convolutions, inner products, deconvolutions and Scale layers; `running_mean` and
    `running_var` of BatchNorm (divided by its third blob); all four of the PSPNet fork's BN (slope, bias, mean,
    variance). ValueError: no such file, too large, cut short or no protobuf, a blob whose numbers do not fill its
    shape, a layer twice, values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path} is larger than {MAX_FILE_BYTES} bytes; no published caffemodel is.")
    net = NetParameter()
    try:
        net.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{path} is no caffemodel, or is cut short: {error}.") from error
    layers = [(layer, layer.type.decode(errors="replace")) for layer in net.layer]
    layers += [(layer, _V1_TYPES.get(layer.type, "")) for layer in net.layers]
    tensors: dict[str, np.ndarray] = {}
    for layer, kind in layers:
        if not layer.blobs:
            continue
        name = "".join(c if c.isprintable() else "?" for c in layer.name[:_MAX_NAME_BYTES].decode(errors="replace"))
        blobs = [_array(blob, f"{path}: blob {index} of {name}") for index, blob in enumerate(layer.blobs)]
        for part, value in _parts(kind, blobs, f"{path}: layer {name}").items():
            if f"{name}.{part}" in tensors:
                raise ValueError(f"{path}: layer {name} occurs twice.")
            tensors[f"{name}.{part}"] = value
    if not tensors:
        raise ValueError(f"{path} holds no weights: it is empty, no caffemodel, or a network without blobs.")
    return tensors


def _array(blob: Any, where: str) -> np.ndarray:
    data, double_data = b"".join(blob.data), b"".join(blob.double_data)
    kind, raw = ("<f8", double_data) if double_data else ("<f4", data)
    if len(raw) % np.dtype(kind).itemsize:
        raise ValueError(f"{where} has {len(raw)} bytes, which is no whole count of numbers.")
    values = np.frombuffer(raw, dtype=kind)
    old_form = (blob.num, blob.channels, blob.height, blob.width)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else old_form
    count = 1
    for side in shape:
        # Multiplied as Python integers: a hostile shape must not overflow into the right count.
        count *= side
    if len(shape) > _MAX_AXES or any(side < 0 for side in shape) or count != len(values):
        raise ValueError(f"{where} has {len(values)} numbers, which do not fill its shape {shape[:_MAX_AXES]}.")
    if any(side >= 1 << 31 for side in shape):
        raise ValueError(f"{where} has a side of {max(shape)} in its shape.")
    with np.errstate(over="ignore"):  # Doubles beyond single precision become infinite, and are refused
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{where} has values that are not finite.")
    return values.reshape(shape)


def _parts(kind: str, blobs: list[np.ndarray], where: str) -> dict[str, np.ndarray]:
    if kind == "BatchNorm" and len(blobs) == 3:
        factor = float(blobs[2].ravel()[0]) if blobs[2].size else 0.0
        scale = 1.0 / factor if factor else 0.0
        return {"running_mean": blobs[0].ravel() * scale, "running_var": blobs[1].ravel() * scale}
    if kind == "BN" and len(blobs) == 4:
        names = ("weight", "bias", "running_mean", "running_var")
        return {name: blob.ravel() for name, blob in zip(names, blobs, strict=True)}
    if kind in ("Convolution", "InnerProduct", "Deconvolution", "Scale", "") and len(blobs) in (1, 2):
        weight = blobs[0]
        if kind == "Scale":
            weight = weight.ravel()
        elif kind == "InnerProduct" or (weight.ndim == 4 and weight.shape[:2] == (1, 1) and kind != "Convolution"):
            # V1 writes an inner product as 1 x 1 x O x I.
            if weight.ndim > 2 and weight.size != weight.shape[-2] * weight.shape[-1]:
                raise ValueError(f"{where} is an inner product of shape {weight.shape}, which is no matrix.")
            weight = weight.reshape(weight.shape[-2:])
        return {"weight": weight} | ({"bias": blobs[1].ravel()} if len(blobs) == 2 else {})
    raise ValueError(f"{where} is a {kind[:50]!r} layer with {len(blobs)} blobs, which we do not know how to read.")
