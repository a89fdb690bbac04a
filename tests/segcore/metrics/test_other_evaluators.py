"""The same labels by torchmetrics, by hotcoco, and by the arithmetic of the VOC development kit: the same IoU."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hotcoco.semantic import SemanticEval
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

from segcore.metrics import evaluation
from segcore.voc import CLASSES

Pairs = list[tuple[np.ndarray, np.ndarray]]
"""Truth and prediction, (H, W) uint8 each."""

NUM_CLASSES = len(CLASSES)


def random_pairs() -> Pairs:
    """Maps of several sizes in patches; void, a class that is only predicted, one only in the truth, one in neither."""
    rng = np.random.default_rng(0)
    pairs = []
    for height, width in ((33, 47), (1, 9), (120, 80), (64, 64)):
        coarse = rng.integers(0, 18, (-(-height // 7), -(-width // 7)))
        truth = np.kron(coarse, np.ones((7, 7), int))[:height, :width].astype(np.uint8)
        predicted = np.where(rng.random(truth.shape) < 0.3, rng.integers(0, 18, truth.shape), truth).astype(np.uint8)
        truth[rng.random(truth.shape) < 0.1] = 255
        truth[0, 0], predicted[0, 1], truth[0, 1] = 18, 19, 3
        pairs.append((truth, predicted))
    return pairs


def real_pairs(voc: Path) -> Pairs:
    """True masks of VOC val, and the same shifted by some pixels, with background where they are void."""
    names = (voc / "ImageSets/Segmentation/val_have.txt").read_text().split()[:20]
    pairs = []
    for name in names:
        truth = np.array(Image.open(voc / f"SegmentationClassAug/{name}.png"))
        pairs.append((truth, np.where(truth == 255, 0, np.roll(truth, (5, 9), (0, 1))).astype(np.uint8)))
        pairs[-1][1][pairs[-1][1] == 255] = 0
    return pairs


def by_development_kit(pairs: Pairs) -> np.ndarray:
    """(C,) IoU as in `VOCevalseg.m`: one confusion matrix of the pixels below 255; NaN for a class in neither."""
    confusion = np.zeros((NUM_CLASSES, NUM_CLASSES))
    for truth, predicted in pairs:
        known = truth < 255
        pair = 1 + truth[known].astype(float) + predicted[known].astype(float) * NUM_CLASSES
        confusion += np.histogram(pair, np.arange(1, NUM_CLASSES**2 + 2))[0].reshape(NUM_CLASSES, NUM_CLASSES).T
    found = np.full(NUM_CLASSES, np.nan)
    for label in range(NUM_CLASSES):
        union = confusion[label].sum() + confusion[:, label].sum() - confusion[label, label]
        if union:
            found[label] = confusion[label, label] / union
    return found


@pytest.mark.parametrize("which", ["random", "real"])
def test_other_evaluators_agree(which: str, request: pytest.FixtureRequest) -> None:
    pairs = random_pairs() if which == "random" else real_pairs(request.getfixturevalue("voc"))
    counts = np.sum([evaluation.count_pixels(truth, predicted, NUM_CLASSES) for truth, predicted in pairs], axis=0)
    ours = evaluation.iou(counts)

    np.testing.assert_array_equal(ours, by_development_kit(pairs))

    hotcoco = SemanticEval(NUM_CLASSES)
    torchmetrics = MulticlassJaccardIndex(NUM_CLASSES, average=None, ignore_index=255)
    for truth, predicted in pairs:
        hotcoco.update(truth, predicted)
        torchmetrics.update(torch.from_numpy(predicted).long().flatten(), torch.from_numpy(truth).long().flatten())
    np.testing.assert_array_equal(evaluation.counts_of(hotcoco.confusion().astype(np.int64)), counts)
    assert float(evaluation.mean_iou(counts)) == pytest.approx(hotcoco.report()["metrics"]["mIoU"], abs=1e-15)
    present = np.isfinite(ours)
    assert 0 < present.sum() < NUM_CLASSES
    # torchmetrics divides in float32
    np.testing.assert_array_equal(torchmetrics.compute().numpy()[present], ours[present].astype(np.float32))
