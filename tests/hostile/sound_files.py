"""Sound files of models, datasets and results, small, by kind; what hostile ones are made of."""

import functools
import io
import json
import struct
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from segcore import models
from segcore.annotations import label_studio
from segcore.models import deeplab_v1, vgg
from segcore.models.card import ModelCard
from segcore.models.preprocessing import DEEPLAB
from segcore.weights.sources import CAFFE_DEEPLAB_VGG
from tasks.archive.schema import MASKS
from tasks.datasets import shards
from tests.sbd_files import annotation
from tests.segcore.weights.caffe_files import write as write_caffe

VARIANT = "deeplab_v1_largefov"
CLASSES = ("background", "cat", "dog")

_FOLDER = tempfile.TemporaryDirectory()
FOLDER = Path(_FOLDER.name)
"""Of this process; removed at its end."""


@functools.cache
def narrow() -> None:
    """Networks of the real depth and names with a few channels: this process reads nothing else."""
    vgg.STAGES = ((2, 2), (2, 2), (2, 3), (2, 3), (2, 3))
    head = deeplab_v1.FcHead
    deeplab_v1.FcHead = lambda kernel, rate, _, classes: head(kernel, rate, 4, classes)


@functools.cache
def module() -> torch.nn.Module:
    narrow()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return models.build(VARIANT, len(CLASSES)).eval()


@functools.cache
def published() -> dict[str, torch.Tensor]:
    """Its tensors under the names of Caffe's files."""
    return {CAFFE_DEEPLAB_VGG.locate(name)[0].replace("*", "voc12"): t for name, t in module().state_dict().items()}


def torch_file(value: Any, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def caffemodel(**changes: np.ndarray) -> bytes:
    layers: dict[str, tuple[str, list[np.ndarray]]] = {}
    for name, tensor in published().items():
        layer, _, leaf = name.rpartition(".")
        layers.setdefault(layer, ("Convolution", []))[1].insert(0 if leaf == "weight" else 1, tensor.numpy())
    for layer, values in changes.items():
        layers[layer][1][0] = values
    return write_caffe(FOLDER / "made.caffemodel", layers).read_bytes()


def card(**changes: Any) -> bytes:
    card = ModelCard(VARIANT, CLASSES, DEEPLAB, options={"average_pool5": True}, metrics={"val/miou": 12.5})
    return json.dumps(
        {key: value for key, value in (json.loads(card.to_json()) | changes).items() if value != "-"}
    ).encode()


def safetensors(
    header: dict[str, Any] | bytes | None = None, body: bytes | None = None, length: int | None = None
) -> bytes:
    from safetensors.torch import save

    if header is None:
        return save({name: value.contiguous() for name, value in module().state_dict().items()})
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + (body or b"")


def labels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 21, (12, 17), dtype=np.uint8)


def tar(members: list[tuple[tarfile.TarInfo | str, bytes]], mode: str = "w", **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg() and not info.issparse():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


MEMBERS: list[tuple[tarfile.TarInfo | str, bytes]] = [
    ("JPEGImages/a.jpg", b"a" * 700),
    ("JPEGImages/" + "long" * 40 + ".jpg", b"bb"),
    ("JPEGImages/ünï.png", b"c" * 100),
    ("notes.json", b"{}"),
]


def zip(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def photographs(**columns: Any) -> pa.Table:
    return pa.table({"id": ["a", "b", "c", "d"], "image": [b"1" * 300, b"2", None, b""]} | columns)


@functools.cache
def mask_rows() -> bytes:
    from segcore.images.masks import encode_mask
    from tasks.archive.schema import empty_row

    rows = [
        empty_row()
        | {"image_id": f"{k}.jpg", "run_id": "r", "uri": f"/{k}.jpg", "model": "m", "mask": encode_mask(labels(k))}
        for k in range(6)
    ]
    return parquet(pa.Table.from_pylist(rows, MASKS), compression="zstd", row_group_size=3)


@functools.cache
def shard_rows() -> bytes:
    rows = [shards.ShardRow(f"i{k}", "train", b"x" * 50, b"y" * 20, 5, 4, "VOC2012", "d" * 64) for k in range(6)]
    return shards.encode_part(rows, 200)[0]


@functools.cache
def manifest(**changes: Any) -> bytes:
    data = shard_rows()
    file = shards.ShardFile(path="shards/a.parquet", bytes=len(data), digest="0", row_groups=[3, 3])
    split = shards.Split(images=6, files=[file], class_pixels=[1], class_images=[1], void_pixels=0, digest="0")
    whole = shards.DatasetManifest(name="n", classes=["a"], splits={"train": split}, digest="0", provenance={})
    return json.dumps(json.loads(whole.model_dump_json()) | changes).encode()


_CAT, _DOG = [3, 2, 13, 2, 13, 10, 3, 10], [20, 15, 32, 15, 32, 25, 20, 25]
_SIZE = (40, 30)


def coco(segmentations: list[Any] | None = None, **changes: Any) -> bytes:
    """COCO's file of one image of 40 x 30 px. segmentations: of its annotations."""
    runs = {"size": [30, 40], "counts": [60, 30, 1110]}
    drawn = [[_CAT], [_DOG, _CAT], runs] if segmentations is None else segmentations
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}],
        "annotations": [
            {"image_id": 1, "category_id": k % 2, "segmentation": s, "area": 9} for k, s in enumerate(drawn)
        ],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
    }
    return json.dumps(document | changes).encode()


