"""Atrous convolution is what the papers say it is (v1 section 3.1, v2 section 3.1)."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from segcore.models.layers import Conv


def atrous_by_loops(image: np.ndarray, kernel: np.ndarray, rate: int) -> np.ndarray:
    """y[i] = sum over k of x[i + rate k] w[k]; image (C, H, W), kernel (O, C, k, k), no padding."""
    _, height, width = image.shape
    out_channels, _, size, _ = kernel.shape
    extent = size + (size - 1) * (rate - 1)
    result = np.zeros((out_channels, height - extent + 1, width - extent + 1))
    for out in range(out_channels):
        for row in range(result.shape[1]):
            for column in range(result.shape[2]):
                window = image[:, row : row + extent : rate, column : column + extent : rate]
                result[out, row, column] = (window * kernel[out]).sum()
    return result


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 8), st.integers(0, 2**32 - 1))
def test_atrous_convolution_is_the_explicit_loop(size, rate, more, seed):
    random = np.random.default_rng(seed)
    extent = size + (size - 1) * (rate - 1)
    image = random.standard_normal((2, extent + more, extent + 2))
    conv = Conv(2, 3, size, dilation=rate, bias=False).double()
    expected = atrous_by_loops(image, conv.weight.detach().numpy(), rate)
    np.testing.assert_allclose(conv(torch.from_numpy(image)[None])[0].detach().numpy(), expected, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_atrous_is_the_strided_network_evaluated_at_every_position(row, column, seed):
    """Two poolings lose their stride, the layers behind get rates 2 and 4: every position that the strided network
    would give for a shifted image stands in the dense map."""
    generator = torch.Generator().manual_seed(seed)
    image, first, second, third = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((1, 2, 60, 60), (3, 2, 3, 3), (4, 3, 3, 3), (2, 4, 3, 3))
    )

    def strided(x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(F.conv2d(x, first)), 3, 2)
        x = F.max_pool2d(F.relu(F.conv2d(x, second)), 3, 2)
        return F.conv2d(x, third)

    def atrous(x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(F.conv2d(x, first)), 3, 1)
        x = F.max_pool2d(F.relu(F.conv2d(x, second, dilation=2)), 3, 1, dilation=2)
        return F.conv2d(x, third, dilation=4)

    sparse = strided(image[:, :, row:, column:])
    dense = atrous(image)[:, :, row::4, column::4]
    height, width = sparse.shape[2:]
    torch.testing.assert_close(dense[:, :, :height, :width], sparse)
