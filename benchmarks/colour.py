"""How many labels change where a wide-gamut photograph's colour profile is ignored instead of converted.

Photographs are stored once more as cameras and editors store them: the same colours in the numbers of Display P3, Adobe
RGB or ProPhoto, with the profile embedded. Each file is segmented as the program reads it (profile converted) and with
its profile taken away (numbers taken for sRGB), and both are compared with the labels of the original.

    python -m benchmarks.colour PHOTOGRAPHS [--images 40] [--model pspnet14] [--seed 1]
"""

import argparse
import io
import random
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

import segcore
from benchmarks.conditions import conditions
from segcore.images.colour import ADOBE_RGB, DISPLAY_P3, PROPHOTO, Primaries, rgb_profile
from tasks.segmentation.archive_job import DEFAULT_MODEL

PROFILES: dict[str, tuple[Primaries, float | None]] = {
    "Display P3": (DISPLAY_P3, None),
    "Adobe RGB": (ADOBE_RGB, 2.2),
    "ProPhoto": (PROPHOTO, 1.8),
}


def stored(image: Image.Image, profile: bytes, *, embedded: bool) -> bytes:
    """A PNG of the same colours in the numbers of a profile."""
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    numbers = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), target, outputMode="RGB")
    assert numbers is not None
    buffer = io.BytesIO()
    numbers.save(buffer, "PNG", compress_level=1, icc_profile=profile if embedded else None)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    files = sorted(args.photographs.glob("*.jpg"))
    files = sorted(random.Random(args.seed).sample(files, min(args.images, len(files))))
    model = segcore.load(args.model, num_threads=1)
    changed: dict[tuple[str, str], list[float]] = {}
    shifted: dict[str, list[float]] = {}
    classes: dict[tuple[str, str], int] = {}
    start = time.perf_counter()
    for file in files:
        image = Image.open(file).convert("RGB")
        original = model.segment(image)
        for name, (primaries, gamma) in PROFILES.items():
            profile = rgb_profile(primaries, gamma)
            for way, embedded in (("converted", True), ("ignored", False)):
                found = model.segment(stored(image, profile, embedded=embedded))
                changed.setdefault((name, way), []).append(float((found.labels != original.labels).mean()))
                other = found.pixels().keys() != original.pixels().keys()
                classes[name, way] = classes.get((name, way), 0) + other
                if way == "ignored":
                    difference = np.abs(found.photograph.image.astype(int) - original.photograph.image)
                    shifted.setdefault(name, []).append(float(difference.mean()))
    print(conditions())
    print(
        f"{len(files)} photographs of {args.photographs.name}, seed {args.seed}, {args.model}, with the CRF, ", end=""
    )
    print(f"{time.perf_counter() - start:.0f} s\n")
    print(
        "| profile | shift of the pixels, of 255 | labels changed, ignored | converted | images with other classes, ",
        end="",
    )
    print("ignored | converted |\n|---|---|---|---|---|---|")
    for name in PROFILES:
        ignored, converted = (np.mean(changed[name, way]) for way in ("ignored", "converted"))
        print(
            f"| {name} | {np.mean(shifted[name]):.1f} | {ignored:.2%} | {converted:.2%} | "
            f"{classes[name, 'ignored']} | {classes[name, 'converted']} |"
        )


if __name__ == "__main__":
    main()
