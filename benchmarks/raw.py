"""Milliseconds of a core to read a RAW file by its preview, and by its sensor's values (time of the processor).

Files of cameras, or, without a folder, DNG files made here: a photograph as 24 million sensor values of 16 bits, with a
preview of 1,620 px or of the full size.

    python -m benchmarks.raw [FOLDER] [--files 8] [--long-side 513]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.conditions import conditions
from segcore.images import raw
from segcore.images.decoding import Reading, decode

SENSOR = (6000, 4000)


def made_here(files: int) -> dict[str, list[bytes]]:
    """DNG files by the size of their preview; the pictures are noise on slopes, the worst for a JPEG."""
    from tests.raw_files import dng, jpeg

    found: dict[str, list[bytes]] = {"DNG, preview of 1620 px": [], "DNG, preview of 6000 px": []}
    for seed in range(files):
        draw = np.random.default_rng(seed)
        cells = draw.integers(0, 256, (100, 150, 3)).astype(np.uint8)
        image = np.asarray(Image.fromarray(cells).resize(SENSOR, Image.Resampling.BICUBIC)).astype(np.int16)
        image = (image + draw.integers(-8, 9, image.shape, dtype=np.int16)).clip(0, 255).astype(np.uint8)
        found["DNG, preview of 1620 px"].append(dng(image, jpeg(image, 1620)))
        found["DNG, preview of 6000 px"].append(dng(image, jpeg(image)))
    return found


def milliseconds(files: list[bytes], read: Callable[[bytes], object]) -> list[float]:
    taken = []
    for data in files:
        start = time.process_time()
        read(data)
        taken.append(1000 * (time.process_time() - start))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--long-side", type=int, default=513)
    args = parser.parse_args()
    if args.folder is None:
        kinds = made_here(args.files)
    else:
        files = sorted(file for file in args.folder.rglob("*") if file.suffix.lower() in raw.EXTENSIONS)
        kinds = {file.name: [file.read_bytes()] for file in files[: args.files]}
    print(f"{conditions()}\nlong side {args.long_side} px, one core (OMP_NUM_THREADS=1)\n")
    print("| files | MB | preview, median ms | slowest | sensor's values, median ms |\n|---|---|---|---|---|")
    for name, held in kinds.items():
        decode(held[0], args.long_side)  # Libraries are loaded once
        preview = milliseconds(held, lambda data: decode(data, args.long_side))
        full = milliseconds(held, lambda data: decode(data, args.long_side, reading=Reading(raw="full")))
        size = statistics.median(len(data) for data in held) / 1e6
        print(f"| {name} | {size:.0f} | {statistics.median(preview):.0f} | {max(preview):.0f} | ", end="")
        print(f"{statistics.median(full):.0f} |")


if __name__ == "__main__":
    main()
