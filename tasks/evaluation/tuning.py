"""The search for CRF parameters: coarse to fine, as in the DeepLab papers, by the scores of a model or stored ones.

Workers of either engine turn parameters into pixel counts, and keep the images and scores that they have had. Every
evaluated point is a small Parquet file under points/, written whole, so that a search that was stopped goes on where
it ended; the table of all points, the picture and the best point are written last.
"""

import functools
import hashlib
import io
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import annotated_types
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from segcore import extras
from segcore.crf import dense_crf
from segcore.crf.dense_crf import CRF_PRESETS, CrfParams
from segcore.images import masks
from segcore.images.decoding import decode
from segcore.images.masks import resize_labels
from segcore.metrics import evaluation
from segcore.models import checkpoint
from segcore.predictor import Predictor, PredictParams
from segcore.scoring.inference import ScoreMap
from segcore.voc import CLASSES
from tasks import engines, storage
from tasks.engines import EngineName
from tasks.errors import JobError
from tasks.models.remote import load_model, local_model
from tasks.parquet_files import read_parquet
from tasks.storage import Location
from tasks.words import counted

SEARCHED = ("bilateral_weight", "bilateral_xy_std_px", "bilateral_rgb_std", "gaussian_weight", "gaussian_xy_std_px")

COARSE_GRID: dict[str, tuple[float, ...]] = {
    "bilateral_weight": (3, 5, 8),
    "bilateral_xy_std_px": (40, 67, 100),
    "bilateral_rgb_std": (3, 5, 8),
}
"""The ranges of both papers (v1 section 5.1, v2 section 4.1), coarsely; w2 = 3 and sigma gamma = 3 as there."""

FIRST_FACTOR = 1.5
"""The first refinement multiplies and divides each parameter by this; each later one by its root."""


