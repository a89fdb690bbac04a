"""Image files as bytes: what stands beside the pixels, read by best effort, and files without what is broken in them.

A decoder that trips over metadata would cost the picture. So a PNG goes to the decoder without any, and the others are
tried again without theirs where the decoder fails. Nothing here decodes pixels.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from segcore.images.colour import MAX_PROFILE_BYTES, SRGB, coded_profile, rgb_profile

MAX_EXIF_BYTES = 1 << 20
"""Of EXIF in PNG text; in its own chunk any size is read, since nothing is unpacked."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8"

_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_EXIF_TEXT = b"Raw profile type exif"  # Of ImageMagick, from before PNG had a chunk for it
_ORIENTATION = 0x0112


@dataclass
class Bare:
    """A file that holds its pixels alone, and what was read from the rest."""

    data: bytes
    profile: bytes | None = None
    """ICC profile, embedded or made from what the file says of its colours."""

    exif: bytes = b""
    notes: list[str] = field(default_factory=list)
    """What was ignored or missing, in words."""


_LEAST_TRANSPARENCY = {0: 2, 2: 6}
"""Bytes of a PNG's tRNS by its colour type, grey and RGB; browsers ignore one that is shorter."""


def bare_png(data: bytes) -> Bare:
    """A PNG without anything that no pixel depends on; its first image where it is animated.

    Ancillary chunks with a wrong checksum count for nothing, as browsers have it. Colours by the order of PNG's third
    edition: cICP, iCCP, sRGB, then gAMA with cHRM.
    """
    found: dict[bytes, bytes] = {}
    kept: list[bytes | memoryview] = [PNG_SIGNATURE]
    bare = Bare(b"")
    at, view = len(PNG_SIGNATURE), memoryview(data)
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"IEND" or not kind.isalpha():
            break
        end = at + 12 + length
        if end > len(data):
            if kind == b"IDAT":  # Cut: the decoder says whether the rest is enough
                part = data[at + 8 :]
                kept.append(struct.pack(">I4s", len(part), kind) + part + bytes(4))
            break
        if kind in _PNG_PIXELS:
            if kind != b"tRNS" or (length >= _LEAST_TRANSPARENCY.get(data[25], 1) and _sound(view[at + 4 : end])):
                kept.append(view[at:end])
        elif kind in (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"eXIf") or (
            kind in (b"zTXt", b"tEXt") and view[at + 8 : at + 8 + len(_EXIF_TEXT)] == _EXIF_TEXT
        ):
            if _sound(view[at + 4 : end]):
                found.setdefault(kind, bytes(view[at + 8 : end - 4]))
            else:
                bare.notes.append(f"its {kind.decode()} chunk is damaged and is ignored")
        at = end
    bare.data = b"".join([*kept, b"\0\0\0\0IEND\xaeB`\x82"])
    bare.exif = found.get(b"eXIf", b"") or _exif_of_text(found)
    bare.profile = _png_profile(found, bare.notes)
    return bare


def _sound(chunk: memoryview) -> bool:
    """Whether the checksum of a chunk, from its name on, is right."""
    return zlib.crc32(chunk[:-4]) == int.from_bytes(chunk[-4:], "big")


def _png_profile(found: dict[bytes, bytes], notes: list[str]) -> bytes | None:
    coded = found.get(b"cICP", b"")
    if len(coded) == 4 and coded[2] == 0:
        return coded_profile(coded[0], coded[1])
    if b"iCCP" in found:
        packed = found[b"iCCP"].partition(b"\0")[2][1:]
        unpacked = _unpacked(packed, MAX_PROFILE_BYTES)
        if unpacked is not None:
            return unpacked
        notes.append("its colour profile is broken and is ignored")
    if b"sRGB" in found or len(found.get(b"gAMA", b"")) != 4:
        return None
    exponent = int.from_bytes(found[b"gAMA"], "big") / 100_000
    # What an encoder of 2.2 or sRGB writes; beyond the bounds nothing sensible was meant
    gamma = None if abs(exponent - 0.45455) < 0.01 else 1 / exponent if 0.1 <= exponent <= 10 else None
    primaries = SRGB
    if len(found.get(b"cHRM", b"")) == 32:
        white_x, white_y, *rest = (value / 100_000 for value in struct.unpack(">8I", found[b"cHRM"]))
        primaries = ((rest[0], rest[1]), (rest[2], rest[3]), (rest[4], rest[5]), (white_x, white_y))
    if gamma is None and np.allclose(primaries, SRGB, rtol=0, atol=0.005):
        return None
    try:
        return rgb_profile(primaries, gamma)
    except ValueError:
        notes.append("its primaries span no colours and are ignored")
        return None


