"""Video files made here, of scenes in one colour each with a bar that grows."""

import io

import numpy as np

SCENES = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (220, 220, 220))


def clip(
    form: str = "mp4",
    codec: str = "libx264",
    *,
    frames: int = 100,
    rate: int = 10,
    size: tuple[int, int] = (320, 180),
) -> bytes:
    """A video of scenes of 25 frames. size: width, height in px."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        (stream.width, stream.height), stream.pix_fmt, stream.gop_size = size, "yuv420p", 25
        for number in range(frames):
            image = np.empty((size[1], size[0], 3), np.uint8)
            image[:] = SCENES[number // 25 % 4]
            image[-size[1] // 8 :, : (number % 25 + 1) * size[0] // 25] = 0
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return buffer.getvalue()
