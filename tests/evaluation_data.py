"""What the tests of the evaluation share: a small dataset whose truth is a model's own masks, and model directories."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from segcore.crf.dense_crf import refine_scores
from segcore.images import masks
from segcore.images.decoding import decode
from segcore.models import checkpoint
from segcore.scoring.inference import InferenceParams, Scorer
from segcore.voc import CLASSES
from tasks.datasets.shards import (
    DatasetManifest,
    ShardRow,
    Split,
    dataset_digest,
    read_manifest,
    row_digest,
    split_digest,
    write_manifest,
    write_part,
)
from tasks.evaluation.counts import COUNTS, counts_folder, write_counts
from tasks.evaluation.evaluate import Evaluation, ReevaluateJob
from tasks.evaluation.judging import UNIT_IMAGES, judged
from tasks.storage import Location, locate
from tests.conftest import photograph

VARIANT = "deeplab_v2_resnet18"
INFERENCE = {"long_side_px": 65, "precision": "fp32"}


def save_model(folder: Path, seed: int, **card: object) -> Path:
    """A seeded model as a directory, in place of one that is there."""
    model = checkpoint.load(VARIANT, untrained=True, seed=seed)
    checkpoint.save(folder, model.module, replace(model.card, **card), replace=True)  # type: ignore[arg-type]
    return folder


def small_dataset(folder: Path, seed: int | None = 0, num_images: int = 24, name: str = "small") -> str:
    """Photographs whose truth is what the model of a seed sees in them, with a void border; None: random truth."""
    images = [np.asarray(photograph(number, (64, 48) if number % 2 else (49, 65))) for number in range(num_images)]
    if seed is None:
        random = np.random.default_rng(0)
        truth = [random.integers(0, 3, image.shape[:2]).astype(np.uint8) for image in images]
    else:
        scorer = Scorer(
            checkpoint.load(VARIANT, untrained=True, seed=seed), InferenceParams(**INFERENCE), num_threads=1
        )
        maps = scorer(images)
        pairs = zip(images, maps, strict=True)
        truth = [refine_scores(image, m.scores, None, extent_px=m.extent_px).labels for image, m in pairs]
        for labels in truth:
            edges = np.zeros(labels.shape, bool)
            edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
            labels[edges] = 255
    rows = []
    for number, (image, labels) in enumerate(zip(images, truth, strict=True)):
        rows.append(shard_row(f"image-{number:03d}", png(image), labels))
    return write_dataset(locate(str(folder)), name, {"val": rows})


def png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def shard_row(image_id: str, image: bytes, truth: np.ndarray, split: str = "val") -> ShardRow:
    """A row of a dataset."""
    mask = masks.encode_mask(truth)
    height, width = truth.shape
    return ShardRow(image_id, split, image, mask, width, height, "test", row_digest(image, mask))


def write_dataset(dataset: Location, name: str, splits: dict[str, list[ShardRow]]) -> str:
    """A prepared dataset, two files a split."""
    written = {}
    for split, rows in splits.items():
        half = (len(rows) + 1) // 2
        files = [
            write_part(dataset, f"shards/split={split}/part-{number}.parquet", part)
            for number, part in enumerate((rows[:half], rows[half:]))
            if part
        ]
        truths = [masks.decode_mask(row.mask) for row in rows]
        pixels = sum(np.bincount(truth.ravel(), minlength=256) for truth in truths)
        written[split] = Split(
            images=len(rows),
            files=files,
            class_pixels=[int(n) for n in pixels[: len(CLASSES)]],
            class_images=[sum(bool((truth == c).any()) for truth in truths) for c in range(len(CLASSES))],
            void_pixels=int(pixels[255]),
            digest=split_digest({row.id: row.digest for row in rows}),
        )
    digest = dataset_digest(CLASSES, written)
    manifest = DatasetManifest(name=name, classes=list(CLASSES), splits=written, digest=digest, provenance={})
    write_manifest(dataset, manifest)
    return dataset.uri


def judged_in_process(job: ReevaluateJob, asked: Evaluation) -> None:
    """Counts of every image without Ray, where an evaluation looks for them."""
    dataset = locate(job.dataset)
    scorer = Scorer(checkpoint.load(asked.uri), asked.inference, num_threads=1)
    split = read_manifest(dataset).split(job.split)
    for number, file in enumerate(split.files):
        rows = []
        for row in pq.read_table(f"{job.dataset}/{file.path}", partitioning=None).to_pylist():
            image = decode(row["image"]).image
            (scored,) = scorer([image])
            refined = refine_scores(image, scored.scores, asked.crf, extent_px=scored.extent_px)
            truth = masks.decode_mask(row["mask"])
            columns = judged(truth, refined, asked.crf is not None, len(asked.classes), asked.around)
            rows.append(dict.fromkeys(COUNTS.names) | {"image_id": row["id"]} | columns)
        for start in range(0, len(rows), UNIT_IMAGES):
            place = counts_folder(locate(job.output), asked.id) / f"part-{number:05d}-{start:06d}.parquet"
            write_counts(place, rows[start : start + UNIT_IMAGES])
