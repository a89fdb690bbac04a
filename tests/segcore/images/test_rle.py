import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco

from segcore.images.masks import decode_mask
from segcore.images.rle import decode_coco, encode_coco, encode_runs

label_maps = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=30), elements=st.integers(0, 3))


@settings(deadline=None)
@given(label_maps)
def test_coco_writes_the_same_bytes_and_reads_them(labels):
    encoded = encode_coco(labels)
    assert sorted(encoded) == sorted(np.unique(labels))
    for label, counts in encoded.items():
        theirs = coco.encode(np.asfortranarray(labels == label))
        assert counts == theirs["counts"]
        assert np.array_equal(decode_coco(counts, *labels.shape), labels == label)


def test_large_runs_take_more_than_one_character():
    labels = np.zeros((1000, 1300), np.uint8)
    labels[3, 1200] = 7
    labels[:, 640:900] = 9
    for label, counts in encode_coco(labels).items():
        assert counts == coco.encode(np.asfortranarray(labels == label))["counts"]


def test_real_masks_are_written_as_coco_writes_them(voc):
    for place in sorted((voc / "SegmentationClassAug").glob("*.png"))[::600]:
        labels = decode_mask(place.read_bytes())
        for label, counts in encode_coco(labels).items():
            assert counts == coco.encode(np.asfortranarray(labels == label))["counts"]


def test_an_rle_of_another_size_is_refused():
    counts = encode_coco(np.ones((4, 5), np.uint8))[1]
    with pytest.raises(ValueError, match="covers 20 pixels, the mask is 4 x 6"):
        decode_coco(counts, 4, 6)
    with pytest.raises(ValueError, match="ends within a number"):
        decode_coco(b"o", 4, 5)
    with pytest.raises(ValueError, match="larger than any mask"):
        decode_coco(b"o" * 10**6, 4, 5)


@settings(deadline=None)
@given(label_maps)
def test_runs_come_back_as_they_went_in(labels):
    assert np.array_equal(decode_runs(encode_runs(labels), labels.size), labels.ravel())


def test_runs_of_every_length():
    for length in (1, 127, 128, 16383, 16384, 2_097_151, 2_097_152):
        labels = np.concatenate([np.full(length, 5, np.uint8), np.array([0, 5], np.uint8)])
        assert np.array_equal(decode_runs(encode_runs(labels[None]), labels.size), labels)
    assert encode_runs(np.empty((0, 4), np.uint8)) == b""


def decode_runs(data, size):
    """What the page does, in Python."""
    labels, at, i = np.zeros(size, np.uint8), 0, 0
    while i < len(data):
        label, length, shift, byte = data[i], 0, 0, 0x80
        i += 1
        while byte & 0x80:
            byte = data[i]
            length |= (byte & 0x7F) << shift
            shift, i = shift + 7, i + 1
        labels[at : at + length] = label
        at += length
    return labels


def test_labels_of_two_bytes_for_a_page():
    assert encode_runs(np.array([[258, 258, 3]], np.uint16)) == bytes([2, 1, 2, 3, 0, 1])
    assert encode_runs(np.full((20, 20), 40_000, np.uint16)) == bytes([0x40, 0x9C, 0x90, 0x03])
