"""What travels between the stages is let go of afterwards: workers live for millions of images."""

import tracemalloc

import numpy as np

from tasks.stream import units


def test_a_unit_leaves_nothing_behind() -> None:
    pixels = [np.full((129, 97, 3), 7, np.uint8)] * 20
    scores = [np.full((21, 17, 13), -1, np.float16)] * 20

    def pass_on() -> None:
        row = units.unit_row("a", [], 0.0, pixels, scores)
        _, _, _, flat, flat_scores = units.open_row(row)
        np.testing.assert_array_equal(flat, np.concatenate([image.ravel() for image in pixels]))
        np.testing.assert_array_equal(flat_scores.view(np.float16), np.concatenate([s.ravel() for s in scores]))

    pass_on()
    tracemalloc.start()
    try:
        for _ in range(20):
            pass_on()
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left < pixels[0].nbytes
