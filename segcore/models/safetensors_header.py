"""What a safetensors file says of its tensors, read within bounds."""

import json
import struct
from pathlib import Path
from typing import Any

# Names and shapes: ResNet-269 has about 1,400 tensors of some 100 bytes each
MAX_HEADER_BYTES = 16 << 20


def read_header(path: Path, content: bytes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file, without reading the tensors. ValueError for what is none.

    content: the file, or as much of it as the header takes. path: for messages.
    """
    length = struct.unpack("<Q", content[:8])[0] if len(content) >= 8 else -1
    if not 2 <= length <= min(len(content) - 8, MAX_HEADER_BYTES):
        raise ValueError(f"{path} is no safetensors file, or is cut short: its header does not fit into it.")
    try:
        header = json.loads(content[8 : 8 + length], object_pairs_hook=_each_once)
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no safetensors file: its header is not readable ({str(error)[:200]}).") from error


def header_of(path: Path) -> dict[str, tuple[int, ...]]:
    """The same, of a file of which no more than the header is read."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        return read_header(path, start + (file.read(length) if length <= MAX_HEADER_BYTES else b""))


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. ValueError for a name that stands there twice: two readers would take different ones."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name stands there twice")
    return value
