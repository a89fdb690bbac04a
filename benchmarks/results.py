"""Results: questions over a million rows, one mask by its identity, the gallery, and what a mask weighs.

    python -m benchmarks.results [query|gallery|sizes] [--rows 1000000] [--images 1000] [--paint-images 10000]

query: synthetic rows in files of 64, as the archive job writes them, with the masks of 200 real images; then the same
after `segment-archive compact --expire`.
gallery: of the 400 real photographs, listed again and again under other names; first paint in Debian's chromium.
sizes: the real masks of SegmentationClassAug, a process on each core, processor time; bytes per mask as stored
in a Parquet column with zstd.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.conditions import conditions
from segcore.images.masks import decode_mask, encode_mask
from segcore.images.rle import encode_coco
from segcore.voc import IGNORE_LABEL, palette
from tasks.archive.schema import MASKS
from tasks.results.query import FindJob, ask, find
from tasks.results.reading import open_results
from tasks.results.report import ReportJob, build_report
from tasks.results.sealing import CompactJob, compact
from tests.outputs import mask_row, write_run

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SEGMENT_ARCHIVE_DATA", ROOT.parent / "shared" / "data")) / "voc2012"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["query", "gallery", "sizes", "all"], default="all")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=1000, help="images of the gallery that is timed")
    parser.add_argument("--paint-images", type=int, default=10_000, help="images of the gallery that is opened")
    parser.add_argument("--masks", type=int, default=None, help="real masks that are weighed; by default all")
    args = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"The real data are not at {DATA}; set SEGMENT_ARCHIVE_DATA.")
    print(conditions())
    with tempfile.TemporaryDirectory() as folder:
        if args.what in ("query", "all"):
            questions(args.rows, Path(folder))
        if args.what in ("gallery", "all"):
            gallery(args.images, args.paint_images, Path(folder))
    if args.what in ("sizes", "all"):
        sizes(args.masks)


def real_masks(limit: int | None = None, which: int = 0, of: int = 1) -> list[tuple[str, np.ndarray]]:
    """Names and label maps (H, W) uint8 of the real masks, void as background, which a mask of ours never has.

    which, of: this share of so many.
    """
    places = sorted((DATA / "SegmentationClassAug").glob("*.png"))
    chosen = places if limit is None else places[:: max(1, len(places) // limit)][:limit]
    found = []
    for place in chosen[which::of]:
        labels = decode_mask(place.read_bytes())
        found.append((place.stem, np.where(labels == IGNORE_LABEL, 0, labels)))
    return found


def questions(num_rows: int, folder: Path) -> None:
    """Time questions, and one mask by its identity, over synthetic rows."""
    output = folder / "questions"
    patterns = [mask_row("", "", labels) for _, labels in real_masks(200)]
    random = np.random.default_rng(0)
    masks = output / "masks" / "run=bench"
    masks.mkdir(parents=True)
    start = time.perf_counter()
    for number, first in enumerate(range(0, num_rows, 64)):
        rows = []
        for n in range(first, min(first + 64, num_rows)):
            measures = {"confidence": random.random(), "entropy": random.random(), "changed_by_crf": random.random()}
            row = patterns[n % 200] | {"image_id": f"{n // 1000:04d}/{n:07d}.jpg", "uri": f"/a/{n}"} | measures
            # Bytes after a PNG's end are nobody's; no two masks are equal, as in an archive
            rows.append(row | {"mask": row["mask"] + n.to_bytes(4, "big")})
        table = pa.Table.from_pylist(rows, schema=MASKS)
        segment = f"{1 + number // 1024:06d}-00000000"
        pq.write_table(table, masks / f"part-{segment}-{number % 1024:04d}.parquet", compression="zstd")
    segments = [f"{1 + number:06d}-00000000" for number in range(-(-num_rows // 65_536))]
    write_run(str(output), "record", [], status="failed")
    write_run(str(output), "bench", [], segments=segments)
    print(f"\n{num_rows} rows, written in {time.perf_counter() - start:.0f} s")
    before = _ask_all(str(output), num_rows)
    report = compact(CompactJob(output=str(output), expire=True, grace_minutes=0))
    print(f"compact --expire: {report.seconds:.0f} s, {report.sources} files are now {report.files}", flush=True)
    after = _ask_all(str(output), num_rows)
    print("\n| seconds, median of 3 (first) | as the job writes it | compacted |\n|---|---|---|")
    for name, told in before.items():
        print(f"| {name} | {told} | {after[name]} |")


def _ask_all(place: str, num_rows: int) -> dict[str, str]:
    """Each question, and how long it takes."""
    results = open_results(place)
    told = {"size": f"{sum(f.size for f in results.files) / 2**20:.0f} MiB in {len(results.files)} files"}
    print(told["size"], flush=True)
    asked: dict[str, Callable[[], Any]] = {
        "query: images by class": lambda: list(
            ask(place, "SELECT class, count(*) FROM objects GROUP BY 1 ORDER BY 2 DESC").rows()
        ),
        "query: mean confidence of all images": lambda: list(ask(place, "SELECT avg(confidence) FROM images").rows()),
        "query: one image": lambda: list(
            ask(place, f"SELECT * FROM images WHERE image_id = '{num_rows // 2000:04d}/{num_rows // 2:07d}.jpg'").rows()
        ),
        "find --class dog --min-share 0.1 --sort confidence --limit 20": lambda: list(
            find(place, FindJob(classes=("dog",), min_share=0.1, sort="confidence", limit=20)).rows()
        ),
        "find --class dog --sort entropy --limit 20": lambda: list(
            find(place, FindJob(classes=("dog",), sort="entropy", limit=20)).rows()
        ),
        "find --sort annotate --limit 50": lambda: list(find(place, FindJob(sort="annotate", limit=50)).rows()),
        "open the run (list its files)": lambda: open_results(place),
    }
    for name, call in asked.items():
        told[name] = _timed(call)
        print(f"{name}: {told[name]}", flush=True)
    times = []
    for n in np.random.default_rng(1).integers(0, num_rows, 30):
        start = time.perf_counter()
        results.mask(f"{n // 1000:04d}/{n:07d}.jpg")
        times.append(time.perf_counter() - start)
    first = f"(first {1000 * times[0]:.1f} ms)"
    told["one mask by its identity, the run opened; median of 30"] = f"{1000 * statistics.median(times):.1f} ms {first}"
    return told


def gallery(num_images: int, paint_images: int, folder: Path) -> None:
    """Time the making of a gallery, and the first paint of a large one."""
    photographs = sorted((DATA / "JPEGImages").glob("*.jpg"))
    patterns = []
    for place in photographs:
        labels = decode_mask((DATA / "SegmentationClassAug" / f"{place.stem}.png").read_bytes())
        patterns.append(mask_row("", str(place), np.where(labels == IGNORE_LABEL, 0, labels)))
    rows = [patterns[n % len(patterns)] | {"image_id": f"{n:06d}.jpg"} for n in range(max(num_images, paint_images))]
    output = str(folder / "gallery")
    write_run(output, "bench", rows, per_file=64)
    made = build_report(ReportJob(output=output, images=num_images))
    size = sum(place.stat().st_size for place in Path(made.index).parent.rglob("*") if place.is_file())
    rate = made.seconds * 1000 / made.shown
    print(f"\ngallery: {rate:.1f} s per 1,000 images ({made.shown} images, {size / 2**20:.0f} MiB)")
    made = build_report(ReportJob(output=output, images=paint_images))
    print(f"a gallery of {made.shown} images: {made.seconds:.0f} s")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        paints, usable, whole = [], [], []
        for _ in range(5):
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(Path(made.index).as_uri())
            page.wait_for_selector(".tile")
            usable.append(page.evaluate("performance.now()"))
            page.wait_for_selector("html[data-ready]")
            whole.append(page.evaluate("performance.now()"))
            named = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
            paints.append(page.evaluate(named) or float("nan"))
            page.close()
        browser.close()
    told = [f"{statistics.median(times):.0f} ms" for times in (paints, usable, whole)]
    print(f"opened from the disk, median of 5: first paint {told[0]}, first images {told[1]}, all data {told[2]}")


def sizes(limit: int | None) -> None:
    """Weigh the real masks in several codings."""
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores) as pool:
        shares = list(pool.map(_weigh, [limit] * cores, range(cores), [cores] * cores))
    count = sum(share["masks"][0] for share in shares)
    print(f"\n{count:.0f} real masks, {cores} processes\n")
    print("| coding | bytes per mask | in a Parquet column with zstd, rows of 64 | ms to code | ms to decode |")
    print("|---|---|---|---|---|")
    for name in [name for name in shares[0] if name != "masks"]:
        size, stored, coding, decoding = (sum(share[name][n] for share in shares) / count for n in range(4))
        decoded = f"{1000 * decoding:.2f}" if decoding else ""
        print(f"| {name} | {size:.0f} | {stored:.0f} | {1000 * coding:.2f} | {decoded} |", flush=True)


def _weigh(limit: int | None, which: int, of: int) -> dict[str, tuple[float, ...]]:
    """Of a share of the masks, by coding: bytes, bytes in a column, processor seconds to code, to decode; sums."""
    labels = [mask for _, mask in real_masks(limit, which, of)]
    found: dict[str, tuple[float, ...]] = {"masks": (len(labels),)}
    colours = palette().tobytes()

    def png(level: int, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> Callable[[np.ndarray], bytes]:
        def code(mask: np.ndarray) -> bytes:
            image = Image.fromarray(mask)
            image.putpalette(colours)
            buffer = io.BytesIO()
            image.save(buffer, format="PNG", compress_level=level, compress_type=strategy)
            return buffer.getvalue()

        return code

    codings: dict[str, tuple[Callable[[np.ndarray], bytes], Callable[[bytes], Any] | None]] = {
        "the column": (encode_mask, decode_mask),
        "PNG, zlib 1": (png(1), decode_mask),
        "PNG, zlib 3": (png(3), decode_mask),
        "PNG, zlib 6": (png(6), decode_mask),
        "PNG, zlib 9": (png(9), decode_mask),
        "PNG, zlib 6, run lengths": (png(6, zlib.Z_RLE), decode_mask),
        "COCO RLE, every class": (lambda mask: b"".join(encode_coco(mask).values()), None),
        "zstd 3 of the pixels": (lambda mask: pa.compress(mask.tobytes(), "zstd", asbytes=True), None),
    }
    for name, (code, decode) in codings.items():
        start = time.process_time()
        coded = [code(mask) for mask in labels]
        coding, decoding = time.process_time() - start, 0.0
        if decode is not None:
            start = time.process_time()
            for data in coded:
                decode(data)
            decoding = time.process_time() - start
        stored = 0
        for first in range(0, len(coded), 64):
            buffer = io.BytesIO()
            table = pa.table({"mask": pa.array(coded[first : first + 64], pa.binary())})
            pq.write_table(table, buffer, compression="zstd")
            stored += buffer.tell()
        found[name] = (sum(map(len, coded)), stored, coding, decoding)
    return found


def _timed(call: Callable[[], Any]) -> str:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return f"{statistics.median(times):.2f} ({times[0]:.2f})"


if __name__ == "__main__":
    main()
