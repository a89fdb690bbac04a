"""What a figure was measured on: printed above every table."""

import os
import platform
from importlib.metadata import version
from pathlib import Path


def conditions() -> str:
    """One line: processor, cores, memory, system, versions, and how busy the machine was."""
    processor = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    flags = next((line for line in _lines("/proc/cpuinfo") if line.startswith("flags")), "")
    units = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags.split()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "numpy", "pillow"))
    return (
        f"{processor} ({', '.join(units)}), {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, "
        f"Python {platform.python_version()}, {packages}, load before {os.getloadavg()[0]:.1f}"
    )


def _lines(path: str) -> list[str]:
    place = Path(path)
    return place.read_text().splitlines() if place.exists() else []
