"""The CRF's kernels for GPUs: interpreted, against plain PyTorch, and compiled for a GPU that is not here.

They need Triton, and TRITON_INTERPRET=1 before its import; `test_gpu.py` runs this file so.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from segcore.crf import dense_crf, gpu
from segcore.crf.dense_crf import CrfParams, refine_scores
from tests import gpu_kernels_on_cpu
from tests.segcore.crf.test_dense_crf import photograph
from tests.segcore.crf.test_gpu import scores_of

pytest.importorskip("triton", reason="pip install triton")
from segcore.crf import gpu_kernels

interpreted = pytest.mark.skipif(not gpu_kernels.INTERPRETED, reason="TRITON_INTERPRET is not set")


@interpreted
@pytest.mark.parametrize("num_channels", [1, 4, 20])
def test_kernels_do_what_plain_pytorch_does(num_channels: int) -> None:
    random = torch.Generator().manual_seed(num_channels)
    pixels, vertices = 70, 31

    def both(name: str, out: torch.Tensor, *args: object, **kwargs: object) -> None:
        found, expected = out.clone(), out.clone()
        getattr(gpu_kernels, name)(found, *args, **kwargs)
        getattr(gpu_kernels_on_cpu, name)(expected, *args, **kwargs)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert not torch.equal(found, out)

    values = torch.rand((vertices + 1, num_channels), generator=random)
    values[vertices] = 0
    lengths = torch.randint(0, 9, (vertices,), generator=random)
    last, first = lengths.cumsum(0).to(torch.int32), (lengths.cumsum(0) - lengths).to(torch.int32)
    item = torch.randint(0, pixels, (int(last[-1]),), generator=random).to(torch.int32)
    source, weight = torch.rand((pixels, num_channels), generator=random), torch.rand(len(item), generator=random)
    target = torch.randperm(vertices, generator=random).to(torch.int32)
    both("gather_sum", values, source, first, last, target, (item, weight))
    both("gather_sum", values, torch.rand((len(item), num_channels)), first, last, target, None)
    before, after = (torch.randint(0, vertices + 1, (vertices,), generator=random).to(torch.int32) for _ in range(2))
    both("blur", values, torch.rand(values.shape), before, after)
    rows5, rows2 = (torch.randint(0, vertices, (pixels, k), generator=random).to(torch.int32) for k in (6, 3))
    weights5, weights2 = (torch.rand((pixels, k), generator=random) for k in (6, 3))
    both("slice_", source, values, rows5, weights5)
    sent = ((values, rows5, weights5), (values, rows2, weights2))
    for bilateral, spatial in (sent, (sent[0], None), (None, sent[1]), (None, None)):
        found, expected = (torch.empty_like(source) for _ in range(2))
        gpu_kernels.update(source, bilateral, spatial, marginals=found)
        gpu_kernels_on_cpu.update(source, bilateral, spatial, marginals=expected)
        torch.testing.assert_close(found, expected)
        labels, right = (torch.empty(pixels, dtype=torch.uint8) for _ in range(2))
        gpu_kernels.update(source, bilateral, spatial, labels=labels)
        gpu_kernels_on_cpu.update(source, bilateral, spatial, labels=right)
        assert torch.equal(labels, right)


@interpreted
def test_interpreted_it_gives_the_labels_of_pydensecrf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(dense_crf, "require_engine", lambda backend: None)
    exact = CrfParams(min_probability=0)
    rng = np.random.default_rng(3)
    image, scores = photograph(rng, 33, 41), scores_of(rng, 5, 5, 6)
    found = refine_scores(image, scores, exact, backend="cuda")
    assert np.array_equal(found.labels, refine_scores(image, scores, exact, backend="pydensecrf").labels)
    assert 0 < found.changed < 1


COMPILE = r"""
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from segcore.crf import gpu_kernels as k
P, I, S = "*fp32", "*i32", "i32"
target = GPUTarget("cuda", 90, 32)
def compiled(kernel, types, channels=20, width=32, **sizes):
    sizes |= {"channels": channels, "width": width, "block": 1024 // width}
    names = kernel.arg_names
    signature = dict(zip(names, [*types, *["constexpr"] * len(sizes)], strict=True))
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types) if kind != S}  # As PyTorch's memory is
    made = triton.compile(ASTSource(kernel, signature, sizes, aligned), target=target)
    assert len(made.asm["cubin"]) > 1000, kernel
    # Four channels at once, and nothing that registers have no room for
    assert channels == 1 or re.search(r"ld\.global[^;]*v4", made.asm["ptx"]), kernel
    assert ".local" not in made.asm["ptx"], kernel
for weighted in (True, False):
    compiled(k._gather_sum, [P, P, I, I, I, I, P, S], weighted=weighted)
    compiled(k._gather_sum, [P, P, I, I, I, I, P, S], 1, 1, weighted=weighted)
compiled(k._blur, [P, P, I, I, S])
# One channel, for the normalisation
compiled(k._blur, [P, P, I, I, S], 1, 1)
for corners in (3, 6):
    compiled(k._slice, [P, P, I, P, S], 1, 1, corners=corners)
for labels in (True, False):
    compiled(k._update, [P, "*u8", P, P, I, P, P, I, P, S], with_bilateral=True, with_spatial=True, with_labels=labels)
print("compiled")
"""


def test_the_kernels_compile_for_a_gpu() -> None:
    environment = {**os.environ, "TRITON_DEFAULT_FP_FUSION": "1"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.stdout == "compiled\n", done.stderr
