"""Masks as PNG files of their own: names that stay in their folder, one for each image."""

import errno
import hashlib

from tasks import storage
from tasks.storage import Location


def png_name(image_id: str) -> str:
    """Relative path of an image's PNG file: its identity, so written that it stays in the folder, and one of a kind."""
    parts = [part.replace("%", "%25") or "%" for part in image_id.split("/")]
    parts = [f"%2E{part[1:]}" if part.startswith(".") else part for part in parts]
    return f"{'/'.join(parts)}.png"


def write_png(folder: Location, image_id: str, mask: bytes | None) -> None:
    """Write an image's mask as a file of its own; an image without a mask has none, nor one of earlier days."""
    name = png_name(image_id)
    long = len(name.encode()) > 900 or any(len(part.encode()) > 240 for part in name.split("/"))
    if "\0" in name or long:  # No storage holds it
        name = _named_by_digest(image_id)
    if mask is None:
        storage.remove(folder / name)
        return
    try:
        storage.write_whole(folder / name, mask)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            raise
        # A folder where another image needs a file
        storage.write_whole(folder / _named_by_digest(image_id), mask)


def _named_by_digest(image_id: str) -> str:
    return f"%named/{hashlib.sha256(image_id.encode()).hexdigest()}.png"
