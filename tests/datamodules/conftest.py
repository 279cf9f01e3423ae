"""Rows and a data module small enough to check by hand."""

import json
from pathlib import Path

import pytest

from datamodules import XLAMSFTDataModule

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
TOOLS = [
    {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"city": {"type": "str", "description": "Its name"}, "days": {"type": "int, optional"}},
    }
]


@pytest.fixture
def make_row():
    """A good row; keyword arguments change columns, and None takes one out."""

    def make(number=0, **changes):
        answers = [{"name": "get_weather", "arguments": {"city": f"City {number}", "days": number}}]
        row = {
            "id": number,
            "query": f"How is the weather in City {number} for {number} days?",
            "tools": json.dumps(TOOLS),
            "answers": json.dumps(answers),
            "cot": f"They ask for City {number} and {number} days.",
        }
        return {name: value for name, value in (row | changes).items() if value is not None}

    return make


@pytest.fixture
def write_rows(tmp_path):
    """Write rows to a JSONL file and return its path."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def make_module(tmp_path, tiny_model_dir):
    """A data module with the tiny tokenizer and a cache of its own."""

    def make(path, **kwargs):
        return XLAMSFTDataModule(str(tiny_model_dir), str(path), cache_dir=str(tmp_path / "cache"), **kwargs)

    return make


@pytest.fixture(scope="session")
def shared_data():
    """Folder of the real rows; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"the real rows are not here: {SHARED} is absent")
    return SHARED
