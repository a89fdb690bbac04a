"""The evaluation of models on prepared datasets: what is asked, judging every image once, and the figures.

Images go through the stream of the archive (`tasks/pipeline.py`); its last stage alone is another one, which counts
pixels instead of storing masks for good. Counts of single images stay in Parquet, so that every figure, subset and
bootstrap afterwards is a query. Whether a night was worse than another one is `tasks/nightly.py`'s business.

    OUTPUT/counts/evaluation=<id>/part-*.parquet    one row per image
    OUTPUT/evaluations/<id>.json                    what was evaluated, and the figures with intervals; written last
"""

import dataclasses
import functools
import hashlib
import io
import json
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel

from segcore import checkpoint, evaluation, masks, models, refinement
from segcore.card import ModelCard
from segcore.comparison import AlarmParams
from segcore.evaluation import Around, Figure
from segcore.images import ErrorKind, ImageError, resize_labels
from segcore.inference import DEEPLAB_V2_MSC, PSPNET_MULTI_SCALE, InferenceParams, relative_work
from segcore.refinement import CrfParams, Refined, refine_scores
from tasks import cluster, progress, storage
from tasks.apart import limits_of
from tasks.errors import JobError
from tasks.pipeline import Refine, stream
from tasks.registry import RegisteredModel
from tasks.remote_models import local_model
from tasks.shards import DatasetManifest, Split, read_manifest
from tasks.sources import Source, list_source, read_entries
from tasks.storage import Location
from tasks.units import Destination, MaskParams, Record, Unit, mask_file

EVALUATION_VERSION = 1
"""Raised when the same labels give other counts."""

UNIT_IMAGES = 16
"""Images of one file of counts: what a killed evaluation does again at most, for each worker."""

MAX_PIXELS = 100_000_000

STAGES = ("without CRF", "with CRF")

BOOTSTRAP_SAMPLES = 1000

LEAST_IMAGES = 5
"""A class that fewer images hold has no interval: draws of the same one or two images would make it look certain."""

_CONFUSION = pa.list_(pa.struct([("truth", pa.uint8()), ("predicted", pa.uint8()), ("pixels", pa.int64())]))
_TRIMAP = pa.list_(
    pa.struct(
        [
            ("distance_px", pa.uint8()),
            ("label", pa.uint8()),
            ("hits", pa.int64()),
            ("truth", pa.int64()),
            ("predicted", pa.int64()),
        ]
    )
)

_FIELDS: dict[str, tuple[pa.DataType, str]] = {
    "image_id": (pa.string(), "identity of the image in its dataset"),
    "width": (pa.int32(), "of the image and its masks, px"),
    "height": (pa.int32(), "of the image and its masks, px"),
    "confusion_without_crf": (_CONFUSION, "pixels by label and what it was taken for, where there are any; no void"),
    "confusion_with_crf": (_CONFUSION, "the same after the CRF; null where it was left out"),
    "trimap_without_crf": (_TRIMAP, "counts by distance from the border, where there are any"),
    "trimap_with_crf": (_TRIMAP, "the same after the CRF; null where it was left out"),
    "mask_without_crf": (pa.binary(), "palette PNG of what was predicted"),
    "mask_with_crf": (pa.binary(), "the same after the CRF; null where it was left out"),
    "device": (pa.string(), "where and in which precision it was scored"),
    "error": (pa.string(), "why the image has no counts"),
}

COUNTS = pa.schema([pa.field(name, kind, metadata={"description": told}) for name, (kind, told) in _FIELDS.items()])
"""Columns of a file of counts."""


