"""One image of a file that holds several: pages of a TIFF, frames of animations and videos."""

import io

import numpy as np
import pytest
from PIL import Image

from segcore import extras
from segcore.images import decoding
from segcore.images.decoding import decode
from segcore.images.errors import ErrorKind, ImageError
from segcore.images.inner import InnerImage, page_fragment, time_fragment, which
from tests.conftest import photograph
from tests.odd_images import tiff as deep_tiff
from tests.raw_files import dng, jpeg, picture
from tests.video_files import SCENES, clip

SIZE = (96, 60)


def pages(*images, form="TIFF", **options) -> bytes:
    buffer = io.BytesIO()
    images[0].save(buffer, form, save_all=True, append_images=images[1:], **options)
    return buffer.getvalue()


def shots(number):
    return [photograph(seed, SIZE) for seed in range(number)]


def kind_of(data) -> ErrorKind:
    with pytest.raises(ImageError) as caught:
        decode(data)
    return caught.value.kind


def test_every_page_of_a_tiff_is_an_image():
    images = [*shots(3), photograph(7, (60, 96)).convert("L"), photograph(8, (40, 30))]
    for options in ({}, {"compression": "tiff_lzw"}, {"compression": "jpeg", "quality": 99}, {"big_tiff": True}):
        data = pages(*images, **options)
        assert decoding.count_pages(data) == 5
        for number, image in enumerate(images, 1):
            found = decode(InnerImage(data, page_fragment(number)))
            assert (found.width, found.height) == image.size
            limit = 12 if options.get("compression") == "jpeg" else 0
            assert np.abs(found.image.astype(int) - np.asarray(image.convert("RGB"))).max() <= limit
        assert kind_of(InnerImage(data, "6")) is ErrorKind.TRUNCATED
        assert np.array_equal(decode(data).image, decode(InnerImage(data, "1")).image)


def test_more_pages_than_a_picture_has_directories():
    data = pages(*[Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(200)])
    assert decoding.count_pages(data) == 200
    assert decode(InnerImage(data, "150")).image[0, 0, 0] == 149


def test_thumbnails_pyramids_and_masks_do_not_count():
    from tests.raw_files import tiff

    def page(image: Image.Image, kind: int):
        values = np.asarray(image).tobytes()
        tags = [(254, 4, (kind,)), (256, 4, (image.width,)), (257, 4, (image.height,)), (258, 3, (8, 8, 8))]
        tags += [(259, 3, (1,)), (262, 3, (2,)), (277, 3, (3,)), (278, 4, (image.height,)), (284, 3, (1,))]
        return [*tags, (273, 4, values), (279, 4, (len(values),))]

    first, second = shots(2)
    smaller = first.resize((48, 30))
    data = tiff([page(smaller, 1), page(first, 0), page(smaller, 1), page(second, 2), page(first, 4), page(smaller, 5)])
    assert decoding.count_pages(data) == 2
    assert np.array_equal(decode(InnerImage(data, "1")).image, np.asarray(first))
    assert np.array_equal(decode(InnerImage(data, "2")).image, np.asarray(second))
    # A small first page before a larger one is a thumbnail without its mark
    data = tiff([page(first.resize((16, 12)), 0), page(first, 0), page(second, 0)])
    assert decoding.count_pages(data) == 2
    assert np.array_equal(decode(InnerImage(data, "2")).image, np.asarray(second))
    assert decoding.count_pages(dng(picture())) == 1
    deep = np.full((40, 60, 1), 40_000, np.uint16)
    assert decode(InnerImage(deep_tiff(deep, {}), "1")).image.max() == 40_000 >> 8


def test_frames_of_animations():
    images = shots(3)
    for form, options, limit in (("WEBP", {"lossless": True}, 0), ("GIF", {}, 60)):
        data = pages(*images, form=form, duration=100, **options)
        assert decoding.count_pages(data) == 3
        for number, image in enumerate(images, 1):
            found = decode(InnerImage(data, str(number)), 96).image.astype(int)
            assert found.shape == (60, 96, 3) and np.abs(found - np.asarray(image)).mean() <= limit / 6
        assert kind_of(InnerImage(data, "4")) in (ErrorKind.TRUNCATED, ErrorKind.CORRUPT)
    for data in (pages(images[0], form="PNG"), jpeg(picture()), pages(images[0], form="GIF"), b"II*\0", b"nothing"):
        assert decoding.count_pages(data) == 1


