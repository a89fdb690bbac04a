"""`python -m benchmarks.default_model_data DATA FOLDER`: what the default model learns from and is judged on.

DATA is the folder of `SEGMENT_ARCHIVE_DATA` (voc2012, extra). FOLDER gets a dataset in VOC's layout that
`segment-archive prepare` takes, with links to the photographs, and `teacher.npz` for `segment-archive train --teacher`:

    train       photographs of voc2012/small and extra that have a teacher
    val300      of val_have.txt: animals and people
    val475      those and eval_all: all classes
    choose300, report300, choose475, report475    every second image of these: one half chooses, the other reports

A photograph of VOC val, or one that is the same to the eye as one of the 475 (mirrored too), is never in train: the
first stops the command, the second is left out and counted. Where a mask is another network's (extra's teacher-513),
the teacher keeps the classes that the photograph is named for, and has the larger share of the target.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from segcore import voc
from segcore.datasets.near_duplicates import LOOK_SIDE_PX, close_pairs, fingerprint

SHARES = {"annotated": 0.3, "white-background": 0.0, "teacher-513": 0.6}
"""The teacher's share of the target by the kind of mask; masks of white backgrounds are cut by brightness and exact."""


@dataclass(frozen=True)
class Taught:
    """A training photograph."""

    name: str
    image: Path
    mask: Path
    share: float
    """Of the teacher in its target, 0 to 1."""

    probabilities: np.ndarray
    """(21, h, w) uint8, 255 is 1; 0 for classes that the photograph does not hold."""


def training_photographs(data: Path) -> list[Taught]:
    """Everything in `small` and `extra` that has a teacher."""
    small, extra = data / "voc2012/small", data / "extra"
    found = []
    for name, soft in _teacher(small / "teacher.npz"):
        image, mask = small / "JPEGImages" / f"{name}.jpg", small / "SegmentationClassAug" / f"{name}.png"
        found.append(Taught(name, image, mask, SHARES["annotated"], soft))
    with (extra / "photographs.tsv").open(newline="") as opened:
        rows = {row["id"]: row for row in csv.DictReader(opened, delimiter="\t", quoting=csv.QUOTE_NONE)}
    images = {path.stem: path for path in (extra / "JPEGImages").iterdir()}
    for name, soft in _teacher(extra / "teacher.npz"):
        row = rows[name]
        if row["mask_kind"] == "teacher-513" and row["image_level_classes"]:
            named = f"background;{row['image_level_classes']};{row['classes_in_mask']}".split(";")
            held = np.isin(voc.CLASSES, named)
            soft = np.where(held[:, None, None], soft, 0).astype(np.uint8)
        found.append(Taught(name, images[name], extra / "Masks" / f"{name}.png", SHARES[row["mask_kind"]], soft))
    return found


def evaluation_photographs(data: Path) -> dict[str, tuple[Path, Path]]:
    """Image and mask by id: first those of val_have.txt, then those of eval_all."""
    root = data / "voc2012"
    have = (root / "ImageSets/Segmentation/val_have.txt").read_text().split()
    rest = (root / "eval_all/ids.txt").read_text().split()
    found = {name: (root / f"JPEGImages/{name}.jpg", root / f"SegmentationClassAug/{name}.png") for name in have}
    others = root / "eval_all"
    return found | {
        name: (others / f"JPEGImages/{name}.jpg", others / f"SegmentationClass/{name}.png") for name in rest
    }


def copies_of(photographs: list[Path], others: list[Path]) -> set[int]:
    """Positions of the photographs that look like one of the others, mirrored or not."""
    looks = [_fingerprint(path) for path in photographs]
    known = {look for path in others if (look := _fingerprint(path)) is not None}
    own = np.array([look or 0 for look in looks], np.uint64)
    pairs = close_pairs(own, np.array(sorted(known), np.uint64))
    return {pair.first for pair in pairs if looks[pair.first] is not None}


def main(data: Path, folder: Path) -> None:
    """Write the folder, and say what is in it."""
    taught, judged = training_photographs(data), evaluation_photographs(data)
    val = set((data / "voc2012/ImageSets/Segmentation/val.txt").read_text().split())
    if seen := sorted(val & {one.name for one in taught}):
        raise SystemExit(f"{len(seen)} training photographs are of VOC 2012 val, such as {seen[0]}.")
    copies = copies_of([one.image for one in taught], [image for image, _ in judged.values()])
    left_out = [taught[index].name for index in sorted(copies)]
    taught = [one for index, one in enumerate(taught) if index not in copies]
    for kind in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    pairs = {one.name: (one.image, one.mask) for one in taught} | judged
    for name, files in pairs.items():
        for kind, file in zip(("JPEGImages", "SegmentationClass"), files, strict=True):
            link = folder / kind / f"{name}{file.suffix}"
            if not link.exists():
                link.symlink_to(file.resolve())
    names = list(judged)
    animals = names[: len((data / "voc2012/ImageSets/Segmentation/val_have.txt").read_text().split())]
    lists = {"train": [one.name for one in taught], "val300": animals, "val475": names}
    for count, of in (("300", animals), ("475", names)):
        lists |= {f"choose{count}": of[::2], f"report{count}": of[1::2]}
    for split, ids in lists.items():
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(ids) + "\n")
    np.savez(
        folder / "teacher.npz",
        ids=[one.name for one in taught],
        probabilities=np.stack([one.probabilities for one in taught]),
        shares=np.array([one.share for one in taught], np.float32),
    )
    print(f"{len(taught)} photographs to learn from, {len(judged)} to be judged on.")
    print(f"{len(left_out)} left out, the same to the eye as one of those: {', '.join(left_out) or 'none'}.")


def _teacher(path: Path) -> list[tuple[str, np.ndarray]]:
    with np.load(path) as stored:
        return list(zip(map(str, stored["ids"]), stored["probabilities"], strict=True))


def _fingerprint(path: Path) -> int | None:
    with Image.open(path) as opened:
        opened.thumbnail((LOOK_SIDE_PX, LOOK_SIDE_PX))
        return fingerprint(np.asarray(opened.convert("RGB")))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
