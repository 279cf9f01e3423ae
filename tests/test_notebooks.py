"""Every notebook runs from top to bottom in any folder and draws a figure; what is kept of its outputs is not stale."""

import re
import sys
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import nbformat
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # notebooks/ is not installed
from notebooks.execute import HERE, execute, hash_of_sources, settle

NOTEBOOKS = sorted(path.name for path in HERE.glob("*.ipynb"))
SHOWS = re.compile(r"^ *(print|display|plt\.show)\(", re.MULTILINE)
OF_A_MACHINE = re.compile(r"/(tmp|home|root|Users|work)/|site-packages| at 0x|\d+ s left| s a step|\d%\|")
"""Folders, addresses, times and bars, which say where and when a notebook was run."""


def read(name):
    return nbformat.read(HERE / name, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell):
    """The kinds of each output but what is printed, which comes in pieces of any size."""
    return [sorted(output.data) for output in cell.outputs if "data" in output]


@pytest.mark.notebooks
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_in_any_folder_and_shows_what_is_kept(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))  # where encoded rows are kept
    monkeypatch.delenv("MPLBACKEND", raising=False)  # Streamlit sets one that draws nothing in a notebook
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    (tmp_path / "elsewhere").mkdir()
    notebook, kept = read(name), read(name)
    execute(notebook, tmp_path / "elsewhere")
    assert list(map(shown, code_cells(notebook))) == list(map(shown, code_cells(kept)))
    assert any("image/png" in kinds for cell in code_cells(notebook) for kinds in shown(cell))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_those_of_the_cells(name):
    notebook = read(name)
    assert notebook.metadata.get("sources_sha256") == hash_of_sources(notebook), "stale: make notebooks"
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert all(cell.outputs for cell in cells if SHOWS.search(cell.source))
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    texts = [output.get("text", "") for output in outputs]
    texts += [text for o in outputs for kind, text in o.get("data", {}).items() if kind.startswith("text/")]
    assert not [found[0] for text in texts if (found := OF_A_MACHINE.search(text))]
    assert not any(cell.metadata for cell in cells)  # no times of execution


def test_the_hash_is_that_of_code_and_order():
    code, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    first, other = code("a = 1"), code("b = 2")
    whole = hash_of_sources(nbformat.v4.new_notebook(cells=[first, text("one"), other]))
    assert whole == hash_of_sources(nbformat.v4.new_notebook(cells=[first, other, text("two")]))
    for cells in ([other, first], [first], [code("a = 1\0b = 2")], [code("a = 1"), code("b = 3")]):
        assert whole != hash_of_sources(nbformat.v4.new_notebook(cells=cells))


def test_figures_are_small_and_addresses_gone():
    figure = BytesIO()
    Image.linear_gradient("L").save(figure, "png")  # 256 x 256 pixels in 256 shades
    data = {"image/png": b64encode(figure.getvalue()).decode(), "text/plain": "<pandas.Styler at 0x7f785433e850>"}
    cell = nbformat.v4.new_code_cell("draw()", outputs=[nbformat.v4.new_output("display_data", data)])
    settle(nbformat.v4.new_notebook(cells=[cell]))
    [output] = cell.outputs
    small = Image.open(BytesIO(b64decode(output.data["image/png"])))
    assert (small.mode, small.size, output.data["text/plain"]) == ("P", (256, 256), "<pandas.Styler>")
    assert len(small.getcolors()) == 128
