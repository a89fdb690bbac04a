import torch
from torch.nn import functional as F

from segcore import models
from segcore.models.fcn import _sample


def deconvolved(scores: torch.Tensor, stride: int, crop: int, size: tuple[int, int]) -> torch.Tensor:
    """The released last layer: bilinear deconvolution of kernel 2 x stride, cropped to the image."""
    row = 1 - (torch.arange(2 * stride) + 0.5 - stride).abs() / stride
    kernel = torch.outer(row, row).expand(scores.shape[1], 1, -1, -1)
    full = F.conv_transpose2d(scores, kernel, stride=stride, groups=scores.shape[1])
    return full[:, :, crop : crop + size[0], crop : crop + size[1]]


def test_the_grid_is_the_released_upsampling_at_every_eighth_pixel():
    torch.manual_seed(0)
    for stride, crop, positions in ((32, 19, (5, 6)), (8, 31, (20, 22))):
        scores = torch.randn(1, 3, *positions)
        expected = deconvolved(scores, stride, crop, (97, 121))[:, :, ::8, ::8]
        actual = _sample(scores, torch.Size((1, 3, 97, 121)), first_px=stride - 0.5 - crop, stride_px=stride)
        torch.testing.assert_close(actual, expected)


def test_fcn8s_maps_cover_the_image_at_every_size():
    with torch.device("meta"):
        module = models.build("fcn8s").eval()
        for size in range(33, 130, 7):
            assert module(torch.empty(1, 3, size, size)).shape[-1] == (size - 1) // 8 + 1
