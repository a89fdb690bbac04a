import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from segcore.images.masks import decode_mask, encode_mask, resize_labels, summarise
from segcore.voc import CLASSES, palette

label_maps = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 6))


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=50)))
def test_a_mask_comes_back_as_it_went_in(labels):
    assert np.array_equal(decode_mask(encode_mask(labels)), labels)


@given(arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=50)))
def test_labels_of_16_bits_come_back_too(labels):
    found = decode_mask(encode_mask(labels))
    assert found.dtype == np.uint16 and np.array_equal(found, labels)


def test_the_mask_shows_in_the_colours_of_voc():
    labels = np.array([[0, 1, 15, 255]], dtype=np.uint8)
    shown = np.asarray(Image.open(io.BytesIO(encode_mask(labels))).convert("RGB"))
    assert shown[0].tolist() == [[0, 0, 0], [128, 0, 0], [192, 128, 128], [224, 224, 192]]
    assert len(CLASSES) == 21 and palette(21).shape == (21, 3)


def test_a_real_voc_mask_has_our_palette(voc):
    place = next((voc / "SegmentationClassAug").glob("2007_*.png"))
    with Image.open(place) as opened:
        assert opened.mode == "P"
        real = opened.getpalette()
    assert real[: 21 * 3] == palette(21).ravel().tolist()
    labels = decode_mask(place.read_bytes())
    assert np.array_equal(decode_mask(encode_mask(labels)), labels)


def test_a_coloured_png_is_no_mask():
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3)).save(buffer, format="PNG")
    with pytest.raises(ValueError, match="palette PNG"):
        decode_mask(buffer.getvalue())


@settings(deadline=None)
@given(label_maps, st.integers(0, 90), st.integers(0, 90))
def test_the_summary_is_that_of_the_stored_mask(labels, wider, higher):
    height, width = labels.shape[0] + higher, labels.shape[1] + wider
    stored = resize_labels(labels, width, height)
    confidence = np.linspace(0, 1, 21)
    summaries = summarise(labels, confidence, width, height)
    assert [s.index for s in summaries] == sorted(np.unique(stored), key=lambda i: (-(stored == i).sum(), i))
    for summary in summaries:
        y, x = np.nonzero(stored == summary.index)
        assert summary.pixels == len(y)
        assert summary.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)
        assert summary.confidence == pytest.approx(confidence[summary.index])
