"""The papers' recipes fit into the GPUs that their first lines name, and the table of the docs is the estimate's."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are run from the repository and not installed
from benchmarks.memory_table import GIB, QWEN3_4B, USABLE, cell, papers, table
from lightning_modules.callbacks.memory import Plan, estimate

ROOT = Path(__file__).parents[2]
SERVER = re.compile(r"^# Hardware: (\d+) GPUs of (\d+) GB for .*?(\d+) GiB", re.M)
TRAINS = {f"paper/{name}.yaml" for name in ("balancesft", "egpo", "funreason", "funrl")}
SERVED = ("cot", "fcdr", "hard_judges")


@pytest.mark.slow
def test_a_papers_recipe_fits_on_the_hardware_that_it_names():
    found = papers()  # raises where it does not
    assert set(found) == TRAINS
    for name, text in found.items():
        assert (ROOT / "configs" / name).read_text() == text, "run python -m benchmarks.memory_table"


@pytest.mark.parametrize("name", SERVED)
def test_a_judges_weights_fit_on_the_gpus_that_are_named(name):
    gpus, size, said = SERVER.search((ROOT / f"configs/paper/{name}.yaml").read_text()).groups()
    # QwQ-32B has the shape of Qwen2.5-32B: 32.76e9 weights of 2 bytes; vLLM takes 0.9 of a GPU.
    assert round(2 * 32.76e9 / GIB) == int(said) <= 0.9 * int(gpus) * USABLE[int(size)] / GIB


def test_every_file_of_the_papers_says_what_it_is_for():
    for path in (ROOT / "configs/paper").glob("*.yaml"):
        assert path.read_text().count("\n# Hardware: ") == 1, path


@pytest.mark.slow
def test_the_table_of_the_docs_is_what_the_estimate_says():
    assert table() in (ROOT / "docs/multi_node.md").read_text(), "run python -m benchmarks.memory_table"


def test_what_leaves_no_room_for_the_reserve_is_in_brackets():
    plan = Plan(QWEN3_4B, 4 * 10**9, 0, "bf16-mixed", rows=2, length=4096, checkpointing=True)
    peak = estimate(plan).peak
    least = (peak - 1) * 20 // 19 + 1  # a twentieth is left
    assert [cell(plan, least - less) for less in (0, 1)] == [f"{peak / GIB:.0f}", f"({peak / GIB:.0f})"]
