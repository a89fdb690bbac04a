"""One picture in every accepted format and mode, and as damaged, coloured and marked as people's files are."""

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image

import segcore.images.decoding  # noqa: F401, registers HEIC
from segcore.images.colour import ADOBE_RGB, DISPLAY_P3, PROPHOTO, SRGB, Primaries, rgb_profile

SIZE = (96, 60)


def saved(image: Image.Image, format_: str, **options: object) -> bytes:
    """An image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format=format_, **options)
    return buffer.getvalue()


def picture() -> Image.Image:
    """Smooth in both directions, with a dark square: every codec keeps it, and no two corners are alike."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    pixels = np.stack([40 + 2 * x, 220 - 3 * y, 60 + x], axis=-1)
    pixels[8:24, 8:40] = (30, 40, 50)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def chunk(kind: bytes, body: bytes, *, damaged: bool = False) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ damaged)


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """A PNG with these chunks behind its header."""
    return png[:33] + b"".join(chunks) + png[33:]


def webp_with(image: bytes, name: bytes, body: bytes) -> bytes:
    """A WebP with one more chunk at its end, promised in its header."""
    first = image[12:]
    width, height = SIZE[0] - 1, SIZE[1] - 1
    head = b"VP8X" + struct.pack("<II", 10, 0x08 if name == b"EXIF" else 0)
    head += width.to_bytes(3, "little") + height.to_bytes(3, "little")
    content = b"WEBP" + head + first + name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def jpeg_with(image: bytes, *segments: bytes) -> bytes:
    """A JPEG with these application segments first. segments: marker's last byte, then content."""
    parts = [b"\xff" + s[:1] + struct.pack(">H", len(s) + 1) + s[1:] for s in segments]
    return image[:2] + b"".join(parts) + image[2:]


def tiff(samples: np.ndarray, tags: dict[int, tuple[int, ...]], order: str = "<", packed: bytes | None = None) -> bytes:
    """A TIFF of one strip. samples: (H, W, S), written in `order`. tags: beside size, bits and place."""
    height, width, count = samples.shape
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes() if packed is None else packed
    bits = samples.dtype.itemsize * 8
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    whole: dict[int, tuple[int, ...]] = {
        256: (width,),
        257: (height,),
        258: (bits,) * count,
        259: (1,),
        262: (2 if count >= 3 else 1,),
        273: (8,),
        277: (count,),
        278: (height,),
        279: (len(data),),
        339: (kind,) * count,
        **tags,
    }
    table, extra, at = b"", b"", 8 + len(data) + len(data) % 2
    start = at + 2 + 12 * len(whole) + 4
    for tag, values in sorted(whole.items()):
        if tag == 34675:  # A profile, as bytes
            table += struct.pack(f"{order}HHII", tag, 7, len(values), start + len(extra))
            extra += bytes(values) + bytes(len(values) % 2)
            continue
        body = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            table += struct.pack(f"{order}HHII", tag, 4, len(values), start + len(extra))
            extra += body
        else:
            table += struct.pack(f"{order}HHI", tag, 4, 1) + body
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", at)
    return head + data + bytes(len(data) % 2) + struct.pack(f"{order}H", len(whole)) + table + bytes(4) + extra


def in_colours_of(image: Image.Image, primaries: Primaries, gamma: float | None) -> Image.Image:
    """The same colours in the numbers of another profile."""
    from PIL import ImageCms

    target = ImageCms.ImageCmsProfile(io.BytesIO(rgb_profile(primaries, gamma)))
    converted = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), target, outputMode="RGB")
    assert converted is not None
    return converted


def exif(orientation: int) -> bytes:
    """An EXIF block that holds the orientation alone."""
    return b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0) + bytes(4)


