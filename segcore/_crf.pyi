"""The C++ engine; see segcore/crf/engine/bindings.cpp. Called by segcore.crf.dense_crf alone."""

import numpy as np
from numpy.typing import NDArray

source_digest: str

def engine_name() -> str: ...
def use_engine(name: str) -> None: ...
def memory() -> tuple[int, int]: ...
def forget(spatial_limit: int = ...) -> None: ...
def refine(
    image: NDArray[np.uint8],
    probabilities: NDArray[np.float32],
    params: list[float],
    marginals: NDArray[np.float32],
) -> int: ...
def refine_scores(
    image: NDArray[np.uint8],
    scores: NDArray[np.uint16],
    extent_height: int,
    extent_width: int,
    params: list[float],
    with_crf: bool,
    labels: NDArray[np.uint8],
    labels_before: NDArray[np.uint8],
    class_pixels: NDArray[np.int64],
    class_confidence: NDArray[np.float64],
) -> tuple[float, float, float, int]: ...
