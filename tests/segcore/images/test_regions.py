"""TIFFs read region by region: the pixels of a picture decoded whole, and hostile ones refused in a sentence."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from segcore.images import regions, tiff
from segcore.images.decoding import decode
from segcore.images.errors import ErrorKind, ImageError
from segcore.images.regions import TiffRegions, directory, open_tiff, reduced

tifffile = pytest.importorskip("tifffile")


def picture(height: int = 307, width: int = 401) -> np.ndarray:
    dice = np.random.default_rng(0)
    small = Image.fromarray(dice.integers(0, 255, (30, 40, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height)))


def opened(data: bytes) -> TiffRegions:
    pages = tiff.directories(data)
    return open_tiff(data, pages[tiff.choose_page(pages)])


def require_same_as_whole(data: bytes) -> None:
    whole, found = decode(data).image, opened(data)
    assert (found.height, found.width) == whole.shape[:2]
    assert np.array_equal(found.read(0, 0, found.height, found.width), whole)
    assert np.array_equal(found.read(13, 17, 200, 250), whole[13:213, 17:267])


def by_pillow(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", **options)
    return buffer.getvalue()


def by_tifffile(samples: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd"])
def test_strips_of_any_compression_are_what_they_are_in_the_whole(compression: str) -> None:
    require_same_as_whole(by_pillow(Image.fromarray(picture()), compression=compression))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGBA", "YCbCr"])
def test_colours_of_any_kind_are_what_they_are_in_the_whole(mode: str) -> None:
    compression = "jpeg" if mode == "YCbCr" else "tiff_lzw"
    require_same_as_whole(by_pillow(Image.fromarray(picture()).convert(mode), compression=compression))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_upright(orientation: int) -> None:
    require_same_as_whole(by_pillow(Image.fromarray(picture()), tiffinfo={274: orientation}))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_tiles_of_every_layout(order: str, big: bool, planes: str, depth: type) -> None:
    samples = picture().astype(depth) * (1 if depth is np.uint8 else 257)
    if planes == "separate":
        samples = samples.transpose(2, 0, 1)
    data = by_tifffile(
        samples, tile=(64, 80), photometric="rgb", planarconfig=planes, byteorder=order, bigtiff=big, compression="zlib"
    )
    assert np.array_equal(opened(data).read(0, 0, 307, 401), picture())
    assert np.array_equal(opened(data).read(13, 17, 200, 250), picture()[13:213, 17:267])


def test_tiles_that_were_left_out_are_black() -> None:
    data = bytearray(by_tifffile(picture(), tile=(64, 80), photometric="rgb"))
    found = opened(bytes(data))
    object.__setattr__(found, "byte_counts", (0, *found.byte_counts[1:]))
    assert not found.read(0, 0, 64, 80).any() and found.read(0, 80, 64, 80).any()


def test_a_pyramid_is_shown_from_its_smaller_page() -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(np.zeros((1200, 1600, 3), np.uint8), tile=(256, 256), photometric="rgb", subifds=1)
        writer.write(np.full((300, 400, 3), 200, np.uint8), tile=(256, 256), photometric="rgb", subfiletype=1)
    data = buffer.getvalue()
    assert (opened(data).width, opened(data).height) == (1600, 1200)
    small = reduced(data, 300)
    assert small.shape == (300, 400, 3) and (small == 200).all()
    assert reduced(data, 800).shape == (600, 800, 3) and not reduced(data, 800).any()


def test_it_travels_to_another_process_without_its_pieces() -> None:
    import pickle

    found = opened(by_tifffile(picture(), tile=(64, 80), photometric="rgb"))
    before = found.read(0, 0, 307, 401)
    again = pickle.loads(pickle.dumps(found))
    assert not again._pieces and np.array_equal(again.read(0, 0, 307, 401), before)


def lying(**values: tuple[int, ...]) -> bytes:
    """A TIFF of one tile of 16 x 16 px whose tags say something else."""
    tags = {"256": (16,), "257": (16,), "258": (8,), "259": (1,), "262": (1,), "277": (1,)}
    tags |= {"322": (16,), "323": (16,), "324": (8,), "325": (256,)} | values
    at = 8 + 256
    entries = [(int(tag), 4, len(v), struct.pack(f"<{len(v)}I", *v)) for tag, v in tags.items()]
    return b"II*\0" + struct.pack("<I", at) + bytes(range(256)) + directory(entries, at)


@pytest.mark.parametrize(
    ("tags", "kind", "said"),
    [
        ({"256": (1 << 20,), "257": (1 << 20,)}, ErrorKind.TOO_LARGE, "1048576 x 1048576 px, more than the bound"),
        ({"256": (1 << 31,), "257": (1 << 31,)}, ErrorKind.TOO_LARGE, "more than the bound"),
        ({"256": (64,)}, ErrorKind.CORRUPT, "names 1 tiles, its size needs 4"),
        ({"256": (0,)}, ErrorKind.CORRUPT, "0 x 16 px"),
        ({"322": (0,)}, ErrorKind.CORRUPT, "tiles of 0 x 16 px"),
        ({"322": (1 << 14,), "323": (1 << 14,)}, ErrorKind.TOO_LARGE, "write it in tiles of 512 px"),
        ({"256": (99999,), "257": (99999,), "322": (16,)}, ErrorKind.TOO_LARGE, "tiles, more than"),
        ({"324": (1 << 30,)}, ErrorKind.TRUNCATED, "tile 1 of the TIFF lies beyond the end"),
        ({"325": (1 << 30,)}, ErrorKind.TRUNCATED, "tile 1 of the TIFF lies beyond the end"),
        ({"325": (3,)}, ErrorKind.TRUNCATED, "tile 1 of the TIFF does not decode"),
        ({"259": (5,)}, ErrorKind.CORRUPT, "tile 1 of the TIFF does not decode"),
        ({"259": (6,)}, ErrorKind.TOO_LARGE, "too large to be decoded whole"),
        ({"258": (32,), "339": (3,)}, ErrorKind.TOO_LARGE, "floats of 32 bits"),
        ({"258": (16,), "262": (3,)}, ErrorKind.TOO_LARGE, "its palette has 65536 colours"),
    ],
)
def test_a_lying_table_is_refused_in_one_sentence(tags: dict[str, tuple[int, ...]], kind: ErrorKind, said: str) -> None:
    with pytest.raises(ImageError, match=said) as caught:
        found = opened(lying(**tags))
        found.read(0, 0, found.height, found.width)
    assert caught.value.kind == kind and "\n" not in str(caught.value)


def test_an_honest_one_of_that_form_is_read() -> None:
    assert np.array_equal(opened(lying()).read(0, 0, 16, 16)[..., 0], np.arange(256).reshape(16, 16))


def test_directories_that_name_each_other_end() -> None:
    data = bytearray(lying())
    at = struct.unpack_from("<I", data, 4)[0]
    entries = struct.unpack_from("<H", data, at)[0]
    struct.pack_into("<I", data, at + 2 + 12 * entries, at)  # The page is its own successor
    assert len(tiff.directories(bytes(data))) == 1
    assert opened(bytes(data)).width == 16


def test_few_pieces_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "_CACHE_BYTES", 64 * 80 * 3 * 4)
    found = opened(by_tifffile(picture(), tile=(64, 80), photometric="rgb"))
    assert np.array_equal(found.read(0, 0, 307, 401), picture()) and len(found._pieces) == 4
