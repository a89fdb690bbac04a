"""What torch would find on this machine, told without its import where that can be."""

import functools
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from segcore import extras

_DRIVERS = ("nvidia*", "nvhost*", "nvgpu*", "dxg", "kfd")
"""Device files of GPUs that torch computes on: NVIDIA's, of its small boards, of Windows' Linux, AMD's."""


def shows_gpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether NVIDIA's driver shows a GPU that this process may use; torch may lack what it needs to compute on it."""
    if environment.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*"))


def may_have_gpu() -> bool:
    """Whether torch is worth asking for one."""
    drivers = sys.platform != "linux" or any(file for name in _DRIVERS for file in Path("/dev").glob(name))
    return drivers and extras.is_here("torch")


@functools.cache
def has_gpu() -> bool:
    """Whether torch computes on a GPU where it is asked for "auto"."""
    if not may_have_gpu():
        return False
    import torch

    return torch.cuda.is_available()


@functools.cache
def multiplies_bf16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware."""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
        return not flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})
    if not extras.is_here("torch"):
        return False
    import torch

    abilities = torch.cpu.get_capabilities()
    return any(abilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


def scores_in_float32(precision: str, device: str) -> bool:
    """Whether torch would score on the CPU, in float32. precision, device: as asked, "auto" among them."""
    on_cpu = device == "cpu" or (device == "auto" and not has_gpu())
    return on_cpu and (precision == "fp32" or (precision == "auto" and not multiplies_bf16()))