def sound_files() -> dict[str, bytes]:
    """Every accepted format and mode, none of them damaged."""
    rgb = picture()
    grey = rgb.convert("L")
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, SIZE[0]).astype(np.uint8), (SIZE[1], 1))))
    deep = np.asarray(grey).astype(np.uint16) * 257
    p3 = rgb_profile(DISPLAY_P3)
    files = {
        "grey.jpg": saved(grey, "JPEG", quality=95),
        "colour.jpg": saved(rgb, "JPEG", quality=95, subsampling=0),
        "420.jpg": saved(rgb, "JPEG", quality=90, subsampling=2),
        "progressive.jpg": saved(rgb, "JPEG", quality=95, progressive=True),
        "cmyk.jpg": saved(rgb.convert("CMYK"), "JPEG", quality=95),
        "p3.jpg": saved(in_colours_of(rgb, DISPLAY_P3, None), "JPEG", quality=95, subsampling=0, icc_profile=p3),
        "1.png": saved(rgb.convert("1"), "PNG"),
        "grey.png": saved(grey, "PNG"),
        "grey-alpha.png": saved(rgba.convert("LA"), "PNG"),
        "palette.png": saved(rgb.quantize(64), "PNG"),
        "palette-transparent.png": saved(rgb.quantize(16), "PNG", transparency=3),
        "rgb.png": saved(rgb, "PNG"),
        "rgba.png": saved(rgba, "PNG"),
        "16-bit.png": saved(Image.fromarray(deep), "PNG"),
        "keyed.png": saved(rgb, "PNG", transparency=(30, 40, 50)),
        "gamma.png": with_chunks(saved(rgb, "PNG"), chunk(b"gAMA", struct.pack(">I", 100_000))),
        "adobe.png": saved(in_colours_of(rgb, ADOBE_RGB, 2.2), "PNG", icc_profile=rgb_profile(ADOBE_RGB, 2.2)),
        "p3-alpha.png": saved(rgba, "PNG", icc_profile=p3),
        "lossy.webp": saved(rgb, "WEBP", quality=95),
        "lossless-alpha.webp": saved(rgba, "WEBP", lossless=True, exact=True),
        "p3.webp": saved(rgb, "WEBP", lossless=True, icc_profile=p3),
        "colour.avif": saved(rgb, "AVIF", quality=95, speed=10),
        "alpha.avif": saved(rgba, "AVIF", quality=95, speed=10),
        "colour.heic": saved(rgb, "HEIF", quality=95),
        "colour.bmp": saved(rgb, "BMP"),
        "palette.bmp": saved(rgb.quantize(16), "BMP"),
        "colour.gif": saved(rgb, "GIF"),
        "colour.tif": saved(rgb, "TIFF"),
        "lzw.tif": saved(rgb, "TIFF", compression="tiff_lzw"),
        "1.tif": saved(rgb.convert("1"), "TIFF", compression="group4"),
        "cmyk.tif": saved(rgb.convert("CMYK"), "TIFF"),
        "16-bit.tif": tiff(deep[..., None], {}),
        "16-bit-big-endian.tif": tiff(deep[..., None], {}, ">"),
        "float.tif": tiff((deep[..., None] / 65535).astype(np.float32), {}),
        "16-bit-rgb.tif": tiff(np.asarray(rgb).astype(np.uint16) * 257, {}),
    }
    for number in range(1, 9):
        files[f"turned-{number}.jpg"] = saved(rgb, "JPEG", quality=95, exif=b"Exif\0\0" + exif(number))
    return files


