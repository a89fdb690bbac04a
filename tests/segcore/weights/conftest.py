import pytest

from segcore.models import vgg
from segcore.models.resnet import ResNet

# Each its own, so that every stage begins with a projection
WIDTHS = (4, 8, 12, 16)
STAGES = ((4, 2), (4, 2), (8, 3), (8, 3), (8, 3))


@pytest.fixture
def narrow(monkeypatch):
    """Networks of the real depth and names with a few channels, so that files are small and references quick."""
    monkeypatch.setattr(ResNet, "WIDTHS", WIDTHS)
    monkeypatch.setattr(vgg, "STAGES", STAGES)
    monkeypatch.setattr("segcore.models.deeplab_v1.DeepLabV1Msc.WIDTHS", (3, *(width for width, _ in STAGES[:4])))
