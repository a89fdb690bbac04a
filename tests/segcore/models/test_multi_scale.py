import torch

from segcore.models.multi_scale import multi_scale_logits
from segcore.scoring.inference import DEEPLAB_V2_MSC
from segcore.scoring.tta import score_views


class Local(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 9, stride=8, padding=4)

    def forward(self, images):
        return self.conv(images)


def test_sizes_are_those_of_the_released_training():
    result = multi_scale_logits(Local(), torch.randn(1, 3, 321, 321))
    assert result.logits.shape == result.fused.shape == (1, 4, 41, 41)
    assert [part.shape[-1] for part in result.per_scale] == [31, 21]


def test_training_and_inference_fuse_alike():
    torch.manual_seed(0)
    network, images = Local(), torch.randn(2, 3, 65, 129)
    with torch.no_grad():
        trained = multi_scale_logits(network, images).fused
        inferred = score_views(network, images, DEEPLAB_V2_MSC, 1)
    torch.testing.assert_close(trained, inferred)


def test_gradients_flow_through_every_scale():
    images = torch.randn(1, 3, 65, 65, requires_grad=True)
    result = multi_scale_logits(Local(), images)
    for part in (result.logits, *result.per_scale, result.fused):
        (gradient,) = torch.autograd.grad(part.sum(), images, retain_graph=True)
        assert gradient.abs().sum() > 0
