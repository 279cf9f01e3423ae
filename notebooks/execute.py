"""Runs the notebooks and keeps their outputs in them: `make notebooks`, or `python notebooks/execute.py NOTEBOOK ...`.

Each runs in a fresh kernel, in a folder of its own, so that nothing depends on where it is opened. Beside the outputs
stands the hash of the cells that they come from, by which a test sees that they are not stale.
"""

import hashlib
import json
import os
import re
import sys
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

from datamodules.system.files import atomic_write

HERE = Path(__file__).parent
COLOURS = 128  # of a figure: a third of its size, and no difference to the eye


def hash_of_sources(notebook: NotebookNode) -> str:
    """SHA-256 of the code cells."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def execute(notebook: NotebookNode, folder: str | Path) -> None:
    """Run all cells in a fresh kernel that starts in a folder; the notebook then has their outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell fails.
    """
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, kernel_name="python3", timeout=540, resources=resources, record_timing=False).execute()


def settle(notebook: NotebookNode) -> None:
    """Make what was run small and the same every time: figures with a palette, no addresses, no version of Python."""
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata["sources_sha256"] = hash_of_sources(notebook)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        data = output.get("data", {})
        if "text/plain" in data:
            data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", data["text/plain"])
        if "image/png" in data:
            figure = BytesIO()
            image = Image.open(BytesIO(b64decode(data["image/png"]))).convert("RGB").quantize(COLOURS)
            image.save(figure, "png", optimize=True)
            data["image/png"] = b64encode(figure.getvalue()).decode()


def main(names: list[str]) -> None:
    """Run notebooks, all of them where none is named, and write them back."""
    for path in [Path(name) for name in names] or sorted(HERE.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        with TemporaryDirectory() as folder:
            os.environ |= {"HF_DATASETS_CACHE": f"{folder}/cache", "IPYTHONDIR": f"{folder}/ipython"}
            execute(notebook, folder)
        settle(notebook)
        with atomic_write(path) as unfinished:
            nbformat.write(notebook, unfinished)
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