class ReevaluateJob(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """What to evaluate on which images, how, and when a difference is worth an alarm."""

    models: str
    """Folder or bucket prefix of model directories; one model directory; or the name of a model with weights here."""

    dataset: str
    """URI of a prepared dataset (`segment-archive prepare`)."""

    output: str
    """URI that counts, figures, baselines and reports are written under."""

    split: str = "val"
    """Images to evaluate on."""

    inference: InferenceParams = InferenceParams()
    """How scores are made: sizes, scales, windows, precision; as in an archive job."""

    multi_scale: bool = False
    """Evaluate at the scales of the model's paper too."""

    crf: CrfParams | None = CrfParams()
    """Mean-field parameters; figures come without and with them. None leaves the CRF out."""

    crf_engine: Literal["auto", "native", "pydensecrf"] = "auto"
    """Engine of the CRF; auto takes the native one where it is built."""

    alarm: AlarmParams = AlarmParams()
    """When a difference from the baseline is worth an alarm."""

    stale_after_hours: Annotated[float, annotated_types.Gt(0)] = 12.0
    """A scheduled run that starts later than this after its time is cancelled: the next one is as good."""

    report: bool = True
    """Write the report with its pictures."""


@dataclass(frozen=True)
class Evaluation:
    """One model on one set of images in one way of scoring: what a file of figures is about."""

    id: str
    """Digest of everything that decides a count."""

    model: str
    """Name in the registry."""

    uri: str
    variant: str
    shown_name: str
    """What people see: the variant, marked where it is untrained."""

    digest: str
    """Of the model."""

    training_split: str
    protocol: str
    """ "single scale" or "multi-scale"."""

    inference: InferenceParams
    crf: CrfParams | None
    crf_engine: Literal["native", "pydensecrf"]
    dataset: str
    """Name of the dataset and its split."""

    dataset_uri: str
    split: str
    split_digest: str
    images: int
    classes: tuple[str, ...]
    around: Around
    code: str
    """`code_version` that made it."""

    commit: str
    """For people: the commit of the project, or its version."""

    @property
    def stages(self) -> tuple[str, ...]:
        """What is counted: without CRF, and with it where there is one."""
        return STAGES if self.crf is not None else STAGES[:1]


@dataclass
class Counts:
    """Counts of single images, in the order of their identities."""

    ids: list[str]
    confusion: dict[str, NDArray[np.int64]]
    """By stage: (N, C, C)."""

    trimap: dict[str, NDArray[np.int64]]
    """By stage: (N, 40, C, 3), by distance."""

    def of(self, stage: str) -> NDArray[np.int64]:
        """(N, C, 3) counts of a stage."""
        return evaluation.counts_of(self.confusion[stage])


@dataclass(frozen=True)
class JudgeDestination(Destination):
    """Where counts go, and what the trimaps are around."""

    around: Around = "void"


class Judge(Refine):
    """Last stage: actor that refines as the archive does, and counts instead of storing masks for good."""

    what = "judging"
    destination: JudgeDestination

    def control(self) -> None:
        """None: an image that is judged needs a true mask."""

    def begin(self, records: list[Record]) -> None:
        """Read the true masks of the unit: another column of the rows that the images are from."""
        wanted = [dataclasses.replace(record.entry, note="mask") for record in records if not record.error]
        self.truth = {entry.image_id: data for entry, data in read_entries(self.destination.source, wanted)}

    def base_row(self, record: Record) -> dict[str, Any]:
        """Identity, size and error of an image."""
        row: dict[str, Any] = dict.fromkeys(COUNTS.names)
        row |= {"image_id": record.entry.image_id, "width": record.width or None, "height": record.height or None}
        return row | {"error": str(record.error) if record.error is not None else None}

    def columns(self, record: Record, image: np.ndarray, scores: np.ndarray, device: str) -> dict[str, Any]:
        """Counts of an image, and the masks that they are of."""
        data = self.truth[record.entry.image_id]
        if isinstance(data, ImageError):
            raise data
        refined: Refined = refine_scores(
            image, scores, self.params.crf, extent_px=record.extent_px, backend=self.params.crf_backend
        )
        truth = masks.decode_mask(data)
        if truth.shape != (record.height, record.width):
            raise ImageError(
                ErrorKind.FAILED,
                f"its mask is {truth.shape[1]} x {truth.shape[0]} px, it {record.width} x {record.height}",
            )
        columns = judged(truth, refined, self.params.crf is not None, len(self.params.classes), self.destination.around)
        return columns | {"device": device}

    def commit(self, unit: str, rows: list[dict[str, Any]]) -> None:
        """Write the counts of a unit, whole or not at all."""
        write_counts(self.destination.file_of(unit), rows)


def judged(truth: np.ndarray, refined: Refined, with_crf: bool, num_classes: int, around: Around) -> dict[str, Any]:
    """The columns of counts of one image.

    truth: (H, W) uint8. refined: labels at the size that they were scored at; they go to the size of the truth by
        nearest, as an archive's masks go to the size of the photograph.
    """
    height, width = truth.shape
    distance = evaluation.border_distance(truth, around)
    columns: dict[str, Any] = {}
    stages = {"without_crf": refined.labels_before} | ({"with_crf": refined.labels} if with_crf else {})
    for stage, labels in stages.items():
        labels = resize_labels(labels, width, height)
        confusion = evaluation.confusion_matrix(truth, labels, num_classes)
        trimap = evaluation.trimap_counts(truth, labels, num_classes, around, distance)
        columns[f"confusion_{stage}"] = [
            {"truth": int(t), "predicted": int(p), "pixels": int(confusion[t, p])}
            for t, p in zip(*np.nonzero(confusion), strict=True)
        ]
        columns[f"trimap_{stage}"] = [
            dict(
                zip(
                    ("distance_px", "label", "hits", "truth", "predicted"),
                    (int(d) + 1, int(c), *map(int, trimap[d, c])),
                    strict=True,
                )
            )
            for d, c in zip(*np.nonzero(trimap.any(axis=-1)), strict=True)
        ]
        columns[f"mask_{stage}"] = masks.encode_mask(labels)
    return columns


def write_counts(place: Location, rows: list[dict[str, Any]]) -> None:
    """Write one file of counts, whole or not at all."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=COUNTS), buffer, compression="zstd")
    storage.write_whole(place, buffer.getvalue())


def open_dataset(job: ReevaluateJob) -> tuple[DatasetManifest, Split]:
    """The dataset of a job and its split. Raises JobError where either is not there."""
    manifest = read_manifest(storage.locate(job.dataset))
    split = manifest.split(job.split)
    if not split.images:
        raise JobError(f"The split {job.split} of {job.dataset} holds no images.")
    return manifest, split


def evaluations_of(job: ReevaluateJob, model: RegisteredModel, manifest: DatasetManifest) -> list[Evaluation]:
    """What is to be evaluated of a model: one evaluation, or two with its multi-scale protocol.

    Reads card and digest of the model, builds no network.
    Raises JobError for a model that is broken, that has other classes, or that was trained on these images.
    """
    try:
        card, digest = checkpoint.describe(local_model(model.uri))
    except JobError:
        raise
    except (ValueError, OSError) as error:
        raise JobError(str(error)) from None
    split = manifest.split(job.split)
    if list(card.classes) != manifest.classes:
        raise JobError(
            f"{model.name} knows {len(card.classes)} classes, {', '.join(card.classes[:3])}, ..., the dataset "
            f"{manifest.name} has {len(manifest.classes)}: they must be the same in the same order."
        )
    refuse_training_images(card, manifest, job.split)
    protocols = {"single scale": job.inference}
    if job.multi_scale:
        ours = PSPNET_MULTI_SCALE if card.variant.startswith("pspnet") else DEEPLAB_V2_MSC
        protocols["multi-scale"] = dataclasses.replace(ours, precision=job.inference.precision)
    have: Literal["native", "pydensecrf"] = "native" if refinement.engine_name().startswith("native") else "pydensecrf"
    engine = have if job.crf_engine == "auto" else job.crf_engine
    around: Around = "void" if split.void_pixels else "borders"
    found = []
    for protocol, inference in protocols.items():
        deciding = {
            "name": model.name,  # Two directories with the same weights are two models to a person
            "model": digest,
            "inference": asdict(inference),
            "crf": None if job.crf is None else asdict(job.crf),
            "engine": [engine, refinement.ENGINE_VERSION],
            "split": split.digest,
            "classes": manifest.classes,
            "around": around,
            "version": EVALUATION_VERSION,
            "code": code_version(),
        }
        found.append(
            Evaluation(
                id=hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12],
                model=model.name,
                uri=model.uri,
                variant=card.variant,
                shown_name=card.shown_name,
                digest=digest,
                training_split=card.training_split,
                protocol=protocol,
                inference=inference,
                crf=job.crf,
                crf_engine=engine,
                dataset=f"{manifest.name}-{job.split}",
                dataset_uri=job.dataset,
                split=job.split,
                split_digest=split.digest,
                images=split.images,
                classes=tuple(manifest.classes),
                around=around,
                code=code_version(),
                commit=commit(),
            )
        )
    return found


def refuse_training_images(card: ModelCard, manifest: DatasetManifest, split: str) -> None:
    """Raise JobError, with the line of the card, where a model was trained on images of this split."""
    line = f'its card says "training_split": "{card.training_split}"'
    try:
        card.check_scoring_on(f"{manifest.name}-{split}")
    except ValueError as error:
        raise RefusedError(f"{str(error).rstrip('.')} ({line}).") from None
    seen = card.training_split.removeprefix(f"{manifest.name}-")
    if seen in manifest.splits and seen != card.training_split:
        shared = {file.path for file in manifest.splits[seen].files} & {f.path for f in manifest.splits[split].files}
        if shared:
            raise RefusedError(
                f"{card.shown_name} was trained on {card.training_split}, which shares images with "
                f"{manifest.name}-{split} ({line}); a score there would say nothing."
            )


class RefusedError(JobError):
    """The model must not be scored on these images, since it learnt them by heart."""


def evaluate(job: ReevaluateJob, asked: Evaluation) -> dict[str, Any]:
    """Judge every image that has no counts yet, and write the figures; returns the record. Nothing is done twice.

    Raises JobError where an image could not be judged: figures of fewer images would be other figures.
    """
    output = storage.locate(job.output)
    record = read_record(output, asked.id)
    if record:
        return record
    _, split = open_dataset(job)
    folder = counts_folder(output, asked.id)
    source = storage.locate(job.dataset)
    destination = JudgeDestination(folder, asked.id, source, around=asked.around)
    params = MaskParams(
        model=asked.uri,
        untrained=False,
        seed=0,
        model_name=asked.shown_name,
        model_digest=asked.digest,
        classes=asked.classes,
        inference=asked.inference,
        crf=asked.crf,
        crf_backend=asked.crf_engine,
        max_pixels=MAX_PIXELS,
        own_size=True,
        keep_mask_before_crf=True,
        limits=limits_of(relative_work(asked.inference, models.variant(asked.variant).parameters)),
    )
    with storage.explained(output):
        done = {file.path for file in storage.list_files(folder)}
    units = [unit for unit in _units(source, split) if mask_file(unit.name) not in done]
    if units:
        _require_loadable(asked)
    tracker = progress.Tracker(split.images, split.images - sum(len(unit.entries) for unit in units))
    try:
        with cluster.connected():
            cluster.free_resources()
            workers = cluster.plan_nodes(cluster.free_nodes())
            for report in stream(units, params, destination, workers, Judge):
                tracker.advance(report.images, report.errors.total())
    except JobError:
        raise
    except Exception as error:
        raise JobError(f"{asked.model} could not be evaluated: {cluster.explain(error).rstrip('.')}.") from error
    finally:
        tracker.end()
    errors = _forget_errors(folder)
    if errors:
        name, reason = errors[0]
        raise JobError(
            f"{len(errors)} of {split.images} images could not be judged, the first {name}: {reason.rstrip('.')}."
        )
    counts = read_counts(output, asked)
    if len(counts.ids) != split.images:
        raise JobError(
            f"{folder.uri} holds counts of {len(counts.ids)} images, the split has {split.images}: remove that folder."
        )
    return write_record(output, asked, counts)


def _require_loadable(asked: Evaluation) -> None:
    """Find a broken model here, in one sentence, rather than in every worker."""
    try:
        checkpoint.load(local_model(asked.uri))
    except ValueError as error:
        raise JobError(str(error)) from None


def _units(source: Location, split: Split) -> Iterator[Unit]:
    """Equal slices of every file, named by file and place, so that every session cuts alike."""
    for number, file in enumerate(split.files):
        entries = list(list_source(Source(source / file.path, "id", "image")))
        for start in range(0, len(entries), UNIT_IMAGES):
            yield Unit(f"{number:05d}-{start:06d}", tuple(entries[start : start + UNIT_IMAGES]))


def _forget_errors(folder: Location) -> list[tuple[str, str]]:
    """Images without counts with the reasons; their files are removed, so that the next run does them again."""
    errors = []
    for file in list(storage.list_files(folder)):
        table = _table(folder / file.path, ["image_id", "error"])
        bad = [(row["image_id"], row["error"]) for row in table.to_pylist() if row["error"] is not None]
        if bad:
            storage.remove(folder / file.path)
        errors += bad
    return errors


def counts_folder(output: Location, evaluation_id: str) -> Location:
    """Folder of the counts of an evaluation."""
    return output / "counts" / f"evaluation={evaluation_id}"


def read_counts(output: Location, of: Evaluation) -> Counts:
    """Counts of every image of an evaluation. Raises JobError where they are gone."""
    folder, num_classes = counts_folder(output, of.id), len(of.classes)
    columns = ["image_id", *(f"{what}_{_column(stage)}" for what in ("confusion", "trimap") for stage in of.stages)]
    rows: dict[str, dict[str, Any]] = {}
    with storage.explained(folder):
        for file in storage.list_files(folder):
            rows |= {row["image_id"]: row for row in _table(folder / file.path, columns).to_pylist()}
    if not rows:
        raise JobError(f"{folder.uri} holds no counts any more: evaluate again.")
    ids = sorted(rows)
    confusion = {stage: np.zeros((len(ids), num_classes, num_classes), np.int64) for stage in of.stages}
    widths = evaluation.TRIMAP_WIDTHS_PX
    trimap = {stage: np.zeros((len(ids), widths, num_classes, evaluation.NUM_COUNTS), np.int64) for stage in of.stages}
    for n, image_id in enumerate(ids):
        for stage in of.stages:
            for cell in rows[image_id][f"confusion_{_column(stage)}"] or ():
                confusion[stage][n, cell["truth"], cell["predicted"]] = cell["pixels"]
            for cell in rows[image_id][f"trimap_{_column(stage)}"] or ():
                trimap[stage][n, cell["distance_px"] - 1, cell["label"]] = (
                    cell["hits"],
                    cell["truth"],
                    cell["predicted"],
                )
    return Counts(ids, confusion, trimap)


def read_masks(output: Location, of: Evaluation, stage: str, ids: list[str]) -> dict[str, bytes]:
    """Predicted masks of some images, palette PNG by identity."""
    folder, column = counts_folder(output, of.id), f"mask_{_column(stage)}"
    found: dict[str, bytes] = {}
    for file in storage.list_files(folder):
        names = _table(folder / file.path, ["image_id"]).column(0).to_pylist()
        if not set(names) & set(ids):
            continue
        for row in _table(folder / file.path, ["image_id", column]).to_pylist():
            if row["image_id"] in ids:
                found[row["image_id"]] = row[column]
    return found


def figures(counts: Counts, stage: str, classes: tuple[str, ...]) -> dict[str, Any]:
    """Every figure of a stage with its 95 % bootstrap interval over images, as JSON values, 0 to 1.

    mean_iou, pixel_accuracy, class_accuracy; iou and images by class, without interval where few images hold it;
    trimap by measure and width (index 0: 1 px); absent: the classes that are in neither truth nor prediction.
    """
    single = counts.of(stage)
    weights = evaluation.resampling(len(single), BOOTSTRAP_SAMPLES, seed=0)
    summed, resampled = single.sum(axis=0), evaluation.resampled_sums(single, weights)
    found: dict[str, Any] = {"images": len(single)}
    for name in ("mean_iou", "pixel_accuracy", "class_accuracy"):
        measure = getattr(evaluation, name)
        found[name] = _figure(measure(summed), measure(resampled))
    by_class, samples = evaluation.iou(summed), evaluation.iou(resampled)
    low, high = evaluation.interval(samples)
    holding = (single[..., 1] > 0).sum(axis=0)
    absent = set(evaluation.absent_classes(single))
    found["absent"] = [classes[c] for c in sorted(absent)]
    found["iou"] = {}
    for c, name in enumerate(classes):
        if c not in absent:
            certain = holding[c] >= LEAST_IMAGES
            ends = {"low": float(low[c]) if certain else None, "high": float(high[c]) if certain else None}
            found["iou"][name] = {"value": float(by_class[c]), **ends, "images": int(holding[c])}
    bands = np.cumsum(counts.trimap[stage], axis=1)  # (N, 40, C, 3): all that is nearer is in a wider trimap
    band_sums = bands.sum(axis=0)
    band_samples = np.cumsum(evaluation.resampled_sums(counts.trimap[stage], weights), axis=1)
    found["trimap"] = {}
    for name in ("mean_iou", "pixel_accuracy", "class_accuracy"):
        measure = getattr(evaluation, name)
        values, of_samples = measure(band_sums), measure(band_samples)
        if not np.isfinite(values).all():
            continue  # Nothing has a border: one class everywhere
        low, high = evaluation.interval(of_samples)
        found["trimap"][name] = [
            asdict(Figure(float(v), float(a), float(b))) for v, a, b in zip(values, low, high, strict=True)
        ]
    return found


def write_record(output: Location, of: Evaluation, counts: Counts) -> dict[str, Any]:
    """Figures of an evaluation as its record, the last thing that is written of it."""
    record = json.loads(
        json.dumps(
            {
                "evaluation": asdict(of),
                "figures": {stage: figures(counts, stage, of.classes) for stage in of.stages},
                "images": len(counts.ids),
                "images_digest": hashlib.sha256("\n".join(counts.ids).encode()).hexdigest(),
            }
        )
    )
    storage.write_whole(record_of(output, of.id), json.dumps(record, indent=1).encode())
    return dict(record)


def record_of(output: Location, evaluation_id: str) -> Location:
    """Where the record of an evaluation stands."""
    return output / "evaluations" / f"{evaluation_id}.json"


def read_record(output: Location, evaluation_id: str) -> dict[str, Any]:
    """The record of a finished evaluation; empty where there is none."""
    try:
        return dict(json.loads(storage.read_bytes(record_of(output, evaluation_id))))
    except FileNotFoundError:
        return {}
    except ValueError:
        return {}


def evaluation_of(record: dict[str, Any]) -> Evaluation:
    """What a record is about."""
    stored = dict(record["evaluation"])
    inference = dict(stored["inference"]) | {"scales": tuple(stored["inference"]["scales"])}
    stored |= {"inference": InferenceParams(**inference), "classes": tuple(stored["classes"])}
    stored["crf"] = None if stored["crf"] is None else CrfParams(**stored["crf"])
    return Evaluation(**stored)


@functools.cache
def code_version() -> str:
    """Digest of the code that decides a count: another one is evaluated anew, a change of words elsewhere is not."""
    root = Path(evaluation.__file__).resolve().parent
    files = [*root.rglob("*.py"), *root.rglob("*.cpp"), *root.rglob("*.h"), *root.rglob("*.hpp")]
    files += [Path(__file__).resolve().parent / name for name in ("pipeline.py", "evaluation.py")]
    whole = hashlib.sha256()
    for file in sorted(files, key=lambda f: f.relative_to(root.parent).as_posix()):
        whole.update(f"{file.relative_to(root.parent).as_posix()}\n".encode())
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    for package in ("torch", "pillow"):  # They decode, scale and multiply
        whole.update(version(package).encode())
    return whole.hexdigest()[:12]


@functools.cache
def commit() -> str:
    """For people: the commit that is checked out, or the version that is installed."""
    root = Path(__file__).resolve().parent.parent
    try:
        told = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, timeout=20
        )
        if told.returncode == 0:
            return told.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        pass
    return version("segment-archive")


def _figure(value: NDArray[Any], samples: NDArray[np.float64]) -> dict[str, float]:
    low, high = evaluation.interval(samples)
    return asdict(Figure(float(value), float(low), float(high)))


def _column(stage: str) -> str:
    return stage.replace(" ", "_").lower()


def _table(place: Location, columns: list[str]) -> pa.Table:
    with storage.open_for_reading(place) as file:
        return pq.read_table(file, columns=columns, partitioning=None)
