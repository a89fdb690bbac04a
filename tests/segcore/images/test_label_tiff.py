"""Label maps in files of their own: read back as they were, by us and by others; damaged ones refused."""

import io

import numpy as np
import pytest
from PIL import Image

from segcore.images import label_tiff
from segcore.images.label_tiff import LabelTiff, LabelTiffWriter


def labels_of(dtype: type, height: int = 2101, width: int = 2601) -> np.ndarray:
    dice = np.random.default_rng(0)
    top = 21 if dtype is np.uint8 else 3000
    return np.kron(dice.integers(0, top, (40, 40)), np.ones((66, 66))).astype(dtype)[:height, :width]


def written(labels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    scale = (33550, 12, 3, np.array([0.5, 0.5, 0.0]).tobytes())
    writer = LabelTiffWriter(buffer, labels.shape[1], labels.shape[0], labels.dtype, [scale])
    for left in range(0, labels.shape[1], 1024):  # In any order
        for top in range(0, labels.shape[0], 1024):
            writer.write(top, left, labels[top : top + 1024, left : left + 1024])
    writer.close()
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("big", [False, True])
def test_it_is_read_back_by_us_and_by_others(dtype: type, big: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if big:
        monkeypatch.setattr(label_tiff, "_CLASSIC_BYTES", 1)
    labels = labels_of(dtype)
    data = written(labels)
    found = LabelTiff(data)
    assert found.read().dtype == dtype and np.array_equal(found.read(), labels)
    assert np.array_equal(found.read(700, 600, 900, 1000), labels[700:1600, 600:1600])
    assert np.array_equal(found.overview(), labels[::2, ::2])
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == ("P" if dtype is np.uint8 else "I;16")
        assert np.array_equal(np.asarray(image), labels)
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        whole, small = file.pages
        assert file.is_bigtiff == big and whole.is_tiled and whole.tags[33550].value == (0.5, 0.5, 0.0)
        assert np.array_equal(whole.asarray(), labels) and small.is_reduced


def test_damage_is_one_sentence() -> None:
    data = bytearray(written(labels_of(np.uint8, 600, 600)))
    data[40:60] = bytes(20)
    with pytest.raises(ValueError, match=r"damaged|cut"):
        LabelTiff(bytes(data)).read()
    for other in (b"", b"II*\0", bytes(data[: len(data) // 2])):
        with pytest.raises(ValueError, match="no label map of ours"):
            LabelTiff(other)


def test_a_part_that_was_not_written_is_a_mistake_of_the_program() -> None:
    writer = LabelTiffWriter(io.BytesIO(), 1000, 1000, np.dtype(np.uint8))
    writer.write(0, 0, np.zeros((512, 512), np.uint8))
    with pytest.raises(AssertionError):
        writer.close()
