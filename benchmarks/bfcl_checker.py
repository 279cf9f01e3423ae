"""Checks and decodes per second of `match_bfcl` and of the official checker of BFCL, on one core.

Command: python -m benchmarks.bfcl_checker
"""

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

from benchmarks.record import record
from rewards import decode_bfcl, match_bfcl, render_calls

ROUNDS = 5
LANGUAGES = {"java": "Java", "javascript": "JavaScript"}  # by category; the others are Python


def official() -> tuple[Callable[..., dict[str, Any]], Callable[[str], list[Any]]]:
    """The official checker and its Python decoder, from the installed package, without the SDKs that it asks for."""
    models = ModuleType("bfcl_eval.constants.model_config")
    models.MODEL_CONFIG_MAPPING = {"any": SimpleNamespace(underscore_to_dot=False)}  # type: ignore[attr-defined]
    sys.modules |= {models.__name__: models, "tenacity": MagicMock()}
    checker = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker").ast_checker
    return checker, importlib.import_module("bfcl_eval.model_handler.utils").default_decode_ast_prompting


def gold_rows() -> list[tuple[Any, ...]]:
    """Single-turn rows: functions, calls made of the first accepted values, ground truth, language, category."""
    data, rows = Path(find_spec("bfcl_eval").origin).parent / "data", []
    for file in sorted((data / "possible_answer").glob("BFCL_v3_*.json")):
        category = file.stem.removeprefix("BFCL_v3_")
        if category.startswith("multi_turn"):
            continue
        language = LANGUAGES.get(category, "Python")
        for row, answer in zip(data.joinpath(file.name).open(), file.open(), strict=True):
            expected = json.loads(answer)["ground_truth"]
            calls = [{name: first_values(accepted, language)} for call in expected for name, accepted in call.items()]
            rows.append((json.loads(row)["function"], calls, expected, language, category))
    return rows


def first_values(accepted: dict[str, list[Any]], language: str) -> dict[str, Any]:
    """The first accepted value of each argument; none where that is its absence."""
    values = {
        name: alternatives[0] for name, alternatives in accepted.items() if alternatives and alternatives[0] != ""
    }
    return values if language == "Python" else {name: str(value) for name, value in values.items()}


def per_second(check: Callable[..., Any], rows: Sequence[tuple[Any, ...]]) -> float:
    """The median of several rounds over all rows."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for row in rows:
            check(*row)
        seconds.append(time.process_time() - start)
    return len(rows) / statistics.median(seconds)


def main() -> None:
    """Measure and record."""
    check, decode = official()
    rows = gold_rows()
    texts = [
        (render_calls([{"name": name, "arguments": values} for call in row[1] for name, values in call.items()]),)
        for row in rows
        if row[3] == "Python"
    ]

    def ours(functions: Any, calls: Any, expected: Any, language: str, category: str) -> Any:
        return match_bfcl(calls, expected, functions, category, language)

    speeds = [
        ("check calls", len(rows), per_second(ours, rows), per_second(lambda *row: check(*row, "any"), rows)),
        ("decode Python text", len(texts), per_second(decode_bfcl, texts), per_second(decode, texts)),
    ]
    record(
        "BFCL checker",
        ["what", "rows", "match_bfcl, per second", "official, per second", "ratio"],
        [
            [what, f"{count:,}", f"{ours:,.0f}", f"{theirs:,.0f}", f"{ours / theirs:.2f}"]
            for what, count, ours, theirs in speeds
        ],
        f"Calls made of the first accepted values of every row of BFCL v3; median of {ROUNDS} rounds, process time.",
    )


if __name__ == "__main__":
    main()
