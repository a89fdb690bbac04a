"""How fast training is, and where the time of a step goes: data, forward, backward, step.

On a CPU the compact models, from decoded files to the optimiser; on CUDA the papers' large models at their own crops,
with the share of the chip's peak and the memory.

    python -m benchmarks.training
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.conditions import conditions
from benchmarks.models import PEAK_TFLOPS
from benchmarks.photographs import FIVE
from segcore import models
from segcore.images import decoding
from segcore.learning import sampling
from segcore.learning.augment import augment, view_rng
from segcore.learning.recipes import RECIPES, TrainRecipe, with_batch_size
from segcore.learning.training import Batch, Trainer, TrainingNetwork, new_network, normalise
from segcore.models import cpu_training

_NATIVE = cpu_training.native


class Views:
    """Views of the photographs of examples/ with masks of squares, decoded anew for each batch as in a training."""

    def __init__(self, recipe: TrainRecipe, threads: int) -> None:
        self.recipe = recipe
        self.files = [path.read_bytes() for path in FIVE]
        self.pool = ThreadPoolExecutor(threads)
        self.preprocessing = models.variant(recipe.model).preprocessing

    def batch(self, step: int, device: str) -> Batch:
        """The batch of a step, on the device."""
        samples = sampling.batch_samples(step, self.recipe.batch_size, len(self.files), self.recipe.seed)
        views = list(self.pool.map(self._view, samples))
        pixels = torch.from_numpy(np.stack([view.image for view in views]))
        labels = torch.from_numpy(np.stack([view.mask for view in views]))
        return Batch(normalise(pixels, self.preprocessing, device), labels.to(device))

    def _view(self, sample):  # type: ignore[no-untyped-def]
        image = decoding.decode(self.files[sample.index], 500).image
        mask = np.zeros(image.shape[:2], np.uint8)
        mask[: len(mask) // 2, : mask.shape[1] // 2] = 15
        rng = view_rng(self.recipe.seed, sample.epoch, str(sample.index))
        return augment(image, mask, self.recipe.augmentation, rng)


def measure_cpu(names: list[str], crop_px: int, batch_size: int, steps: int, threads: int) -> None:
    """One line a recipe: medians over the steps after the first; the next batch is not made ahead here."""
    print(f"{threads} threads, crops of {crop_px} px, batches of {batch_size}, {steps} steps, medians\n")
    print("| recipe | format | images/s | data, s | forward, s | backward, s | step, s |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name in names:
        recipe = with_batch_size(RECIPES[name], batch_size)
        recipe = dataclasses.replace(recipe, augmentation=dataclasses.replace(recipe.augmentation, crop_px=crop_px))
        for told in ("fp32", "bf16", "bf16, torch's layers"):
            native = None if "torch" in told else _NATIVE
            if native is None and not recipe.model.endswith(("_lite0", "_lite2")):
                continue
            # For the comparison alone: nothing switches the kernels of a training off
            cpu_training.native = native  # type: ignore[assignment]
            recipe = dataclasses.replace(recipe, precision="fp32" if told == "fp32" else "bf16")
            trainer, views = Trainer(recipe, new_network(recipe)), Views(recipe, threads)
            rows = []
            for step in range(steps + 1):
                began = time.perf_counter()
                batch = views.batch(step, "cpu")
                data = time.perf_counter() - began
                rows.append({"data": data, **trainer.train_step([batch]).seconds})
            parts = {part: statistics.median(row[part] for row in rows[1:]) for part in rows[0]}
            rate = batch_size / sum(parts.values())
            cells = " | ".join(f"{parts[part]:.3f}" for part in ("data", "forward", "backward", "step"))
            print(f"| {name} | {told} | {rate:.2f} | {cells} |", flush=True)


def measure_checkpoint(name: str) -> None:
    """Size of a checkpoint and the time to write and read it on this disk."""
    from tasks import storage
    from tasks.training import checkpoints

    recipe = RECIPES[name]
    trainer = Trainer(recipe, new_network(recipe))
    trainer.train_step([Views(dataclasses.replace(recipe, batch_size=2), 1).batch(0, "cpu")])
    with tempfile.TemporaryDirectory() as folder:
        output = storage.locate(folder)
        began = time.perf_counter()
        checkpoints.write_checkpoint(output, 1, {"trainer": trainer.state_dict()})
        middle = time.perf_counter()
        trainer.load_state_dict(checkpoints.read_checkpoint(output, 1)["trainer"])
        ended = time.perf_counter()
        size = Path(checkpoints.place_of(output, 1).path).stat().st_size / 2**20
    print(
        f"\nA checkpoint of {name}: {size:.0f} MiB, written in {middle - began:.2f} s, read in {ended - middle:.2f} s."
    )


def flops_of_step(recipe: TrainRecipe) -> int:
    """Floating-point operations of one image's forward and backward pass, multiplications and additions counted."""
    crop = recipe.augmentation.crop_px
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = models.build(recipe.model, **dict(recipe.options)).train()
        images = torch.empty(2, 3, crop, crop)
        logits = TrainingNetwork(network, recipe.loss)(images)
        sum(value.sum() for value in logits.values()).backward()
    return int(counter.get_total_flops()) // 2


