"""What an archive too large for this machine comes to: measured per image or per file here, multiplied on paper.

    python -m benchmarks.paper requests                    S3 requests of each part of a job, counted at a local server
    python -m benchmarks.paper manifest [--images 3000000] bytes, seconds and memory of a manifest, per image
    python -m benchmarks.paper archive [--images 1e8] [--nodes 100] [--cpus 16] [--images-per-s-core 1.5]

archive multiplies: its inputs are the defaults of its options, which docs/scale.md names with where each was measured.
Prices are Amazon's list prices for us-east-1 as known when this was written; give your own.
"""

import argparse
import collections
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conditions import conditions

_FILES, _ROWS = 32, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("requests", help="S3 requests of each part of a job")
    manifest = commands.add_parser("manifest", help="bytes, seconds and memory of a manifest")
    manifest.add_argument("--images", type=int, default=3_000_000)
    load = commands.add_parser("load", help="one load of a manifest, in this process")
    load.add_argument("folder")
    archive = commands.add_parser("archive", help="a whole archive")
    for name, (default, unit) in ASSUMED.items():
        archive.add_argument(f"--{name.replace('_', '-')}", type=float, default=default, help=unit)
    args = parser.parse_args()
    if args.what == "load":
        _load(args.folder)
        return
    print(conditions())
    if args.what == "requests":
        requests()
    elif args.what == "manifest":
        measure_manifest(args.images)
    else:
        reckon(**{name: getattr(args, name) for name in ASSUMED})


ASSUMED = {
    "images": (1e8, "images of the archive"),
    "nodes": (100, "machines"),
    "cpus": (16, "CPUs of each"),
    "images_per_s_core": (1.5, "speed of one core, all stages"),
    "unit_images": (64, "images of one mask file"),
    "stored_bytes": (2500, "bytes of a row in its small file"),
    "photograph_bytes": (100_000, "bytes of a photograph"),
    "manifest_bytes": (25, "bytes of the manifest, an image"),
    "manifest_memory": (100, "bytes of the driver's memory, an image"),
    "plan_us": (50, "microseconds of one listing by the driver, an image"),
    "check_requests": (3, "requests of the finish check, a small file"),
    "compact_requests": (3, "requests of a compaction with --expire, a small file"),
    "wave_start_s": (20, "seconds until the workers of a wave have started"),
    "node_price": (0.8, "of one machine for an hour"),
    "put_price": (0.005, "of 1,000 writing or listing requests"),
    "get_price": (0.0004, "of 1,000 reading requests"),
    "month_price": (0.023, "of a GB for a month"),
}
"""Name: default, and what it is."""


def reckon(**given: float) -> None:
    """Print what an archive comes to."""
    n = given["images"]
    files = n / given["unit_images"]
    cores = given["nodes"] * given["cpus"]
    rate = cores * given["images_per_s_core"]
    wave = max(2048.0, 16 * cores) * given["unit_images"]
    start = n / wave * given["wave_start_s"]
    work = n / rate
    puts = 2 * files + n / 1000 + files / 1000  # A file and the look at its size; the two listings
    gets = n + files * (given["check_requests"] + given["compact_requests"])
    gigabytes = n * given["stored_bytes"] / 1e9
    hours = (work + start) / 3600
    rows = {
        "mask files, as the job writes them": f"{files:,.0f}",
        "files after compaction": f"{n / 65_536:,.0f}",
        "manifest": f"{n / 65_536:,.0f} segments, {n * given['manifest_bytes'] / 1e9:.1f} GB",
        "driver's memory for the manifest": f"{n * given['manifest_memory'] / 2**30:.1f} GiB",
        "one listing by the driver": f"{n * given['plan_us'] / 1e6 / 60:.0f} minutes",
        "work": f"{rate:,.0f} images/s on {cores:,.0f} cores, {work / 3600:.1f} hours",
        "starts of workers": f"{n / wave:,.0f} waves, {start / 3600:.1f} hours",
        "Ray tasks": f"{3 * files:,.0f}, {3 * rate / given['unit_images']:.0f} a second",
        "Prefect": "1 flow run, 4 task runs, 1 artifact updated every 5 s",
        "photographs read": f"{n * given['photograph_bytes'] / 1e12:.1f} TB, "
        f"{rate * given['photograph_bytes'] * 8 / 1e9:.1f} Gbit/s",
        "masks stored": f"{gigabytes:,.0f} GB, {gigabytes * given['month_price']:.2f} a month",
        "requests": f"{puts:,.0f} writing or listing, {gets:,.0f} reading: "
        f"{puts / 1000 * given['put_price'] + gets / 1000 * given['get_price']:.0f}",
        "machines": f"{hours:.1f} hours of {given['nodes']:.0f}: {hours * given['nodes'] * given['node_price']:,.0f}",
    }
    print(f"\n{n:,.0f} images; {', '.join(f'{name} {value:g}' for name, value in given.items() if name != 'images')}\n")
    print("| what | how much |\n|---|---|")
    for name, told in rows.items():
        print(f"| {name} | {told} |")


