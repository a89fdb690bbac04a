"""Scores by a semantic model of `transformers`: its own image processor, network and post-processing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from segcore.images.errors import ErrorKind, ImageError
from segcore.models import hf_folder
from segcore.models.checkpoint import LoadedModel
from segcore.scoring.inference import InferenceParams, ScoreMap, check_images, check_params, score_map
from segcore.scoring.memory import is_out_of_memory


class HfScorer:
    """Scores photographs with one model, in float32, one at a time.

    num_threads: as in `Scorer`. ValueError: a device that is not here, an image processor that cannot be made.
    """

    def __init__(
        self, model: LoadedModel, params: InferenceParams, *, device: str = "auto", num_threads: int | None = None
    ) -> None:
        import torch

        from segcore.scoring.device import choose_device

        check_params(params)
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        assert model.hf is not None
        self.name = model.name
        self.device = choose_device(device)
        self._of_queries = model.hf.config["model_type"] in hf_folder.OF_QUERIES
        self._num_classes = len(model.card.classes)
        self._processor = hf_folder.processor(model.hf)
        self._network = model.module.to(self.device)

    @property
    def place(self) -> str:
        """Device and precision, as `Scorer.place`."""
        return f"{self.device.type}/fp32"

    def __call__(self, images: Sequence[np.ndarray], each_batch: Callable[[], None] | None = None) -> list[ScoreMap]:
        """Score maps in the order of the images, as `Scorer.__call__`, each at the size of its image.

        ValueError: an image of another form; scores that are not finite. ImageError (memory): one that does not fit.
        """
        check_images(images)
        found = []
        for image in images:
            if each_batch is not None:
                each_batch()
            scores = self.scores(image)
            if self._of_queries:
                # Over the best of each position: what is nearest to it stays apart from it in float16
                scores = np.log(np.maximum(scores / np.maximum(scores.max(axis=0), 1e-30), 1e-30))
            found.append(score_map(scores, (image.shape[0], image.shape[1]), self.name))
        return found

    def scores(self, image: np.ndarray) -> np.ndarray:
        """(C, H, W) float32, as the library's post-processing gives them.

        image: (H, W, 3) uint8 RGB. Nothing is cut off (`do_center_crop`): a mask is of the whole picture.
        """
        import torch

        cut = {"do_center_crop": False} if getattr(self._processor, "do_center_crop", None) else {}
        height, width = image.shape[:2]
        try:
            inputs = self._processor(images=Image.fromarray(image), return_tensors="pt", **cut).to(self.device)
            with torch.inference_mode():
                [found] = self._processor.post_process_semantic_segmentation(
                    self._network(**inputs), target_sizes=[(height, width)], return_segmentation_scores=True
                )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise ImageError(
                ErrorKind.MEMORY,
                f"scoring it at {height} x {width} px needs more memory than there is: a smaller long side needs less",
            ) from None
        scores: np.ndarray = found.segmentation_scores.float().cpu().numpy()
        if scores.shape != (self._num_classes, height, width):
            raise ValueError(f"{self.name} gave {len(scores)} classes, its config.json names {self._num_classes}.")
        return scores

    def release(self) -> None:
        """Give the memory of the device back; of no use afterwards."""
        self._network = self._network.to("cpu")
