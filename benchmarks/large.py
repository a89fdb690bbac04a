"""Memory of a picture that is larger than the memory: python -m benchmarks.large [--side 30000] [--crf]

    python -m benchmarks.large --compare MODEL [MODEL ...]

Writes a tiled TIFF of SIDE x SIDE px (photographs in a mosaic, each tile of 512 px a JPEG), and has `segment-archive
run --long-side none` segment it: seconds, the largest memory of all its processes, bytes of picture and mask.
The network is one convolution of stride 8 in an ONNX file, so that windows, blending, CRF and files are measured and no
network: what one needs for a window of 1025 px comes on top. --keep FOLDER keeps the files, to look at.

--compare says which share of the labels of a mosaic of 1500 x 1500 px differs between one pass and 4 windows of 1025,
without and with CRF.
"""

from __future__ import annotations

import argparse
import io
import json
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.archive import tree_bytes
from benchmarks.conditions import conditions
from benchmarks.photographs import FIVE
from segcore.crf.dense_crf import CrfParams
from segcore.images.masks import encode_mask
from segcore.images.regions import ArrayRegions, directory
from segcore.large_pictures import num_windows
from segcore.models import checkpoint
from segcore.models.checkpoint import CARD_FILE
from segcore.predictor import Predictor, PredictParams
from segcore.scoring.inference import InferenceParams
from tasks.models.describe import describe_onnx

ROOT = Path(__file__).parent.parent
TILE_PX = 512
PHOTOGRAPH_PX = 3 * TILE_PX
CLASSES = 21


def write_picture(path: Path, side: int) -> None:
    """A TIFF of SIDE x SIDE px in tiles, written a tile at a time."""
    paths = FIVE
    size = (PHOTOGRAPH_PX, PHOTOGRAPH_PX)
    photographs = [np.asarray(Image.open(place).convert("RGB").resize(size)) for place in paths]
    across = -(-side // TILE_PX)
    offsets, counts = [], []
    with path.open("wb") as file:
        file.write(bytes(8))
        for number in range(across**2):
            y, x = (place * TILE_PX for place in divmod(number, across))
            shown = photographs[(y // PHOTOGRAPH_PX * 7 + x // PHOTOGRAPH_PX) % len(photographs)]
            top, left = y % PHOTOGRAPH_PX, x % PHOTOGRAPH_PX
            buffer = io.BytesIO()
            tile = Image.fromarray(shown[top : top + TILE_PX, left : left + TILE_PX])
            tile.save(buffer, "JPEG", quality=85, subsampling=0, keep_rgb=True)
            offsets.append(file.tell())
            counts.append(file.write(buffer.getvalue()))
        at = file.tell() + file.write(bytes(file.tell() % 2))
        tags = [(256, [side]), (257, [side]), (258, [8, 8, 8]), (259, [7]), (262, [2]), (277, [3])]
        tags += [(322, [TILE_PX]), (323, [TILE_PX]), (324, offsets), (325, counts)]
        file.write(directory([(tag, 4, len(v), struct.pack(f"<{len(v)}I", *v)) for tag, v in tags], at))
        file.seek(0)
        file.write(b"II*\0" + struct.pack("<I", at))


def write_model(folder: Path) -> Path:
    """A convolution of stride 8 to 21 classes, with its card."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).normal(size=(CLASSES, 3, 1, 1)).astype(np.float32) * 3
    node = helper.make_node("Conv", ["images", "weight"], ["scores"], kernel_shape=[1, 1], strides=[8, 8])
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, None, None])
        for name, channels in (("images", 3), ("scores", CLASSES))
    ]
    graph = helper.make_graph([node], "stub", ends[:1], ends[1:], [numpy_helper.from_array(weight, "weight")])
    path, names = folder / "stub.onnx", folder / "names.txt"
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), path)
    names.write_text("\n".join(f"class {number}" for number in range(CLASSES)))
    describe_onnx(str(path), classes=str(names), preprocessing="-1..1", stride=8)
    card = folder / CARD_FILE
    fields = json.loads(card.read_text())
    fields.pop("convention", None)  # The corners of its grid lie on the corner pixels
    card.write_text(json.dumps(fields))
    return path


def compare(names: list[str], keep: Path | None) -> None:
    """Print the share of labels that windows change."""
    side, part = 1500, 500
    paths = FIVE
    mosaic = Image.new("RGB", (side, side))
    for number in range((side // part) ** 2):
        shown = Image.open(paths[number % len(paths)]).convert("RGB").resize((part, part), Image.Resampling.BICUBIC)
        mosaic.paste(shown, (number % 3 * part, number // 3 * part))
    pixels = np.asarray(mosaic)
    print(f"{conditions()}\n\n| model | without CRF | with CRF |\n|---|---:|---:|")
    for name in names:
        model, shares = checkpoint.load(name), []
        for crf in (None, CrfParams()):
            labels = []
            for crop_px in (1601, 1025):
                inference = InferenceParams(long_side_px=None, crop_px=crop_px, precision="fp32")
                predictor = Predictor(model, PredictParams(inference, crf))
                labels.append(predictor.whole(ArrayRegions(pixels)).labels)
            shares.append(np.mean(labels[0] != labels[1]))
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for windows, found in zip((1, 4), labels, strict=True):
                (keep / f"{Path(name).name}-{windows}.png").write_bytes(encode_mask(found))
        print(f"| {Path(name).name} | {shares[0]:.2%} | {shares[1]:.2%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=30_000)
    parser.add_argument("--crf", action="store_true")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--compare", nargs="+", metavar="MODEL")
    args = parser.parse_args()
    if args.compare:
        compare(args.compare, args.keep)
        return
    with tempfile.TemporaryDirectory() as folder:
        place = args.keep or Path(folder)
        (place / "source").mkdir(parents=True, exist_ok=True)
        picture = place / "source" / "picture.tif"
        write_picture(picture, args.side)
        command = [sys.executable, "-m", "flows.cli", "run", str(place / "source"), str(place / "output")]
        command += ["--model", str(write_model(place)), "--long-side", "none", "--engine", "local"]
        command += ["--gallery-images", "0", "--max-pixels", "1000000", *([] if args.crf else ["--no-crf"])]
        begun, peak = time.perf_counter(), 0
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            peak = max(peak, tree_bytes(process.pid))
            time.sleep(0.5)
        if process.returncode:
            raise SystemExit("the job failed")
        seconds = time.perf_counter() - begun
        [mask] = (place / "output" / "labels").rglob("*.tif")
        windows = num_windows(args.side, args.side, InferenceParams(long_side_px=None))
        print(conditions())
        print("| picture, px | windows | CRF | s | largest memory of all processes | picture, MiB | mask, MiB |")
        print("|---|---:|---|---:|---:|---:|---:|")
        size = f"{args.side:,} x {args.side:,}"
        crf, files = "yes" if args.crf else "no", [round(path.stat().st_size / 2**20) for path in (picture, mask)]
        print(f"| {size} | {windows:,} | {crf} | {seconds:.0f} | {peak >> 20} MiB | {files[0]} | {files[1]} |")


if __name__ == "__main__":
    main()
