"""Every notebook runs from top to bottom in a fresh kernel and draws at least one figure."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))


# Jupyter starts a kernel beside the notebook, an editor often at the root of the repository: they take turns.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name, folder", [(name, (".", "notebooks")[number % 2]) for number, name in enumerate(NOTEBOOKS)], ids=NOTEBOOKS
)
def test_runs_and_draws(name, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))  # where encoded rows are kept
    monkeypatch.delenv("MPLBACKEND", raising=False)  # Streamlit sets one that draws nothing in a notebook
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    resources = {"metadata": {"path": str(ROOT / folder)}}
    NotebookClient(notebook, kernel_name="python3", timeout=540, resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
