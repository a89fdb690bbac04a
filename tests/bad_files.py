"""Files that people's archives hold among their photographs: one of each kind that cannot have a mask."""

import io
import random
import struct
import zlib
from pathlib import Path

import segcore.images.decoding  # noqa: F401, registers the formats of the files
from tests.conftest import photograph


def write_bad_files(folder: Path) -> int:
    """Write one file of each kind; returns how many. None of them decodes."""
    folder.mkdir(parents=True, exist_ok=True)
    files = _bad_files()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "link-to-nowhere.jpg").symlink_to(folder / "gone.jpg")
    return len(files) + 1


def _bad_files() -> dict[str, bytes]:
    jpeg, png = _encoded("JPEG"), _encoded("PNG")
    noise = random.Random(0).randbytes(5000)
    return {
        "empty.jpg": b"",
        "empty-without-a-name-ending": b"",
        "one-byte.png": b"\x89",
        "text.jpg": b"I am no photograph.\n",
        "page.html": b"<html><body>404</body></html>",
        "table.csv": b"a,b\n1,2\n",
        "noise.jpg": noise,
        "zeros.jpg": bytes(10_000),
        "jpeg-header-only.jpg": jpeg[:4],
        "jpeg-cut-in-its-header.jpg": jpeg[:200],
        "jpeg-cut-in-its-middle.jpg": jpeg[: len(jpeg) // 2],
        "jpeg-header-then-noise.jpg": jpeg[:20] + noise,
        "png-cut.png": png[: len(png) // 2],
        "png-without-pixels.png": png[:8] + _chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0)),
        "png-of-zero-size.png": png[:8] + _chunk(b"IHDR", bytes(13)),
        "png-bomb.png": _bomb(60_000, 60_000),
        "png-over-the-bound.png": _bomb(11_000, 11_000),
        "webp-cut.webp": _encoded("WEBP")[:60],
        "avif-cut.avif": _encoded("AVIF")[:150],
        "heic-cut.heic": _encoded("HEIF")[:150],
        "tiff-cut.tif": _encoded("TIFF")[:100],
        "bmp-cut.bmp": _encoded("BMP")[:70],
        "gif-header-only.gif": b"GIF89a",
        "vector.svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "document.pdf": b"%PDF-1.4\n%%EOF",
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }


def _encoded(format_: str) -> bytes:
    buffer = io.BytesIO()
    photograph(7, (120, 90)).save(buffer, format=format_)
    return buffer.getvalue()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _bomb(width: int, height: int) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", zlib.compress(bytes(5000))) + _chunk(b"IEND", b"")
