import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from segcore.datasets import near_duplicates
from segcore.datasets.near_duplicates import (
    LOOK_SIDE_PX,
    MAX_DISTANCE,
    ClosePair,
    close_pairs,
    fingerprint,
    originals,
)
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
    known = hashes([np.asarray(p) for p in pictures])
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
        found = list(close_pairs(known, hashes(copies)))
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


def test_originals_are_the_first_alike_that_are_no_copies(monkeypatch):
    base, other = 0x0123456789ABCDEF, 0xF0F0F0F0F0F0F0F0
    step = base ^ 0b111111  # 6 bits away
    chain = step ^ (0b111111 << 20)  # 6 bits from the copy, 12 from the original
    looks = np.array([base, step, chain, other, base, 0, 0, ~base & (2**64 - 1)], np.uint64)
    aspects = np.array([1.5, 1.5, 1.5, 1.5, 1.0, 1.5, 1.5, 1.5])
    none = np.empty(0, np.uint64), np.empty(0)
    for rows in (1, 2, 3, 256):
        monkeypatch.setattr(near_duplicates, "_ROWS_AT_A_TIME", rows)
        monkeypatch.setattr(near_duplicates, "_POOL_AT_A_TIME", 2)
        # The chain does not become one; another shape is another picture; what is flat is nobody's copy
        assert originals(looks, aspects, *none).tolist() == [-1, 0, -1, -1, -1, -1, -1, -1]
        known = np.array([other, chain], np.uint64), np.array([1.51, 1.49])
        assert originals(looks, aspects, *known).tolist() == [-1, 1, 1, 0, -1, -1, -1, -1]
    assert originals(*none, *none).tolist() == []


def test_originals_agree_with_pairs():
    draw = np.random.default_rng(4)
    looks = draw.integers(1, 2**63, 40, dtype=np.uint64)[draw.integers(0, 40, 600)]
    for _ in range(3):
        looks ^= np.uint64(1) << draw.integers(0, 64, 600).astype(np.uint64)
    found = originals(looks, np.ones(600), np.empty(0, np.uint64), np.empty(0))
    alike = np.bitwise_count(looks[:, None] ^ looks[None]) <= MAX_DISTANCE
    for row in range(600):
        before = [k for k in range(row) if found[k] < 0 and alike[row, k]]
        assert found[row] == (before[0] if before else -1)
    assert 30 < (found < 0).sum() < 200
