"""A light installation on a machine that has everything: packages of the extras cannot be imported."""

from pathlib import Path

LIGHT = """
import importlib.util, sys

class _Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("matplotlib", "prefect", "pydensecrf", "pyiceberg", "ray", "torch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, _Missing())
_find = importlib.util.find_spec

def _find_spec(name, package=None):
    try:
        return _find(name, package)
    except ModuleNotFoundError:
        return None

importlib.util.find_spec = _find_spec
"""
"""Code that makes it so in the process that runs it."""


def light_environment(folder: Path) -> dict[str, str]:
    """Variables that make it so in every Python started with them. folder: a file is written there."""
    (folder / "sitecustomize.py").write_text(LIGHT)
    return {"PYTHONPATH": str(folder)}
