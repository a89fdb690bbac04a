"""Kinds of image files that people met elsewhere, each with the pixels that are right (docs/field-cases.md)."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from segcore import extras
from segcore.images import tiff as tiff_files
from segcore.images.colour import ADOBE_RGB, DISPLAY_P3, PROPHOTO, SRGB, rgb_profile
from segcore.images.decoding import MIN_ROWS, Reading, decode
from segcore.images.errors import ErrorKind, ImageError
from tests.conftest import ROOT, photograph
from tests.odd_images import (
    SIZE,
    bmp_without_alpha,
    chunk,
    cut_files,
    exif,
    in_colours_of,
    jpeg_with,
    odd_files,
    picture,
    saved,
    sound_files,
    tiff,
    with_broken_exif,
    with_chunks,
    with_damaged_exif_item,
)

RGB = np.asarray(picture())
GREY = np.asarray(picture().convert("L"))


@pytest.fixture(scope="module")
def field() -> Path:
    """Folder of files as people sent them."""
    place = Path(os.environ.get("SEGMENT_ARCHIVE_DATA", ROOT.parent / "shared" / "data")) / "field"
    if not place.is_dir():
        pytest.skip(f"the real data is not at {place.parent}; set SEGMENT_ARCHIVE_DATA")
    return place


def apart(image: np.ndarray, want: np.ndarray = RGB) -> float:
    """Mean difference in levels."""
    assert image.shape == want.shape
    return float(np.abs(image.astype(int) - want).mean())


def kind_of(data: bytes) -> ErrorKind:
    with pytest.raises(ImageError) as caught:
        decode(data)
    return caught.value.kind


FIELD = ("rgb_icc", "png_ancillary_crc", "broken_exif", "png_large_metadata", "bmp_alpha0", "jpeg_no_eoi")


@pytest.mark.parametrize("kind", FIELD)
def test_the_files_of_the_field_show_the_same_picture(field, kind):
    files = [file for file in (field / kind).rglob("*") if file.is_file()]
    reference = decode((field / "raw_thumbnail" / "tiff_thumb_page_first.tif").read_bytes()).image
    assert files and reference.shape == (60, 96, 3)
    for file in files:
        assert apart(decode(file.read_bytes()).image, reference) < 2.5, file.name  # JPEG loses some


def test_the_deep_and_raw_files_of_the_field(field):
    assert kind_of((field / "raw_thumbnail" / "DSC_0001.nef").read_bytes()) is ErrorKind.UNSUPPORTED
    black = decode((field / "min_is_white16" / "tiff_min_is_black16.tif").read_bytes()).image
    white = decode((field / "min_is_white16" / "tiff_min_is_white16.tif").read_bytes()).image
    assert np.array_equal(white, 255 - black)
    scaled = decode((field / "tiff_float" / "float_nodata.tif").read_bytes()).image
    assert scaled.max() == 255 and 100 < scaled.mean() < 150 and (scaled == 0).mean() > 0.08


@pytest.mark.parametrize("name", [n for n in odd_files() if n != "turned-6.png"])
def test_what_browsers_show_is_read(name):
    assert apart(decode(odd_files()[name]).image) < 1.5


def test_what_was_ignored_is_noted():
    notes = {name: decode(data).note for name, data in odd_files().items()}
    assert notes["no-end.jpg"] == "the JPEG has no end"
    assert notes["broken-profile.png"] == notes["broken-profile.jpg"] == "its colour profile is broken and is ignored"
    assert notes["bad-crc-gAMA.png"] == "its gAMA chunk is damaged and is ignored"
    assert not any(decode(data).note for data in sound_files().values())


def test_orientation_in_exif_that_is_damaged_further_on():
    damaged = exif(6)[:9] + b"\x09" + exif(6)[10:]  # Says that nine entries follow, and ends after one
    for data in (
        with_chunks(saved(picture(), "PNG"), chunk(b"eXIf", damaged)),
        jpeg_with(saved(picture(), "JPEG", quality=95, subsampling=0), b"\xe1Exif\0\0" + damaged),
    ):
        assert apart(decode(data).image, np.rot90(RGB, -1)) < 1


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_with_nearly_all_rows_is_read(progressive):
    image = photograph(1, (400, 400))
    whole = saved(image, "JPEG", quality=90, progressive=progressive)
    cut = decode(whole[: int(len(whole) * 0.97)])
    assert "the JPEG" in cut.note
    assert apart(cut.image[:320], np.asarray(image)[:320]) < 4
    scaled = decode(whole[: int(len(whole) * 0.97)], long_side_px=100)
    assert scaled.image.shape == (100, 100, 3) and (scaled.width, scaled.height) == (400, 400)
    early = whole[: whole.find(b"\xff\xda") + 200]  # Within the first scan
    assert kind_of(early) is ErrorKind.TRUNCATED
    if not progressive:
        assert kind_of(whole[: int(len(whole) * 0.7)]) is ErrorKind.TRUNCATED


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA"])
def test_a_png_with_nearly_all_rows_is_read(mode):
    random = np.random.default_rng(1).integers(0, 255, (200, 100, 3)).astype(np.uint8)
    image = Image.fromarray(random).convert(mode)
    whole = saved(image, "PNG")
    cut = decode(whole[: int(len(whole) * 0.96)])
    want = decode(whole).image
    assert "of its rows are there" in cut.note and cut.image.shape == want.shape
    assert np.array_equal(cut.image[:180], want[:180])
    assert kind_of(whole[: int(len(whole) * 0.6)]) is ErrorKind.TRUNCATED


PROFILES = {
    "Display P3": (DISPLAY_P3, None),
    "Adobe RGB": (ADOBE_RGB, 2.2),
    "ProPhoto": (PROPHOTO, 1.8),
    "linear": (SRGB, 1.0),
}


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("format_", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF", "HEIF"])
def test_colours_of_a_profile_come_out_as_srgb(name, format_):
    options = (
        {"lossless": True} if format_ == "WEBP" else {"quality": 98} if format_ in ("JPEG", "AVIF", "HEIF") else {}
    )
    stored, profile = in_colours_of(picture(), *PROFILES[name]), rgb_profile(*PROFILES[name])
    decoded = decode(saved(stored, format_, icc_profile=profile, **options))
    assert not decoded.note
    assert apart(np.asarray(stored)) > 5  # The numbers as they stand are other colours
    assert apart(decoded.image) < 3
    half = decode(saved(stored, format_, icc_profile=profile, **options), long_side_px=48).image
    assert apart(half, np.asarray(picture().resize((48, 30), Image.Resampling.BICUBIC))) < 6


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("format_", ["PNG", "TIFF", "WEBP"])
def test_profiles_are_ignored_on_request(name, format_):
    stored, profile = in_colours_of(picture(), *PROFILES[name]), rgb_profile(*PROFILES[name])
    data = saved(stored, format_, icc_profile=profile, **({"lossless": True} if format_ == "WEBP" else {}))
    assert np.array_equal(decode(data, reading=Reading(ignore_profiles=True)).image, np.asarray(stored))
    assert not np.array_equal(decode(data).image, np.asarray(stored))


def test_deep_linear_samples_are_brought_to_the_curve_of_srgb():
    """A linear 0.2 is a middle grey, 124 of 255: by its profile alone, since nothing else says that it is linear."""
    linear = np.full((40, 60, 3), round(0.2 * 65535), np.uint16)
    profile = tuple(rgb_profile(SRGB, 1.0))
    read = decode(tiff(linear, {34675: profile})).image.astype(int)
    assert np.abs(read - 124).max() <= 2
    assert np.abs(decode(tiff(linear, {})).image.astype(int) - 51).max() <= 1
    ignored = decode(tiff(linear, {34675: profile}), reading=Reading(ignore_profiles=True)).image
    assert np.array_equal(ignored, decode(tiff(linear, {})).image)


def test_a_gain_map_behind_the_picture_is_no_part_of_it():
    """As phones store high dynamic range: a second JPEG, a grey map, in the same file (MPF, and XMP that names it)."""
    gain = Image.new("L", (SIZE[0] // 4, SIZE[1] // 4), 250).convert("RGB")
    plain = saved(picture(), "JPEG", quality=95)
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x hdrgm:Version='1.0' Item:Semantic='GainMap'/>"
    segment = b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp
    both = saved(picture(), "MPO", quality=95, save_all=True, append_images=[gain])
    for data in (plain[:2] + segment + plain[2:] + saved(gain, "JPEG"), both):
        assert np.array_equal(decode(data).image, decode(plain).image)


def test_a_profile_that_is_srgb_changes_nothing():
    for profile in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), rgb_profile(SRGB)):
        assert np.array_equal(decode(saved(picture(), "PNG", icc_profile=profile)).image, RGB)


def test_profiles_with_alpha_palette_and_grey():
    profile, stored = rgb_profile(DISPLAY_P3), in_colours_of(picture(), DISPLAY_P3, None)
    half = stored.copy()
    half.putalpha(128)
    image = decode(saved(half, "PNG", icc_profile=profile)).image
    assert apart(image, 255 - (255 - RGB.astype(int)) * 128 // 255) < 1.5
    palette = stored.quantize(250)
    assert apart(decode(saved(palette, "PNG", icc_profile=profile)).image) < 6
    linear = rgb_profile(SRGB, 1.0)
    want = in_colours_of(Image.fromarray(GREY).convert("RGB"), SRGB, 1.0).convert("L")
    assert (
        apart(decode(saved(want, "PNG", icc_profile=linear)).image, np.asarray(Image.fromarray(GREY).convert("RGB")))
        < 2
    )


def test_hostile_profiles_cost_nothing_but_a_note():
    sound = bytearray(rgb_profile(DISPLAY_P3))
    huge = bytes(sound) + bytes(9 << 20)
    for data in (
        huge,
        bytes(sound[:200]),
        bytes(sound[:128]),
        bytes(128),
        b"x",
        bytes(sound[:16]) + b"Luv " + sound[20:],
    ):
        decoded = decode(saved(picture(), "TIFF", icc_profile=data))
        assert np.array_equal(decoded.image, RGB) and ("ignored" in decoded.note or len(data) > 4096)
    for seed in range(60):
        draw = np.random.default_rng(seed)
        broken = bytearray(sound)
        for at in draw.integers(128, len(broken), 6):
            broken[at] = draw.integers(0, 256)
        assert decode(saved(picture(), "PNG", icc_profile=bytes(broken))).image.shape == RGB.shape


def test_raw_files_are_known_by_their_content(monkeypatch):
    monkeypatch.setattr(extras, "is_here", lambda package: False)  # No reader of them is installed
    cfa = tiff(np.zeros((80, 100, 1), np.uint16), {262: (32803,)})
    inside = tiff(np.full((12, 16, 3), 128, np.uint8), {254: (1,), 330: (1600,)})
    inside += bytes(1600 - len(inside)) + struct.pack("<HHHIIHHII", 2, 254, 4, 1, 0, 262, 3, 1, 32803) + bytes(4)
    canon = b"II*\0\x10\0\0\0CR\x02\0" + bytes(4) + cfa[8:]
    dng = tiff(np.zeros((80, 100, 3), np.uint8), {50706: (0x00000401,)})
    nikon = tiff(np.zeros((80, 100, 1), np.uint16), {259: (34713,)})
    starts = (
        b"FUJIFILMCCD-RAW 0201",
        b"IIRO\x08\0\0\0",
        b"IIU\0\x18\0\0\0",
        b"\0\0\0\x18ftypcrx \0\0\0\1",
        b"FOVb\0\0\3\0",
    )
    for data in (cfa, inside, canon, dng, nikon, *(start + bytes(500) for start in starts)):
        with pytest.raises(ImageError, match="RAW file of a camera needs rawpy") as caught:
            decode(data)
        assert caught.value.kind is ErrorKind.UNSUPPORTED


def test_a_tiff_shows_the_first_page_that_is_no_thumbnail():
    small, mask = picture().resize((48, 30)), Image.new("1", SIZE)
    marked = saved(small, "TIFF", tiffinfo={254: 1}, save_all=True, append_images=[picture()])
    pages = tiff_files.directories(marked)
    assert [page.size for page in pages] == [(48, 30), SIZE]
    if pages[0].reduced and not pages[1].reduced:
        assert np.array_equal(decode(marked).image, RGB)
    tiny = saved(picture().resize((16, 12)), "TIFF", save_all=True, append_images=[picture()])
    decoded = decode(tiny)
    assert np.array_equal(decoded.image, RGB) and "page 2 of its 2" in decoded.note
    # Pages of about one size are a document, and a large first page is the picture
    document = saved(picture(), "TIFF", save_all=True, append_images=[picture().transpose(0), mask])
    assert np.array_equal(decode(document).image, RGB)
    # A page that the first one names as its own
    own = tiff(RGB[:12, :16], {254: (1,), 330: (1000,)})
    large = tiff(RGB, {273: (2000,)})
    at = int.from_bytes(large[4:8], "little")
    table = large[at:]
    shift = 1000 - at
    fixed = bytearray(table)
    for number in range(int.from_bytes(table[:2], "little")):
        where = 2 + 12 * number
        if int.from_bytes(table[where + 4 : where + 8], "little") > 1:
            value = int.from_bytes(table[where + 8 : where + 12], "little") + shift
            fixed[where + 8 : where + 12] = value.to_bytes(4, "little")
    whole = own.ljust(1000, b"\0") + bytes(fixed)
    whole = whole.ljust(2000, b"\0") + RGB.tobytes()
    assert np.array_equal(decode(whole).image, RGB)


def test_deep_and_odd_tiffs():
    three = np.repeat(GREY[..., None], 3, axis=-1)
    deep, rgb16 = GREY.astype(np.uint16)[..., None] * 257, RGB.astype(np.uint16) * 257
    shares = (GREY / 255).astype(np.float32)[..., None]
    opaque = np.concatenate([RGB, np.full((*GREY.shape, 1), 255, np.uint8)], axis=-1)
    half = np.full((*GREY.shape, 1), 128, np.uint8)
    differences = np.diff(rgb16, axis=1, prepend=np.zeros((SIZE[1], 1, 3), np.uint16)).astype("<u2").tobytes()
    in_p3 = np.asarray(in_colours_of(picture(), DISPLAY_P3, None)).astype(np.uint16) * 257
    cases = {
        "white is zero, 16 bits": (tiff(65535 - deep, {262: (0,)}), three),
        "white is zero, 16 bits, big-endian": (tiff(65535 - deep, {262: (0,)}, ">"), three),
        "white is zero, 8 bits": (tiff(255 - GREY[..., None], {262: (0,)}), three),
        "32 bits": (tiff(GREY.astype(np.uint32)[..., None] * 16843009, {}), three),
        "32 bits, big-endian": (tiff(GREY.astype(np.uint32)[..., None] * 16843009, {}, ">"), three),
        "signed 32 bits of bytes": (tiff(GREY.astype(np.int32)[..., None], {}), three),
        "float": (tiff(shares, {}), three),
        "float, big-endian": (tiff(shares, {}, ">"), three),
        "double": (tiff(shares.astype(np.float64), {}), three),
        "half": (tiff(shares.astype(np.float16), {}), three),
        "float of bytes": (tiff(shares * 255, {}), three),
        "float RGB": (tiff((RGB / 255).astype(np.float32), {}), RGB),
        "16-bit RGB": (tiff(rgb16, {}), RGB),
        "16-bit RGB, big-endian": (tiff(rgb16, {}, ">"), RGB),
        "16-bit RGB, planes": (tiff(rgb16, _planes(rgb16), packed=rgb16.transpose(2, 0, 1).tobytes()), RGB),
        "8-bit RGBA, planes": (
            tiff(opaque, _planes(opaque) | {338: (2,)}, packed=opaque.transpose(2, 0, 1).tobytes()),
            RGB,
        ),
        "two samples that mean nothing": (tiff(np.concatenate([RGB, RGB[..., :2]], axis=-1), {338: (0, 0)}), RGB),
        "alpha of zero without a mark": (tiff(np.concatenate([RGB, 0 * RGB[..., :1]], axis=-1), {}), RGB),
        "premultiplied": (tiff(np.concatenate([RGB // 2, half], axis=-1), {338: (1,)}), RGB // 2 + 127),
        "differences, packed": (tiff(rgb16, {259: (8,), 317: (2,)}, packed=zlib.compress(differences)), RGB),
        "float differences": (tiff(shares, {259: (8,), 317: (3,)}, packed=zlib.compress(_floats(shares))), three),
        "16 bits, LZW": (saved(Image.fromarray(deep[..., 0]), "TIFF", compression="tiff_lzw"), three),
        "float, packbits": (saved(Image.fromarray(shares[..., 0]), "TIFF", compression="packbits"), three),
        "YCbCr": (saved(picture().convert("YCbCr"), "TIFF"), RGB),
        "turned": (tiff(np.rot90(deep).copy(), {274: (6,)}), three),
        "in a profile": (tiff(in_p3, {34675: tuple(rgb_profile(DISPLAY_P3))}), RGB),
    }
    for name, (data, want) in cases.items():
        assert apart(decode(data).image, want) < 1.5, name


def _planes(samples: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Tags of a TIFF whose channels lie one behind the other."""
    count, size = samples.shape[2], samples.nbytes // samples.shape[2]
    return {284: (2,), 273: tuple(8 + k * size for k in range(count)), 279: (size,) * count}


