"""Frames of video files as pictures, through FFmpeg (`av`, extra `[video]`): at which times, and the frame of a time.

Times are seconds from the first frame. What a file says of its length is not believed: its packets are counted.
"""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from segcore import extras

_ENDINGS = "3gp avi flv m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv webm wmv"
EXTENSIONS = frozenset(f".{ending}" for ending in _ENDINGS.split())
"""File names that promise a video."""

MAX_FRAMES = 100_000
"""Of one file, taken as pictures."""

SCENE_LEVELS = 32.0
"""A key frame begins a scene where its colours differ from those of the last scene's first frame by this many of 255
levels, in the mean over 32 x 18 cells."""

_CELLS = (32, 18)


class UnsupportedVideoError(ValueError):
    """A video that is not read here; the message has the remedy."""


@contextlib.contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[tuple[Any, Any]]:
    """Container and video stream.

    Raises UnsupportedVideoError without the extra, ValueError for what is no sound video, EOFError for one that is cut,
    MemoryError for frames of more than max_pixels.
    """
    if not extras.is_here("av"):
        raise UnsupportedVideoError(extras.sentence("av", "A video file").removesuffix("."))
    import av

    av.logging.set_level(None)
    try:
        with av.open(io.BytesIO(data), metadata_errors="ignore") as container:
            if not container.streams.video:
                raise ValueError("the file has no video")
            stream = container.streams.video[0]
            stream.thread_type, stream.codec_context.thread_count = "NONE", 1  # There is a worker on every core
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > max_pixels:
                raise MemoryError(f"the video has {width} x {height} px, more than the bound of {max_pixels} pixels")
            yield container, stream
    except av.error.EOFError:
        raise EOFError("the video is truncated") from None
    except av.error.MemoryError:
        raise MemoryError("not enough memory to decode the video") from None
    except av.error.FFmpegError as error:
        raise ValueError(f"the video does not decode: {error.strerror or type(error).__name__}") from None


def times(data: bytes, every_s: float | None, max_pixels: int) -> list[float]:
    """Times of the frames to take, ascending, in s to three digits; the first is 0.

    data: the file. every_s: the distance; None: at scene changes, which are looked for among key frames.
    """
    with _opened(data, max_pixels) as (container, stream):
        return _scenes(container, stream) if every_s is None else _regular(container, stream, every_s)


def _regular(container: Any, stream: Any, every_s: float) -> list[float]:
    first = last = None
    for packet in container.demux(stream):
        if packet.pts is not None:
            first = packet.pts if first is None else min(first, packet.pts)
            last = packet.pts if last is None else max(last, packet.pts)
    if first is None or last is None:
        raise ValueError("the video has no frames")
    count = int(float((last - first) * stream.time_base) / every_s) + 1
    return [round(number * every_s, 3) for number in range(min(count, MAX_FRAMES))]


def _scenes(container: Any, stream: Any) -> list[float]:
    stream.codec_context.skip_frame = "NONKEY"
    start, shown, found = None, None, list[float]()
    for frame in container.decode(stream):
        if frame.pts is None:
            continue
        start = frame.pts if start is None else start
        cells = np.asarray(frame.to_image(width=_CELLS[0], height=_CELLS[1])).astype(np.int16)
        if shown is None or np.abs(cells - shown).mean() >= SCENE_LEVELS:
            shown = cells
            found.append(round(float((frame.pts - start) * stream.time_base), 3))
        if len(found) == MAX_FRAMES:
            break
    if not found:
        raise ValueError("the video has no frames")
    return found


def frame_at(data: bytes, seconds: float, max_pixels: int) -> np.ndarray:
    """(h, w, 3) uint8 RGB: what is shown at a time, upright and with square pixels.

    ValueError where the video ends before.
    """
    with _opened(data, max_pixels) as (container, stream):
        frame = _seek(container, stream, seconds)
        picture = frame.to_image()
        aspect = float(stream.sample_aspect_ratio or 1)
        if 0.1 < aspect < 10 and abs(aspect - 1) > 0.005:
            picture = picture.resize((max(1, round(picture.width * aspect)), picture.height), Image.Resampling.BICUBIC)
        turns = round(getattr(frame, "rotation", 0) / 90) % 4
        return np.ascontiguousarray(np.rot90(np.asarray(picture), turns))


def _seek(container: Any, stream: Any, seconds: float) -> Any:
    """The last frame that begins at the time or before it."""
    base = stream.time_base
    start = next((packet.pts for packet in container.demux(stream) if packet.pts is not None), 0)
    wanted = start + seconds / float(base)
    slack = 0.0006 / float(base)  # Times are kept to a thousandth
    for from_start in (False, True):
        # Where the index of a file is wrong, seeking leads behind the frame: then everything is decoded
        container.seek(start if from_start else int(wanted), stream=stream)
        found = None
        for frame in container.decode(stream):
            if frame.pts is None:
                continue
            if frame.pts > wanted + slack:
                if found is not None:
                    return found
                break
            found = frame
        if found is not None:
            return found
    raise ValueError(f"the video has no frame at {seconds:g} s")
