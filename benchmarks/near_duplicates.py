"""The perceptual hash: how many copies it finds, and how many different photographs it takes for copies.

Usage: python -m benchmarks.near_duplicates [--every 4]
Data: SEGMENT_ARCHIVE_DATA, by default ../shared/data beside the repository: all its photographs, each pair of two ids.
"""

import argparse
import io
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from benchmarks.conditions import conditions
from segcore.datasets.near_duplicates import LOOK_SIDE_PX, MAX_DISTANCE, close_pairs, fingerprint
from segcore.images.decoding import decode

FOLDERS = ("voc2012/JPEGImages", "voc2012/eval_all/JPEGImages", "voc2012/small/JPEGImages", "extra/JPEGImages")


def saved(picture: Image.Image, form: str = "JPEG", quality: int = 75) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=form, quality=quality)
    return buffer.getvalue()


def copies(picture: Image.Image) -> Iterator[tuple[str, bytes]]:
    width, height = picture.size
    yield "JPEG quality 30", saved(picture, quality=30)
    yield (
        "2/3 of the size, quality 60",
        saved(picture.resize((round(width * 2 / 3), round(height * 2 / 3))), quality=60),
    )
    yield "0.3 of the size", saved(picture.resize((round(width * 0.3), round(height * 0.3))))
    yield "twice the size", saved(picture.resize((width * 2, height * 2)), quality=90)
    yield "squashed to 320 x 320", saved(picture.resize((320, 320)), quality=85)
    yield "WebP quality 70", saved(picture, "WEBP", 70)


def hashes_of(file: Path, with_copies: bool) -> dict[str, int | None]:
    """Hashes of a photograph and of its copies, by what was done."""
    data = file.read_bytes()
    found = {"": fingerprint(decode(data, LOOK_SIDE_PX).image)}
    if with_copies:
        picture = Image.fromarray(decode(data).image)
        for turned, told in ((picture, ""), (ImageOps.mirror(picture), "mirrored, ")):
            found |= {f"{told}{name}": fingerprint(decode(copy, LOOK_SIDE_PX).image) for name, copy in copies(turned)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=4, help="make copies of every n-th photograph")
    args = parser.parse_args()
    data = Path(os.environ.get("SEGMENT_ARCHIVE_DATA", "../shared/data"))
    files = [file for folder in FOLDERS for file in sorted((data / folder).glob("*.jpg"))]
    with ProcessPoolExecutor() as pool:
        chosen = [number % args.every == 0 for number in range(len(files))]
        found = list(pool.map(hashes_of, files, chosen, chunksize=32))
    sharp = [k for k, hashes in enumerate(found) if hashes[""] is not None]
    print(conditions())
    print(
        f"{len(files)} photographs, {len(files) - len(sharp)} of them too flat for a hash; threshold {MAX_DISTANCE}\n"
    )
    print("| copies | found, of | |\n|---|---|---|")
    for name in [name for name in found[0] if name]:
        pairs = [(found[k][""], found[k][name]) for k in sharp if name in found[k]]
        mirrored = name.startswith("mirrored")
        hit = sum(
            any(pair.mirrored == mirrored for pair in close_pairs(np.array([a], np.uint64), np.array([b], np.uint64)))
            for a, b in pairs
            if b is not None
        )
        print(f"| {name} | {hit} of {len(pairs)} | {hit / len(pairs):.2%} |")
    print("\n| pairs of different photographs | pairs | taken for copies | for mirrored copies |\n|---|---|---|---|")
    extra = [files[k].is_relative_to(data / "extra") for k in sharp]
    for told, group in (
        ("VOC's", [k for k, other in zip(sharp, extra, strict=True) if not other]),
        ("all, with catalogue pictures and video frames", sharp),
    ):
        hashes = np.array([found[k][""] for k in group], np.uint64)
        ids = [files[k].stem for k in group]
        close = [p for p in close_pairs(hashes, hashes) if p.first < p.second and ids[p.first] != ids[p.second]]
        mirrored = sum(pair.mirrored for pair in close)
        print(f"| {told} | {len(group) * (len(group) - 1) // 2:,} | {len(close) - mirrored} | {mirrored} |")


if __name__ == "__main__":
    main()
