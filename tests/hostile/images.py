"""Images to damage, one or more of each accepted format, and bombs made by hand."""

import functools
import io
import random
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms

from segcore.images.decoding import decode
from segcore.images.errors import ErrorKind, ImageError
from tests.conftest import photograph
from tests.hostile.mutants import mutant

LONG_SIDE_PX = 513
MAX_PIXELS = 100_000_000
"""What the archive job asks of `decode` by default."""

BOMB_SHARE = 0.06


def _saved(image: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format_, **options)
    return buffer.getvalue()


def _frames(image: Image.Image, format_: str) -> bytes:
    # Savers leave settings behind in the pictures that they are given
    return _saved(image.copy(), format_, save_all=True, append_images=[photograph(2, (120, 90))])


@functools.cache
def originals() -> dict[str, list[bytes]]:
    """Sound files by format."""
    picture = photograph(1, (120, 90))
    rgba = picture.convert("RGBA")
    rgba.putalpha(Image.fromarray(np.tile(np.arange(120, dtype=np.uint8) * 2, (90, 1))))
    deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description" * 20
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return {
        "JPEG": [
            _saved(picture, "JPEG"),
            _saved(picture, "JPEG", progressive=True),
            _saved(picture.convert("CMYK"), "JPEG", icc_profile=profile),
            _saved(picture, "JPEG", exif=exif, icc_profile=profile),
            _saved(picture.convert("L"), "JPEG", restart_marker_blocks=2),
            _frames(picture, "MPO"),
        ],
        "PNG": [
            _saved(picture, "PNG", icc_profile=profile, exif=exif),
            _saved(deep, "PNG"),
            _saved(picture.quantize(16), "PNG", transparency=3),
            _saved(rgba, "PNG", save_all=True, append_images=[rgba]),
            _interlaced(picture),
        ],
        "WebP": [
            _saved(picture, "WEBP"),
            _saved(rgba, "WEBP", lossless=True),
            _saved(picture, "WEBP", exif=exif, icc_profile=profile),
            _frames(picture, "WEBP"),
        ],
        "AVIF": [_saved(picture, "AVIF", speed=10), _saved(rgba, "AVIF", speed=10, exif=exif, icc_profile=profile)],
        "HEIC": [_saved(picture, "HEIF"), _saved(picture, "HEIF", exif=exif)],
        "BMP": [_saved(picture, "BMP"), _saved(picture.quantize(16), "BMP"), _saved(rgba, "BMP"), _run_length_bmp()],
        "TIFF": [
            _saved(picture, "TIFF"),
            _saved(picture, "TIFF", compression="tiff_lzw"),
            _saved(deep, "TIFF", compression="tiff_adobe_deflate"),
            _saved(picture, "TIFF", compression="jpeg"),
            _saved(picture.convert("CMYK"), "TIFF", icc_profile=profile),
            _saved(picture.convert("F"), "TIFF", compression="packbits"),
            _saved(picture.convert("1"), "TIFF", compression="group4"),
            _saved(picture, "TIFF", big_tiff=True),
            _tiled_tiff(picture, 32),
            _frames(picture, "TIFF"),
        ],
        "GIF": [_saved(picture, "GIF"), _frames(picture, "GIF"), _saved(picture.quantize(4), "GIF")],
    }


def make(number: int, seed: int) -> tuple[str, bytes]:
    """Format and content of a hostile image."""
    draw = random.Random(f"image {seed} {number}")
    by_format = originals()
    format_ = list(by_format)[number % len(by_format)]
    if draw.random() < BOMB_SHARE:
        return format_, draw.choice(_BOMBS[format_])(draw)
    every = [data for group in by_format.values() for data in group]
    own = by_format[format_]
    return format_, mutant(draw, draw.choice(own), own if draw.random() < 0.7 else every)


def prepare() -> None:
    """Import and make everything once; sound files are read."""
    for group in originals().values():
        for data in group:
            assert read(data) == "decoded"


def read(data: bytes) -> str:
    """Decode as the archive job does; what came of it, or the fault."""
    try:
        decoded = decode(data, LONG_SIDE_PX, MAX_PIXELS)
    except ImageError as error:
        said = str(error)
        if not isinstance(error.kind, ErrorKind) or not said or "\n" in said or len(said) > 400:
            return f"FAULT: a reason that is no reason: {said[:80]!r}"
        return f"refused: {error.kind}"
    image = decoded.image
    sound = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    if not sound or max(image.shape[:2]) > LONG_SIDE_PX or not 0 < decoded.width * decoded.height <= MAX_PIXELS:
        return f"FAULT: {image.dtype} {image.shape} of {decoded.width} x {decoded.height}"
    return "decoded"