def measure_cuda(names: list[str], sizes: list[int], steps: int) -> None:
    """One line a recipe and batch: the batch lies on the device, as it does where loading keeps up."""
    device = torch.cuda.get_device_name()
    peak = next((value for key, value in PEAK_TFLOPS.items() if key in device), None)
    print(f"{device}, bf16, channels-last, peak {peak or 'unknown'} TFLOP/s; steps on a batch that is there\n")
    print("| recipe | crop | batch | images/s | share of peak | memory, GiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in names:
        for size in sizes:
            for compiled in (False, True):
                recipe = dataclasses.replace(with_batch_size(RECIPES[name], size), precision="bf16")
                try:
                    rate = _cuda_rate(recipe, steps, compiled)
                except torch.cuda.OutOfMemoryError:
                    print(f"| {name} | {recipe.augmentation.crop_px} | {size} | out of memory | | |")
                    torch.cuda.empty_cache()
                    continue
                share = f"{rate * flops_of_step(recipe) / peak / 1e12:.0%}" if peak else ""
                memory = torch.cuda.max_memory_allocated() / 2**30
                print(
                    f"| {name}{', compiled' if compiled else ''} | {recipe.augmentation.crop_px} | {size} | {rate:.1f} "
                    f"| {share} | {memory:.1f} |",
                    flush=True,
                )
                torch._dynamo.reset()
                torch.cuda.empty_cache()


def _cuda_rate(recipe: TrainRecipe, steps: int, compiled: bool) -> float:
    crop = recipe.augmentation.crop_px
    torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(recipe, new_network(recipe), "cuda", compiled=compiled)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(recipe.batch_size, 3, crop, crop, generator=generator).cuda()
    labels = torch.randint(0, 21, (recipe.batch_size, crop, crop), generator=generator).to(torch.uint8).cuda()
    batch = Batch(images.contiguous(memory_format=torch.channels_last), labels)
    for _ in range(3):
        trainer.train_step([batch])
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        trainer.train_step([batch])
    torch.cuda.synchronize()
    return steps * recipe.batch_size / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="RECIPE")
    parser.add_argument("--crop", type=int, default=129, help="on a CPU")
    parser.add_argument("--batch", type=int, default=8, help="on a CPU")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32], help="on CUDA")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu", action="store_true", help="measure the CPU even where a GPU is at hand")
    args = parser.parse_args()
    print(f"{conditions()}\n")
    torch.set_num_threads(args.threads)
    if torch.cuda.is_available() and not args.cpu:
        measure_cuda(args.names or ["deeplab_v2_resnet101", "pspnet101"], args.batches, max(10, args.steps))
        return
    names = args.names or ["fast_deeplab_v2_resnet18", "fast_pspnet18"]
    measure_cpu(names, args.crop, args.batch, args.steps, args.threads)
    measure_checkpoint(names[0])


if __name__ == "__main__":
    main()
