"""The evaluation: counting and trimaps against plain NumPy loops, the reference figures, and how the alarm behaves.

Usage: python -m benchmarks.evaluation [speed reference calibration intervals months]
Data: SEGMENT_ARCHIVE_DATA, by default ../shared/data beside the repository: 300 real photographs with the scores of a
public network.
"""

import argparse
import functools
import time
from collections.abc import Callable

import numpy as np

from benchmarks.conditions import conditions
from benchmarks.crf import FREQUENT, Photograph, photographs
from segcore.crf.dense_crf import CrfParams, refine_scores
from segcore.metrics import evaluation
from segcore.metrics.comparison import NIGHTS, AlarmParams, compare
from segcore.voc import CLASSES

NOISES = {
    "like another rounding": (0.1, 0.05),
    "like a short further training": (0.5, 0.3),
    "like another training": (1.0, 1.0),
}
"""Standard deviations of the noise on the scores: at every position, and of each class over the whole image. The
scores themselves have 6."""

CURVE_STRIDE = 8  # A plain loop over forty dilations is slow enough on few images


def plain_confusion(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """What one writes first: a mask for each pair of classes."""
    counted = np.zeros((21, 21), np.int64)
    for true in range(21):
        for said in range(21):
            counted[true, said] = ((truth == true) & (predicted == said)).sum()
    return counted


def plain_trimap(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """What one writes first: forty dilations by shifting, and counts in each band."""
    void = truth == 255
    band, counted = void.copy(), np.zeros((40, 21, 3), np.int64)
    for width in range(40):
        grown = band.copy()
        grown[1:] |= band[:-1]
        grown[:-1] |= band[1:]
        band = grown.copy()
        band[:, 1:] |= grown[:, :-1]
        band[:, :-1] |= grown[:, 1:]
        inside = band & ~void
        true, said = truth[inside], predicted[inside]
        for label in range(21):
            here, there = true == label, said == label
            counted[width, label] = (here & there).sum(), here.sum(), there.sum()
    return counted


def images_per_s(work: Callable[[np.ndarray, np.ndarray], object], pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    start = time.thread_time()
    for truth, predicted in pairs:
        work(truth, predicted)
    return len(pairs) / (time.thread_time() - start)


def speed(images: list[Photograph]) -> None:
    pairs = [(truth, refine_scores(image, scores, None).labels) for image, scores, truth in images[:64]]
    print("\n### Counting, images a second of one thread's CPU time\n")
    print("| | ours | plain NumPy | times |\n|---|---|---|---|")

    def ours_trimap(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        return np.cumsum(evaluation.trimap_counts(truth, predicted, 21, "void"), axis=0)

    def ours_confusion(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        return evaluation.confusion_matrix(truth, predicted, 21)

    for what, ours, plain in (
        ("confusion, 21 classes", ours_confusion, plain_confusion),
        ("trimaps of 1 to 40 px", ours_trimap, plain_trimap),
    ):
        few = pairs[::CURVE_STRIDE]
        assert all(np.array_equal(ours(*pair), plain(*pair)) for pair in few)
        rates = images_per_s(ours, pairs), images_per_s(plain, few)
        print(f"| {what} | {rates[0]:.0f} | {rates[1]:.1f} | {rates[0] / rates[1]:.0f} |", flush=True)


def reference(images: list[Photograph]) -> None:
    print("\n### Mean IoU over background, cat, cow, dog, horse, person and sheep; 95 % intervals over images\n")
    print("| | mean IoU | pixel accuracy |\n|---|---|---|")
    labels = np.array(FREQUENT)
    for what, crf in (("without CRF", None), ("with CRF 4/67/3/3/1", CrfParams(4, 67, 3, 3, 1))):
        counts = np.stack(
            [
                evaluation.count_pixels(truth, refine_scores(image, scores, crf).labels, 21)
                for image, scores, truth in images
            ]
        )
        weights = evaluation.resampling(len(counts), 1000, seed=0)
        told = []
        for measure in (functools.partial(evaluation.mean_iou, over=labels), evaluation.pixel_accuracy):
            value, low, high = evaluation.with_interval(measure, weights, counts)
            told.append(f"{100 * float(value):.2f} ({100 * float(low):.2f} to {100 * float(high):.2f})")
        print(f"| {what} | {' | '.join(told)} |", flush=True)


WIDTHS_PX = (1, 5, 10, 20, 40)


def intervals(images: list[Photograph], splits: int = 2000) -> None:
    """How often 95 % intervals over samples of the photographs hold what all of them have."""
    counts, bands = [], []
    for image, scores, truth in images:
        labels = refine_scores(image, scores, None).labels
        counts.append(evaluation.count_pixels(truth, labels, 21))
        bands.append(np.cumsum(evaluation.trimap_counts(truth, labels, 21, "void"), axis=0)[np.array(WIDTHS_PX) - 1])
    # One row of numbers a photograph: classes, pixels, bands
    rows = np.concatenate([np.stack(counts)[:, None], np.stack(bands)], axis=1)
    chosen = np.array(FREQUENT)

    def measures(sums: np.ndarray) -> np.ndarray:
        whole, banded = sums[..., 0, :, :], sums[..., 1:, :, :]
        first = [evaluation.mean_iou(whole, chosen)[..., None], evaluation.pixel_accuracy(whole)[..., None]]
        return np.concatenate(
            [*first, evaluation.iou(whole[..., chosen, :]), evaluation.mean_iou(banded, chosen)], axis=-1
        )

    truth = measures(rows.sum(axis=0))
    names = ["mean IoU", "pixel accuracy", *(CLASSES[label] for label in chosen), *(f"trimap {w}" for w in WIDTHS_PX)]
    holding = rows[:, 0, chosen, 1] > 0
    random = np.random.default_rng(1)
    print(f"\n### What 95 % intervals hold, of {splits} samples of n photographs, percent\n")
    print(
        "A class is counted in the samples with 20 photographs of it or more. Percentiles: of the bootstrap as it is.\n"
    )
    found: list[list[str]] = [[] for _ in names]
    sizes = (50, 300, 1449)
    for size in sizes:
        weights = evaluation.resampling(size, 1000, seed=0)
        held, plain, counted = (np.zeros(len(names)) for _ in range(3))
        for _ in range(splits):
            drawn = random.integers(0, len(rows), size)
            sample = rows[drawn]
            value = measures(sample.sum(axis=0))
            samples = measures(evaluation.resampled_sums(sample, weights))
            images_of = evaluation.effective_images(value - measures(sample.sum(axis=0) - sample))
            enough = np.ones(len(names), bool)
            enough[2 : 2 + len(chosen)] = holding[drawn].sum(axis=0) >= 20
            low, high = evaluation.interval(samples, images_of)
            held += enough & (low <= truth) & (truth <= high)
            low, high = np.quantile(samples, [0.025, 0.975], axis=0)
            plain += enough & (low <= truth) & (truth <= high)
            counted += enough
        for index, of in enumerate(counted):
            few = of < splits / 20
            found[index].append("" if few else f"{100 * held[index] / of:.1f} | {100 * plain[index] / of:.1f}")
            found[index][-1] = found[index][-1] or " | "
    print("| | " + " | ".join(f"n = {size} | percentiles" for size in sizes) + " |")
    print("|---|" + "---|---|" * len(sizes))
    for name, cells in zip(names, found, strict=True):
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def noisy(
    images: list[Photograph], seed: int, noise: tuple[float, float], lowered: tuple[int, float] = (0, 0.0)
) -> np.ndarray:
    """(N, 21, 3) counts with noise on the scores, and the scores of one class lowered."""
    random = np.random.default_rng(seed)
    counted = []
    for image, scores, truth in images:
        moved = scores + random.normal(0, noise[0], scores.shape) + random.normal(0, noise[1], (21, 1, 1))
        moved[lowered[0]] -= lowered[1]
        counted.append(evaluation.count_pixels(truth, refine_scores(image, moved.astype(np.float16), None).labels, 21))
    return np.stack(counted)


def mirrored(images: list[Photograph], crf: CrfParams | None) -> np.ndarray:
    """(N, 21, 3) counts of the mirrored images, whose masks are mirrored back."""
    counted = []
    for image, scores, truth in images:
        labels = refine_scores(image[:, ::-1].copy(), scores[..., ::-1].copy(), crf).labels[:, ::-1]
        counted.append(evaluation.count_pixels(truth, np.ascontiguousarray(labels), 21))
    return np.stack(counted)


def thinned(counts: np.ndarray, label: int, drop: float) -> np.ndarray:
    """The same images, each with the same share of the hits of a class lost to background, so that its IoU falls by
    `drop`: what thinner masks or lost borders do."""
    hits, truth, predicted = (float(v) for v in counts.sum(axis=0)[label])
    union = truth + predicted - hits
    lost = np.round(counts[:, label, 0] * min(1.0, drop * union / hits)).astype(np.int64)
    worse = counts.copy()
    worse[:, label, 0] -= lost
    worse[:, label, 2] -= lost
    worse[:, 0, 2] += lost
    return worse


def lowered_by(images: list[Photograph], before: np.ndarray, label: int, drop: float) -> np.ndarray:
    """Counts with the scores of a class lowered until its IoU has fallen by `drop`: whole objects change class."""
    wanted = float(evaluation.iou(before.sum(axis=0))[label]) - drop
    low, high, counts = 0.0, 10.0, before
    for _ in range(7):
        middle = (low + high) / 2
        counts = noisy(images, 0, (0, 0), (label, middle))
        value = float(evaluation.iou(counts.sum(axis=0))[label])
        low, high = (low, middle) if value < wanted else (middle, high)
    return counts


def alarms(pairs: list[tuple[np.ndarray, np.ndarray]], seed: int) -> bool:
    params = AlarmParams(num_samples=1000, seed=seed)
    return any(d.worse for differences in compare(pairs, params) for d in differences)


def calibration(images: list[Photograph], nights: int = 100) -> None:
    random = np.random.default_rng(0)
    count = len(images)
    replicas = {name: np.stack([noisy(images, k + 1, noise) for k in range(4)]) for name, noise in NOISES.items()}

    print(f"\n### False alarms of {nights} nights: equal on average, not identical\n")
    print("Each night draws its images anew, and for each image and model two of four noisy results.\n")
    print("| noise | 1 model | 5 models |\n|---|---|---|")
    for name, of in replicas.items():
        cells = []
        for num_models in (1, 5):
            raised = 0
            for night in range(nights):
                drawn = random.integers(0, count, count)
                pairs = []
                for _ in range(num_models):
                    first = random.integers(0, 4, count)
                    second = (first + random.integers(1, 4, count)) % 4
                    pairs.append((of[first, drawn], of[second, drawn]))
                raised += alarms(pairs, night)
            cells.append(str(raised))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    plain = np.stack([noisy(images, 0, (0, 0)), mirrored(images, None)])
    sharp_params = CrfParams(4, 67, 3, 3, 1)
    few = images[:100]
    sharp = np.stack(
        [
            np.stack([evaluation.count_pixels(t, refine_scores(i, s, sharp_params).labels, 21) for i, s, t in few]),
            mirrored(few, sharp_params),
        ]
    )
    for name, both in (("mirrored inference, without CRF", plain), ("mirrored, with CRF, 100 images", sharp)):
        raised = 0
        for night in range(nights):
            drawn = random.integers(0, both.shape[1], both.shape[1])
            first = random.integers(0, 2, both.shape[1])
            raised += alarms([(both[first, drawn], both[1 - first, drawn])], night)
        print(f"| {name} | {raised} | |", flush=True)

    print(f"\n### Drops that were found, of {nights} nights of {count} images, one class worse\n")
    print("Thinned: every object loses borders; nothing else differs, or each result has the noise of a short further")
    print("training. Lowered: the score of the class is lower everywhere, so whole objects change their class.\n")
    print("| class | drop, points | thinned | thinned, with noise | lowered |\n|---|---|---|---|---|")
    before, noise = plain[0], replicas["like a short further training"]
    for drop in (0.03, 0.05, 0.08):
        for label in (8, 12, 15):
            lowered = lowered_by(images, before, label, drop)
            found = np.zeros(3, int)
            for night in range(nights):
                drawn = random.integers(0, count, count)
                first = random.integers(0, 4, count)
                second = (first + random.integers(1, 4, count)) % 4
                worse = thinned(before, label, drop), thinned(noise[second, np.arange(count)], label, drop)
                found += [
                    alarms([(before[drawn], worse[0][drawn])], night),
                    alarms([(noise[first, np.arange(count)][drawn], worse[1][drawn])], night),
                    alarms([(before[drawn], lowered[drawn])], night),
                ]
            print(f"| {CLASSES[label]} | {100 * drop:.0f} | {' | '.join(map(str, found))} |", flush=True)


def months(images: list[Photograph], nights: int) -> None:
    """False alarms of whole months, and what is found of a fall, at the default of the alarm."""
    random, count = np.random.default_rng(0), len(images)
    print(f"\n### Months of 30 nights with an alarm, of {nights}: equal on average, not identical\n")
    print("Each month draws its images anew, and for each image and model two of four noisy results each night.\n")
    print("| noise | 1 model | 5 models |\n|---|---|---|")
    params = AlarmParams()
    weights = evaluation.resampling(count, params.num_samples, params.seed)
    for name, noise in list(NOISES.items())[1:]:
        of = np.stack([noisy(images, k + 1, noise) for k in range(4)])
        cells = []
        for num_models in (1, 5):
            raised = 0
            for _ in range(nights):
                drawn = random.integers(0, count, count)
                first = random.integers(0, 4, (num_models, count))
                for _ in range(NIGHTS):
                    second = (first + random.integers(1, 4, (num_models, count))) % 4
                    pairs = [(of[a, drawn], of[b, drawn]) for a, b in zip(first, second, strict=True)]
                    if any(d.worse for differences in compare(pairs, params, weights) for d in differences):
                        raised += 1
                        break
            cells.append(str(raised))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

    size = 1449
    print(
        f"\n### A fall of two points of one class, found in {nights} nights of {size} images drawn from the {count}\n"
    )
    print("| class | nothing else changed | with the noise of a short further training |\n|---|---|---|")
    weights = evaluation.resampling(size, params.num_samples, params.seed)
    before = noisy(images, 0, (0, 0))
    noise = np.stack([noisy(images, k + 1, NOISES["like a short further training"]) for k in range(4)])
    for label in FREQUENT[1:]:
        found = np.zeros(2, int)
        for _ in range(nights):
            drawn = random.integers(0, count, size)
            first = random.integers(0, 4, count)
            second = (first + random.integers(1, 4, count)) % 4
            each = np.arange(count)
            pairs = [
                (before, thinned(before, label, 0.02)),
                (noise[first, each], thinned(noise[second, each], label, 0.02)),
            ]
            found += [
                any(d.worse for d in compare([(was[drawn], now[drawn])], params, weights)[0]) for was, now in pairs
            ]
        print(f"| {CLASSES[label]} | {found[0]} | {found[1]} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", default=["speed", "reference"], help="speed, reference, calibration, intervals, months"
    )
    parser.add_argument("--nights", type=int, default=100)
    args = parser.parse_args()
    images = photographs(300)
    print(conditions())
    print(f"{len(images)} images")
    for part in args.parts:
        if part == "calibration":
            calibration(images, args.nights)
        elif part == "months":
            months(images, args.nights)
        else:
            {"speed": speed, "reference": reference, "intervals": intervals}[part](images)


if __name__ == "__main__":
    main()
