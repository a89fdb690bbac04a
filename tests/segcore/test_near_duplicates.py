import io

import numpy as np
from PIL import Image

from segcore.near_duplicates import MAX_DISTANCE, close_pairs, fingerprint
from tests.conftest import photograph


def saved_again(picture: Image.Image, scale: float, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    smaller = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    smaller.save(buffer, format="JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def test_another_size_and_quality_keep_the_fingerprint(voc):
    files = sorted((voc / "JPEGImages").glob("*.jpg"))[:12]
    pictures = [Image.open(file).convert("RGB") for file in files]
    first = np.array([fingerprint(np.asarray(p)) for p in pictures], np.uint64)
    second = np.array([fingerprint(saved_again(p, 0.6, 60)) for p in pictures], np.uint64)
    # Each finds itself, and nothing else
    assert list(close_pairs(first, second)) == [(k, k) for k in range(len(files))]


def test_a_flat_picture_has_none():
    assert fingerprint(np.full((40, 60, 3), 90, np.uint8)) is None
    assert fingerprint(np.asarray(photograph(0, (60, 40)))) is not None


def test_pairs_are_found_whatever_the_blocks(monkeypatch):
    random = np.random.default_rng(0)
    first = random.integers(0, 2**63, 50, dtype=np.uint64)
    second = random.integers(0, 2**63, 20, dtype=np.uint64)
    second[7] = first[31] ^ np.uint64(0b10110)
    second[8] = first[2] ^ np.uint64(0b1111110000)
    monkeypatch.setattr("segcore.near_duplicates._BLOCK", 60)
    assert list(close_pairs(first, second)) == [(31, 7)]
    assert MAX_DISTANCE == 5
    assert list(close_pairs(first, second, 6)) == [(2, 8), (31, 7)]
