"""Files that hold several images, at listing: an entry for each of them, found in a process that a file may bring down.

Whatever a file does there, the listing goes on: a TIFF that cannot be looked into stays one image, whose row says why,
and so does a video.
"""

import functools
from collections.abc import Iterator
from dataclasses import replace

from segcore.images import decoding, inner, video
from segcore.images.errors import ImageError
from tasks.archive.entries import Entry, suffix
from tasks.archive.entry_bytes import read_entries
from tasks.archive.sources import Source
from tasks.stream.isolation import Apart, ImageLimits
from tasks.stream.looks import harmless_file


class Surveyor:
    """Looks into one file after another; for `isolation.Apart`."""

    def __init__(self, frames: float | str | None, max_pixels: int) -> None:
        self.every_s = frames if isinstance(frames, float) else None
        self.max_pixels = max_pixels

    def pages(self, data: bytes) -> list[str]:
        """Fragments of the pages after the first. Raises ImageError."""
        return [inner.page_fragment(number) for number in range(2, decoding.count_pages(data) + 1)]

    def frames(self, data: bytes) -> list[str]:
        """Fragments of the frames of a video. Raises ImageError."""
        return [inner.time_fragment(seconds) for seconds in decoding.frame_times(data, self.every_s, self.max_pixels)]


def inner_images(entries: Iterator[Entry], source: Source, max_pixels: int, limits: ImageLimits) -> Iterator[Entry]:
    """The entries, with one for each page and frame that the source asks for."""
    if source.pages == "first" and source.frames is None:
        yield from entries
        return
    make = functools.partial(Surveyor, source.frames, max_pixels)
    with Apart(make, "listing", limits, ("pages", harmless_file())) as apart:
        for entry in entries:
            ending = suffix(entry.image_id)
            if entry.kind == "broken":
                yield entry
            elif source.frames is not None and ending in video.EXTENSIONS:
                yield from _frames(entry, source, apart)
            elif source.pages == "all" and ending in inner.PAGED:
                yield from _pages(entry, source, apart)
            else:
                yield entry


def _pages(entry: Entry, source: Source, apart: Apart) -> Iterator[Entry]:
    _, data = next(read_entries(source.location, [entry]))
    yield entry  # The first page; of what cannot be read, its row says why
    try:
        fragments = [] if isinstance(data, ImageError) else apart("pages", data)
    except ImageError:
        return
    yield from (_within(entry, fragment) for fragment in fragments)


def _frames(entry: Entry, source: Source, apart: Apart) -> Iterator[Entry]:
    _, data = next(read_entries(source.location, [entry]))
    try:
        if isinstance(data, ImageError):
            raise data
        fragments = apart("frames", data)
    except ImageError as error:
        yield replace(entry, kind="broken", note=str(error))
        return
    yield from (_within(entry, fragment) for fragment in fragments)


def _within(entry: Entry, fragment: str) -> Entry:
    return replace(entry, image_id=f"{entry.image_id}#{fragment}", uri=f"{entry.uri}#{fragment}", fragment=fragment)
