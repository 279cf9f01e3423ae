"""Rows of the Berkeley Function Calling Leaderboard, and the chat that the official tool makes of each."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.bfcl.package import BFCLPackage, system_prompt
from rewards.bfcl.values import WITH_ITEMS

NAMES = {"java": "Java", "javascript": "JavaScript"}
HINTS = {
    "python": " Note that the provided function is in Python 3 syntax.",
    "java": " Note that the provided function is in Java 8 SDK syntax.",
    "javascript": " Note that the provided function is in JavaScript syntax.",
}
SIMPLE = {
    3: ("simple", "java", "javascript"),
    4: ("simple_python", "simple_java", "simple_javascript"),
}
AST = ("multiple", "parallel", "parallel_multiple")
LIVE_AST = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
CATEGORIES = {
    version: (*simple, *AST, "irrelevance", *LIVE_AST, "live_irrelevance", "live_relevance")
    for version, simple in SIMPLE.items()
}
"""The single-turn categories of each version of BFCL."""
SEVERAL_TURNS = ("multi_turn", "memory", "web_search", "format_sensitivity")


@dataclass(frozen=True)
class BFCLRow:
    """One row.

    Attributes:
        id: As the official files write it.
        category: One of `CATEGORIES`.
        question: The messages asked with, `{"role", "content"}` each.
        functions: Descriptions of the functions, as the checker uses them.
        possible_answers: The row's `ground_truth`; None where no call is expected, or any.
    """

    id: str
    category: str
    question: list[dict[str, str]]
    functions: list[dict[str, Any]]
    possible_answers: list[dict[str, Any]] | None


def language_of(category: str) -> str:
    """The language of a category's functions."""
    if "javascript" in category:
        return "javascript"
    return "java" if "java" in category else "python"


def check_categories(categories: Sequence[str], version: int) -> None:
    """Refuse names that are no single-turn category of this version of BFCL.

    Raises:
        ValueError: A category is unknown or has several turns, or there is none.
    """
    for category in categories:
        if category.startswith(SEVERAL_TURNS):
            raise ValueError(
                f"data.categories: '{category}' takes several turns against simulated APIs, and only single-turn "
                "categories are evaluated here: leave it out, or run bfcl-eval itself"
            )
        if category not in CATEGORIES[version]:
            known = ", ".join(CATEGORIES[version])
            raise ValueError(f"data.categories: '{category}' is no category of BFCL v{version}; these are: {known}")
    if not categories:
        raise ValueError("data.categories names no category; leave it out for all of them")


def read_category(package: BFCLPackage, category: str) -> list[BFCLRow]:
    """Read the rows of a category, in the official order.

    Raises:
        ValueError: A row has several turns.
    """
    name = f"{package.prefix}{category}.json"
    rows = _lines(package.folder / "data" / name)
    answers: list[Any] = [None] * len(rows)
    if "relevance" not in category:
        answers = [line["ground_truth"] for line in _lines(package.folder / "data" / "possible_answer" / name)]
    for row in rows:
        if len(row["question"]) != 1:
            raise ValueError(
                f"{name}, row {row['id']} has several turns, and only single turns are evaluated here: leave "
                f"{category} out of data.categories"
            )
    return [
        BFCLRow(row["id"], category, row["question"][0], row["function"], answer)
        for row, answer in zip(rows, answers, strict=True)
    ]


def _lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def chat(package: BFCLPackage, row: BFCLRow) -> list[dict[str, str]]:
    """The messages that the official tool sends to a model that is prompted.

    A system message of the row itself goes below the official one.
    """
    system = system_prompt(package, with_hints(row.functions, language_of(row.category)))
    first, *others = row.question
    if first["role"] == "system":
        return [{"role": "system", "content": f"{system}\n\n{first['content']}"}, *others]
    return [{"role": "system", "content": system}, *row.question]


def with_hints(functions: list[dict[str, Any]], language: str) -> list[dict[str, Any]]:
    """Descriptions that say which language they are in, and want the arguments of Java and JavaScript as texts."""
    functions = copy.deepcopy(functions)
    for function in functions:
        function["description"] += HINTS[language]
        if language != "python":
            for parameter in function["parameters"]["properties"].values():
                _want_text(parameter, language)
    return functions


def _want_text(parameter: dict[str, Any], language: str) -> None:
    """Move the type of a parameter into its description, and declare a string in its place."""
    kind, name = parameter["type"], NAMES[language]
    if kind == "any":
        hint = f" This parameter can be of any type of {name} object in string representation."
    else:
        hint = f" This is {name} {kind} type parameter in string representation."
    if kind in WITH_ITEMS[language]:
        items = parameter.pop("items")["type"]
        hint += f" The list elements are of type {items}; they are not in string representation."
    if kind == "dict" and "properties" in parameter:
        schema = json.dumps(parameter.pop("properties"))
        hint += f" The dictionary entries have the following schema; they are not in string representation. {schema}"
    parameter["description"] += hint
    parameter["type"] = "string"