def _floats(samples: np.ndarray) -> bytes:
    """Rows of floats as predictor 3 stores them: bytes by their weight, then differences."""
    rows = (
        samples.astype(">f4").view(np.uint8).reshape(len(samples), -1, 4).transpose(0, 2, 1).reshape(len(samples), -1)
    )
    return np.diff(rows, axis=1, prepend=np.zeros((len(rows), 1), np.uint8)).astype(np.uint8).tobytes()


def test_subsampled_colours_without_jpeg():
    ycc = np.asarray(picture().convert("YCbCr"))
    height, width = ycc.shape[:2]
    grey = ycc[..., 0].reshape(height // 2, 2, width // 2, 2).transpose(0, 2, 1, 3).reshape(height // 2, width // 2, 4)
    colours = ycc[::2, ::2, 1:]
    packed = np.concatenate([grey, colours], axis=-1).tobytes()
    decoded = decode(tiff(ycc, {262: (6,), 530: (2, 2)}, packed=packed))
    assert apart(decoded.image) < 3
    assert kind_of(tiff(ycc, {262: (6,), 530: (2, 2)}, packed=packed[:-2000])) is ErrorKind.TRUNCATED


@pytest.mark.parametrize("mark", [-9999.0, -3.4028234663852886e38, 1e20, np.nan, -np.inf])
def test_values_that_mean_no_data_spread_nothing(mark):
    heights = np.linspace(200, 900, GREY.size).reshape(GREY.shape).astype(np.float32)
    want = decode(tiff(heights[..., None], {})).image
    heights[:20, :30] = mark
    image = decode(tiff(heights[..., None], {})).image
    assert (image[:20, :30] == 0).all()
    assert np.abs(image[20:].astype(int) - want[20:]).max() < 90 and image[20:].max() >= 250


def test_a_named_value_for_no_data_and_infinity():
    shares = (GREY / 255).astype(np.float32)[..., None]
    shares[:20, :30], shares[20:30, :30] = 0.7, np.inf
    image = decode(tiff(shares, {42113: tuple(b"0.7 ")})).image
    assert (image[20:30, :30] == 255).all()
    assert np.abs(image[:, 40:, 0].astype(int) - GREY[:, 40:]).max() <= 1
    assert kind_of(tiff(np.full((4, 4, 1), 0.5, np.float32), {273: (9999,)})) is ErrorKind.TRUNCATED
    assert decode(tiff(np.full((4, 4, 1), np.nan, np.float32), {})).image.max() == 0


def test_transparent_colours_of_any_depth():
    deep = GREY.astype(np.uint16) * 257
    png = with_chunks(saved(Image.fromarray(deep), "PNG"), chunk(b"tRNS", struct.pack(">H", int(deep[0, 0]))))
    image = decode(png).image[..., 0]
    assert np.array_equal(image, np.where(GREY[0, 0] == GREY, 255, GREY))


@pytest.mark.parametrize("size", [(96, 60), (31, 17)])
def test_a_bmp_whose_alpha_is_nowhere_is_opaque(size):
    image = picture().resize(size)
    assert np.array_equal(decode(bmp_without_alpha(image)).image, np.asarray(image))
    rgba = image.convert("RGBA")
    rgba.putalpha(0)
    assert (decode(saved(rgba, "PNG")).image == 255).all()  # As browsers show it


@pytest.mark.parametrize("name", cut_files())
def test_files_without_their_end_are_read_where_nearly_all_rows_are_there(name):
    whole, cut = cut_files()[name]
    right, found = decode(whole), decode(cut)
    assert found.image.shape == right.image.shape and "rows are there" in found.note
    wrong = (found.image != right.image).any(axis=(1, 2))
    # What is missing lies together, and what stands in for it is the row beside it
    if not name.endswith((".avif", ".heic")):  # Whose rows are filtered by what is learnt from all of the picture
        assert 0 < wrong.sum() <= (1 - MIN_ROWS) * len(wrong) + 1
    assert np.abs(found.image.astype(int) - right.image).mean() < 1.5
    small = decode(cut, 100)
    assert np.abs(small.image.astype(int) - decode(whole, 100).image).mean() < 1.5 and small.note == found.note
    with pytest.raises(ImageError) as caught:
        decode(whole[: len(whole) // 2])
    assert caught.value.kind in (ErrorKind.TRUNCATED, ErrorKind.CORRUPT, ErrorKind.NOT_AN_IMAGE)


@pytest.mark.parametrize("format_", ["AVIF", "HEIF"])
def test_broken_exif_in_avif_and_heic_costs_no_pixel(format_):
    right = decode(saved(picture(), format_, quality=95)).image
    for name, data in with_broken_exif(format_).items():
        assert np.abs(decode(data).image.astype(int) - right).mean() < 0.5, name


@pytest.mark.parametrize("format_", ["AVIF", "HEIF"])
@pytest.mark.parametrize("number", [1, 2, 3, 5, 6, 7, 8])
def test_a_damaged_exif_item_neither_costs_pixels_nor_turns_them(format_, number):
    turned = decode(saved(picture(), "PNG", exif=b"Exif\0\0" + exif(number))).image
    whole, damaged = with_damaged_exif_item(format_, number)
    right = decode(whole).image
    assert apart(right, turned) < 2
    for name, data in damaged.items():
        assert np.array_equal(decode(data).image, right), name


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("length", [0, 1])
def test_a_transparent_colour_that_is_cut_short_counts_for_nothing(mode, length):
    image = picture().convert(mode)
    found = decode(with_chunks(saved(image, "PNG"), chunk(b"tRNS", bytes(length))))
    assert np.array_equal(found.image, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    "segment",
    [
        b"\xe0JFIF\0\1",
        b"\xe0JFIF\0",
        b"\xeeAdobe\0",
        b"\xe1Exif",
        b"\xe1Exif\0\0",
        b"\xe2ICC_PROFILE\0\0\0",
        b"\xe2ICC_PROFILE\0\2\3" + b"x" * 50,
        b"\xe2MPF\0II*\0\xff\xff\xff\xf0",
        b"\xedPhotoshop 3.0\x008BIM\4\4\xff\xff\xff\xff\xff",
        b"\xe1http://ns.adobe.com/xap/1.0/\0\xff\xfe<x:xmpmeta",
    ],
)
def test_segments_of_a_jpeg_that_are_too_short_or_lie_cost_no_pixel(segment):
    jpeg = saved(picture(), "JPEG", quality=95, subsampling=0)
    assert np.array_equal(decode(jpeg_with(jpeg, segment)).image, decode(jpeg).image)


SHORT_CHUNKS = (b"pHYs", b"tIME", b"gAMA", b"cHRM", b"iCCP", b"sBIT", b"bKGD", b"acTL", b"PLTE", b"eXIf")


@pytest.mark.parametrize("kind", SHORT_CHUNKS)
def test_chunks_of_a_png_that_are_too_short_cost_no_pixel(kind):
    data = with_chunks(saved(picture(), "PNG"), chunk(kind, b"\1"))
    assert np.array_equal(decode(data).image, RGB)