def labelme_file(**changes: Any) -> bytes:
    shapes = [
        {"label": "cat", "points": [[3, 2], [13, 2], [13, 10]], "shape_type": "polygon"},
        {"label": "dog", "points": [[20, 15], [32, 25]], "shape_type": "rectangle"},
        {"label": "dog", "points": [[20, 15], [22, 15]], "shape_type": "circle"},
    ]
    document = {"shapes": shapes, "imagePath": "a.jpg", "imageData": None, "imageHeight": 30, "imageWidth": 40}
    return json.dumps(document | changes).encode()


def label_studio_file(*values: dict[str, Any], width: Any = 40) -> bytes:
    """An export of Label Studio of one task. values: of its results."""
    brush = list(label_studio.encode_brush(np.eye(30, 40, dtype=bool)))
    drawn = values or (
        {"format": "rle", "rle": brush, "brushlabels": ["cat"]},
        {"points": [[5, 5], [50, 5], [50, 60]], "polygonlabels": ["dog"]},
        {"x": 10, "y": 10, "width": 30, "height": 20, "rotation": 30, "rectanglelabels": ["cat"]},
    )
    results = [{"id": str(k), "original_width": width, "original_height": 30, "value": v} for k, v in enumerate(drawn)]
    return json.dumps([{"id": 1, "data": {"image": "/a.jpg"}, "annotations": [{"id": 1, "result": results}]}]).encode()


def cvat_file(*shapes: str, width: object = 40) -> bytes:
    """CVAT's file for one image. shapes: what is in it."""
    drawn = shapes or (
        '<polygon label="cat" z_order="1" points="3,2;13,2;13,10"/>',
        '<box label="dog" xtl="20" ytl="15" xbr="32" ybr="25"/>',
        '<mask label="dog" rle="5,10,5" left="4" top="3" width="5" height="4"/>',
    )
    image = f'<image id="0" name="a.jpg" width="{width}" height="30">{"".join(drawn)}</image>'
    return f'<?xml version="1.0"?><annotations><version>1.1</version>{image}</annotations>'.encode()


def outlines() -> bytes:
    """YOLO's text of one image."""
    shares = [" ".join(f"{v / _SIZE[n % 2]:.4f}" for n, v in enumerate(flat)) for flat in (_CAT, _DOG)]
    return "".join(f"{k} {share}\n" for k, share in enumerate(shares)).encode()


@functools.cache
def originals() -> dict[str, list[bytes]]:
    """Sound files by kind."""
    marks = labels(0)
    return {
        ".pth": [
            torch_file(published()),
            torch_file(published(), legacy=True),
            torch_file({"state_dict": published()}),
        ],
        ".caffemodel": [caffemodel()],
        "safetensors": [safetensors()],
        "model card": [card()],
        ".mat": [
            annotation(marks),
            annotation(marks, compressed=False),
            annotation(marks.astype(float), edges=False),
        ],
        "tar shard": [
            tar(MEMBERS),
            tar(MEMBERS, format=tarfile.GNU_FORMAT),
            tar(MEMBERS[:1], format=tarfile.USTAR_FORMAT),
        ],
        "dataset archive": [
            tar(MEMBERS),
            tar(MEMBERS, "w:gz"),
            tar(MEMBERS, "w:xz"),
            zip({str(name): data for name, data in MEMBERS}),
        ],
        "Parquet source": [
            parquet(photographs()),
            parquet(photographs(), compression="zstd", use_dictionary=False),
            parquet(pa.table({"id": [1, 2], "image": [{"bytes": b"x", "path": "p"}] * 2}), compression="gzip"),
        ],
        "dataset shard": [shard_rows()],
        "dataset manifest": [manifest()],
        "mask file": [mask_rows()],
        "annotations, JSON": [coco(), labelme_file(), label_studio_file()],
        "annotations, XML": [cvat_file()],
        "YOLO outlines": [outlines()],
    }  # fmt: skip
