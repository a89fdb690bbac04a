import numpy as np
import pytest
import torch

from segcore.images.errors import ErrorKind, ImageError
from segcore.models import checkpoint
from segcore.scoring.inference import InferenceParams, Scorer
from segcore.scoring.memory import DeviceShortError, is_out_of_memory


class Small(torch.nn.Module):
    """A network on a device with memory for so many pixels at once."""

    def __init__(self, module, pixels):
        super().__init__()
        self.module, self.pixels, self.seen = module, pixels, []

    def forward(self, images):
        count = images.shape[0] * images.shape[2] * images.shape[3]
        self.seen.append(images.shape[0])
        if count > self.pixels:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.module(images)


@pytest.fixture(scope="module")
def model():
    return checkpoint.load("deeplab_v2_resnet18", untrained=True)


@pytest.fixture
def images():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (65, 97, 3), dtype=np.uint8) for _ in range(11)]


def scorer_of(model, pixels, **options):
    params = InferenceParams(precision="fp32", **options)
    scorer = Scorer(model, params, device="cpu", num_threads=1, batch_size=8)
    scorer.runner.module = Small(scorer.runner.module, pixels)
    return scorer


def test_a_batch_that_does_not_fit_is_halved_and_gives_the_same(model, images):
    expected = Scorer(model, InferenceParams(precision="fp32"), device="cpu", num_threads=1)(images)
    halved = scorer_of(model, 2 * 65 * 97)(images)
    for ours, theirs in zip(halved, expected, strict=True):
        np.testing.assert_allclose(np.float32(ours.scores), np.float32(theirs.scores), atol=0.02)
    # Windows are batches too
    halved, whole = (scorer_of(model, pixels, crop_px=49)(images) for pixels in (2 * 65 * 97, 1e9))
    for ours, theirs in zip(halved, whole, strict=True):
        np.testing.assert_allclose(np.float32(ours.scores), np.float32(theirs.scores), atol=0.02)
    # Uploads and what lies between scales are beside the network: they are halved too, and stay so
    scorer = scorer_of(model, 1e9)
    normalise, batches = scorer.runner.normalise, []

    def short_of_memory(upload, sizes):
        if len(sizes) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        batches.append(len(sizes))
        return normalise(upload, sizes)

    scorer.runner.normalise = short_of_memory
    assert len(scorer(images)) == 11 and scorer.batch_size == 2 and max(batches) == 2
    batches.clear()
    assert len(scorer(images)) == 11 and batches == [2, 2, 2, 2, 2, 1]


def test_an_image_that_does_not_fit_alone_says_so(model, images):
    large = np.zeros((161, 161, 3), np.uint8)
    scorer = scorer_of(model, 2 * 65 * 97)
    with pytest.raises(
        ImageError, match="scoring it at 161 x 161 px needs more memory than the CPU has free"
    ) as caught:
        scorer([*images[:3], large, *images[3:]])
    assert caught.value.kind is ErrorKind.MEMORY
    assert len(scorer(images)) == 11
    # What has fitted before is not the image's fault
    scorer.runner.module.pixels = 1000
    with pytest.raises(DeviceShortError, match="something else holds the memory"):
        scorer(images[:1])


def test_what_running_out_of_memory_looks_like():
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    with pytest.raises(MemoryError) as caught:
        np.empty(2**60, np.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator"))
