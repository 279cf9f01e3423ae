"""Every notebook runs from top to bottom in a fresh kernel and draws at least one figure."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


# Jupyter starts a kernel beside the notebook, an editor often at the root of the repository: each is tried once.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name, folder", [("01_segments_and_srml.ipynb", "."), ("02_rewards.ipynb", "notebooks")], ids=["01", "02"]
)
def test_runs_and_draws(name, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))  # where encoded rows are kept
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    resources = {"metadata": {"path": str(ROOT / folder)}}
    NotebookClient(notebook, kernel_name="python3", timeout=540, resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_every_notebook_is_listed_above():
    listed = {"01_segments_and_srml.ipynb", "02_rewards.ipynb"}
    assert {path.name for path in (ROOT / "notebooks").glob("*.ipynb")} == listed
