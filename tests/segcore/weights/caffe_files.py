"""Writes `.caffemodel` files with the layer names and shapes of the published ones, in either form."""

from pathlib import Path

import numpy as np

from segcore.weights.caffe import NetParameter

Layers = dict[str, tuple[str, list[np.ndarray]]]
"""Name -> (type, blobs)."""

V1_TYPES = {"Convolution": 4, "InnerProduct": 14}


def write(path: Path, layers: Layers, *, old_form: bool = False) -> Path:
    net = NetParameter()
    # A layer without blobs, as every real file has many.
    (net.layers if old_form else net.layer).add(name=b"data")
    for name, (kind, blobs) in layers.items():
        layer = (net.layers if old_form else net.layer).add(name=name.encode())
        layer.type = V1_TYPES[kind] if old_form else kind.encode()
        for values in blobs:
            blob = layer.blobs.add()
            blob.data.append(np.asarray(values, "<f4").tobytes())
            if old_form:
                blob.num, blob.channels, blob.height, blob.width = (1,) * (4 - values.ndim) + values.shape
            else:
                blob.shape.dim.extend(values.shape)
    path.write_bytes(net.SerializeToString())
    return path


class Maker:
    """Random layers; positive variances, weights of unit gain."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.layers: Layers = {}

    def values(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        return (self.random.standard_normal(shape) * scale).astype(np.float32)

    def conv(self, name: str, out: int, inner: int, kernel: int, *, bias: bool = True) -> None:
        weight = self.values(out, inner, kernel, kernel, scale=(2.0 / (inner * kernel**2)) ** 0.5)
        self.layers[name] = ("Convolution", [weight] + ([self.values(out, scale=0.1)] if bias else []))

    def inner_product(self, name: str, out: int, inner: int) -> None:
        weight = self.values(out, inner, scale=inner**-0.5)
        self.layers[name] = ("InnerProduct", [weight, self.values(out, scale=0.1)])

    def batch_norm(self, name: str, width: int) -> None:
        factor = np.array([4.0], np.float32)
        mean, variance = self.values(width, scale=0.1), self.random.uniform(0.5, 2.0, width)
        self.layers[name] = ("BatchNorm", [mean * factor, np.float32(variance) * factor, factor])

    def scale(self, name: str, width: int) -> None:
        self.layers[name] = ("Scale", [np.float32(self.random.uniform(0.5, 1.0, width)), self.values(width, scale=0.1)])

    def bn(self, name: str, width: int) -> None:
        slope, variance = self.random.uniform(0.5, 1.0, width), self.random.uniform(0.5, 2.0, width)
        blobs = [slope, self.values(width, scale=0.1), self.values(width, scale=0.1), variance]
        self.layers[name] = ("BN", [np.float32(blob).reshape(1, width, 1, 1) for blob in blobs])


def vgg_trunk(maker: Maker, stages: tuple[tuple[int, int], ...]) -> None:
    inner = 3
    for stage, (width, depth) in enumerate(stages, 1):
        for index in range(1, depth + 1):
            maker.conv(f"conv{stage}_{index}", width, inner, 3)
            inner = width


def largefov(stages: tuple[tuple[int, int], ...], classes: int = 21) -> Layers:
    maker = Maker()
    vgg_trunk(maker, stages)
    maker.conv("fc6", 1024, stages[-1][0], 3)
    maker.conv("fc7", 1024, 1024, 1)
    maker.conv("fc8_voc12", classes, 1024, 1)
    return maker.layers


def vanilla(stages: tuple[tuple[int, int], ...]) -> Layers:
    maker = Maker()
    vgg_trunk(maker, stages)
    maker.conv("fc6", 4096, stages[-1][0], 4)
    maker.conv("fc7", 4096, 4096, 1)
    maker.conv("fc8_pascal", 21, 4096, 1)
    return maker.layers


def fcn8s(stages: tuple[tuple[int, int], ...]) -> Layers:
    maker = Maker()
    vgg_trunk(maker, stages)
    maker.conv("fc6", 4096, stages[-1][0], 7)
    maker.conv("fc7", 4096, 4096, 1)
    maker.conv("score_fr", 21, 4096, 1)
    maker.conv("score_pool4", 21, stages[3][0], 1)
    maker.conv("score_pool3", 21, stages[2][0], 1)
    for name in ("upscore2", "upscore_pool4"):
        maker.layers[name] = ("Deconvolution", [maker.values(21, 21, 4, 4, scale=0.1)])
    # Not trained, but written all the same.
    row = (1 - np.abs(np.arange(16) + 0.5 - 8) / 8).astype(np.float32)
    fixed = np.zeros((21, 21, 16, 16), np.float32)
    fixed[np.arange(21), np.arange(21)] = np.outer(row, row)
    maker.layers["upscore8"] = ("Deconvolution", [fixed])
    return maker.layers


def msc_largefov(stages: tuple[tuple[int, int], ...]) -> Layers:
    maker = Maker()
    maker.layers |= largefov(stages)
    for name, inner in (("data", 3), *((f"pool{index}", stages[index - 1][0]) for index in (1, 2, 3, 4))):
        maker.conv(f"{name}_conv", 128, inner, 3)
        maker.conv(f"{name}_fc", 128, 128, 1)
        maker.conv(f"{name}_ms", 21, 128, 1)
    return maker.layers


def imagenet_vgg(stages: tuple[tuple[int, int], ...]) -> Layers:
    maker = Maker()
    vgg_trunk(maker, stages)
    maker.inner_product("fc6", 4096, stages[-1][0] * 49)
    maker.inner_product("fc7", 4096, 4096)
    maker.inner_product("fc8", 1000, 4096)
    return maker.layers


def resnet101(widths: tuple[int, ...], classes: int = 21) -> Layers:
    maker = Maker()

    def unit(conv: str, norm: str, out: int, inner: int, kernel: int) -> None:
        maker.conv(conv, out, inner, kernel, bias=False)
        maker.batch_norm(f"bn{norm}", out)
        maker.scale(f"scale{norm}", out)

    unit("conv1", "_conv1", 64, 3, 7)
    inner = 64
    blocks = {
        2: ["a", "b", "c"],
        3: ["a", "b1", "b2", "b3"],
        4: ["a", *(f"b{index}" for index in range(1, 23))],
        5: ["a", "b", "c"],
    }
    for (stage, names), width in zip(blocks.items(), widths, strict=True):
        for name in names:
            at = f"{stage}{name}_branch"
            if name == "a":
                unit(f"res{at}1", f"{at}1", 4 * width, inner, 1)
            unit(f"res{at}2a", f"{at}2a", width, inner, 1)
            unit(f"res{at}2b", f"{at}2b", width, width, 3)
            unit(f"res{at}2c", f"{at}2c", 4 * width, width, 1)
            inner = 4 * width
    for index in range(4):
        maker.conv(f"fc1_voc12_c{index}", classes, inner, 3)
    return maker.layers


def pspnet50(widths: tuple[int, ...], classes: int = 21) -> Layers:
    maker = Maker()

    def unit(name: str, out: int, inner: int, kernel: int) -> None:
        maker.conv(name, out, inner, kernel, bias=False)
        maker.bn(f"{name}/bn", out)

    unit("conv1_1_3x3_s2", 64, 3, 3)
    unit("conv1_2_3x3", 64, 64, 3)
    unit("conv1_3_3x3", 128, 64, 3)
    inner = 128
    for stage, depth, width in zip((2, 3, 4, 5), (3, 4, 6, 3), widths, strict=True):
        for block in range(1, depth + 1):
            unit(f"conv{stage}_{block}_1x1_reduce", width, inner, 1)
            unit(f"conv{stage}_{block}_3x3", width, width, 3)
            unit(f"conv{stage}_{block}_1x1_increase", 4 * width, width, 1)
            if block == 1:
                unit(f"conv{stage}_1_1x1_proj", 4 * width, inner, 1)
            inner = 4 * width
    for size in (1, 2, 3, 6):
        unit(f"conv5_3_pool{size}_conv", inner // 4, inner, 1)
    unit("conv5_4", inner // 4, 2 * inner, 3)
    maker.conv("conv6", classes, inner // 4, 1)
    return maker.layers
