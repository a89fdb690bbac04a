"""A graph by OpenVINO in bfloat16, for which ONNX Runtime has no kernels on x86; called as a session of that."""

from __future__ import annotations

import functools

import numpy as np

from segcore import extras


@functools.cache
def is_usable() -> bool:
    """Whether OpenVINO is installed, and this processor multiplies bfloat16."""
    if not extras.is_here("openvino"):
        return False
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class Session:
    """num_threads: None takes every core. ValueError in one sentence for a graph that OpenVINO cannot run."""

    def __init__(self, content: bytes, where: str, num_threads: int | None = None) -> None:
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "INFERENCE_NUM_THREADS": num_threads or 0,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # Every worker of a machine would sit on its first core
        }
        core = openvino.Core()
        try:
            self._compiled = core.compile_model(core.read_model(content), "CPU", settings)
        except Exception as error:  # Its exceptions share no base
            reason = " ".join(str(error).split())[:300].rstrip(".")
            raise ValueError(f"{where} cannot be run by OpenVINO: {reason}.") from None
        self._names = [output.get_any_name() for output in self._compiled.outputs]

    def run(self, outputs: list[str] | None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Arrays by the names of their outputs, all of them for None. inputs: by name."""
        found = self._compiled(inputs)
        return [np.asarray(found[name]) for name in outputs or self._names]
