"""What is recorded is what was measured, and the page is made from it."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are run from the repository and not installed
from benchmarks.record import FOLDER, page

RESULTS = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))


def test_the_page_is_that_of_the_results():
    assert (FOLDER / "RESULTS.md").read_text(encoding="utf-8") == page(RESULTS)


def test_no_row_is_of_what_was_not_measured():
    rows = [row for found in RESULTS.values() for row in found.get("rows", ())]
    assert rows and not [row for row in rows if "not measured" in row]
