"""Masks as polygons and brushes: what a tolerance costs in pixels and saves in points, and how long an image takes.

Usage: python -m benchmarks.review_formats
Data: SEGMENT_ARCHIVE_DATA, by default ../shared/data beside the repository: 400 masks of a public network.
"""

import os
import time
from pathlib import Path

import numpy as np

from benchmarks.conditions import conditions
from segcore.annotations import cvat, label_studio, polygons
from segcore.annotations.regions import regions_of
from segcore.images.masks import decode_mask
from tests.outputs import real_rows

TOLERANCES = (0.0, 0.5, 1.0, 2.0, 4.0)


def main() -> None:
    data = Path(os.environ.get("SEGMENT_ARCHIVE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "voc2012"
    print(conditions())
    masks = [decode_mask(row["mask"]) for row in real_rows(data, keep_before=False)]
    regions = [[region.mask for region in regions_of(labels, {0: "background"})] for labels in masks]
    every = [mask for of_image in regions for mask in of_image]
    pixels = sum(labels.size for labels in masks)
    print(f"\n{len(masks)} masks, {len(every)} regions\n")
    print("| tolerance, px | points a region | pixels that differ | mean IoU of a region | lowest IoU | ms a mask |")
    print("|---|---|---|---|---|---|")
    for tolerance in TOLERANCES:
        start = time.perf_counter()
        traced = [polygons.traced(mask, tolerance) for mask in every]
        spent = time.perf_counter() - start
        wrong, overlaps = 0, []
        for mask, outlines in zip(every, traced, strict=True):
            found = polygons.filled(outlines, *mask.shape)
            wrong += int((found != mask).sum())
            overlaps.append((found & mask).sum() / (found | mask).sum())
        points = sum(len(points) for outlines in traced for points in outlines) / len(every)
        print(
            f"| {tolerance:g} | {points:.0f} | {wrong / pixels:.4%} | {np.mean(overlaps):.4f} | {min(overlaps):.4f} "
            f"| {1000 * spent / len(masks):.1f} |"
        )
    print("\n| format | bytes a mask | write, ms a mask | read, ms a mask |\n|---|---|---|---|")
    start = time.perf_counter()
    brushes = [label_studio.encode_brush(mask) for mask in every]
    middle = time.perf_counter()
    for mask, brush in zip(every, brushes, strict=True):
        assert np.array_equal(label_studio.decode_brush(brush, *mask.shape), mask)
    end = time.perf_counter()
    told("Label Studio's brushes", sum(map(len, brushes)), start, middle, end, len(masks))
    start = time.perf_counter()
    runs = [cvat.encode_mask(mask) for mask in every]
    middle = time.perf_counter()
    for mask, (lengths, *box) in zip(every, runs, strict=True):
        assert np.array_equal(cvat.decode_mask(lengths, *box, *mask.shape), mask)
    end = time.perf_counter()
    told("CVAT's masks", sum(len(", ".join(map(str, of[0]))) for of in runs), start, middle, end, len(masks))


def told(name: str, size: int, start: float, middle: float, end: float, count: int) -> None:
    """Print a line of the table."""
    writing, reading = (1000 * seconds / count for seconds in (middle - start, end - middle))
    print(f"| {name} | {size / count:,.0f} | {writing:.1f} | {reading:.1f} |")


if __name__ == "__main__":
    main()
