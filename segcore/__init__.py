"""What happens to one image or one batch: NumPy and torch in, NumPy and torch out.

model = segcore.load("pspnet_lite2")
result = model.segment("photo.jpg")    # or bytes, a PIL image, (H, W, 3) uint8 RGB
result.labels                          # (H, W) uint8
result.save("mask.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from segcore.predictor import PredictParams
    from segcore.segmenter import Segmenter


def load(
    name_or_path: str | Path,
    *,
    untrained: bool = False,
    seed: int = 0,
    params: PredictParams | None = None,
    device: str = "auto",
    num_threads: int | None = None,
) -> Segmenter:
    """A model that segments images: `load(...).segment(image)`.

    name_or_path, untrained, seed: as in `segcore.models.checkpoint.load`. params: sizes, scales, windows, precision,
    CRF (`segcore.predictor.PredictParams`). device: "auto", "cpu" or "cuda:0". num_threads: of torch, for the whole
    process, and of one CRF.
    """
    # Imported here so that `import segcore` costs nothing.
    from segcore.models import checkpoint
    from segcore.predictor import PredictParams
    from segcore.segmenter import Segmenter

    if params is not None and not isinstance(params, PredictParams):
        raise ValueError(f"params must be PredictParams, got {type(params).__name__}: PredictParams(inference=...).")
    model = checkpoint.load(name_or_path, untrained=untrained, seed=seed)
    return Segmenter(model, params or PredictParams(), device, num_threads)
