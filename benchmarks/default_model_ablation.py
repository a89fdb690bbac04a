"""`python -m benchmarks.default_model_ablation FOLDER DATASET OUTPUT [LINE ...]`: what each choice is worth.

Trains the recipe `default_model` in a short form and once more for each line, one choice changed, all with the same
seed, photographs and number of views; then evaluates each without CRF on val475 and prints the table: mean IoU over
21 classes on choose475 and report475, and what is gained over the whole of val475 against the first line, with the
interval that holds 95 % of 1,000 bootstrap samples of the same photographs. FOLDER is what
`benchmarks.default_model_data` wrote, DATASET what `segment-archive prepare` made of it. Goes on after a kill; without
LINE, all lines.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.conditions import conditions
from benchmarks.default_model_score import ALL
from segcore.learning.recipes import DEFAULT_MODEL, Phase, TrainRecipe, with_iterations
from segcore.learning.schedules import Schedule
from segcore.metrics import evaluation
from tasks.evaluation.counts import Counts, read_counts
from tasks.evaluation.record import evaluation_of
from tasks.storage import locate

STEPS = 200
"""Of 16 views each; the bundled model had 2,300 and 1,300."""

BASE = with_iterations(DEFAULT_MODEL, STEPS)


def _loss(recipe: TrainRecipe, **changes: float) -> TrainRecipe:
    return replace(recipe, loss=replace(recipe.loss, **changes))  # type: ignore[arg-type]


def _phases(change: Callable[[Phase], Phase]) -> TrainRecipe:
    return replace(BASE, phases=tuple(map(change, BASE.phases)))


LINES: dict[str, tuple[str, TrainRecipe, str | None]] = {
    "base": ("pspnet_lite2 as in `default_model`", BASE, "lite2-imagenet"),
    "no-teacher": ("no teacher", _loss(BASE, teacher_share=0.0), "lite2-imagenet"),
    "lite0": ("backbone EfficientNet-Lite0", replace(BASE, model="pspnet_lite0"), "lite0-imagenet"),
    "aspp": (
        "ASPP instead of pyramid pooling",
        _loss(replace(BASE, model="deeplab_v2_lite2"), auxiliary_weight=0.0),
        "lite2-imagenet",
    ),
    "stride-8": ("output stride 8 instead of 16", replace(BASE, options={"output_stride": 8}), "lite2-imagenet"),
    "crops-257": ("crops of 257 px from the start", _phases(lambda p: replace(p, crop_px=257)), "lite2-imagenet"),
    "no-mix": ("no CutMix, no copy-paste", _phases(lambda p: replace(p, cut_mix=0, copy_paste=0)), "lite2-imagenet"),
    "all-alike": (
        "images and classes all alike",
        _loss(replace(BASE, draw_power=0.0), class_power=0.0),
        "lite2-imagenet",
    ),
    "poly": (
        "poly 0.9 instead of cosine",
        replace(BASE, schedule=Schedule("poly", power=0.9, warmup=BASE.schedule.warmup)),
        "lite2-imagenet",
    ),
    "scratch": ("no ImageNet weights", BASE, None),
    "seed-1": ("another seed", replace(BASE, seed=1), "lite2-imagenet"),
    "seed-2": ("a third seed", replace(BASE, seed=2), "lite2-imagenet"),
}
"""What is changed in words, the recipe, and the initial weights, by name."""


def train(name: str, folder: Path, dataset: Path, output: Path) -> Path:
    """Train and evaluate one line, unless that is done; the folder of its evaluation."""
    place = output / name
    if not (place / "training/model/card.json").exists():
        place.mkdir(parents=True, exist_ok=True)
        # In a process of its own: one training each, and nothing of it stays in memory
        code = "import sys; from benchmarks.default_model_ablation import run; run(*sys.argv[1:])"
        subprocess.run([sys.executable, "-c", code, name, str(folder), str(dataset), str(place)], check=True)
    if not list((place / "evaluation/evaluations").glob("*.json")):
        command = [Path(sys.executable).with_name("segment-archive"), "evaluate", place / "training/model", dataset]
        options = ["--split", "val475", "--no-crf", "--no-report", "--engine", "local"]
        subprocess.run([*command, place / "evaluation", *options], check=True)
    return place / "evaluation"


def run(name: str, folder: str, dataset: str, place: str) -> None:
    """The training of one line, on one worker with one thread."""
    from flows import execution, jobs
    from tasks.training.training_job import TrainJob

    _, recipe, initial = LINES[name]
    teacher = str(Path(folder) / "teacher.npz") if recipe.loss.teacher_share else None
    job = TrainJob(
        dataset=dataset,
        output=str(Path(place) / "training"),
        recipe=recipe,
        initial=initial,
        teacher=teacher,
        validation_images=0,
        num_workers=1,
        num_threads=1,
        checkpoint_every=50,
    )
    execution.run(jobs.train_model, job)


def counts(place: Path) -> Counts:
    """Counts of the one evaluation of a line."""
    [path] = (place / "evaluations").glob("*.json")
    return read_counts(locate(str(place)), evaluation_of(json.loads(path.read_text())))


def table(done: dict[str, Path], folder: Path) -> str:
    """Markdown, a line each."""
    base = counts(done["base"])
    [base_stage] = base.confusion
    classes = np.array(ALL)
    weights = evaluation.resampling(len(base.ids), 1000, 0)

    def measure(totals: np.ndarray) -> np.ndarray:
        return evaluation.mean_iou(totals, classes)

    lines = ["| changed | choose475 | report475 | val475, against the first |", "| --- | --- | --- | --- |"]
    for name, place in done.items():
        found = counts(place)
        [stage] = found.confusion
        position = {image: index for index, image in enumerate(found.ids)}
        means = []
        for subset in ("choose475", "report475"):
            names = (folder / f"ImageSets/Segmentation/{subset}.txt").read_text().split()
            total = found.of(stage)[[position[image] for image in names]].sum(0)
            means.append(100 * float(evaluation.mean_iou(total, classes)))
        gain = ""
        if name != "base":
            assert found.ids == base.ids
            of = evaluation.paired_difference(base.of(base_stage), found.of(stage), measure, weights)
            gain = f"{100 * of.value:+.1f} ({100 * of.low:+.1f} to {100 * of.high:+.1f})"
        lines.append(f"| {LINES[name][0]} | {means[0]:.1f} | {means[1]:.1f} | {gain} |")
    return "\n".join(lines)


def main(folder: Path, dataset: Path, output: Path, names: list[str]) -> None:
    """Train, evaluate, print."""
    done = {}
    for name in dict.fromkeys(["base", *(names or LINES)]):
        done[name] = train(name, folder, dataset, output)
        print(table(done, folder), flush=True)
    print(conditions())
    print(f"{STEPS} steps, {STEPS * BASE.batch_size} views, seed 0, one thread")
    print(table(done, folder))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        raise SystemExit(__doc__)
    main(*map(Path, sys.argv[1:4]), sys.argv[4:])
