"""Label maps as run lengths: COCO's compressed RLE of each class, and a few hundred bytes for a page in a browser."""

import numpy as np
from numpy.typing import NDArray


def encode_coco(labels: np.ndarray) -> dict[int, bytes]:
    """COCO's compressed RLE (the `counts` of a segmentation) of each label present in a map (H, W) uint8.

    Runs go down the columns and begin with background, as in `maskApi.c: rleEncode, rleToString`.
    """
    flat = np.asarray(labels).ravel(order="F")
    if not flat.size:
        return {}
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.concatenate([starts[1:], [flat.size]])
    of_run = flat[starts]
    encoded = {}
    for label in np.unique(of_run):
        here = of_run == label
        # Zeros before, ones, zeros between, ones, ..., zeros to the end
        borders = np.stack([starts[here], ends[here]], axis=1).ravel()
        counts = np.diff(borders, prepend=0)
        if borders[-1] < flat.size:
            counts = np.append(counts, flat.size - borders[-1])
        encoded[int(label)] = _to_text(counts)
    return encoded


def decode_coco(counts: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) bool of COCO's compressed RLE. Raises ValueError where it is not one of that size."""
    lengths: list[int] = []
    position = 0
    while position < len(counts):
        value = shift = 0
        more = True
        while more:
            if position >= len(counts):
                raise ValueError("The RLE ends within a number.")
            if shift > 60:  # A million digits would be one number, whose cost is their square
                raise ValueError("The RLE has a number that is larger than any mask.")
            digit = counts[position] - 48
            value |= (digit & 0x1F) << shift
            more = bool(digit & 0x20)
            position += 1
            shift += 5
        if digit & 0x10:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
    if sum(lengths) != height * width or min(lengths, default=0) < 0:
        raise ValueError(f"The RLE covers {sum(lengths)} pixels, the mask is {height} x {width}.")
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return flat.reshape((height, width), order="F")


def encode_runs(labels: np.ndarray) -> bytes:
    """A label map (H, W) as runs along the rows: label, then length as a little-endian base-128 number.

    The label is a byte of a map of uint8, two of one of uint16, the lower first.
    """
    flat = np.ascontiguousarray(labels).ravel()
    if not flat.size:
        return b""
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=flat.size)
    sizes = 1 + np.searchsorted(128 ** np.arange(1, 5), lengths, side="right")  # Bytes of each length
    label_bytes = flat.dtype.itemsize
    places = np.concatenate([[0], np.cumsum(sizes + label_bytes)])
    encoded = np.zeros(places[-1], np.uint8)
    for byte in range(label_bytes):
        encoded[places[:-1] + byte] = flat[starts] >> (8 * byte) & 0xFF
    for digit in range(int(sizes.max())):
        has = sizes > digit
        more = np.where(sizes[has] > digit + 1, 0x80, 0)
        encoded[places[:-1][has] + label_bytes + digit] = (lengths[has] >> (7 * digit)) & 0x7F | more
    return encoded.tobytes()


def _to_text(counts: np.ndarray) -> bytes:
    """Numbers as maskApi.c writes them: differences to the last but one, five bits a character, lowest first."""
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    digits = np.zeros((len(values), 7), np.uint8)
    used = np.zeros((len(values), 7), bool)
    active = np.ones(len(values), bool)
    for place in range(7):  # 35 bits: more pixels than any mask has
        low = values & 0x1F
        values = values >> 5
        more = np.where(low & 0x10, values != -1, values != 0)
        digits[:, place] = low + np.where(more, 0x20, 0) + 48
        used[:, place] = active
        active = active & more
    return digits[used].tobytes()
