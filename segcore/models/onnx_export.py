"""Every variant as an ONNX file for others: its own `forward`, traced, with open height and width.

`onnx_network.py` is the light base's way to compute the small variants without torch; this is for programs of others,
and for `--model FILE.onnx`. Needs torch and the package `onnx`.
"""

from __future__ import annotations

import copy
import io
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segcore import extras
from segcore.models import onnx_file
from segcore.models.card import ONNX, ModelCard
from segcore.models.checkpoint import LoadedModel
from segcore.models.pspnet import PyramidPooling
from segcore.models.resnet import fold_batch_norms

OPSET = 17

INPUT, OUTPUT = "images", "scores"

_TRACED_PX = (105, 137)
"""Not square, so that no grid of a pyramid is taken for one that needs no resizing."""


def export(model: LoadedModel) -> tuple[bytes, ModelCard]:
    """The ONNX file of a model, and the card that makes it one for `--model`.

    Input "images": (1, 3, H, W) float32, normalised as the card says; output "scores": (1, C, h, w) float32 logits. By
    the convention "caffe" H and W are 8k + 1 from 33 px up, and so the card has them padded; by the others any.
    ValueError in one sentence: a model that is an ONNX file already, a package that is missing.
    """
    if model.card.variant == ONNX:
        raise ValueError(f"{model.name} is an ONNX file already.")
    for package in ("torch", "onnx"):
        if not extras.is_here(package):
            raise ValueError(extras.sentence(package, "The export"))
    network = _Traced(model.module, model.card.convention).eval().requires_grad_(False)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The tracer warns of each size that Python sees; tests hold the graph to the network at other sizes.
        # The newer exporter needs one more package, and fixes what the sizes of one example decide
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, *_TRACED_PX),),
            buffer,  # type: ignore[arg-type]  # Declared for the newer exporter alone
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {2: "height", 3: "width"}, OUTPUT: {2: "rows", 3: "columns"}},
        )
    content = buffer.getvalue()
    aligned = model.card.convention == "caffe"
    card = ModelCard(
        variant=ONNX,
        classes=model.card.classes,
        preprocessing=model.card.preprocessing,
        options={
            "name": model.card.variant,
            "stride": 8 if aligned else 1,
            "output": OUTPUT,
            "parameters": onnx_file.check(content, model.name),
        },
        init=model.card.init,
        training_split=model.card.training_split,
        untrained=model.card.untrained,
        commit=model.card.commit,
        metrics=model.card.metrics,
        notes=model.card.notes,
        convention="caffe" if aligned else "areas",
    )
    return content, card


class _Traced(nn.Module):
    """A network with what its scorer does around it by a convention, for one image and one view."""

    def __init__(self, module: nn.Module, convention: str) -> None:
        super().__init__()
        self.module = fold_batch_norms(copy.deepcopy(module).eval())
        self.margin_px = int(getattr(module, "margin_px", 0))
        self.convention = convention
        for part in self.module.modules():
            if isinstance(part, PyramidPooling):
                part.__class__ = _PyramidOfProducts

    def forward(self, images: Tensor) -> Tensor:
        if self.convention != "semseg":
            return self._scores(images)
        # As `scoring/tta.py` does in one pass: padded around to corners on corners, and back to the image's size
        sides = [torch.as_tensor(side) for side in images.shape[2:]]
        windows = [torch.clamp(torch.div(side + 6, 8, rounding_mode="floor") * 8 + 1, min=33) for side in sides]
        missing = [window - side for window, side in zip(windows, sides, strict=True)]
        above, before = (torch.div(gap, 2, rounding_mode="floor") for gap in missing)
        padded = F.pad(images, (before, missing[1] - before, above, missing[0] - above))  # type: ignore[arg-type]
        scores = F.interpolate(
            self._scores(padded), size=(padded.shape[2], padded.shape[3]), mode="bilinear", align_corners=True
        )
        return scores[:, :, above : above + sides[0], before : before + sides[1]]

    def _scores(self, images: Tensor) -> Tensor:
        margin = self.margin_px
        scores: Tensor = self.module(F.pad(images, (margin, 0, margin, 0)) if margin else images)
        return scores


class _PyramidOfProducts(PyramidPooling):
    """The same pyramid in operators that take any size: ONNX has no adaptive pooling."""

    def pool(self, features: Tensor, cells: int) -> Tensor:
        height, width = torch.as_tensor(features.shape[2]), torch.as_tensor(features.shape[3])
        if self.pooling == "average":
            return _averages(height, cells) @ features @ _averages(width, cells).T
        bands = [features[:, :, first:last].amax(2, keepdim=True) for first, last in _cells(height, cells)]
        rows = torch.cat(bands, 2)
        return torch.cat([rows[..., first:last].amax(3, keepdim=True) for first, last in _cells(width, cells)], 3)


def _averages(length: Tensor, cells: int) -> Tensor:
    """(cells, length) float32: `onnx_network.averages`, in operators."""
    at = torch.arange(length)[None]  # type: ignore[call-overload]
    bounds = torch.arange(cells)[:, None]
    first = torch.div(bounds * length, cells, rounding_mode="floor")
    last = torch.div((bounds + 1) * length + (cells - 1), cells, rounding_mode="floor")
    inside = ((at >= first) & (at < last)).float()
    shares: Tensor = inside / inside.sum(1, keepdim=True)
    return shares


def _cells(length: Tensor, cells: int) -> list[tuple[Tensor, Tensor]]:
    """First position of each cell, and the first behind it."""
    return [
        (
            torch.div(length * cell, cells, rounding_mode="floor"),
            torch.div(length * (cell + 1) + (cells - 1), cells, rounding_mode="floor"),
        )
        for cell in range(cells)
    ]
