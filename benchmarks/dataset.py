"""Checking and converting a dataset on one and two cores, against a plain loop in one process.

    python -m benchmarks.dataset [check|convert|official|all] [--masks 12031] [--annotations 1500]

check: the doctor over the real masks (and the photographs that are there) against a loop that opens each mask with
Pillow and counts its labels; the doctor also decodes each photograph, takes fingerprints and digests, and looks for
every kind of fault.
convert: SBD's .mat to palette PNG, against SciPy and Pillow in a loop. The annotations are made from the real masks, in
SBD's exact structure.
official: the whole path over the official lists with the real masks of all 12,031 ids, with stand-ins for photographs.
Each measurement is a process of its own, held to its cores.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.conditions import conditions

ROOT = Path(__file__).resolve().parent.parent
VOC = Path(os.environ.get("SEGMENT_ARCHIVE_DATA", ROOT.parent / "shared" / "data")) / "voc2012"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["check", "convert", "official", "all"], default="all")
    parser.add_argument("--masks", type=int, default=12_031)
    parser.add_argument("--annotations", type=int, default=1500)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not VOC.is_dir():
        raise SystemExit(f"The real data is not at {VOC}; set SEGMENT_ARCHIVE_DATA.")
    if args.measure:
        MEASURES[args.measure](args, Path(args.folder or "."))
        return
    print(conditions())
    with tempfile.TemporaryDirectory() as folder:
        if args.what in ("check", "all"):
            print(f"\nchecking {args.masks} masks")
            for name, cores in (("plain_check", 1), ("check", 1), ("check", 2)):
                measure(name, cores, args, folder)
        if args.what in ("convert", "all"):
            print(f"\nconverting {args.annotations} annotations of SBD")
            make_annotations(Path(folder), args.annotations)
            for name, cores in (("plain_convert", 1), ("convert", 1), ("convert", 2)):
                measure(name, cores, args, folder)
        if args.what in ("official", "all"):
            print("\nthe official lists, real masks, stand-ins for photographs")
            measure("official", 2, args, folder)


def measure(name: str, cores: int, args: argparse.Namespace, folder: str) -> None:
    """Run one measurement in a process that may use so many cores; it prints its line."""
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    command = [sys.executable, "-m", "benchmarks.dataset", "--measure", name, "--folder", folder]
    command += ["--masks", str(args.masks), "--annotations", str(args.annotations)]
    subprocess.run(command, check=True, cwd=ROOT, preexec_fn=lambda: os.sched_setaffinity(0, allowed))


def told(name: str, number: int, seconds: float, note: str = "") -> None:
    cores = len(os.sched_getaffinity(0))
    print(
        f"{name:<16} {cores} core{'s' * (cores > 1):<2} {seconds:7.1f} s  {number / seconds:7.0f}/s  {note}", flush=True
    )


def mask_ids(number: int) -> list[str]:
    return sorted(file.stem for file in (VOC / "SegmentationClassAug").glob("*.png"))[:number]


def plain_check(args: argparse.Namespace, folder: Path) -> None:
    import numpy as np
    from PIL import Image

    ids, counts = mask_ids(args.masks), np.zeros(256, np.int64)
    start = time.perf_counter()
    for image_id in ids:
        with Image.open(VOC / f"SegmentationClassAug/{image_id}.png") as mask:
            counts += np.bincount(np.asarray(mask).ravel(), minlength=256)
    told("plain loop", len(ids), time.perf_counter() - start, f"{counts.sum():,} pixels")


def check(args: argparse.Namespace, folder: Path) -> None:
    from tasks import cluster
    from tasks.datasets.check import examine, label_counts
    from tasks.datasets.folders import read_layout
    from tasks.datasets.layout import OwnData
    from tasks.storage import locate

    ids = folder / "ids.txt"
    ids.write_text("\n".join(mask_ids(args.masks)))
    begin = time.perf_counter()
    with cluster.connected():
        start = time.perf_counter()
        found = examine(read_layout(locate(str(VOC)), OwnData(lists={"all": str(ids)}, classes="voc")))
        seconds = time.perf_counter() - start
    pixels, _ = label_counts(found, list(found.checks))
    told("doctor", len(found.checks), seconds, f"{pixels.sum():,} pixels; Ray started in {start - begin:.1f} s before")


def make_annotations(folder: Path, number: int) -> None:
    import numpy as np

    from segcore.voc import IGNORE_LABEL
    from tests.official_tree import real_labels
    from tests.sbd_files import annotation

    labels_of = real_labels(VOC)
    (folder / "cls").mkdir()
    for image_id in mask_ids(12_031)[:: max(1, 12_031 // number)][:number]:
        labels = labels_of(image_id)
        labels[labels == IGNORE_LABEL] = 0
        (folder / f"cls/{image_id}.mat").write_bytes(annotation(np.ascontiguousarray(labels)))


def plain_convert(args: argparse.Namespace, folder: Path) -> None:
    import scipy.io
    from PIL import Image

    from segcore.voc import palette

    files, size = sorted((folder / "cls").glob("*.mat")), 0
    colours = palette().tobytes()
    start = time.perf_counter()
    for file in files:
        image = Image.fromarray(scipy.io.loadmat(file)["GTcls"][0]["Segmentation"][0])
        image.putpalette(colours)
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        size += len(buffer.getvalue())
    told("SciPy, Pillow", len(files), time.perf_counter() - start, f"{size / 1e6:.1f} MB of PNG")


def convert_files(files: list[str]) -> int:
    from segcore.datasets.sbd import decode_annotation
    from segcore.images.masks import encode_mask

    return sum(len(encode_mask(decode_annotation(Path(file).read_bytes()))) for file in files)


def convert(args: argparse.Namespace, folder: Path) -> None:
    from tasks import cluster
    from tasks.engines import spread

    files = [str(file) for file in sorted((folder / "cls").glob("*.mat"))]
    pieces = [files[k : k + 64] for k in range(0, len(files), 64)]
    begin = time.perf_counter()
    with cluster.connected():
        start = time.perf_counter()
        size = sum(spread(convert_files, pieces))
        seconds = time.perf_counter() - start
    told("ours", len(files), seconds, f"{size / 1e6:.1f} MB of PNG; Ray started in {start - begin:.1f} s before")


def official(args: argparse.Namespace, folder: Path) -> None:
    from tasks.datasets.prepare import (
        DatasetJob,
        check_pairs,
        fetch_archives,
        say_splits,
        unpack_archives,
        write_shards,
    )
    from tests.official_tree import read_list, real_labels, write_sbd, write_voc

    begin = time.perf_counter()
    labels_of = real_labels(VOC)
    write_voc(folder / "VOC2012", VOC, labels_of)
    write_sbd(folder / "dataset", VOC, labels_of, slip_in=read_list(VOC, "val")[0])
    print(
        f"the tree was made in {time.perf_counter() - begin:.0f} s; one image of val was slipped into SBD's train.txt"
    )
    job = DatasetJob(
        output=str(folder / "out"), voc=str(folder / "VOC2012"), sbd=str(folder / "dataset"), work=str(folder / "work")
    )
    sources = unpack_archives(job, fetch_archives(job))
    start = time.perf_counter()
    summary = check_pairs(job, sources)
    told("checking", summary.pairs, time.perf_counter() - start, "the start of Ray included")
    start = time.perf_counter()
    report = write_shards(job, sources)
    told("writing", summary.pairs, time.perf_counter() - start, f"{report.bytes / 1e6:.0f} MB in {report.files} files")
    start = time.perf_counter()
    again = write_shards(job, sources)
    told("again", summary.pairs, time.perf_counter() - start, f"nothing to do: {again.unchanged}")
    print(f"{say_splits(report.splits)}; left out {report.left_out}; findings {report.findings}")


MEASURES = {
    "plain_check": plain_check,
    "check": check,
    "plain_convert": plain_convert,
    "convert": convert,
    "official": official,
}


if __name__ == "__main__":
    main()
