"""The library in one call: an image in, labels out, without a cluster.

`segcore.load` gives a `Segmenter`; what happens to the image is the archive's own path, `segcore/predictor.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from segcore.crf.dense_crf import Refined
from segcore.images import masks
from segcore.images.decoding import Photograph
from segcore.models.checkpoint import LoadedModel
from segcore.predictor import Predictor, PredictParams

if TYPE_CHECKING:
    from segcore.crf.dense_crf import CrfParams


@dataclass(repr=False)
class Segmentation:
    """What `Segmenter.segment` finds in an image of H x W pixels."""

    labels: np.ndarray
    """(H, W) uint8: index into `classes`."""

    classes: tuple[str, ...]
    """Class names by label."""

    refined: Refined
    """At working size: labels with and without the CRF, pixels and confidence of each class, entropy."""

    photograph: Photograph
    """What was scored: pixels at working size, own size, and a note where something in the file was damaged."""

    colours: tuple[tuple[int, int, int], ...] = ()
    """RGB of each class in the overlay, where the model's card has them."""

    def __repr__(self) -> str:
        height, width = self.labels.shape
        found = ", ".join(f"{name} {n / self.labels.size:.1%}" for name, n in list(self.pixels().items())[:5])
        return f"Segmentation({width} x {height} px: {found}{', ...' if len(self.pixels()) > 5 else ''})"

    def pixels(self) -> dict[str, int]:
        """Number of pixels of each class that is present, most first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        order = np.argsort(-counts, kind="stable")
        return {self.classes[label]: int(counts[label]) for label in order if counts[label]}

    def overlay(self, opacity: float = 0.55) -> np.ndarray:
        """(H, W, 3) uint8 RGB: the image with each class but the background in its colour over it.

        A photograph that was scored smaller is scaled up again. opacity: of the colours, 0 to 1.
        """
        from PIL import Image

        from segcore.images.pictures import overlay

        height, width = self.labels.shape
        image = Image.fromarray(self.photograph.image)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return overlay(np.asarray(image), self.labels, opacity, self.colours)

    def save(self, path: str | Path, *, overlay: bool = False) -> None:
        """Write the mask as a palette PNG whose pixel values are the labels, or the overlay in any format of Pillow's.

        ValueError for a mask whose name does not end in .png.
        """
        from PIL import Image

        path = Path(path)
        if overlay:
            Image.fromarray(self.overlay()).save(path)
        elif path.suffix.lower() != ".png":
            raise ValueError(f"A mask is saved as PNG, got {path.name}; or save(path, overlay=True) for a picture.")
        else:
            path.write_bytes(masks.encode_mask(self.labels))


class Segmenter:
    """A loaded model that segments single images."""

    def __init__(
        self,
        model: LoadedModel,
        params: PredictParams,
        device: str = "auto",
        num_threads: int | None = None,
    ) -> None:
        self.model = model
        self.predictor = Predictor(model, params, device=device, num_threads=num_threads)

    def __repr__(self) -> str:
        return f"Segmenter({self.model.name!r}, {len(self.model.card.classes)} classes, on {self.predictor.device})"

    def segment(self, image: Any, crf: CrfParams | Literal["default"] | None = "default") -> Segmentation:
        """Labels of one image, at its own size; of a file, the same as the archive stores.

        image: path or bytes of an image file of any accepted format; a PIL image in any mode; or (H, W, 3) uint8 RGB.
        crf: mean-field parameters, those the model was loaded with by default, or None for the network's labels.
        Images with a longer side than `params.inference.long_side_px` are scored smaller; the labels are scaled back
        (nearest). Raises ImageError for what is not a usable image.
        """
        predictor = self.predictor
        if isinstance(image, (str, Path)):
            image = Path(image).read_bytes()
        is_file = isinstance(image, (bytes, bytearray, memoryview))
        photograph = predictor.decode(bytes(image)) if is_file else predictor.prepare(image)
        if crf != "default":
            predictor = predictor.with_crf(crf)
        refined = predictor.refined(photograph)
        labels = predictor.mask(refined.labels, photograph.width, photograph.height)
        card = self.model.card
        return Segmentation(labels, card.classes, refined, photograph, card.colours)
