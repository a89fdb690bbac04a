import io
import random
import zlib

import numpy as np
import pytest
import scipy.io
from PIL import Image

from segcore.datasets import sbd
from segcore.images.masks import decode_mask, encode_mask
from tests.sbd_files import annotation, quick_annotation


def labels_of(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 21, (height, width), dtype=np.uint8)


def saved(variables: dict, **options) -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, variables, **options)
    return buffer.getvalue()


def test_annotations_are_read_bit_for_bit():
    for seed, (height, width) in enumerate([(5, 7), (1, 1), (1, 9), (9, 1), (40, 33)]):
        labels = labels_of(seed, height, width)
        for compressed in (True, False):
            data = annotation(labels, compressed=compressed)
            theirs = scipy.io.loadmat(io.BytesIO(data))["GTcls"][0]["Segmentation"][0]
            ours = sbd.decode_annotation(data)
            assert ours.dtype == np.uint8 and ours.flags["C_CONTIGUOUS"]
            np.testing.assert_array_equal(ours, theirs)
            np.testing.assert_array_equal(ours, labels)


def test_quickly_made_annotations_are_read_by_others_too():
    labels = labels_of(3, 33, 21)
    data = quick_annotation(labels)
    np.testing.assert_array_equal(scipy.io.loadmat(io.BytesIO(data))["GTcls"][0]["Segmentation"][0], labels)
    np.testing.assert_array_equal(sbd.decode_annotation(data), labels)


def test_real_masks_survive_the_way_through_matlab(voc):
    files = sorted((voc / "SegmentationClassAug").glob("*.png"))
    for file in random.Random(0).sample(files, 25):
        labels = np.array(Image.open(file))
        labels[labels == 255] = 0  # SBD has no void
        back = decode_mask(encode_mask(sbd.decode_annotation(annotation(labels))))
        np.testing.assert_array_equal(back, labels)


def test_matlab_may_store_labels_as_doubles():
    labels = labels_of(0, 6, 4)
    struct = {"GTcls": {"Segmentation": labels.astype(np.float64)}}
    np.testing.assert_array_equal(sbd.decode_annotation(saved(struct)), labels)
    with pytest.raises(ValueError, match="labels are 0 to 20"):
        sbd.decode_annotation(saved({"GTcls": {"Segmentation": labels + 0.5}}))


def test_what_is_no_annotation_is_one_sentence():
    good = annotation(labels_of(0, 6, 4))
    cases = {
        b"": "no MATLAB 5 file",
        b"I am a text, of no use to anybody" * 20: "no MATLAB 5 file",
        b"\x89HDF\r\n\x1a\n" + bytes(600): "7.3",
        b"MATLAB 7.3 MAT-file" + bytes(600): "7.3",
        good[:200]: "too early|damaged",
        good[:128] + b"\x0f\0\0\0\x08\0\0\0" + bytes(8): "damaged",
        saved({"other": labels_of(0, 3, 3)}): "no variable GTcls",
        saved({"GTcls": labels_of(0, 3, 3)}): "no single struct",
        saved({"GTcls": {"Boundaries": 1.0}}): "no field Segmentation",
        saved({"GTcls": {"Segmentation": "text"}}): "no plain array",
        saved({"GTcls": {"Segmentation": np.zeros((2, 3, 4), np.uint8)}}): "shape",
        saved({"GTcls": {"Segmentation": np.zeros((0, 4), np.uint8)}}): "shape|values",
        saved({"GTcls": {"Segmentation": np.full((3, 3), 21, np.uint8)}}): "holds 21",
    }
    for data, message in cases.items():
        with pytest.raises(ValueError, match=message):
            sbd.decode_annotation(data)


def test_noise_never_raises_anything_else():
    good, draw = bytearray(annotation(labels_of(0, 30, 20), compressed=False)), random.Random(0)
    for _ in range(400):
        bad = bytearray(good)
        for _ in range(draw.randrange(1, 6)):
            bad[draw.randrange(128, len(bad))] = draw.randrange(256)
        try:
            labels = sbd.decode_annotation(bytes(bad))
        except ValueError as error:
            assert str(error)
        else:
            assert labels.dtype == np.uint8 and labels.max() <= 20


def test_a_small_file_cannot_unpack_to_a_large_one(monkeypatch):
    monkeypatch.setattr(sbd, "MAX_UNPACKED_BYTES", 1 << 16)
    packed = zlib.compress(bytes(1 << 20))
    header = annotation(labels_of(0, 2, 2))[:128]
    with pytest.raises(ValueError, match="unpacks to more than 65536 bytes"):
        sbd.decode_annotation(header + b"\x0f\0\0\0" + len(packed).to_bytes(4, "little") + packed)


def test_the_lists_of_the_papers_are_computed(voc):
    def official(name: str) -> list[str]:
        return (voc / f"ImageSets/Segmentation/{name}.txt").read_text().split()

    train, val, augmented = official("train"), official("val"), official("train_aug")
    draw = random.Random(0)
    only_sbd = sorted(set(augmented) - set(train))
    # SBD's own lists also hold images of VOC's train and of its val: 11,355 in all
    everything = only_sbd + draw.sample(train, 1100) + draw.sample(val, 1137)
    draw.shuffle(everything)
    lists = sbd.merged_lists(train, val, everything[:8498], everything[8498:])
    assert len(everything) == 11_355
    assert lists["train_aug"] == sorted(augmented) and len(lists["train_aug"]) == 10_582
    assert (len(lists["train"]), len(lists["val"]), len(lists["trainval"])) == (1464, 1449, 2913)
    assert lists["trainval"] == sorted(official("trainval")) and len(lists["trainval_aug"]) == 12_031
    assert not set(lists["train_aug"]) & set(lists["val"])
    leaked = sbd.merged_lists(train, val, [*everything[:8498], val[0]], everything[8498:])
    assert leaked == lists