def odd_files() -> dict[str, bytes]:
    """Files that browsers show and decoders trip over."""
    rgb = picture()
    png, jpeg, webp = (
        saved(rgb, "PNG"),
        saved(rgb, "JPEG", quality=95, subsampling=0),
        saved(rgb, "WEBP", lossless=True),
    )
    prophoto = in_colours_of(rgb, PROPHOTO, 1.8)
    linear = in_colours_of(rgb, SRGB, 1.0)
    chroma = struct.pack(">8I", *(round(1e5 * v) for pair in (ADOBE_RGB[3], *ADOBE_RGB[:3]) for v in pair))
    adobe = in_colours_of(rgb, ADOBE_RGB, 2.2)
    garbage = b"garbage that is no EXIF"
    return {
        "bad-crc-pHYs.png": with_chunks(png, chunk(b"pHYs", bytes(9), damaged=True)),
        "bad-crc-tEXt.png": with_chunks(png, chunk(b"tEXt", b"a\0b", damaged=True)),
        "bad-crc-gAMA.png": with_chunks(png, chunk(b"gAMA", struct.pack(">I", 100_000), damaged=True)),
        "text-2mb.png": with_chunks(png, chunk(b"iTXt", b"x\0\1\0\0\0" + zlib.compress(bytes(2 << 20)))),
        "ztxt-3mb.png": with_chunks(png, chunk(b"zTXt", b"x\0\0" + zlib.compress(b"y" * (3 << 20)))),
        "exif-garbage.png": with_chunks(png, chunk(b"eXIf", garbage)),
        "exif-cut.png": with_chunks(png, chunk(b"eXIf", exif(6)[:15])),
        "turned-6.png": with_chunks(png, chunk(b"eXIf", exif(6))),
        "no-end.png": png[: png.rfind(b"IEND") - 4],
        "short-physical.png": with_chunks(png, chunk(b"pHYs", b"\0")),
        "broken-profile.png": with_chunks(png, chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile" * 20))),
        "linear.png": saved(linear, "PNG", icc_profile=rgb_profile(SRGB, 1.0)),
        "prophoto.png": saved(prophoto, "PNG", icc_profile=rgb_profile(PROPHOTO, 1.8)),
        "gamma-and-primaries.png": with_chunks(
            saved(adobe, "PNG"), chunk(b"gAMA", struct.pack(">I", 45_455)), chunk(b"cHRM", chroma)
        ),
        "coded-p3.png": with_chunks(
            saved(in_colours_of(rgb, DISPLAY_P3, None), "PNG"), chunk(b"cICP", bytes((12, 13, 0, 1)))
        ),
        "srgb-beats-gamma.png": with_chunks(png, chunk(b"sRGB", b"\0"), chunk(b"gAMA", struct.pack(">I", 100_000))),
        "exif-garbage.jpg": jpeg_with(jpeg, b"\xe1Exif\0\0" + garbage),
        "exif-cut.jpg": jpeg_with(jpeg, b"\xe1Exif\0\0" + exif(6)[:15]),
        "exif-far-offset.jpg": jpeg_with(jpeg, b"\xe1Exif\0\0MM\0*\xff\xff\xff\xf0" + bytes(20)),
        "several-garbage.jpg": jpeg_with(jpeg, b"\xe2MPF\0II*\0" + b"\xff" * 40),
        "photoshop-garbage.jpg": jpeg_with(jpeg, b"\xedPhotoshop 3.0\x008BIM\4\4\0\0\xff\xff\xff\xff"),
        "broken-profile.jpg": jpeg_with(jpeg, b"\xe2ICC_PROFILE\0\1\1" + b"no profile" * 20),
        "no-end.jpg": jpeg[:-2],
        "garbage-behind.jpg": jpeg + b"behind the end" * 50,
        "adobe.jpg": saved(adobe, "JPEG", quality=98, subsampling=0, icc_profile=rgb_profile(ADOBE_RGB, 2.2)),
        "exif-garbage.webp": webp_with(webp, b"EXIF", garbage),
        "exif-cut.webp": webp_with(webp, b"EXIF", exif(6)[:15]),
        "unknown-chunk.webp": webp_with(webp, b"ABCD", b"whatever"),
        "alpha-zero.bmp": bmp_without_alpha(rgb),
        "prophoto.webp": saved(prophoto, "WEBP", lossless=True, icc_profile=rgb_profile(PROPHOTO, 1.8)),
    }


def bmp_without_alpha(image: Image.Image) -> bytes:
    """A BMP of 32 bits that promises alpha by its masks and has none anywhere."""
    pixels = bytearray(np.asarray(image.convert("RGBA"))[::-1, :, [2, 1, 0, 3]].tobytes())
    pixels[3::4] = bytes(len(pixels) // 4)
    head = struct.pack("<IiiHHIIiiII", 108, *image.size, 1, 32, 3, len(pixels), 2835, 2835, 0, 0)
    head += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(pixels), 0, 0, 14 + len(head)) + head + pixels


def noisy_picture(size: tuple[int, int] = (480, 300)) -> Image.Image:
    """A picture whose every row differs from its neighbours, so that a codec spends bytes on all of them."""
    noise = np.random.default_rng(0).integers(-12, 13, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(picture().resize(size)) + noise).clip(0, 255).astype(np.uint8))


