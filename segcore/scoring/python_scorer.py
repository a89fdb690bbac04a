"""Scores by a torch module of somebody else (`module:function`), in float32, on a CPU or a GPU."""

from __future__ import annotations

import numpy as np

from segcore.images.errors import ErrorKind, ImageError
from segcore.models.checkpoint import LoadedModel
from segcore.models.onnx_file import Ends
from segcore.models.python_model import scores_of
from segcore.scoring.inference import InferenceParams, check_params
from segcore.scoring.memory import is_out_of_memory
from segcore.scoring.onnx_scorer import OnnxScorer


class PythonScorer(OnnxScorer):
    """What `OnnxScorer` does around somebody else's graph, around a torch module.

    num_threads: as in `Scorer`. ValueError: a device that is not here.
    """

    def __init__(
        self, model: LoadedModel, params: InferenceParams, *, device: str = "auto", num_threads: int | None = None
    ) -> None:
        import torch

        from segcore.scoring.device import choose_device

        check_params(params)
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._read(model)
        self._ends = Ends("images", False, (None, None), "scores", len(model.card.classes), False)
        self._device = choose_device(device)
        self._module = model.module.to(self._device)
        self.place = f"{self._device.type}/fp32"

    def release(self) -> None:
        """Give the memory of the device back; of no use afterwards."""
        self._module = self._module.to("cpu")

    def _run(self, outputs: list[str] | None, inputs: dict[str, np.ndarray], size: tuple[int, int]) -> list[np.ndarray]:
        import torch

        try:
            with torch.inference_mode():
                scores = scores_of(self._module(torch.from_numpy(inputs["images"]).to(self._device)))
                return [scores.float().cpu().numpy()]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            told = f"scoring it at {size[0]} x {size[1]} px needs more memory than there is"
            raise ImageError(ErrorKind.MEMORY, f"{told}: a smaller long side needs less") from None
