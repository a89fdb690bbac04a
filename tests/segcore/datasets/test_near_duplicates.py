import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from segcore.datasets.near_duplicates import LOOK_SIDE_PX, MAX_DISTANCE, ClosePair, close_pairs, fingerprint
from segcore.images.decoding import decode
from tests.conftest import photograph


def saved_again(picture: Image.Image, scale: float = 1.0, quality: int = 75, form: str = "JPEG") -> np.ndarray:
    buffer = io.BytesIO()
    smaller = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    smaller.save(buffer, format=form, quality=quality)
    return decode(buffer.getvalue(), LOOK_SIDE_PX).image


def some_pictures(voc) -> list[Image.Image]:
    return [Image.open(file).convert("RGB") for file in sorted((voc / "JPEGImages").glob("*.jpg"))[:12]]


def hashes(images: list[np.ndarray]) -> np.ndarray:
    return np.array([fingerprint(image) for image in images], np.uint64)


@pytest.mark.parametrize("mirrored", [False, True])
def test_copies_are_found_whatever_their_size_quality_and_side(voc, mirrored):
    pictures = some_pictures(voc)
    originals = hashes([np.asarray(p) for p in pictures])
    turned = [ImageOps.mirror(p) if mirrored else p for p in pictures]
    square = [p.resize((320, 320), Image.Resampling.BICUBIC) for p in turned]
    for copies in (
        [saved_again(p, 0.6, 60) for p in turned],
        [saved_again(p, 2.0) for p in turned],
        [saved_again(p, 1.0, 30) for p in turned],
        [saved_again(p, 1.0, 70, "WEBP") for p in turned],
        [np.asarray(p) for p in square],
        [np.stack([np.asarray(p.convert("L"))] * 3, axis=-1) for p in turned],
    ):
        # Each finds itself, the right way round, and nothing else
        found = list(close_pairs(originals, hashes(copies)))
        assert found == [ClosePair(k, k, mirrored) for k in range(len(pictures))]


def test_a_flat_picture_has_none():
    assert fingerprint(np.full((40, 60, 3), 90, np.uint8)) is None
    assert fingerprint(np.asarray(photograph(0, (60, 40)))) is not None


def test_a_symmetric_picture_counts_as_not_mirrored():
    half = np.asarray(photograph(1, (60, 40)))
    whole = np.concatenate([half, half[:, ::-1]], axis=1)
    one = hashes([whole])
    assert list(close_pairs(one, one, 0)) == [(0, 0, False)]


def test_pairs_are_found_whatever_the_blocks(monkeypatch):
    random = np.random.default_rng(0)
    first = random.integers(0, 2**63, 50, dtype=np.uint64)
    second = random.integers(0, 2**63, 20, dtype=np.uint64)
    second[7] = first[31] ^ np.uint64(0b10110)
    second[8] = first[2] ^ np.uint64(0b111111100)
    monkeypatch.setattr("segcore.datasets.near_duplicates._BLOCK", 60)
    assert list(close_pairs(first, second)) == [(31, 7, False)]
    assert MAX_DISTANCE == 6
    assert list(close_pairs(first, second, 7)) == [(2, 8, False), (31, 7, False)]
    assert list(close_pairs(first, second[:0])) == []