@functools.cache
def cut_files() -> dict[str, tuple[bytes, bytes]]:
    """Whole files with what is left of each when their last bytes are missing: not more than a tenth of the rows."""
    image = noisy_picture()
    files = {
        "cut.bmp": (saved(image, "BMP"), 0.08),
        "palette-cut.bmp": (saved(image.quantize(64), "BMP"), 0.05),
        "cut.gif": (saved(image, "GIF", interlace=0), 0.06),
        "interlaced-cut.gif": (saved(image, "GIF"), 0.06),
        "cut.webp": (saved(image, "WEBP", quality=90), 0.05),
        "lossless-cut.webp": (saved(image, "WEBP", lossless=True), 0.05),
        "cut.tif": (saved(image, "TIFF"), 0.08),
        "cut.avif": (saved(image, "AVIF", speed=10), 0.005),
        "cut.heic": (saved(image, "HEIF", quality=90), 0.01),
        "cut.jpg": (saved(image, "JPEG", quality=90), 0.02),
        "cut.png": (saved(image, "PNG"), 0.05),
    }
    return {name: (data, data[: int(len(data) * (1 - share))]) for name, (data, share) in files.items()}


def with_broken_exif(format_: str) -> dict[str, bytes]:
    """An AVIF or HEIC whose EXIF is garbage, has an offset far outside, or is cut short."""
    block = Image.Exif()
    block[270] = "A description, so that there is something"
    whole = saved(picture(), format_, quality=95, exif=block.tobytes())
    at = max(whole.rfind(b"MM\0*"), whole.rfind(b"II*\0"))
    assert at > 0
    broken = {"garbage": b"no EXIF here", "far-offset": b"MM\0*\xff\xff\xff\xf0\xff\xff", "empty": bytes(12)}
    return {name: whole[:at] + start + whole[at + len(start) :] for name, start in broken.items()}


def with_damaged_exif_item(format_: str, number: int) -> tuple[bytes, dict[str, bytes]]:
    """An AVIF or HEIC whose container turns it by an orientation, and the same with its EXIF item damaged.

    What turns such a picture is in boxes of the container, `irot` and `imir` (ISO 23008-12); EXIF does not count.
    """
    block = Image.Exif()
    block[270], block[274], block[531] = "A description, so that there is something", number, 1
    whole = saved(picture(), format_, quality=95, exif=block.tobytes())
    at = whole.index(b"iloc") - 4
    end = at + int.from_bytes(whole[at : at + 4], "big")  # EXIF is the last item: offset and length are the last fields
    offset, length = struct.unpack(">II", whole[end - 8 : end])
    header = max(whole.rfind(b"MM\0*"), whole.rfind(b"II*\0"))
    start = header - (10 if whole[header - 6 : header] == b"Exif\0\0" else 4)

    def placed(new_offset: int, new_length: int) -> bytes:
        return whole[: end - 8] + struct.pack(">II", new_offset, new_length) + whole[end:]

    # Programs that write `irot` drop the orientation from EXIF or set it to 1; others leave what the camera wrote
    big = whole[header : header + 2] == b"MM"
    names = [struct.pack(">HH" if big else "<HH", tag, 3) for tag in (274, 531)]
    tag = next(place for name in names if (place := whole.find(name, header)) > 0)
    value = struct.pack(">HHIH" if big else "<HHIH", 274, 3, 1, number % 8 + 1)
    return whole, {
        "cut in half": placed(offset, length // 2),
        "cut in its header": placed(offset, 7),
        "of no length": placed(offset, 0),
        "beside itself": placed(offset + 13, length - 13),
        "outside the file": placed(0x7FFFFF00, length),
        "longer than the file": placed(offset, 0x7FFFFF00),
        "with a header far off": whole[:start] + b"\xff\xff\xff\xf0" + whole[start + 4 :],
        "that contradicts": whole[:tag] + value + whole[tag + len(value) :],
    }
