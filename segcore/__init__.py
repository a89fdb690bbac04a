"""What happens to one image or one batch: NumPy and torch in, NumPy and torch out.

model = segcore.load("pspnet14")
result = model.segment(image)          # (H, W, 3) uint8 RGB or a PIL image
result.labels                          # (H, W) uint8
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from segcore.inference import InferenceParams
    from segcore.segmenter import Segmenter


def load(
    name_or_path: str | Path,
    *,
    untrained: bool = False,
    seed: int = 0,
    params: InferenceParams | None = None,
    device: str = "auto",
    num_threads: int | None = None,
) -> Segmenter:
    """A model that segments images: `load(...).segment(image)`.

    name_or_path, untrained, seed: as in `segcore.checkpoint.load`. params: scales, windows, precision
    (`segcore.inference.InferenceParams`). device: "auto", "cpu" or "cuda:0".
    """
    # Imported here so that `import segcore` costs nothing.
    from segcore import checkpoint
    from segcore.inference import InferenceParams
    from segcore.segmenter import Segmenter

    model = checkpoint.load(name_or_path, untrained=untrained, seed=seed)
    return Segmenter(model, params or InferenceParams(), device, num_threads)
