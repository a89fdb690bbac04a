"""The notebook of the examples runs from its first cell to its last, and shows what it says."""

import os
import shutil
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(EXAMPLES / "first_look.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    shutil.copytree(EXAMPLES / "photographs", tmp_path / "photographs")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    notebook = nbformat.read(EXAMPLES / "first_look.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    told = " ".join(output.get("text", "") for output in outputs)
    assert "cat.jpg" in told and "person" in told
    assert list((tmp_path / "first-look-masks" / "report").glob("*/index.html"))