def _huge(draw: random.Random) -> int:
    return draw.choice((9_999, 16_383, 32_767, 65_535, 60_000, 0x7FFFFFFF, 0xFFFFFFFF, draw.randrange(1 << 32)))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@functools.cache
def _zeros(megabytes: int) -> bytes:
    return zlib.compress(bytes(megabytes << 20), 9)


def _png(draw: random.Random, width: int, height: int, depth: int, colour: int, extra: bytes = b"") -> bytes:
    header = struct.pack(
        ">IIBBBBB", width & 0x7FFFFFFF, height & 0x7FFFFFFF, depth, colour, 0, 0, draw.choice((0, 0, 1))
    )
    pixels = _zeros(draw.choice((1, 100, 400)))
    end = _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + extra + end


def _png_bomb(draw: random.Random) -> bytes:
    side = draw.choice((1000, 9_999, 10_001, 13_000))
    return _png(draw, side, side, *draw.choice(((8, 2), (8, 6), (16, 0), (16, 6), (1, 0))))


def _png_claim(draw: random.Random) -> bytes:
    return _png(draw, _huge(draw), _huge(draw), 8, 2)


def _png_metadata_bomb(draw: random.Random) -> bytes:
    packed = _zeros(100)
    extra = draw.choice(
        (
            _chunk(b"iCCP", b"x\0\0" + packed),
            _chunk(b"zTXt", b"x\0\0" + packed) * 30,
            _chunk(b"iTXt", b"x\0\1\0\0\0" + packed) * 30,
            _chunk(b"tEXt", b"x\0" + b"y" * 900_000) * 80,
            _chunk(b"eXIf", _overlapping_tags(b"", 200_000)),
            _chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(_as_text(_overlapping_tags(b"", 200_000)))),
            _chunk(b"acTL", struct.pack(">II", 0xFFFFFFFF, 0)),
        )
    )
    return _png(draw, 30, 30, 8, 2, extra)


def _as_text(exif: bytes) -> bytes:
    return b"\nexif\n%8d\n" % len(exif) + exif.hex().encode()


