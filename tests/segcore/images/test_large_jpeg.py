"""JPEGs with more pixels than are decoded whole: the same pixels region by region, and nothing left on the disk."""

import io
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from segcore import extras
from segcore.images import regions
from segcore.images.containers import jpeg_frame
from segcore.images.decoding import decode
from segcore.images.errors import ErrorKind, ImageError
from segcore.images.large_jpeg import as_tiff
from segcore.models import checkpoint
from segcore.predictor import Predictor, PredictParams
from segcore.scoring.inference import InferenceParams

pytest.importorskip("pyvips", reason="pip install 'segment-archive[vips]'")


def jpeg(mode: str = "RGB", size: tuple[int, int] = (1300, 700), **options: object) -> bytes:
    dice = np.random.default_rng(0)
    small = Image.fromarray(dice.integers(0, 256, (9, 13, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.convert(mode).save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


KINDS = {
    "plain": jpeg(),
    "444": jpeg(subsampling=0),
    "grey": jpeg("L"),
    "cmyk": jpeg("CMYK"),
    "turned": jpeg(exif=turned(6)),
    "mirrored": jpeg(exif=turned(5)),
    "profile": jpeg(icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_regions_are_what_they_are_in_the_whole(kind: str) -> None:
    whole = decode(KINDS[kind]).image
    picture = regions.open_jpeg(KINDS[kind])
    assert (picture.height, picture.width) == whole.shape[:2]
    for top, left, rows, columns in ((0, 0, *whole.shape[:2]), (500, 490, 150, 60), (699, 1, 1, 300)):
        found = picture.read(top, left, min(rows, whole.shape[0] - top), min(columns, whole.shape[1] - left))
        expected = whole[top : top + rows, left : left + columns]
        # Two versions of libjpeg; a grey one is no colour picture in either
        assert np.abs(found.astype(int) - expected).max() <= 3, kind


def test_it_says_its_size_before_it_is_decoded() -> None:
    assert jpeg_frame(KINDS["plain"]) == (1300, 700, False)
    assert jpeg_frame(jpeg(progressive=True)) == (1300, 700, True)
    assert jpeg_frame(b"\xff\xd8" + bytes(100)) is None and jpeg_frame(b"II*\0") is None


def test_nothing_is_left_and_another_process_makes_it_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    picture = regions.open_jpeg(KINDS["plain"])
    again = pickle.loads(pickle.dumps(picture))
    assert np.array_equal(again.read(0, 0, 700, 1300), picture.read(0, 0, 700, 1300))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "kind", "said"),
    [
        (jpeg(progressive=True), ErrorKind.TOO_LARGE, "write it as baseline"),
        (KINDS["plain"][:3000], ErrorKind.TRUNCATED, "end"),
        (KINDS["plain"][:200], ErrorKind.CORRUPT, "."),
    ],
)
def test_what_cannot_be_read_is_said(data: bytes, kind: ErrorKind, said: str) -> None:
    with pytest.raises(ImageError, match=said) as error:
        as_tiff(data)
    assert error.value.kind in (kind, ErrorKind.TRUNCATED)


def test_without_room_and_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(ImageError, match="GiB of room: free some, or set TMPDIR"):
        as_tiff(KINDS["plain"])
    monkeypatch.setattr(extras, "is_here", lambda package: package != "pyvips")
    with pytest.raises(ImageError, match=r"pip install 'segment-archive\[vips\]'"):
        as_tiff(KINDS["plain"])


def test_the_predictor_takes_it_at_full_size_alone() -> None:
    model = checkpoint.load("pspnet_lite2")
    params = PredictParams(InferenceParams(long_side_px=None, crop_px=513), None, max_pixels=500_000)
    predictor = Predictor(model, params, device="cpu", num_threads=1)
    picture = predictor.open(KINDS["plain"])
    assert isinstance(picture, regions.TiffRegions)
    found = predictor.whole(picture)
    whole = Predictor(model, PredictParams(params.inference, None), device="cpu", num_threads=1)
    expected = whole.whole(regions.ArrayRegions(decode(KINDS["plain"]).image))
    assert np.mean(found.labels == expected.labels) > 0.99
    scaled = Predictor(model, PredictParams(InferenceParams(), None, max_pixels=500_000))
    with pytest.raises(ImageError, match="more than the bound of 500000 pixels"):
        scaled.open(KINDS["plain"])


def test_a_disk_that_fills_up_is_not_the_pictures_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyvips

    def full(*_: object, **__: object) -> None:
        raise pyvips.Error("unable to call tiffsave", "write error: No space left on device")

    monkeypatch.setattr(pyvips.Image, "tiffsave", full, raising=False)
    with pytest.raises(ImageError, match="is full: free some room") as error:
        as_tiff(KINDS["plain"])
    assert error.value.kind is ErrorKind.MEMORY