class TuneJob(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """On what to search for CRF parameters, how far, and where to put what is found."""

    scores: str
    """A model: its name, path or URI. Or URI of an npz file with its scores: `ids` (N,) and `logits` (N, C, h, w)
    float16, grid corners aligned with image corners."""

    images: str
    """URI of the folder of the photographs, <id>.jpg."""

    truth: str
    """URI of the folder of the true label maps, <id>.png, palette or grey; 255 is ignored."""

    ids: str | None = None
    """URI of a list of ids, one a line, that images are drawn from; without it all of the npz file, or of TRUTH."""

    output: str
    """URI that points, table, report and picture are written under."""

    num_images: Annotated[int, annotated_types.Ge(1)] = 100
    """Images that the search sees, drawn by seed. 100 in the papers."""

    num_held_out: Annotated[int, annotated_types.Ge(0)] = 0
    """Other images on which the best point is compared with the best preset at the end."""

    rounds: Annotated[int, annotated_types.Interval(ge=0, le=10)] = 3
    """Refinements after the coarse grid, each with a smaller step around the best point."""

    least_images: Annotated[int, annotated_types.Ge(1)] = 5
    """A class counts in the mean if at least this many of the images that the search sees hold it."""

    normalization: dense_crf.Normalization = "symmetric"
    """Kernel normalisation of every point of the search."""

    engine: EngineName = "auto"
    """Where the images are judged: processes of this machine, or a Ray cluster."""

    seed: int = 0
    """Draws images and bootstrap samples."""


class TuneReport(BaseModel, frozen=True):
    """What a search found. Shares are 0 to 1."""

    best: CrfParams
    """The best point on the images of the search."""

    mean_iou: float
    """Of the best point, over `classes`."""

    interval: tuple[float, float]
    """95 % bootstrap interval of it over images."""

    without_crf: float
    """Mean IoU of the network alone on the same images."""

    preset: str
    """The best published point on the same images."""

    preset_mean_iou: float
    """Its mean IoU."""

    classes: list[str]
    """The classes of the mean."""

    num_points: int
    """Points evaluated in all."""

    new_points: int
    """Points evaluated now; the others were there."""

    held_out: dict[str, float] | None
    """On images that the search did not see: mean IoU of best, preset and without_crf, and the 95 % interval of best
    minus preset, gain_low to gain_high, drawn in pairs."""

    output: str
    """Where table, picture and points are."""

    def told(self) -> str:
        """What was found, in one line."""
        found = f"mean IoU {100 * self.mean_iou:.2f} % after {self.num_points} points"
        return f"{found}, {self.preset} has {100 * self.preset_mean_iou:.2f} %"


PIECE_IMAGES = 2
"""Images that a worker judges at a time."""

KEPT_IMAGES = 256
"""Images that a worker keeps decoded, so that the next point need not read them: 200 MB at 500 px, and 35 MB of
scores."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some images of the search."""

    ids: tuple[str, ...]
    """Their names, without ending."""

    logits: np.ndarray | None
    """(n, C, h, w) float16, in the order of the names; None: of the model."""


@functools.lru_cache(KEPT_IMAGES)
def _truth(folder: str, image_id: str) -> np.ndarray:
    """(H, W) uint8."""
    file = storage.locate(folder) / f"{image_id}.png"
    with storage.explained(file):
        return masks.decode_mask(storage.read_bytes(file))


@functools.lru_cache(KEPT_IMAGES)
def _image(folder: str, image_id: str) -> np.ndarray:
    """(H, W, 3) uint8, at its own size, which stored scores have."""
    return decode(_file(folder, image_id)).image


@functools.lru_cache(1)
def _predictor(model: str) -> Predictor:
    return Predictor(functools.partial(load_model, model), PredictParams(crf=None), num_threads=1)


@functools.lru_cache(KEPT_IMAGES)
def _scored(model: str, folder: str, image_id: str) -> tuple[np.ndarray, ScoreMap]:
    """(h, w, 3) uint8 at the working size of `run`, and its scores."""
    predictor = _predictor(model)
    pixels = predictor.decode(_file(folder, image_id)).image
    [scores] = predictor.score([pixels])
    return pixels, scores


def _file(folder: str, image_id: str) -> bytes:
    file = storage.locate(folder) / f"{image_id}.jpg"
    with storage.explained(file):
        return storage.read_bytes(file)


def judge(piece: Piece, job: TuneJob, params: CrfParams | None) -> np.ndarray:
    """(n, C, 3) int64 pixel counts of the images of a piece, in order."""
    counts = []
    predictor = Predictor(None, PredictParams(crf=params))
    for number, image_id in enumerate(piece.ids):
        if piece.logits is None:
            pixels, scores = _scored(job.scores, job.images, image_id)
        else:
            pixels = _image(job.images, image_id)
            scores = ScoreMap(piece.logits[number], pixels.shape[:2])
        truth = _truth(job.truth, image_id)
        labels = resize_labels(predictor.refine(pixels, scores).labels, truth.shape[1], truth.shape[0])
        counts.append(evaluation.count_pixels(truth, labels, len(scores.scores)))
    return np.stack(counts)


def judge_all(job: TuneJob, pieces: list[Piece], params: CrfParams | None) -> np.ndarray:
    """(N, C, 3) int64 pixel counts of all images, in their order."""
    try:
        return np.concatenate(list(engines.spread(judge, pieces, job, params)))
    except JobError:
        raise
    except ValueError as error:
        raise JobError(f"The images cannot be judged: {error}") from error


class Search:
    """Points of one job: those that were evaluated before, and images for those that were not."""

    def __init__(self, job: TuneJob) -> None:
        self.job = job
        self.folder = storage.locate(job.output) / "points"
        self.classes: tuple[str, ...] = ()
        ids, logits, digest = self._stored(job) if job.scores.endswith(".npz") else self._of_model(job)
        if job.ids is not None:
            place = storage.locate(job.ids)
            with storage.explained(place):
                listed = storage.read_bytes(place).decode("utf-8", "replace").split()
            position = {image_id: index for index, image_id in enumerate(ids)}
            missing = next((image_id for image_id in listed if image_id not in position), None)
            if missing is not None:
                raise JobError(
                    f"{job.ids} lists {missing}, which {job.truth if logits is None else job.scores} has not."
                )
            ids = listed
            logits = None if logits is None else logits[[position[image_id] for image_id in listed]]
        wanted = job.num_images + job.num_held_out
        if wanted > len(ids):
            where = job.ids or (job.truth if logits is None else job.scores)
            raise JobError(f"{where} has {counted(len(ids), 'image')}, {wanted} are asked for.")
        order = np.random.default_rng(job.seed).permutation(len(ids))
        seen = [int(i) for i in np.sort(order[: job.num_images])]
        held_out = [int(i) for i in np.sort(order[job.num_images : wanted])]
        self.seen, self.held_out = (
            [
                Piece(tuple(ids[i] for i in some), None if logits is None else logits[some])
                for some in (rows[start : start + PIECE_IMAGES] for start in range(0, len(rows), PIECE_IMAGES))
            ]
            for rows in (seen, held_out)
        )
        chosen = [ids[i] for i in seen]
        identity = [digest, job.images, job.truth, chosen, dense_crf.ENGINE_VERSION]
        self.identity = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        self.rows: dict[str, dict[str, Any]] = {}
        self.new_points = 0

    @staticmethod
    def _stored(job: TuneJob) -> tuple[list[str], np.ndarray, str]:
        """Ids, scores, digest of the file."""
        with storage.explained(storage.locate(job.scores)):
            data = storage.read_bytes(storage.locate(job.scores))
        with np.load(io.BytesIO(data)) as stored:
            return [str(image_id) for image_id in stored["ids"]], stored["logits"], hashlib.sha256(data).hexdigest()

    def _of_model(self, job: TuneJob) -> tuple[list[str], None, str]:
        """Ids of what has a true mask, no scores yet, digest of model and of how it scores."""
        try:
            card, digest = checkpoint.describe(local_model(job.scores))
        except ValueError as error:
            raise JobError(str(error)) from None
        self.classes = card.classes
        with storage.explained(storage.locate(job.truth)):
            names = [file.path.rsplit("/", 1)[-1] for file in storage.list_files(storage.locate(job.truth))]
        ids = sorted(name.removesuffix(".png") for name in names if name.endswith(".png"))
        return ids, None, json.dumps(PredictParams(crf=None).fingerprint(digest), sort_keys=True)

    def class_name(self, label: int, num_classes: int) -> str:
        """By the model's card; of stored scores with 21 classes VOC's, else the number."""
        names = self.classes or (CLASSES if num_classes == len(CLASSES) else ())
        return names[label] if names else str(label)

    def counts(self, params: CrfParams | None, stage: str) -> np.ndarray:
        """(N, C, 3) pixel counts of the images of the search, from the file of the point or counted now."""
        name = _digest(self.identity, params)
        if name not in self.rows:
            location = self.folder / f"point-{name}.parquet"
            if storage.exists(location):
                self.rows[name] = read_parquet(
                    location, "remove it and tune again, which does just this point anew"
                ).to_pylist()[0]
            else:
                self.rows[name] = self._evaluate(params, stage, location)
        row = self.rows[name]
        return np.array(row["counts"], np.int64).reshape(row["num_images"], row["num_classes"], evaluation.NUM_COUNTS)

    def _evaluate(self, params: CrfParams | None, stage: str, location: Location) -> dict[str, Any]:
        start = time.perf_counter()
        counts = judge_all(self.job, self.seen, params)
        row = {
            "stage": stage,
            "crf": params is not None,
            **(asdict(params) if params is not None else dict.fromkeys(asdict(CrfParams()))),
            "iou": list(evaluation.iou(counts.sum(axis=0))),
            "num_images": counts.shape[0],
            "num_classes": counts.shape[1],
            "counts": counts.ravel().tolist(),
            "seconds": time.perf_counter() - start,
            "engine": dense_crf.engine_name(),
            "engine_version": dense_crf.ENGINE_VERSION,
        }
        storage.write_whole(location, _parquet([row]))
        self.new_points += 1
        return row


def search_crf(job: TuneJob) -> TuneReport:
    """Evaluate the presets, a coarse grid, and ever smaller steps around the best; write what was found."""
    if not extras.is_here("matplotlib"):  # Its chart comes last
        raise JobError(extras.sentence("matplotlib"))
    storage.require_writable(storage.locate(job.output))
    search = Search(job)
    with engines.at_hand(job.engine):
        return _search(job, search)


def _search(job: TuneJob, search: Search) -> TuneReport:
    plain = search.counts(None, "without CRF")
    classes = np.flatnonzero((plain[..., 1] > 0).sum(axis=0) >= job.least_images)
    if not len(classes):
        raise JobError(f"No class is in {job.least_images} of the {job.num_images} images; ask for more images.")
    scored: dict[CrfParams, float] = {}

    def try_all(points: Iterable[CrfParams], stage: str) -> None:
        for params in points:
            if params not in scored:
                scored[params] = _mean_iou(search.counts(params, stage), classes)

    presets = {name: replace(params, normalization=job.normalization) for name, params in CRF_PRESETS.items()}
    try_all(presets.values(), "preset")
    preset = max(presets, key=lambda name: scored[presets[name]])
    try_all(_coarse(job), "coarse")
    factor = FIRST_FACTOR
    for number in range(job.rounds):
        try_all(_around(_best(scored), factor), f"round {number + 1}")
        factor = factor**0.5
    best = _best(scored)
    counts = search.counts(best, "best")
    _, low, high = evaluation.with_interval(_over(classes), evaluation.resampling(len(counts), 1000, job.seed), counts)
    report = TuneReport(
        best=best,
        mean_iou=scored[best],
        interval=(float(low), float(high)),
        without_crf=_mean_iou(plain, classes),
        preset=preset,
        preset_mean_iou=scored[presets[preset]],
        classes=[search.class_name(int(label), plain.shape[1]) for label in classes],
        num_points=len(search.rows),
        new_points=search.new_points,
        held_out=_held_out(job, search, best, presets[preset], classes),
        output=job.output,
    )
    output = storage.locate(job.output)
    storage.write_whole(output / "points.parquet", _parquet(list(search.rows.values())))
    storage.write_whole(output / "heatmap.png", _heat_map(scored, best))
    storage.write_whole(output / "best.json", report.model_dump_json(indent=1).encode())
    return report


def _coarse(job: TuneJob) -> Iterator[CrfParams]:
    for values in itertools.product(*COARSE_GRID.values()):
        named: dict[str, Any] = dict(zip(COARSE_GRID, values, strict=True))
        yield CrfParams(**named, gaussian_weight=3, gaussian_xy_std_px=3, normalization=job.normalization)


def _around(best: CrfParams, factor: float) -> Iterator[CrfParams]:
    """One parameter at a time, a step up and a step down, to three digits."""
    for name in SEARCHED:
        for value in (getattr(best, name) * factor, getattr(best, name) / factor):
            step: dict[str, Any] = {name: float(f"{value:.3g}")}
            yield replace(best, **step)


def _best(scored: dict[CrfParams, float]) -> CrfParams:
    return max(scored, key=lambda params: scored[params])


def _over(classes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return functools.partial(evaluation.mean_iou, over=classes)


def _mean_iou(counts: np.ndarray, classes: np.ndarray) -> float:
    return float(evaluation.mean_iou(counts.sum(axis=0), classes))


def _held_out(
    job: TuneJob, search: Search, best: CrfParams, preset: CrfParams, classes: np.ndarray
) -> dict[str, float] | None:
    if not search.held_out:
        return None
    of = {"best": best, "preset": preset, "none": None}
    counts = {name: judge_all(job, search.held_out, params) for name, params in of.items()}
    weights = evaluation.resampling(len(counts["best"]), 1000, job.seed)
    gain = evaluation.paired_difference(counts["preset"], counts["best"], _over(classes), weights)
    means = {name: _mean_iou(of, classes) for name, of in counts.items()}
    return {
        "best": means["best"],
        "preset": means["preset"],
        "without_crf": means["none"],
        "gain_low": gain.low,
        "gain_high": gain.high,
    }


def _digest(identity: str, params: CrfParams | None) -> str:
    values = None if params is None else [v if isinstance(v, str) else float(v) for v in asdict(params).values()]
    return hashlib.sha256(f"{identity} {json.dumps(values)}".encode()).hexdigest()[:20]


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    reals = [(name, pa.float64()) for name in SEARCHED]
    schema = pa.schema(
        [
            ("stage", pa.string()),
            ("crf", pa.bool_()),
            *reals,
            ("iterations", pa.int64()),
            ("normalization", pa.string()),
            ("min_probability", pa.float64()),
            ("iou", pa.list_(pa.float64())),
            ("num_images", pa.int64()),
            ("num_classes", pa.int64()),
            ("counts", pa.list_(pa.int64())),
            ("seconds", pa.float64()),
            ("engine", pa.string()),
            ("engine_version", pa.string()),
        ]
    )
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return sink.getvalue()


_AXES = {
    "bilateral_xy_std_px": "reach in the plane, px",
    "bilateral_rgb_std": "reach in colour, of 255",
    "bilateral_weight": "weight of the appearance kernel",
}


def _ticks(values: list[float]) -> list[float]:
    """A few round numbers over the range of the values, for a logarithmic axis."""
    round_numbers = [1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300]
    return [n for n in round_numbers if 0.8 * min(values) <= n <= 1.25 * max(values)]


def _heat_map(scored: dict[CrfParams, float], best: CrfParams) -> bytes:
    """PNG: the best mean IoU seen at each value of two parameters of the appearance kernel, three pairs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    figure.suptitle(f"CRF search: {len(scored)} points, the star is the best; each square is the best at its place")
    axes = figure.subplots(1, 3)
    pairs = (
        ("bilateral_xy_std_px", "bilateral_rgb_std"),
        ("bilateral_weight", "bilateral_rgb_std"),
        ("bilateral_xy_std_px", "bilateral_weight"),
    )
    for axis, (across, up) in zip(axes, pairs, strict=True):
        cells: dict[tuple[float, float], float] = {}
        for params, value in scored.items():
            at = (float(getattr(params, across)), float(getattr(params, up)))
            cells[at] = max(cells.get(at, 0.0), 100 * value)
        points = np.array(list(cells))
        drawn = axis.scatter(points[:, 0], points[:, 1], c=list(cells.values()), s=260, marker="s", cmap="viridis")
        axis.plot(getattr(best, across), getattr(best, up), "r*", markersize=13)
        plain_x, plain_y = _ticks([getattr(p, across) for p in scored]), _ticks([getattr(p, up) for p in scored])
        axis.set(xlabel=_AXES[across], ylabel=_AXES[up], xscale="log", yscale="log")
        for scale, values in ((axis.xaxis, plain_x), (axis.yaxis, plain_y)):
            scale.set_major_locator(FixedLocator(values))
            scale.set_major_formatter("{x:g}")
            scale.set_minor_locator(NullLocator())
        figure.colorbar(drawn, ax=axis, label="mean IoU, %")
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110)
    return sink.getvalue()