def _overlapping_tags(head: bytes, size: int) -> bytes:
    """A table of tags each of which claims nearly the whole table."""
    number = min(65_535, size // 24)
    entries = b"".join(struct.pack("<HHII", tag, 7, size - 600, 500) for tag in range(number))
    table = head + b"II*\0\x08\0\0\0" + struct.pack("<H", number) + entries
    return table + bytes(max(0, size - len(table)))


def _jpeg_segments(*segments: bytes) -> bytes:
    sound = originals()["JPEG"][0]
    return sound[:2] + b"".join(s[:2] + struct.pack(">H", len(s)) + s[2:] for s in segments) + sound[2:]


def _jpeg_exif_bomb(draw: random.Random) -> bytes:
    tags = _overlapping_tags(b"", draw.choice((60_000, 2_000_000)))
    pieces = [tags[at : at + 65_000] for at in range(0, len(tags), 65_000)]
    return _jpeg_segments(*(b"\xff\xe1Exif\0\0" + piece for piece in pieces))


def _jpeg_garbage_metadata(draw: random.Random) -> bytes:
    noise = draw.randbytes(draw.choice((10, 1000, 60_000)))
    exif, xmp = b"\xff\xe1Exif\0\0", b"\xff\xe1http://ns.adobe.com/xap/1.0/\0"
    colour, several = b"\xff\xe2ICC_PROFILE\0\1\1", b"\xff\xe2MPF\0II*\0\x08\0\0\0"
    heads = (exif + b"II*\0\x08\0\0\0", exif + b"MM\0*", colour, several, b"\xff\xedPhotoshop 3.0\0", xmp)
    head = draw.choice(heads)
    return _jpeg_segments(*[head + noise] * draw.choice((1, 3)))


def _patched_jpeg(data: bytes, width: int, height: int) -> bytes:
    at = next(data.find(marker) for marker in (b"\xff\xc0", b"\xff\xc2", b"\xff\xc1") if marker in data)
    return data[: at + 5] + struct.pack(">HH", height & 0xFFFF, width & 0xFFFF) + data[at + 9 :]


def _jpeg_claim(draw: random.Random) -> bytes:
    return _patched_jpeg(draw.choice(originals()["JPEG"]), _huge(draw), _huge(draw))


def _jpeg_scans(draw: random.Random) -> bytes:
    """Scan upon scan over a large image, each of a few bytes."""
    sound = originals()["JPEG"][1]
    last = sound.rfind(b"\xff\xda")
    scan = sound[last : last + 12]
    side = draw.choice((120, 3000, 9_990))
    return _patched_jpeg(sound[:-2] + scan * draw.choice((20, 50, 500, 20_000)) + b"\xff\xd9", side, side)


def _webp_claim(draw: random.Random) -> bytes:
    width, height = draw.choice(((16_383, 16_383), (0xFFFFFF, 0xFFFFFF), (9_999, 9_999), (0xFFFFFF, 1)))
    canvas = bytes([draw.choice((0, 2, 16))]) + bytes(3) + struct.pack("<I", width)[:3] + struct.pack("<I", height)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas + originals()["WebP"][draw.randrange(2)][12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _webp_exif_bomb(draw: random.Random) -> bytes:
    exif = _overlapping_tags(draw.choice((b"", b"Exif\0\0")), 400_000)
    sound = originals()["WebP"][2]
    at = sound.find(b"EXIF")
    body = sound[8:at] + b"EXIF" + struct.pack("<I", len(exif)) + exif
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _boxed_claim(format_: str, draw: random.Random) -> bytes:
    """The property that says width and height of an AVIF or HEIC."""
    data = bytearray(draw.choice(originals()[format_]))
    at = data.find(b"ispe")
    while at >= 0:
        data[at + 8 : at + 16] = struct.pack(">II", _huge(draw) & 0xFFFFFFFF, _huge(draw) & 0xFFFFFFFF)
        at = data.find(b"ispe", at + 4)
    return bytes(data)


def _boxed_lengths(format_: str, draw: random.Random) -> bytes:
    data = bytearray(draw.choice(originals()[format_]))
    box = draw.choice((b"meta", b"iloc", b"iinf", b"iprp", b"ipco", b"ipma", b"mdat", b"iref", b"infe", b"colr"))
    at = data.find(box)
    if at >= 4:
        data[at - 4 : at] = struct.pack(">I", draw.choice((0, 1, 7, 8, 0x7FFFFFFF, 0xFFFFFFFF, len(data))))
        if draw.random() < 0.5:
            data[at + 8 : at + 12] = struct.pack(">I", draw.choice((0xFFFF, 0xFFFFFFFF, 0x44000000)))
    return bytes(data)


def _boxed_exif(format_: str, draw: random.Random) -> bytes:
    data = bytearray(originals()[format_][1])
    at = max(data.find(b"II*\0"), data.find(b"MM\0*"))
    noise = draw.randbytes(100)
    data[at : at + len(noise)] = b"II*\0\x08\0\0\0\xff\xff" + noise[10:]
    return bytes(data)


def _bmp_claim(draw: random.Random) -> bytes:
    data = bytearray(draw.choice(originals()["BMP"]))
    data[18:26] = struct.pack("<II", _huge(draw), _huge(draw))
    data[28:34] = struct.pack("<HI", draw.choice((1, 4, 8, 16, 24, 32)), draw.choice((0, 1, 2, 3)))
    return bytes(data)


def _run_length_bmp(size: int = 64) -> bytes:
    rows = b"".join(bytes([size, row & 7, 0, 0]) for row in range(size)) + b"\0\1"
    colours = bytes(range(256)) * 4
    head = struct.pack("<IiiHHIIiiII", 40, size, size, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(rows), 0, 0, 54 + 1024) + head + colours + rows


def _bmp_runs(draw: random.Random) -> bytes:
    data = bytearray(_run_length_bmp())
    side = draw.choice((64, 9_999, 30_000))
    data[18:26] = struct.pack("<II", side, side)
    data[1078:] = draw.choice((b"\0\2\xff\xff" * 5000, b"\0\0" * 5000, b"\xff\1" * 5000, b"\0\xff" * 5000))
    return bytes(data)


def tiff(entries: list[tuple[int, int, int, int]], body: bytes = b"") -> bytes:
    """A TIFF of entries (tag, type, count, value); body begins right behind the table."""
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4) + body


def _tiff_of(width: int, height: int, extra: list[tuple[int, int, int, int]], compression: int, body: bytes) -> bytes:
    plain = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1)]
    entries = sorted({entry[0]: entry for entry in [*plain, (277, 3, 1, 1), *extra]}.values())
    start = 8 + 2 + 12 * len(entries) + 4
    return tiff([(t, k, c, start if v == -1 else v) for t, k, c, v in entries], body)


