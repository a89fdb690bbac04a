import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from segcore.images.decoding import EXTENSIONS, decode
from segcore.images.errors import ErrorKind, ImageError
from segcore.images.masks import nearest_index, resize_labels
from segcore.images.pixels import fit_long_side
from tests.conftest import photograph


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format_, **options)
    return buffer.getvalue()


def refused(data: bytes, **options: int) -> ErrorKind:
    with pytest.raises(ImageError) as caught:
        decode(data, **options)
    assert str(caught.value)
    return caught.value.kind


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF", "BMP", "TIFF", "GIF", "MPO"])
def test_every_accepted_format_comes_out_as_the_picture(format_):
    picture = photograph(1, (60, 44))
    decoded = decode(encoded(picture, format_))
    assert decoded.image.dtype == np.uint8 and decoded.image.shape == (44, 60, 3)
    assert (decoded.width, decoded.height) == (60, 44)
    difference = np.abs(decoded.image.astype(int) - np.asarray(picture)).mean()
    assert difference < (0.01 if format_ in ("PNG", "BMP", "TIFF") else 9)


def test_first_frame_and_first_page():
    first, second = photograph(1, (40, 30)), photograph(2, (40, 30))
    tiff = decode(encoded(first, "TIFF", save_all=True, append_images=[second]))
    assert np.array_equal(tiff.image, np.asarray(first))
    gif = decode(encoded(first, "GIF", save_all=True, append_images=[second]))
    assert np.abs(gif.image.astype(int) - np.asarray(first)).mean() < 9


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("long_side_px", [None, 32])
def test_exif_orientation_is_applied(orientation, long_side_px):
    # What each tag asks a viewer to do, from the EXIF standard, undone on an upright picture
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: np.rot90(a, -1),
    }
    upright = np.zeros((40, 80, 3), dtype=np.uint8)
    upright[:20, :40] = 255  # Only the top left is bright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(undo[orientation](upright))), "JPEG", exif=exif, quality=95)
    decoded = decode(data, long_side_px)
    assert (decoded.width, decoded.height) == (80, 40)
    height, width = decoded.image.shape[:2]
    assert (width, height) == ((80, 40) if long_side_px is None else (32, 16))
    bright = decoded.image[..., 0] > 128
    assert bright[: height // 2 - 1, : width // 2 - 1].all()
    assert not bright[height // 2 + 1 :].any() and not bright[:, width // 2 + 1 :].any()


def test_grey_palette_and_alpha():
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3)
    assert np.array_equal(decode(encoded(grey, "PNG")).image[..., 1], np.asarray(grey))
    palette = photograph(3, (20, 20)).quantize(16)
    assert np.array_equal(decode(encoded(palette, "PNG")).image, np.asarray(palette.convert("RGB")))
    half = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    half.putpixel((0, 0), (200, 0, 0, 255))
    image = decode(encoded(half, "PNG")).image
    assert image[0, 0].tolist() == [200, 0, 0] and image[3, 3].tolist() == [255, 255, 255]  # Alpha lies over white


def test_a_colour_that_stands_for_transparent_is_white():
    keyed = Image.new("RGB", (4, 4), (0, 0, 0))
    keyed.putpixel((1, 0), (9, 8, 7))
    image = decode(encoded(keyed, "PNG", transparency=(0, 0, 0))).image
    assert image[0, 0].tolist() == [255, 255, 255] and image[0, 1].tolist() == [9, 8, 7]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_can_be_scaled_down(mode):
    picture = photograph(2, (200, 100))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    decoded = decode(encoded(picture, "TIFF"), long_side_px=50)
    assert decoded.image.shape == (25, 50, 3) and decoded.image.std() > 5


def test_sixteen_bits_keep_their_upper_byte():
    deep = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    assert decode(encoded(Image.fromarray(deep), "PNG")).image[0, :, 0].tolist() == [0, 1, 128, 255]
    assert decode(encoded(Image.fromarray(deep), "TIFF")).image[0, :, 0].tolist() == [0, 1, 128, 255]


def test_cmyk_with_and_without_profile():
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert decode(encoded(red, "JPEG", quality=95)).image[0, 0].tolist()[0] > 200
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()  # A profile of the wrong kind
    assert decode(encoded(red, "JPEG", quality=95, icc_profile=profile)).image.shape == (8, 8, 3)


def test_what_cannot_be_used_says_why():
    jpeg = encoded(photograph(1, (200, 150)), "JPEG")
    png = encoded(photograph(1, (200, 150)), "PNG")
    assert refused(b"") is ErrorKind.EMPTY
    assert refused(b"hello, I am a text") is ErrorKind.NOT_AN_IMAGE
    assert refused(jpeg[: len(jpeg) // 2]) is ErrorKind.TRUNCATED
    assert refused(png[: len(png) // 2]) is ErrorKind.TRUNCATED
    assert refused(jpeg, max_pixels=200 * 150 - 1) is ErrorKind.TOO_LARGE
    broken = bytearray(png)
    broken[60:80] = bytes(20)
    assert refused(bytes(broken)) in (ErrorKind.CORRUPT, ErrorKind.TRUNCATED)


def test_a_decompression_bomb_is_refused_before_its_pixels():
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    assert refused(bomb) is ErrorKind.TOO_LARGE


def test_tags_that_all_claim_the_same_bytes_take_no_memory():
    number = 20_000
    entries = b"".join(struct.pack("<HHII", tag, 7, 200_000, 500) for tag in range(number))
    table = b"II*\0\x08\0\0\0" + struct.pack("<H", number) + entries
    jpeg = encoded(photograph(1, (40, 30)), "JPEG")
    pieces = [b"Exif\0\0" + table[at : at + 60_000] for at in range(0, len(table), 60_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(piece) + 2) + piece for piece in pieces)
    tracemalloc.start()
    assert decode(jpeg[:2] + segments + jpeg[2:]).image.shape == (30, 40, 3)  # Pillow bounds them since 13.0
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()


def test_scan_upon_scan_is_refused_and_what_lies_behind_a_jpeg_is_no_scan():
    jpeg = encoded(photograph(1, (40, 30)), "JPEG", progressive=True)
    last = jpeg.rfind(b"\xff\xda")
    assert refused(jpeg[:-2] + jpeg[last : last + 12] * 100 + b"\xff\xd9") is ErrorKind.TOO_LARGE
    assert decode(jpeg + b"\xff\xda a film" * 1000).image.shape == (30, 40, 3)
    comment = b"\xff\xfe" + struct.pack(">H", 3002) + b"\xff\xda." * 1000
    assert decode(jpeg[:2] + comment + jpeg[2:]).image.shape == (30, 40, 3)


def test_a_damaged_tiff_prints_nothing(capfd):
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "group4"):
        picture = photograph(1, (60, 40)).convert("1" if compression == "group4" else "RGB")
        data = bytearray(encoded(picture, "TIFF", compression=compression))
        data[8 : len(data) // 2] = bytes(len(data) // 2 - 8)
        refused(bytes(data))
    assert capfd.readouterr() == ("", "")


def test_deep_grey_comes_out_the_same_block_by_block(monkeypatch):
    deep = np.linspace(-3, 70_000, 40 * 30, dtype=np.float32).reshape(30, 40)
    whole = decode(encoded(Image.fromarray(deep), "TIFF")).image
    monkeypatch.setattr("segcore.images.pixels._BLOCK", 100)
    assert np.array_equal(decode(encoded(Image.fromarray(deep), "TIFF")).image, whole)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_raise_nothing_but_image_error(data):
    format_ = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF"]))
    damaged = bytearray(encoded(photograph(5, (32, 24)), format_))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(1, len(damaged)))
    try:
        decoded = decode(bytes(damaged[:end]), long_side_px=64, max_pixels=1_000_000)
    except ImageError as error:
        assert error.kind in ErrorKind
    else:
        assert decoded.image.ndim == 3 and max(decoded.image.shape[:2]) <= 64


def test_an_image_error_survives_the_way_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(ImageError(ErrorKind.EMPTY, "the file is empty")))
    assert error.kind is ErrorKind.EMPTY and str(error) == "the file is empty"


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 2000))
def test_the_working_size_is_never_larger_never_zero(width, height, long_side_px):
    new_width, new_height = fit_long_side(width, height, long_side_px)
    assert 1 <= new_width <= width and 1 <= new_height <= height
    assert max(new_width, new_height) == min(max(width, height), long_side_px)


def test_a_large_jpeg_has_its_exact_working_size():
    decoded = decode(encoded(photograph(4, (3001, 1999)), "JPEG"), long_side_px=513)
    assert (decoded.width, decoded.height) == (3001, 1999)
    assert decoded.image.shape == (342, 513, 3)


@given(st.integers(1, 300), st.integers(1, 300))
def test_nearest_takes_the_cell_under_the_centre(size, source_size):
    index = nearest_index(size, source_size)
    centres = (np.arange(size) + 0.5) * source_size / size
    assert (np.diff(index) >= 0).all() and index[0] >= 0 and index[-1] < source_size
    assert np.allclose(index, np.floor(centres + 1e-9))


def test_labels_at_another_size():
    labels = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    assert resize_labels(labels, 4, 2).tolist() == [[0, 0, 1, 1], [2, 2, 255, 255]]
    assert resize_labels(labels, 2, 2) is labels


def test_extensions_are_lower_case_with_their_dot():
    assert ".jpg" in EXTENSIONS
    assert all(e.islower() and e.startswith(".") for e in EXTENSIONS)
