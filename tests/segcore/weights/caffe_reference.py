"""The released networks as Caffe computes them, in explicit NumPy over the blobs of a file; slow and plain.

Maps are (C, H, W) float64. Sources: BVLC/caffe pooling, convolution, batch_norm and scale layers, DeepLab's `Interp`.
"""

import numpy as np

from tests.segcore.weights.caffe_files import Layers

Map = np.ndarray


class Caffe:
    def __init__(self, layers: Layers) -> None:
        self.blobs = {name: [np.float64(blob) for blob in blobs] for name, (_, blobs) in layers.items()}

    def conv(self, x: Map, name: str, *, stride: int = 1, pad: int = 0, hole: int = 1) -> Map:
        weight, *bias = self.blobs[name]
        kernel = weight.shape[-1]
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
        height = (x.shape[1] - hole * (kernel - 1) - 1) // stride + 1
        width = (x.shape[2] - hole * (kernel - 1) - 1) // stride + 1
        out = np.zeros((weight.shape[0], height, width))
        for row in range(kernel):
            for column in range(kernel):
                top, left = row * hole, column * hole
                seen = x[:, top : top + stride * height : stride, left : left + stride * width : stride]
                out += np.einsum("oc,chw->ohw", weight[:, :, row, column], seen)
        return out + (bias[0][:, None, None] if bias else 0)

    def deconv(self, x: Map, name: str, stride: int) -> Map:
        (weight,) = self.blobs[name]
        kernel = weight.shape[-1]
        out = np.zeros((weight.shape[1], *((side - 1) * stride + kernel for side in x.shape[1:])))
        for row in range(kernel):
            for column in range(kernel):
                seen = np.einsum("io,ihw->ohw", weight[:, :, row, column], x)
                out[:, row : row + stride * x.shape[1] : stride, column : column + stride * x.shape[2] : stride] += seen
        return out

    def batch_norm_scale(self, x: Map, norm: str) -> Map:
        mean, variance, factor = self.blobs[f"bn{norm}"]
        slope, shift = self.blobs[f"scale{norm}"]
        x = (x - (mean / factor)[:, None, None]) / np.sqrt((variance / factor)[:, None, None] + 1e-5)
        return x * slope[:, None, None] + shift[:, None, None]

    def bn(self, x: Map, name: str) -> Map:
        slope, shift, mean, variance = (blob.reshape(-1, 1, 1) for blob in self.blobs[name])
        return (x - mean) / np.sqrt(variance + 1e-5) * slope + shift


def relu(x: Map) -> Map:
    return np.maximum(x, 0)