def measure_manifest(num_images: int) -> None:
    """Print what a manifest of so many images takes, per image."""
    from tasks.archive.entries import Entry
    from tasks.archive.manifest import Manifest, extend
    from tasks.storage import locate

    def entries() -> Iterator[Entry]:
        etags = np.random.default_rng(0)
        for n in range(num_images):
            name = f"2019/{n // 5000:05d}/photograph-{n:09d}.jpg"
            path = f"bucket/photographs/{name}"
            yield Entry(name, f"s3://{path}", "file", path.encode(), 0, 100_000 + n % 7919, etags.bytes(16).hex())

    with tempfile.TemporaryDirectory() as folder:
        place = locate(folder)
        start = time.perf_counter()
        extend(Manifest(place), entries())
        seconds = time.perf_counter() - start
        stored = sum(file.stat().st_size for file in Path(folder).iterdir())
        command = [sys.executable, "-m", "benchmarks.paper", "load", folder]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    each = 1e6 / num_images
    print(
        f"\n{num_images:,} images: {stored / num_images:.1f} bytes an image on the disk; written in {seconds:.0f} s, ",
        end="",
    )
    print(f"{seconds * each:.1f} us an image, the making of their names included")
    print(f"loaded in {found['load_s']:.1f} s ({found['load_s'] * each:.2f} us an image); with who owns what, and the ")
    print(
        f"order that a listing is compared with: {found['whole_s']:.1f} s ({found['whole_s'] * each:.2f} us an image), "
    )
    print(f"{found['bytes'] / num_images:.0f} bytes of memory an image at the peak")


def _load(folder: str) -> None:
    from tasks.archive.manifest import Manifest
    from tasks.storage import locate

    before = _peak_bytes()
    start = time.perf_counter()
    manifest = Manifest(locate(folder))
    loaded = time.perf_counter() - start
    _ = manifest.num_images, manifest.compare([]), manifest._owned_sorted
    whole = time.perf_counter() - start
    print(json.dumps({"load_s": loaded, "whole_s": whole, "bytes": _peak_bytes() - before}))


def _peak_bytes() -> int:
    # Not getrusage: its peak is handed down from the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def requests() -> None:
    """Count requests at a local S3 server."""
    import s3fs

    from segcore.images.masks import encode_mask
    from tasks import storage
    from tasks.archive.output import Output
    from tasks.results import sealing
    from tasks.results.reading import open_results
    from tasks.segmentation.verify import _check, _Held
    from tests.outputs import mask_row, write_run

    count: collections.Counter[str] = collections.Counter()
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        count[method] += 1
        return await call(self, method, *arguments, **options)

    s3fs.S3FileSystem._call_s3 = counted

    def told(what: str, action: Callable[[], Any], per: int, unit: str) -> None:
        count.clear()
        action()
        kinds = ", ".join(f"{name} {number / per:.2f}" for name, number in sorted(count.items()))
        print(f"| {what} | {sum(count.values()) / per:.2f} a {unit} | {kinds} |", flush=True)

    with _server() as bucket:
        output = f"s3://{bucket}/out"
        labels = np.zeros((375, 500), np.uint8)
        labels[100:200, 100:300] = 12
        assert encode_mask(labels)
        rows = [mask_row(f"{n:06d}.jpg", "s3://b/a.jpg", labels) for n in range(_FILES * _ROWS)]
        print("\n| what | requests | of which |\n|---|---|---|")
        told("commit of a mask file", lambda: write_run(output, "r", rows, per_file=_ROWS), _FILES, "file")
        place = storage.locate(output)
        files = Output(place).files("r")
        told("listing of a run", lambda: Output(place).files("r"), _FILES, "file")
        photograph = storage.locate(f"s3://{bucket}/photograph.jpg")
        storage.write_whole(photograph, b"jpeg")
        listed = storage.stat(photograph).version
        told("reading a photograph", lambda: storage.read_versioned(photograph, listed), 1, "image")
        held = [_Held("", (file.place,)) for file in files]
        ids = [[row["image_id"] for row in rows[n : n + _ROWS]] for n in range(0, len(rows), _ROWS)]
        checks = zip(held, ids, strict=True)
        told("finish check", lambda: [_check(h, expected) for h, expected in checks], _FILES, "file")
        opened = open_results(output)
        told("one mask by its identity", lambda: opened.mask("001000.jpg"), 1, "mask")
        job = sealing.CompactJob(output=output, expire=True, grace_minutes=0)
        told("compact --expire", lambda: sealing.compact(job), _FILES, "small file")
        opened = open_results(output)
        told("one mask by its identity, compacted", lambda: opened.mask("001000.jpg"), 1, "mask")


@contextlib.contextmanager
def _server() -> Iterator[str]:
    """A local S3 server with one bucket, whose name is yielded."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        (Path(folder) / "bucket").mkdir()
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        probe.close()
        rclone = str(Path(sys.executable).parent / "rclone")
        command = [rclone, "serve", "s3", folder, "--addr", address, "--auth-key", "testkey,testsecret", "-q"]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        keys = {"AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret", "AWS_REGION": "us-east-1"}
        os.environ.update({"AWS_ENDPOINT_URL": f"http://{address}", **keys})
        try:
            time.sleep(2)
            yield "bucket"
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