def _tiled_tiff(picture: Image.Image, side: int) -> bytes:
    grey = np.asarray(picture.convert("L"))[: side * 2, : side * 2]
    tiles = [zlib.compress(grey[y : y + side, x : x + side].tobytes()) for y in (0, side) for x in (0, side)]
    extra = [(322, 4, 1, side), (323, 4, 1, side), (324, 4, 4, -1), (325, 4, 4, -1)]
    data = bytearray(_tiff_of(side * 2, side * 2, extra, 8, bytes(32) + b"".join(tiles)))
    start = len(data) - 32 - sum(map(len, tiles))
    at = start + 32
    for k, tile in enumerate(tiles):
        struct.pack_into("<I", data, start + 4 * k, at)
        struct.pack_into("<I", data, start + 16 + 4 * k, len(tile))
        at += len(tile)
    # The sizes stand behind the places
    table = data.find(struct.pack("<HHI", 325, 4, 4))
    struct.pack_into("<I", data, table + 8, start + 16)
    return bytes(data)


def _tiff_claim(draw: random.Random) -> bytes:
    width, height = _huge(draw) & 0xFFFFFFFF, _huge(draw) & 0xFFFFFFFF
    rows = draw.choice((1, height, 0xFFFFFFFF, 0))
    extra = [(273, 4, 1, -1), (279, 4, 1, 0xFFFFFFFF), (278, 4, 1, rows)]
    return _tiff_of(width, height, extra, draw.choice((1, 5, 8, 32773, 4, 7)), bytes(500))


def _tiff_tiles(draw: random.Random) -> bytes:
    side = draw.choice((65_536, 16_384, 46_336, 0x7FFFFFFF))
    extra = [(322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, -1), (325, 4, 1, len(_zeros(400)))]
    return _tiff_of(64, 64, extra, 8, _zeros(400))


def _tiff_strip(draw: random.Random) -> bytes:
    side = draw.choice((64, 9_999, 12_000))
    packed = _zeros(draw.choice((1, 100, 400)))
    depth, sample = draw.choice(((8, 1), (16, 1), (32, 1), (32, 3)))
    extra = [(258, 3, 1, depth), (273, 4, 1, -1), (279, 4, 1, len(packed)), (278, 4, 1, side), (339, 3, 1, sample)]
    return _tiff_of(side, side, extra, 8, packed)


def _tiff_many_strips(draw: random.Random) -> bytes:
    count = draw.choice((0xFFFFFFFF, 0x40000000, 1_000_000))
    extra = [(273, 4, count, -1), (279, 4, count, -1), (278, 4, 1, 1)]
    return _tiff_of(500, 500, extra, draw.choice((1, 5)), bytes(draw.choice((10, 4_000_000))))


def _tiff_tags(draw: random.Random) -> bytes:
    return _overlapping_tags(b"", draw.choice((100_000, 3_000_000)))


def _gif_frame(draw: random.Random) -> bytes:
    screen, frame = (10, 10), draw.choice(((65_535, 65_535), (9_999, 9_999), (65_535, 10)))
    if draw.random() < 0.3:
        screen, frame = frame, (10, 10)
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0xF7, 0, 0) + bytes(768)
    pixels = b"\x08" + b"\xff" + draw.randbytes(255) + b"\0"
    return head + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + pixels + b";"


def _gif_blocks(draw: random.Random) -> bytes:
    """Comments and extensions without end."""
    sound = originals()["GIF"][0]
    block = draw.choice(
        (b"!\xfe" + b"\xffx" * 0 + b"\x01x\0", b"!\xf9\x04\0\0\0\0\0", b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0")
    )
    at = 13 + 3 * 2 ** ((sound[10] & 7) + 1)
    return sound[:at] + block * 100_000 + sound[at:]


_BOMBS = {
    "JPEG": (_jpeg_exif_bomb, _jpeg_garbage_metadata, _jpeg_claim, _jpeg_scans),
    "PNG": (_png_bomb, _png_claim, _png_metadata_bomb),
    "WebP": (_webp_claim, _webp_exif_bomb),
    "AVIF": tuple(functools.partial(make_bomb, "AVIF") for make_bomb in (_boxed_claim, _boxed_lengths, _boxed_exif)),
    "HEIC": tuple(functools.partial(make_bomb, "HEIC") for make_bomb in (_boxed_claim, _boxed_lengths, _boxed_exif)),
    "BMP": (_bmp_claim, _bmp_runs),
    "TIFF": (_tiff_claim, _tiff_tiles, _tiff_strip, _tiff_many_strips, _tiff_tags),
    "GIF": (_gif_frame, _gif_blocks),
}


_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def _interlaced(picture: Image.Image) -> bytes:
    """Adam7, which Pillow does not write: seven small pictures one after another."""
    pixels = np.asarray(picture)
    raw = b""
    for x, y, step_x, step_y in _ADAM7:
        part = pixels[y::step_y, x::step_x]
        raw += b"".join(b"\0" + row.tobytes() for row in part) if part.size else b""
    header = struct.pack(">IIBBBBB", picture.width, picture.height, 8, 2, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(raw)) + _chunk(b"IEND", b"")
