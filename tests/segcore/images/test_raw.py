"""RAW files: what is read of them, how they are turned, and what damage costs."""

import io

import numpy as np
import pytest
from PIL import Image

from segcore import extras
from segcore.images.decoding import Reading, decode
from segcore.images.errors import ErrorKind, ImageError
from tests import raw_files
from tests.raw_files import dng, jpeg, tiff

rawpy = pytest.importorskip("rawpy", reason="the extra [raw] is not installed")

LYING = raw_files.picture()
TURNS = {1: 0, 3: 2, 6: 3, 8: 1}
"""Quarter turns against the clock that put a picture of each orientation upright."""

PREVIEW, FULL = Reading(), Reading(raw="full")


def corners(image: np.ndarray) -> str:
    """Which channel is strongest in each corner; "-" for grey."""
    height, width = image.shape[:2]
    places = ((8, 8), (8, width - 9), (height - 9, 8), (height - 9, width - 9))
    values = [image[row, column].astype(int) for row, column in places]
    return "".join("rgb"[value.argmax()] if np.ptp(value) > 60 else "-" for value in values)


def developed(data: bytes) -> np.ndarray:
    with rawpy.imread(io.BytesIO(data)) as file:
        return file.postprocess(use_camera_wb=True)


@pytest.mark.parametrize("orientation", TURNS)
def test_a_raw_file_is_turned_once_whatever_its_preview_says(orientation):
    upright = np.ascontiguousarray(np.rot90(LYING, TURNS[orientation]))
    previews = {
        "none": None,
        "as it lies, without EXIF": jpeg(LYING),
        "as it lies, with its EXIF": jpeg(LYING, orientation=orientation),
        "turned by the camera": jpeg(upright, orientation=1),
    }
    for what, preview in previews.items():
        data = dng(LYING, preview, orientation)
        truth = developed(data)
        for reading in (PREVIEW, FULL):
            found = decode(data, 300, reading=reading)
            assert corners(found.image) == corners(upright) == corners(truth), what
            assert (found.height, found.width) == truth.shape[:2] == upright.shape[:2]
            assert max(found.image.shape) == 300


def test_a_preview_turned_a_quarter_without_a_word_is_not_turned_again():
    upright = np.ascontiguousarray(np.rot90(LYING, 3))
    assert corners(decode(dng(LYING, jpeg(upright), 6), 300).image) == corners(upright)


def test_the_preview_is_read_where_it_is_large_enough_and_shows_all():
    marked = np.full_like(LYING, 250)  # Unlike what the sensor has seen

    def is_preview(preview: bytes, long_side_px: int | None = 300, reading: Reading = PREVIEW) -> bool:
        return bool(decode(dng(LYING, preview), long_side_px, reading=reading).image.mean() > 240)

    assert is_preview(jpeg(marked)) and is_preview(jpeg(marked, 300))
    assert not is_preview(jpeg(marked, 299))  # Smaller than what is scored
    assert not is_preview(jpeg(marked, 500), None)
    assert not is_preview(jpeg(marked[:350]))  # Cropped
    assert not is_preview(jpeg(marked), reading=FULL)
    assert not is_preview(jpeg(marked)[: len(jpeg(marked)) * 2 // 3])  # Damaged


def test_the_developed_picture_is_what_the_sensor_saw():
    found = decode(dng(LYING), reading=FULL).image.astype(int)
    assert found.shape == LYING.shape
    assert np.abs(found / found.mean() - LYING / LYING.mean()).mean() < 0.15  # LibRaw chooses the brightness


def test_damaged_and_cut_files_are_errors_or_their_preview():
    small, large = jpeg(LYING, 200), jpeg(LYING, 330)
    for preview in (None, small):
        with pytest.raises(ImageError) as caught:
            decode(dng(LYING, preview, whole=False), 400)
        assert caught.value.kind is ErrorKind.TRUNCATED
    found = decode(dng(LYING, large, 6, whole=False), 400)
    assert "preview of 330 x 220 px" in found.note and (found.width, found.height) == (400, 600)
    with pytest.raises(ImageError):
        decode(dng(LYING, large, whole=False), 400, reading=FULL)


def test_hostile_sizes_are_refused_before_anything_is_unpacked():
    data = dng(LYING)
    with pytest.raises(ImageError, match="more than the bound") as caught:
        decode(data, 300, max_pixels=1000)
    assert caught.value.kind is ErrorKind.TOO_LARGE
    vast = data.replace((600).to_bytes(4, "little"), (60_000).to_bytes(4, "little"))
    vast = vast.replace((400).to_bytes(4, "little"), (60_000).to_bytes(4, "little"))
    with pytest.raises(ImageError) as caught:
        decode(vast, 300)
    assert caught.value.kind in (ErrorKind.TOO_LARGE, ErrorKind.TRUNCATED, ErrorKind.UNSUPPORTED)
    for seed in range(40):
        draw = np.random.default_rng(seed)
        broken = bytearray(dng(LYING, jpeg(LYING, 200), 6))
        for at in draw.integers(len(broken) - 900, len(broken), 5):  # Among its tags
            broken[at] = draw.integers(0, 256)
        try:
            found = decode(bytes(broken), 100)
        except ImageError:
            continue
        assert max(found.image.shape[:2]) <= 100 and found.image.dtype == np.uint8


def test_without_the_reader_an_error_names_the_line(monkeypatch):
    monkeypatch.setattr(extras, "is_here", lambda package: False)
    with pytest.raises(ImageError, match=r"pip install 'segment-archive\[raw\]'; or use the JPEG") as caught:
        decode(dng(LYING))
    assert caught.value.kind is ErrorKind.UNSUPPORTED
    assert decode(jpeg(LYING)).image.shape == LYING.shape


def test_a_tiff_that_is_no_raw_file_stays_a_tiff():
    buffer = io.BytesIO()
    Image.fromarray(LYING).save(buffer, "TIFF")
    assert np.array_equal(decode(buffer.getvalue(), reading=FULL).image, LYING)
    with pytest.raises(ImageError):
        decode(tiff([[(256, 4, (10,)), (257, 4, (10,)), (262, 3, (32803,)), (273, 4, bytes(4))]]))
