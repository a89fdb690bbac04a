"""The one path of an image: file -> pixels at working size -> scores -> labels -> mask.

Owns what decides a mask, `PredictParams`, and the order of the steps. The library, the archive, the evaluation, the
training's score and the estimate all go through `Predictor`; how a step works is in `images/`, `scoring/` and
`crf/`. Importing this module, decoding and refining need no torch; the model is loaded by the first score.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Interval

from segcore import large_pictures
from segcore.crf import dense_crf
from segcore.crf.dense_crf import Backend, CrfParams, Refined
from segcore.images import containers, decoding, regions, tiff
from segcore.images.decoding import MAX_PIXELS, Photograph, Reading
from segcore.images.inner import InnerImage
from segcore.images.masks import label_type, resize_labels
from segcore.images.regions import ArrayRegions, Regions, TiffRegions
from segcore.large_pictures import LargeSummary, Tile
from segcore.models.card import PYTHON
from segcore.scoring.inference import InferenceParams, ScoreMap, Scorer

if TYPE_CHECKING:
    from segcore.models.checkpoint import LoadedModel
    from segcore.scoring.hf_scorer import HfScorer
    from segcore.scoring.onnx_scorer import OnnxScorer

PIPELINE_VERSION = 2
"""Raised when the same parameters give other masks; part of every fingerprint. 2: colour profiles are converted."""


@dataclass(frozen=True)
class PredictParams:
    """Everything beside the model that decides the mask of an image."""

    inference: InferenceParams = field(default_factory=InferenceParams)
    """How scores are made: sizes, scales, windows, precision."""

    crf: CrfParams | None = field(default_factory=CrfParams)
    """Mean-field parameters; None leaves the scores unrefined."""

    crf_engine: Backend = "auto"
    """Engine of the CRF; auto takes the native one where it is built; cuda: on the GPU that scores."""

    mask_size: Literal["own", "working"] = "own"
    """Masks at the photograph's own size (scaled by nearest), or at the working size."""

    max_pixels: Annotated[int, Interval(ge=1, le=MAX_PIXELS)] = 100_000_000
    """Images with more pixels are refused before they are decoded; at their own size (`long_side_px` None), TIFFs with
    more are read region by region."""

    reading: Reading = field(default_factory=Reading)
    """What is taken of a file where there is a choice."""

    def resolved(self) -> PredictParams:
        """The same with the engine that "auto" means here. ValueError for an engine that is not here."""
        return replace(self, crf_engine=dense_crf.choose_engine(self.crf_engine))

    def fingerprint(self, model_digest: str) -> dict[str, Any]:
        """Everything that decides a mask, as plain values: equal fingerprints, equal masks.

        model_digest: `LoadedModel.digest`, or `checkpoint.describe` without loading the model.
        """
        fingerprint: dict[str, Any] = {
            "model": model_digest,
            "inference": asdict(self.inference),
            "crf": None if self.crf is None else asdict(self.crf),
            "crf_engine": [self.resolved().crf_engine, dense_crf.ENGINE_VERSION],
            "mask_size": self.mask_size,
            "max_pixels": self.max_pixels,
            "pipeline_version": PIPELINE_VERSION,
        }
        if self.reading != Reading():  # Left out by default: runs of before there was a choice go on
            fingerprint["reading"] = asdict(self.reading)
        return fingerprint


@dataclass(frozen=True)
class Prediction:
    """What the whole path finds in one image."""

    mask: np.ndarray
    """(H, W) uint8 labels at the size of the mask: the photograph's own, or the working size."""

    refined: Refined
    """Labels at working size with and without CRF, pixels and confidence of each class, entropy."""