def test_damaged_and_circular_tiffs_end():
    data = bytearray(pages(*shots(3)))
    for seed in range(60):
        draw = np.random.default_rng(seed)
        broken = bytearray(data)
        for at in draw.integers(0, len(broken), 8):
            broken[at] = draw.integers(0, 256)
        try:
            number = decoding.count_pages(bytes(broken))
        except ImageError:
            continue
        assert 1 <= number <= 10_000
        for page in (1, 2, number):
            try:
                assert decode(InnerImage(bytes(broken), str(page)), 32).image.shape[2] == 3
            except ImageError:
                continue


def test_fragments():
    assert which("7") == 7 and isinstance(which("7"), int)
    assert which(time_fragment(12)) == 12.0 and time_fragment(12) == "t=12" and time_fragment(12.0) == "t=12.0"
    assert time_fragment(1 / 3) == "t=0.333"
    for wrong in ("0", "-1", "x", "t=", "s=3", ""):
        with pytest.raises(ValueError):
            which(wrong)


def test_a_video_needs_its_reader(monkeypatch):
    monkeypatch.setattr(extras, "is_here", lambda package: False)
    with pytest.raises(ImageError, match=r"needs PyAV, .*segment-archive\[video\]") as caught:
        decoding.frame_times(b"", 1.0)
    assert caught.value.kind is ErrorKind.UNSUPPORTED


def scene_of(image: np.ndarray) -> int:
    colour = np.median(image[: len(image) // 2].reshape(-1, 3), axis=0)
    return int(np.argmin([np.abs(colour - scene).sum() for scene in SCENES]))


@pytest.mark.parametrize(
    ("form", "codec"), [("mp4", "libx264"), ("matroska", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx")]
)
def test_frames_of_videos(form, codec):
    pytest.importorskip("av", reason="the extra [video] is not installed")
    data = clip(form, codec)
    assert decoding.frame_times(data, 2.0) == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert len(decoding.frame_times(data, 0.1)) == 100
    scenes = decoding.frame_times(data, None)
    assert scenes[0] == 0 and 4 <= len(scenes) <= 8
    assert [scene_of(decode(InnerImage(data, time_fragment(t))).image) for t in (0.0, 2.4, 2.5, 5.0, 7.4, 9.9)] == [
        *(0, 0, 1, 2, 2, 3)
    ]
    found = decode(InnerImage(data, "t=3.0"), 160)
    assert found.image.shape == (90, 160, 3) and (found.width, found.height) == (320, 180)
    bar = decode(InnerImage(data, "t=3.0")).image[-5].max(axis=1) < 60
    assert abs(bar.mean() - 6 / 25) < 0.03  # The sixth frame of its scene, neither the one before nor the one after
    assert kind_of(InnerImage(data, "t=-5.0")) is ErrorKind.CORRUPT


def test_damaged_videos_are_errors():
    pytest.importorskip("av", reason="the extra [video] is not installed")
    data = clip()
    for damaged in (data[: len(data) // 2], data[:100], b"", bytes(1000), picture().tobytes()):
        with pytest.raises(ImageError):
            decoding.frame_times(damaged, 1.0)
        with pytest.raises(ImageError):
            decode(InnerImage(damaged, "t=1.0"))
    with pytest.raises(ImageError) as caught:
        decode(InnerImage(data, "t=1.0"), max_pixels=1000)
    assert caught.value.kind is ErrorKind.TOO_LARGE
    for seed in range(12):
        draw = np.random.default_rng(seed)
        broken = bytearray(data)
        for at in draw.integers(0, len(broken), 60):
            broken[at] = draw.integers(0, 256)
        for ask in (lambda b: decoding.frame_times(b, 2.0), lambda b: decode(InnerImage(b, "t=5.0")).image):
            try:
                assert len(ask(bytes(broken))) > 0
            except ImageError:
                continue
