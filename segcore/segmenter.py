"""The library in one call: an image in, labels out, without a cluster.

`segcore.load` gives a `Segmenter`; the archive pipeline uses `Scorer` and `refine_scores` themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from segcore.checkpoint import LoadedModel
from segcore.inference import InferenceParams, Scorer

if TYPE_CHECKING:
    from segcore.refinement import CrfParams


@dataclass
class Segmentation:
    """What `Segmenter.segment` finds in an image of H x W pixels."""

    labels: np.ndarray
    """(H, W) uint8: index into `classes`."""

    classes: tuple[str, ...]
    """Class names by label."""

    refined: Any
    """`segcore.refinement.Refined`: labels before the CRF, pixels and confidence of each class, entropy."""

    def pixels(self) -> dict[str, int]:
        """Number of pixels of each class that is present, most first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        order = np.argsort(-counts, kind="stable")
        return {self.classes[label]: int(counts[label]) for label in order if counts[label]}


class Segmenter:
    """A loaded model that segments single images."""

    def __init__(self, model: LoadedModel, params: InferenceParams, device: str, num_threads: int | None) -> None:
        self.model = model
        self.params = params
        self.num_threads = num_threads
        self.scorer = Scorer(model, params, device=device, num_threads=num_threads)

    def __repr__(self) -> str:
        return f"Segmenter({self.model.name!r}, {len(self.model.card.classes)} classes, on {self.scorer.device})"

    def segment(self, image: Any, crf: CrfParams | Literal["default"] | None = "default") -> Segmentation:
        """Labels of one image, at its own size.

        image: (H, W, 3) uint8 RGB, or a PIL image in any mode. crf: mean-field parameters, those of
        `segcore.refinement.CrfParams()` by default, or None for the network's labels as they are.
        Images with a longer side than `params.long_side_px` are scored smaller; the labels are scaled back (nearest).
        """
        from PIL import Image

        from segcore.refinement import CrfParams, refine_scores

        picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image.convert("RGB")
        size = picture.size
        share = self.params.long_side_px / max(size)
        if share < 1:
            shrunk = (max(1, round(size[0] * share)), max(1, round(size[1] * share)))
            picture = picture.resize(shrunk, Image.Resampling.BILINEAR)
        pixels = np.ascontiguousarray(picture)
        scored = self.scorer([pixels])[0]
        crf = CrfParams() if crf == "default" else crf
        refined = refine_scores(
            pixels, scored.scores, crf, extent_px=scored.extent_px, num_threads=self.num_threads or 1
        )
        labels = np.asarray(Image.fromarray(refined.labels).resize(size, Image.Resampling.NEAREST))
        return Segmentation(labels, self.model.card.classes, refined)
