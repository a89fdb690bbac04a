"""One image of a file that holds several: a page of a TIFF, a frame of an animation or of a video.

A fragment says which, as behind the # of a URI: `2` is the second page or frame, `t=12.0` what a video shows at that
second. Without one a file is what a reader of it shows first. Whoever hands on the bytes of a file and means one of its
images hands on an `InnerImage`; `decoding.decode` takes both.
"""

from dataclasses import dataclass

PAGED = frozenset((".tif", ".tiff", ".gif", ".webp"))
"""File names of what may hold several images."""

MAX_PAGES = 10_000
"""Of one file."""


@dataclass(frozen=True)
class InnerImage:
    """An image within a file."""

    file: bytes
    fragment: str

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, place: slice) -> bytes:
        return self.file[place]


def page_fragment(number: int) -> str:
    """Of a page or frame, counted from 1."""
    return str(number)


def time_fragment(seconds: float) -> str:
    """Of what a video shows at a time, in s from its first frame; to a thousandth."""
    return f"t={round(seconds, 3)}"


def which(fragment: str) -> int | float:
    """The number of a page, int, or a time, float. ValueError for what is neither."""
    kind, equals, value = fragment.rpartition("=")
    if equals and kind == "t":
        return float(value)
    number = int(fragment)
    if number < 1:
        raise ValueError(f"pages are counted from 1, got {number}")
    return number
