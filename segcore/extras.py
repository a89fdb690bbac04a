"""What a light installation leaves out, and the line that brings it."""

import functools
import importlib.util

EXTRAS = {
    "av": "video",
    "google": "torch",
    "matplotlib": "charts",
    "onnx": "onnx",
    "openvino": "openvino",
    "prefect": "prefect",
    "pydensecrf": "pydensecrf",
    "pyiceberg": "iceberg",
    "pyvips": "vips",
    "rawpy": "raw",
    "ray": "cluster",
    "sqlalchemy": "iceberg",
    "torch": "torch",
    "transformers": "hf",
}
"""Packages by their name in Python, and the extra of this project that installs each."""

_NAMES = {
    "av": "PyAV",
    "google": "protobuf",
    "matplotlib": "Matplotlib",
    "openvino": "OpenVINO",
    "prefect": "Prefect",
    "ray": "Ray",
    "torch": "PyTorch",
}


@functools.cache
def is_here(package: str) -> bool:
    """Whether a package is installed; it is not imported."""
    return importlib.util.find_spec(package) is not None


def sentence(package: str, what: str = "This", extra: str = "") -> str:
    """One sentence: what needs a package of `EXTRAS` that is missing, and the remedy.

    extra: what brings all that is needed, where that is more than the package.
    """
    name = _NAMES.get(package, package)
    return f"{what} needs {name}, which is not installed: pip install 'segment-archive[{extra or EXTRAS[package]}]'."
