"""Which device and number format a network computes on, and running batches there.

`DeviceRunner` is handed padded uint8 images and gives back scores; which images are put together is decided in
`inference.py`, scales, mirror and windows in `tta.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.models.preprocessing import Preprocessing
from segcore.models.resnet import fold_batch_norms
from segcore.scoring import hardware
from segcore.scoring.memory import is_out_of_memory

Precision = Literal["auto", "bf16", "fp16", "fp32"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def choose_device(device: str) -> torch.device:
    """'auto' is the first CUDA device where there is one, else the CPU; anything else as torch spells it.

    ValueError for a device that is not here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"Device {device!r} is unknown; use 'auto', 'cpu' or 'cuda:0'.") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"Device {device!r} is not here: {torch.cuda.device_count()} CUDA devices are visible.")
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"Device {device!r} is not supported; use 'auto', 'cpu' or 'cuda:0'.")
    return chosen


def choose_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """'auto' is bfloat16 where the device multiplies it in hardware, else float32."""
    if precision != "auto":
        return _DTYPES[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if hardware.multiplies_bf16() else torch.float32


def to_precision(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of `module` for evaluation in `dtype`, channels-last, batch normalisation folded into convolutions.

    Layers marked `keeps_float32` (classifiers) stay in float32.
    """
    module = fold_batch_norms(copy.deepcopy(module).eval().requires_grad_(False))
    for part in module.modules():
        if not getattr(part, "keeps_float32", False):
            for name, parameter in part.named_parameters(recurse=False):
                setattr(part, name, nn.Parameter(parameter.to(dtype), requires_grad=False))
            for name, buffer in part.named_buffers(recurse=False):
                if buffer.is_floating_point():
                    setattr(part, name, buffer.to(dtype))
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class Upload:
    """Images on their way to the device."""

    def __init__(self, pixels: Tensor, pinned: Tensor | None = None, arrived: torch.cuda.Event | None = None) -> None:
        self.pixels = pixels
        # Must outlive the copy.
        self.pinned = pinned
        self.arrived = arrived


class DeviceRunner:
    """A network held on a device in one number format.

    On CUDA the copies run on streams of their own, beside the computation; a batch that does not fit into memory is
    halved until it does. The results do not depend on that beyond the rounding of the device's own kernels.
    """

    def __init__(
        self, module: nn.Module, preprocessing: Preprocessing, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.device, self.dtype = device, dtype
        self.margin_px = int(getattr(module, "margin_px", 0))
        self.module = to_precision(module, dtype).to(device)
        self.channels = [2, 1, 0] if preprocessing.colour_order == "BGR" else [0, 1, 2]
        self.mean = torch.tensor(preprocessing.mean, dtype=torch.float32, device=device)
        self.std = torch.tensor(preprocessing.std, dtype=torch.float32, device=device)
        if device.type == "cuda":
            self.copy_in = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self.copy_out = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def upload(self, pixels: np.ndarray) -> Upload:
        """Begin to copy (N, H, W, 3) uint8 RGB; `normalise` waits for it."""
        host = torch.from_numpy(pixels)
        if self.device.type != "cuda":
            return Upload(host)
        pinned = host.pin_memory()
        with torch.cuda.stream(self.copy_in):
            on_device = pinned.to(self.device, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(self.copy_in)
        return Upload(on_device, pinned, arrived)

    def normalise(self, upload: Upload, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Network input of padded images; padding is exactly 0, that is the mean.

        sizes: (height, width) of each image in the top left of its canvas.
        Returns (N, 3, H, W) float32 on the device, channels-last in memory.
        """
        if upload.arrived is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(upload.arrived)
            upload.pixels.record_stream(current)
        values = (upload.pixels[..., self.channels].float() - self.mean) / self.std  # (N, H, W, 3)
        for value, (height, width) in zip(values, sizes, strict=True):
            value[height:] = 0
            value[:, width:] = 0
        return values.permute(0, 3, 1, 2)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float32 on the device -> (N, C, h, w) float32 logits on the device.

        A batch for which there is no memory is computed in halves; a single image that does not fit raises what
        `segcore.scoring.memory.is_out_of_memory` knows.
        """
        try:
            padded = F.pad(images, (self.margin_px, 0, self.margin_px, 0)) if self.margin_px else images
            scores: Tensor = self.module(padded.to(self.dtype).contiguous(memory_format=torch.channels_last))
            return scores.float()
        except Exception as error:
            if len(images) == 1 or not is_out_of_memory(error):
                raise
        # Outside the handler, whose traceback keeps the failed tensors alive.
        self.give_back_memory()
        middle = len(images) // 2
        return torch.cat([self.forward(images[:middle]), self.forward(images[middle:])])

    def give_back_memory(self) -> None:
        """Let go of what the last batch has left free on the device."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def let_go(self) -> None:
        """Give back all memory of the device; the runner is of no use afterwards."""
        self.module = nn.Identity()
        self.give_back_memory()

    def download(self, scores: Tensor) -> Callable[[], np.ndarray]:
        """Begin to copy a result to the host; the function that comes back waits for it."""
        if self.device.type != "cuda":
            array = scores.numpy()
            return lambda: array
        host = torch.empty(scores.shape, dtype=scores.dtype, pin_memory=True)
        self.copy_out.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.copy_out):
            host.copy_(scores, non_blocking=True)
            scores.record_stream(self.copy_out)
            finished = torch.cuda.Event()  # type: ignore[no-untyped-call]
            finished.record(self.copy_out)

        def wait() -> np.ndarray:
            finished.synchronize()
            # A copy, so that the pinned memory goes back to its pool.
            return host.numpy().copy()

        return wait