def _exif_of_text(found: dict[bytes, bytes]) -> bytes:
    """EXIF as ImageMagick writes it: a count of bytes and hexadecimal digits, packed or not."""
    text = found.get(b"tEXt", b"").partition(b"\0")[2]
    if b"zTXt" in found:
        text = _unpacked(found[b"zTXt"].partition(b"\0")[2][1:], 2 * MAX_EXIF_BYTES) or b""
    digits = b"".join(text.split()[2:])
    try:
        return bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        return b""


def _unpacked(packed: bytes, most_bytes: int) -> bytes | None:
    """None for what is broken or longer."""
    worker = zlib.decompressobj()
    try:
        content = worker.decompress(packed, most_bytes)
    except zlib.error:
        return None
    return None if worker.unconsumed_tail else content


def completed_png(data: bytes, least_share: float, max_pixels: int) -> tuple[bytes, float] | None:
    """A PNG whose pixels end too early, completed by repeating its last row; and the share of rows that it has.

    None where it has fewer rows, where it is interlaced (all rows would be coarse), and where it is broken otherwise.
    """
    if len(data) < 33 or data[12:16] != b"IHDR" or data[28]:
        return None
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour)
    if channels is None or not 0 < width * height <= max_pixels:
        return None
    row = 1 + (width * depth * channels + 7) // 8
    head, packed, at = [PNG_SIGNATURE], [], len(PNG_SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"IDAT":
            packed.append(data[at + 8 : at + 8 + length])
        elif kind != b"IEND":
            head.append(data[at : at + 12 + length])
        at += 12 + length
    worker, rows = zlib.decompressobj(), bytearray()
    try:
        for piece in packed:
            rows += worker.decompress(piece, max(1, row * height - len(rows)))
    except zlib.error:
        pass  # Whatever came before counts
    whole = len(rows) // row
    if not least_share * height <= whole < height:
        return None
    del rows[whole * row :]
    repeated = b"\2" + bytes(row - 1)  # Filter "up" of zeros: the row above
    pixels = zlib.compress(bytes(rows) + repeated * (height - whole), 1)
    body = struct.pack(">I4s", len(pixels), b"IDAT") + pixels + struct.pack(">I", zlib.crc32(b"IDAT" + pixels))
    return b"".join([*head, body, b"\0\0\0\0IEND\xaeB`\x82"]), whole / height


def without_metadata(data: bytes) -> Iterator[tuple[bytes, str]]:
    """The same file without what no pixel depends on, for a decoder that failed, and a note; nothing where there is
    no other way to try."""
    if data[:2] == JPEG_START:
        bare = _bare_jpeg(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        bare = _bare_webp(data)
    elif data[4:8] == b"ftyp":
        bare = _FILE_ITEM.sub(rb"\1skip", data)
    else:
        return
    if bare != data:
        yield bare, "its metadata is broken and is ignored"


_FILE_ITEM = re.compile(rb"(infe(?:\x02.{3}.{2}|\x03.{3}.{4}).{2})(?:Exif|mime)", re.DOTALL)
"""Entry of EXIF or XMP in the list of items of an HEIF or AVIF file (ISO 23008-12)."""


_LEAST_SEGMENT = {0xE0: 18, 0xEE: 16}
"""Bytes of JFIF's and Adobe's segments, marker and length included; libjpeg ignores those that are shorter."""


def _bare_jpeg(data: bytes) -> bytes:
    """Up to the first scan without application segments; JFIF's, Adobe's and profiles stay, and the pixels."""
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0xDA, 0xD9):
        if data[at + 1] == 0xFF:
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        metadata = 0xE0 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE
        profile = data[at + 1] == 0xE2 and data[at + 4 : at + 16] == b"ICC_PROFILE\0"
        short = end - at < _LEAST_SEGMENT.get(data[at + 1], 0)
        if not metadata or (data[at + 1] in _LEAST_SEGMENT and not short) or profile:
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _bare_webp(data: bytes) -> bytes:
    """The chunks of the picture alone; a last one that is cut is cut off."""
    kept, at = [], 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + length + length % 2
        if data[at : at + 4] in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP"):
            chunk = data[at:end]
            if chunk[:4] == b"VP8X" and len(chunk) > 8:
                chunk = chunk[:8] + bytes([chunk[8] & ~0x0C]) + chunk[9:]  # No longer promises EXIF and XMP
            kept.append(chunk)
        at = end
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def nclx_profile(data: bytes) -> bytes | None:
    """The profile of the code points of an AVIF or HEIF file that embeds none; None for sRGB and what is not known."""
    at = data.find(b"colrnclx", 0, 1 << 16)
    if at < 0:
        return None
    primaries, transfer = struct.unpack(">HH", data[at + 8 : at + 12].ljust(4, b"\0"))
    return coded_profile(primaries, transfer)


def quarter_turns_and_mirrors(data: bytes) -> list[tuple[str, int]]:
    """What turns the primary picture of an AVIF or HEIC, in order: ("irot", quarter turns anticlockwise) and ("imir", 0
    for upside down, 1 for left and right). ISO/IEC 23008-12, 6.5.10 and 6.5.12; empty where the boxes say none.
    """
    try:
        meta = next(found for kind, found in _boxes(data) if kind == b"meta")[4:]
        inner = dict(_boxes(meta))
        properties = dict(_boxes(inner[b"iprp"]))
        listed = list(_boxes(properties[b"ipco"]))
        primary = int.from_bytes(inner[b"pitm"][4 : 6 if inner[b"pitm"][0] == 0 else 8], "big")
        used = [listed[number - 1] for number in _properties_of(primary, properties[b"ipma"]) if number]
        turns = [(kind.decode(), value[0]) for kind, value in used if kind in (b"irot", b"imir")]
    except (StopIteration, LookupError):
        return []
    return [(kind, value & (3 if kind == "irot" else 1)) for kind, value in turns]


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and contents of the boxes that follow one another (ISO/IEC 14496-12, 4.2)."""
    at = 0
    while at + 8 <= len(data):
        size, start = int.from_bytes(data[at : at + 4], "big"), at + 8
        if size == 1:
            size, start = int.from_bytes(data[at + 8 : at + 16], "big"), at + 16
        end = len(data) if size == 0 else at + size
        yield data[at + 4 : at + 8], data[start:end]
        if end <= at:
            return
        at = end


def _properties_of(item: int, table: bytes) -> list[int]:
    """Numbers of the properties of an item in an `ipma` box, in order, from 1."""
    wide_ids, wide = table[0] > 0, table[3] & 1
    at = 8
    for _ in range(int.from_bytes(table[4:8], "big")):
        step = 4 if wide_ids else 2
        found, count = int.from_bytes(table[at : at + step], "big"), table[at + step]
        at += step + 1
        width = 2 if wide else 1
        if found == item:
            mask = 0x7FFF if wide else 0x7F  # The highest bit says that a reader must understand it
            return [int.from_bytes(table[p : p + width], "big") & mask for p in range(at, at + count * width, width)]
        at += count * width
    return []


def exif_orientation(exif: bytes) -> int:
    """Orientation 1 to 8 of an EXIF block, as far as it can be read; 1, upright, where it says none."""
    start = 6 if exif[:6] == b"Exif\0\0" else 0
    order = {b"II": "<", b"MM": ">"}.get(exif[start : start + 2])
    if order is None:
        return 1
    table = exif[start : start + (1 << 16)]
    try:
        (at,) = struct.unpack_from(f"{order}I", table, 4)
        (entries,) = struct.unpack_from(f"{order}H", table, at)
        for number in range(entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", table, at + 2 + 12 * number)
            if tag == _ORIENTATION:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def jpeg_frame(data: bytes) -> tuple[int, int, bool] | None:
    """Width and height in px that a JPEG says it has, and whether it is progressive; None for what is none."""
    at = 2
    while data[:2] == JPEG_START and at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[at + k : at + k + 2], "big") for k in (5, 7))
            return width, height, marker % 4 == 2
        elif marker == 0xDA:
            break
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def has_whole_picture(data: bytes) -> bool:
    """Whether a progressive JPEG that ends too early shows all of the picture, coarsely at least: the mean of every
    block of every component, and detail of the first, are complete."""
    frame = data.find(b"\xff\xc2", 0, 1 << 20)
    if frame < 0:
        return False
    scans = [found.start() for found in re.finditer(rb"\xff\xda", data)][:-1]  # The last one is the one that is cut
    means: set[int] = set()
    detail = False
    for at in scans:
        number = data[at + 4] if at + 4 < len(data) else 0
        names = {data[at + 5 + 2 * k] for k in range(number) if at + 5 + 2 * k < len(data)}
        first = data[at + 5 + 2 * number] if at + 5 + 2 * number < len(data) else 1
        if first == 0:
            means |= names
        else:
            detail = True
    components = data[frame + 9] if frame + 9 < len(data) else 0
    return detail and len(means) >= components > 0


_FILLINGS = (b"\0", b"\x35\xa9\x6c", b"\0\0\0\1", b"\xff", b"\0\0\x40", b"\x5a\x0f\xc3\x91\x27", b"\1", b"\x80\x3c\xe7")


def completed(data: bytes) -> Iterator[bytes]:
    """A WebP, AVIF, HEIC, BMP, GIF or TIFF whose end is missing, completed with ever other bytes; nothing where it is
    whole by its own account, or where half of it is missing.

    Two of them that decode differ where pixels are missing. A GIF is completed once, by pixels of one colour.
    """
    if data[:4] == b"GIF8":
        if (missing := _missing_of_gif(data)) is not None:
            width, height = struct.unpack("<HH", data[6:10])
            blocks = 2 + 3 * width * height // (2 * 255)  # A code of zero is a pixel, in twelve bits at most
            yield data + bytes(missing) + (b"\xff" + bytes(255)) * blocks + b"\0;"
        return
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        missing = 8 + int.from_bytes(data[4:8], "little") - len(data)
    elif data[4:8] == b"ftyp":
        missing = _missing_of_boxes(data)
    elif data[:2] in (b"BM", b"II", b"MM"):
        missing = len(data) // 8 + 64  # Rows of a BMP or a TIFF; what is too much does no harm
    else:
        return
    if not 0 < missing <= len(data):
        return
    for filling in _FILLINGS:
        yield data + (filling * (missing // len(filling) + 1))[:missing]


def _missing_of_boxes(data: bytes) -> int:
    at = 0
    while at + 16 <= len(data):
        size, _, large = struct.unpack(">I4sQ", data[at : at + 16])
        at += large if size == 1 else size if size >= 8 else len(data)
    return at - len(data)


def _missing_of_gif(data: bytes) -> int | None:
    """Bytes that the block lacks in which the first picture of a GIF ends; None where it ends elsewhere."""
    at = 13 + (3 << ((data[10] & 7) + 1) if len(data) > 13 and data[10] & 0x80 else 0)
    picture = False
    while at < len(data) and not picture:
        if data[at] == 0x2C and at + 10 < len(data):
            picture = True
            at += 11 + (3 << ((data[at + 9] & 7) + 1) if data[at + 9] & 0x80 else 0)
        elif data[at] == 0x21:
            at += 2
        else:
            return None
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += not picture
    return at - len(data) if picture and at >= len(data) else None
