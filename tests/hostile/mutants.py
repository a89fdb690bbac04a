"""Damage to files, drawn from a seed: the same number gives the same mutant on every machine."""

import random
import struct
import zlib
from collections.abc import Callable, Sequence

_ODD_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF)

Damage = Callable[[random.Random, bytearray, Sequence[bytes]], None]


def mutant(draw: random.Random, original: bytes, others: Sequence[bytes]) -> bytes:
    """A copy with one to four injuries; others: files whose pieces may be spliced in."""
    data = bytearray(original)
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 4))):
        if data:
            draw.choice(_DAMAGES)(draw, data, others)
    if data[:8] == b"\x89PNG\r\n\x1a\n" and draw.random() < 0.7:
        _mend_checksums(data)  # Or no mutant of a PNG would get past them
    return bytes(data)


def _place(draw: random.Random, data: bytearray) -> int:
    """Half of the injuries hit the first 256 bytes, where the headers are."""
    return draw.randrange(min(len(data), 256) if draw.random() < 0.5 else len(data))


def _flip_bits(draw: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    for _ in range(draw.choice((1, 2, 8, 32))):
        data[_place(draw, data)] ^= 1 << draw.randrange(8)


def _overwrite(draw: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(draw, data)
    noise = draw.randbytes(draw.choice((1, 4, 16, 200)))
    data[at : at + len(noise)] = noise[: len(data) - at]


def _truncate(draw: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[_place(draw, data) :]


def _cut_out(draw: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(draw, data)
    del data[at : at + draw.choice((1, 2, 7, 64, 1000))]


def _insert(draw: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(draw, data)
    data[at:at] = draw.randbytes(8) * draw.choice((1, 10, 1000))


def _repeat(draw: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(draw, data)
    piece = data[at : at + draw.choice((4, 32, 500))]
    data[at:at] = piece * draw.choice((1, 2, 50))


def _swap(draw: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    size = draw.choice((1, 4, 12, 100))
    first, second = sorted((_place(draw, data), _place(draw, data)))
    if first + size <= second and second + size <= len(data):
        data[first : first + size], data[second : second + size] = (
            data[second : second + size],
            data[first : first + size],
        )


def _blank(draw: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(draw, data)
    size = min(draw.choice((1, 4, 64, 2000)), len(data) - at)
    data[at : at + size] = bytes([draw.choice((0, 255))]) * size


def _write_number(draw: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    """A length, a count or a size becomes another one."""
    code = draw.choice(("<H", ">H", "<I", ">I", "<I", ">I", "<Q", ">Q"))
    size = struct.calcsize(code)
    number = draw.choice((*_ODD_NUMBERS, len(data), len(data) + 1, len(data) // 2, draw.randrange(1 << 32)))
    at = _place(draw, data)
    data[at : at + size] = struct.pack(code, number & ((1 << 8 * size) - 1))[: len(data) - at]


def _change_number(draw: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(draw, data)
    data[at] = (data[at] + draw.choice((1, -1, 2, 16))) & 0xFF


def _splice(draw: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    """The beginning of one file before the end of another."""
    other = draw.choice(others)
    cut = _place(draw, data)
    data[cut:] = other[draw.randrange(max(1, len(other))) :] if draw.random() < 0.5 else other[cut:]


def _new_head(draw: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    head = draw.choice(others)[: draw.choice((2, 4, 8, 16, 64))]
    data[: len(head)] = head


_DAMAGES: tuple[Damage, ...] = (_flip_bits, _overwrite, _truncate, _cut_out, _insert, _repeat, _swap, _blank,
    _write_number, _write_number, _write_number, _change_number, _splice, _new_head)  # fmt: skip


def _mend_checksums(data: bytearray) -> None:
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            return
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
