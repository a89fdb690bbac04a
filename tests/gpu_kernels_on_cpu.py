"""What the Triton kernels of the CRF do, in plain PyTorch: the engine "cuda" without a GPU, at a bearable speed."""

import sys

import pytest
import torch

import segcore.crf
from segcore.crf import dense_crf, gpu


def gather_sum(out, source, first, last, target, weighted) -> None:
    owner = torch.repeat_interleave(target, last - first)
    step = torch.arange(len(owner)) - torch.repeat_interleave((last - first).cumsum(0) - (last - first), last - first)
    items = torch.repeat_interleave(first, last - first) + step
    values = source[items] if weighted is None else source[weighted[0][items]] * weighted[1][items, None]
    out[target] = 0
    out.index_add_(0, owner, values)


def blur(out, values, before, after) -> None:
    out[: len(before)] = values[: len(before)] + 0.5 * (values[before] + values[after])


def slice_(out, values, rows, weights) -> None:
    out[:] = sum(weights[:, k, None] * values[rows[:, k]] for k in range(rows.shape[1]))


def update(unary, bilateral, spatial, *, marginals=None, labels=None) -> None:
    z = unary.clone()
    for values, rows, weights in filter(None, (bilateral, spatial)):
        z += sum(weights[:, k, None] * values[rows[:, k]] for k in range(rows.shape[1]))
    if labels is not None:
        labels[:] = z.argmax(1)
    else:
        marginals[:] = z.softmax(1)


def put_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine "cuda" run on this CPU, by these functions."""
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(dense_crf, "require_engine", lambda backend: None)
    monkeypatch.setitem(sys.modules, "segcore.crf.gpu_kernels", sys.modules[__name__])
    monkeypatch.setattr(segcore.crf, "gpu_kernels", sys.modules[__name__], raising=False)