def pool(x: Map, kernel: int, stride: int, pad: int, how: str = "max") -> Map:
    """Sizes are rounded up; a last window that would begin beyond the padded image is dropped."""
    sizes = []
    for side in x.shape[1:]:
        out = -(-(side + 2 * pad - kernel) // stride) + 1
        if pad and (out - 1) * stride >= side + pad:
            out -= 1
        sizes.append(out)
    result = np.empty((x.shape[0], *sizes))
    for row in range(sizes[0]):
        for column in range(sizes[1]):
            top, left = row * stride - pad, column * stride - pad
            bottom, right = min(top + kernel, x.shape[1] + pad), min(left + kernel, x.shape[2] + pad)
            # The average divides by the window with its padding, not by what lies inside the image.
            area = (bottom - top) * (right - left)
            window = x[:, max(top, 0) : min(bottom, x.shape[1]), max(left, 0) : min(right, x.shape[2])]
            result[:, row, column] = window.max((1, 2)) if how == "max" else window.sum((1, 2)) / area
    return result


def interp(x: Map, height: int, width: int) -> Map:
    def weights(out: int, side: int) -> np.ndarray:
        ratio = (side - 1) / (out - 1) if out > 1 else 0.0
        return np.clip(1 - np.abs(np.arange(out)[:, None] * ratio - np.arange(side)), 0, None)

    return np.einsum("ph,chw,qw->cpq", weights(height, x.shape[1]), x, weights(width, x.shape[2]))


def vgg_stages(net: Caffe, x: Map, kernel: int = 3) -> list[Map]:
    pools = []
    for stage, depth in enumerate((2, 2, 3, 3, 3), 1):
        for index in range(1, depth + 1):
            hole = 2 if stage == 5 else 1
            x = relu(net.conv(x, f"conv{stage}_{index}", pad=hole, hole=hole))
        if stage == 4 and kernel == 2:
            x = pool(x, 2, 1, 0)
        else:
            x = pool(x, kernel if stage < 5 else 3, 2 if stage < 4 else 1, 1)
        pools.append(x)
    return pools


def vanilla(net: Caffe, x: Map) -> Map:
    x = relu(net.conv(vgg_stages(net, x, kernel=2)[-1], "fc6", pad=6, hole=4))
    return net.conv(relu(net.conv(x, "fc7")), "fc8_pascal")


def largefov(net: Caffe, x: Map) -> Map:
    x = pool(vgg_stages(net, x)[-1], 3, 1, 1, "average")
    x = relu(net.conv(x, "fc6", pad=12, hole=12))
    return net.conv(relu(net.conv(x, "fc7")), "fc8_voc12")


def fcn8s(net: Caffe, x: Map) -> Map:
    """The released map of every pixel, of which our network gives every eighth."""
    height, width = x.shape[1:]
    pools = []
    for stage, depth in enumerate((2, 2, 3, 3, 3), 1):
        for index in range(1, depth + 1):
            x = relu(net.conv(x, f"conv{stage}_{index}", pad=100 if (stage, index) == (1, 1) else 1))
        x = pool(x, 2, 2, 0)
        pools.append(x)
    x = net.conv(relu(net.conv(relu(net.conv(x, "fc6")), "fc7")), "score_fr")
    for up, skip, source, offset in (("upscore2", "score_pool4", 3, 5), ("upscore_pool4", "score_pool3", 2, 9)):
        x = net.deconv(x, up, 2)
        cropped = net.conv(pools[source], skip)[:, offset : offset + x.shape[1], offset : offset + x.shape[2]]
        x = x + cropped
    x = net.deconv(x, "upscore8", 8)[:, 31 : 31 + height, 31 : 31 + width]
    return x[:, ::8, ::8]


def msc_largefov(net: Caffe, x: Map) -> Map:
    scores = largefov(net, x)
    inputs = [x, *vgg_stages(net, x)[:4]]
    for name, features, stride in zip(
        ("data", "pool1", "pool2", "pool3", "pool4"), inputs, (8, 4, 2, 1, 1), strict=True
    ):
        y = relu(net.conv(features, f"{name}_conv", stride=stride, pad=1))
        scores = scores + net.conv(relu(net.conv(y, f"{name}_fc")), f"{name}_ms")
    return scores


def resnet101(net: Caffe, x: Map) -> Map:
    x = pool(relu(net.batch_norm_scale(net.conv(x, "conv1", stride=2, pad=3), "_conv1")), 3, 2, 1)
    deep = {3: 4, 4: 23}
    for stage, hole in ((2, 1), (3, 1), (4, 2), (5, 4)):
        names = ["a", *(f"b{i}" for i in range(1, deep[stage]))] if stage in deep else ["a", "b", "c"]
        for name in names:
            at, stride = f"{stage}{name}_branch", 2 if (stage, name) == (3, "a") else 1
            y = relu(net.batch_norm_scale(net.conv(x, f"res{at}2a", stride=stride), f"{at}2a"))
            y = relu(net.batch_norm_scale(net.conv(y, f"res{at}2b", pad=hole, hole=hole), f"{at}2b"))
            y = net.batch_norm_scale(net.conv(y, f"res{at}2c"), f"{at}2c")
            if name == "a":
                x = net.batch_norm_scale(net.conv(x, f"res{at}1", stride=stride), f"{at}1")
            x = relu(x + y)
    return sum(net.conv(x, f"fc1_voc12_c{i}", pad=rate, hole=rate) for i, rate in enumerate((6, 12, 18, 24)))


def pspnet50(net: Caffe, x: Map) -> Map:
    def unit(x: Map, name: str, **how: int) -> Map:
        return net.bn(net.conv(x, name, **how), f"{name}/bn")

    x = relu(unit(x, "conv1_1_3x3_s2", stride=2, pad=1))
    x = relu(unit(x, "conv1_2_3x3", pad=1))
    x = pool(relu(unit(x, "conv1_3_3x3", pad=1)), 3, 2, 1)
    for stage, depth, hole in ((2, 3, 1), (3, 4, 1), (4, 6, 2), (5, 3, 4)):
        for block in range(1, depth + 1):
            at, stride = f"conv{stage}_{block}", 2 if (stage, block) == (3, 1) else 1
            y = relu(unit(x, f"{at}_1x1_reduce"))
            y = relu(unit(y, f"{at}_3x3", stride=stride, pad=hole, hole=hole))
            y = unit(y, f"{at}_1x1_increase")
            x = relu((unit(x, f"{at}_1x1_proj", stride=stride) if block == 1 else x) + y)
    side = x.shape[1]
    assert side == x.shape[2] and side % 6 == 0, "Caffe's fixed kernels need a map that 6 divides"
    levels = [x]
    for size in (6, 3, 2, 1):
        level = relu(unit(pool(x, side // size, side // size, 0, "average"), f"conv5_3_pool{size}_conv"))
        levels.append(interp(level, side, side))
    x = relu(unit(np.concatenate(levels), "conv5_4", pad=1))
    return net.conv(x, "conv6")
