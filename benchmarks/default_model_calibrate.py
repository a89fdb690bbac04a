"""`python -m benchmarks.default_model_calibrate FOLDER MODEL`: one number for each class, added to the scores.

The photographs learnt from hold other shares of the classes than those met later. FOLDER is what
`benchmarks.default_model_data` wrote; the numbers are chosen on its choose475 for the mean IoU over all classes,
without CRF, at every eighth pixel; report475, which has no part in it, shows what they are worth. MODEL, a model
directory of `pspnet_lite*` or `deeplab_v2_lite*`, is written anew with them in the bias of its last classifier.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segcore import voc
from segcore.metrics import evaluation
from segcore.models import checkpoint
from segcore.scoring.inference import InferenceParams, Scorer

STEPS = (-0.4, 0.4)
"""What is tried for each class, in logits."""

ROUNDS = 2
LEAST_GAIN = 3e-4
"""Of the mean IoU, 0 to 1; less is noise."""


def scores_of(scorer: Scorer, folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) int64 and scores (n, 21) float32 at every eighth pixel of a list's photographs, void left out."""
    labels, scores = [], []
    for name in (folder / f"ImageSets/Segmentation/{split}.txt").read_text().split():
        with Image.open(folder / f"JPEGImages/{name}.jpg") as opened:
            [scored] = scorer([np.asarray(opened.convert("RGB"))])
        with Image.open(folder / f"SegmentationClass/{name}.png") as opened:
            truth = np.asarray(opened)[::8, ::8]
        grid = scored.scores[:, : truth.shape[0], : truth.shape[1]].astype(np.float32)
        known = truth != voc.IGNORE_LABEL
        labels.append(truth[known].astype(np.int64))
        scores.append(grid[:, known].T)
    return np.concatenate(labels), np.concatenate(scores)


def mean_iou(labels: np.ndarray, scores: np.ndarray, bias: np.ndarray) -> float:
    """Over all classes, 0 to 1."""
    count = scores.shape[1]
    cells = np.bincount(labels * count + (scores + bias).argmax(1), minlength=count * count)
    return float(evaluation.mean_iou(evaluation.counts_of(cells.reshape(count, count)), np.arange(count)))


def chosen_bias(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(21,) float32: class by class the step that gains most."""
    bias = np.zeros(scores.shape[1], np.float32)
    best = mean_iou(labels, scores, bias)
    for _ in range(ROUNDS):
        for label in range(len(bias)):
            tried = [bias + step * (np.arange(len(bias)) == label).astype(np.float32) for step in STEPS]
            found = [mean_iou(labels, scores, each) for each in tried]
            if max(found) > best + LEAST_GAIN:
                best, bias = max(found), tried[int(np.argmax(found))]
    return bias


def main(folder: Path, directory: Path) -> None:
    """Choose, say what it is worth, write."""
    model = checkpoint.load(directory)
    scorer = Scorer(model, InferenceParams(), device="cpu")
    chosen, reported = (scores_of(scorer, folder, split) for split in ("choose475", "report475"))
    bias = chosen_bias(*chosen)
    for name, of in (("choose475", chosen), ("report475", reported)):
        before, after = (100 * mean_iou(*of, each) for each in (np.zeros_like(bias), bias))
        print(f"{name}: {before:.2f} -> {after:.2f} % mean IoU over {len(bias)} classes, without CRF, on the grid")
    told = {voc.CLASSES[label]: round(float(value), 1) for label, value in enumerate(bias) if value}
    print(f"Added to the scores: {told}")
    module = checkpoint.load(directory).module
    with torch.no_grad():
        last = module.get_parameter("skip.classifier.bias")
        last.copy_(last + torch.from_numpy(bias).to(last.dtype))
    notes = f"{model.card.notes} Numbers added to the scores of the classes were chosen on 238 of the 475.".strip()
    card, seen = dataclasses.replace(model.card, notes=notes), checkpoint.seen_images(directory)
    checkpoint.save(directory, module.bfloat16(), card, seen=seen, replace=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