class Predictor:
    """Takes images to masks with one model.

    model: a loaded model, or a function that loads it, called by the first use of the model. A process that only
        decodes and refines never calls it, and may have None. With a picklable function a predictor is picklable.
    device: "auto", "cpu" or "cuda:0". num_threads: for torch (the whole process) and one CRF; None leaves torch's
        alone. batch_size: as in `Scorer`.
    """

    def __init__(
        self,
        model: LoadedModel | Callable[[], LoadedModel] | None,
        params: PredictParams = PredictParams(),
        *,
        device: str = "auto",
        num_threads: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.params = params.resolved()
        self._load = model if callable(model) else None
        self._model = None if callable(model) else model
        self._device, self._num_threads, self._batch_size = device, num_threads, batch_size
        self._scorer: Scorer | OnnxScorer | HfScorer | None = None

    @property
    def model(self) -> LoadedModel:
        """The model, loaded by the first use."""
        if self._model is None:
            assert self._load is not None, "a predictor without a model decodes and refines only"
            self._model = self._load()
        return self._model

    @property
    def scorer(self) -> Scorer | OnnxScorer | HfScorer:
        """The network on its device, brought there by the first use.

        By torch; by ONNX Runtime where torch is not installed, or would compute in float32 on a CPU what ONNX Runtime
        can compute, in about half the time (`python -m benchmarks.onnx`). Precision "auto" is on a CPU what is fastest
        there (`scoring/fastest.py`).
        """
        if self._scorer is None:
            from segcore.scoring.onnx_scorer import OnnxScorer, is_better, require_usable

            if self.model.hf is not None:
                from segcore.scoring.hf_scorer import HfScorer

                require_usable(self.model.card, self.params.inference)
                self._scorer = HfScorer(
                    self.model, self.params.inference, device=self._device, num_threads=self._num_threads
                )
            elif self.model.card.variant == PYTHON:
                from segcore.scoring.python_scorer import PythonScorer

                require_usable(self.model.card, self.params.inference)
                self._scorer = PythonScorer(
                    self.model, self.params.inference, device=self._device, num_threads=self._num_threads
                )
            else:
                inference, by_openvino = self._fastest()
                if by_openvino or is_better(self.model, inference, self._device):
                    self._scorer = OnnxScorer(self.model, inference, device=self._device, num_threads=self._num_threads)
                else:
                    self._scorer = Scorer(
                        self.model,
                        inference,
                        device=self._device,
                        num_threads=self._num_threads,
                        batch_size=self._batch_size,
                    )
        return self._scorer

    def _fastest(self) -> tuple[InferenceParams, bool]:
        """What is asked, with the number format that "auto" means on this CPU; and whether OpenVINO computes it."""
        inference = self.params.inference
        if inference.precision != "auto":
            return inference, False
        from segcore.scoring import fastest

        among = fastest.choices(self.model, inference, self._device)
        if len(among) < 2:
            return inference, False
        choice = fastest.choice_of(self.model, self._num_threads, among)
        return replace(inference, precision=fastest.precision_of(choice)), choice == "openvino"

    @property
    def device(self) -> str:
        """Where it scores, and in which precision: "cpu/bf16", "cuda/fp16"."""
        return self.scorer.place

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides a mask; see `PredictParams.fingerprint`, which needs no loaded model."""
        return self.params.fingerprint(self.model.digest)

    def decode(self, data: bytes | InnerImage) -> Photograph:
        """The pixels of an image file: upright RGB at working size. Raises ImageError, which says what is wrong."""
        params = self.params
        return decoding.decode(data, params.inference.long_side_px, params.max_pixels, params.reading)

    def open(self, data: tiff.Content) -> Photograph | TiffRegions:
        """The same, or, at its own size, a TIFF or JPEG with too many pixels to be decoded whole, to be read region by
        region.

        data: the file, in memory or where it is.
        """
        if isinstance(data, InnerImage):
            return self.decode(data)
        if self.params.inference.long_side_px is None and tiff.is_tiff(data):
            pages = tiff.directories(data)
            if pages and not tiff.is_raw(data, pages):
                page = pages[tiff.choose_page(pages)]
                if page.size[0] * page.size[1] > self.params.max_pixels:
                    return regions.open_tiff(data, page)
        content = data[:]
        frame = containers.jpeg_frame(content) if self.params.inference.long_side_px is None else None
        if frame is not None and frame[0] * frame[1] > self.params.max_pixels:
            return regions.open_jpeg(content)
        return self.decode(content)

    def in_windows(self, photograph: Photograph | TiffRegions) -> Regions | None:
        """The picture, where it is to be scored through windows (`tiles`); None where in one pass."""
        if isinstance(photograph, TiffRegions):
            return photograph
        image = photograph.image
        windowed = large_pictures.needs_windows(image.shape[1], image.shape[0], self.params.inference)
        return ArrayRegions(image) if windowed else None

    def tiles(self, picture: Regions, each_window: Callable[[], None] | None = None) -> Iterator[Tile]:
        """Labels of a picture through windows, tile by tile, in bounded memory.

        each_window: called before each window is scored, and before each tile is refined.
        """

        def score(pixels: np.ndarray) -> ScoreMap:
            return self.score([pixels], each_window)[0]

        def refine(pixels: np.ndarray, scores: ScoreMap) -> Refined:
            if each_window is not None:
                each_window()
            return self.refine(pixels, scores)

        return large_pictures.tiles(
            picture, score, refine, self.params.inference, self.params.crf, len(self.model.card.classes)
        )

    def whole(self, picture: Regions, each_window: Callable[[], None] | None = None) -> Refined:
        """Labels of a picture through windows, in memory."""
        size = (picture.height, picture.width)
        labels, before = (np.empty(size, label_type(len(self.model.card.classes))) for _ in range(2))
        summary = LargeSummary(len(self.model.card.classes))
        for tile in self.tiles(picture, each_window):
            place = (
                slice(tile.top, tile.top + tile.labels.shape[0]),
                slice(tile.left, tile.left + tile.labels.shape[1]),
            )
            labels[place], before[place] = tile.labels, tile.labels_before
            summary.add(tile)
        return Refined(
            labels,
            before,
            summary.pixels,
            summary.class_confidence,
            summary.confidence,
            summary.entropy,
            summary.changed,
        )

    def prepare(self, picture: Any) -> Photograph:
        """The same for what is decoded already: a PIL image in any mode, or (H, W, 3) uint8 RGB."""
        return decoding.from_picture(picture, self.params.inference.long_side_px, self.params.max_pixels)

    def score(self, pixels: Sequence[np.ndarray], each_batch: Callable[[], None] | None = None) -> list[ScoreMap]:
        """Scores in the order of the images; errors as in `Scorer`.

        pixels: (h, w, 3) uint8 RGB each, at working size. each_batch: called before each batch is computed.
        """
        return self.scorer(pixels, each_batch)

    def refine(self, pixels: np.ndarray, scores: ScoreMap) -> Refined:
        """Labels of one image at working size: scores scaled up, softmax, CRF, most probable class.

        pixels: (h, w, 3) uint8 RGB, what was scored.
        """
        return dense_crf.refine_scores(
            pixels,
            scores.scores,
            self.params.crf,
            extent_px=scores.extent_px,
            backend=self.params.crf_engine,
        )

    @property
    def refines_on_gpu(self) -> bool:
        """Whether the CRF belongs where the scores are made."""
        return self.params.crf is not None and self.params.crf_engine == "cuda"

    def refine_batch(self, pixels: Sequence[np.ndarray], scores: Sequence[ScoreMap]) -> list[Refined]:
        """`refine` of many images, with the same labels; on a GPU together."""
        return dense_crf.refine_batch(
            pixels,
            [of_image.scores for of_image in scores],
            self.params.crf,
            [of_image.extent_px for of_image in scores],
            self.params.crf_engine,
        )

    def mask(self, labels: np.ndarray, width: int, height: int) -> np.ndarray:
        """Labels at the size of the mask, uint8.

        labels: (h, w) uint8 at working size. width, height: the photograph's own, in px.
        """
        return labels if self.params.mask_size == "working" else resize_labels(labels, width, height)

    def refined(self, photograph: Photograph) -> Refined:
        """Labels at working size of one image that is decoded: in one pass, or through windows."""
        picture = self.in_windows(photograph)
        if picture is not None:
            return self.whole(picture)
        return self.refine(photograph.image, self.score([photograph.image])[0])

    def segment(self, photograph: Photograph) -> Prediction:
        """Score, refine and mask of one image that is decoded."""
        refined = self.refined(photograph)
        return Prediction(self.mask(refined.labels, photograph.width, photograph.height), refined)

    def with_crf(self, crf: CrfParams | None) -> Predictor:
        """The same with another CRF, and the same network on its device."""
        other = copy.copy(self)
        other._scorer = self.scorer
        other.params = replace(self.params, crf=crf)
        return other

    def release(self) -> None:
        """Give the memory of the device back; the next score brings the network there again."""
        if self._scorer is not None:
            self._scorer.release()
        self._scorer = None
