"""What somebody writes in an afternoon: a loop over the files, the model in float32, pydensecrf in a pool, PNG files.

The yardstick of `benchmarks.archive`: the same model, images, sizes and CRF parameters, on the same cores.
"""

import argparse
import multiprocessing
from pathlib import Path

import numpy as np
import pydensecrf.densecrf as densecrf
import torch
from PIL import Image

from segcore.images.pixels import fit_long_side
from segcore.models import checkpoint
from segcore.voc import palette


def refine_and_save(arguments: tuple[np.ndarray, np.ndarray, tuple[int, int], Path]) -> None:
    image, probabilities, size, place = arguments
    height, width = image.shape[:2]
    crf = densecrf.DenseCRF2D(width, height, len(probabilities))
    energy = -np.log(np.clip(probabilities, 1e-5, 1)).reshape(len(probabilities), -1)
    crf.setUnaryEnergy(np.ascontiguousarray(energy, dtype=np.float32))
    crf.addPairwiseGaussian(sxy=1, compat=3)
    crf.addPairwiseBilateral(sxy=67, srgb=3, rgbim=image, compat=4)
    labels = np.array(crf.inference(10)).argmax(0).reshape(height, width).astype(np.uint8)
    mask = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    mask.putpalette(palette().tobytes())
    mask.save(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("model", help="name, or path of a model directory")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    loaded = checkpoint.load(args.model)
    model, normal = loaded.module, loaded.card.preprocessing
    with multiprocessing.get_context("spawn").Pool() as pool, torch.inference_mode():
        waiting = []
        for file in sorted(args.source.iterdir()):
            photograph = Image.open(file).convert("RGB")
            working = photograph.resize(fit_long_side(*photograph.size, 513), Image.Resampling.BICUBIC)
            image = np.array(working)
            channels = image if normal.colour_order == "RGB" else image[..., ::-1]
            pixels = torch.from_numpy(((channels - np.array(normal.mean)) / np.array(normal.std)).astype(np.float32))
            scores = model(pixels.permute(2, 0, 1)[None])
            scores = torch.nn.functional.interpolate(scores, image.shape[:2], mode="bilinear", align_corners=True)
            probabilities = scores.softmax(1)[0].numpy()
            place = args.output / f"{file.stem}.png"
            waiting.append(pool.apply_async(refine_and_save, ((image, probabilities, photograph.size, place),)))
            while len(waiting) > 8:  # Full-resolution probabilities are 16 MB an image
                waiting.pop(0).get()
        for result in waiting:
            result.get()


if __name__ == "__main__":
    main()
