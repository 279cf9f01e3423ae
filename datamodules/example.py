"""`Example`, a row as the project passes it on, and `BadRow`, the error that refuses a row."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

_Read = TypeVar("_Read")


class BadRow(ValueError):
    """A row that cannot be used: the column at fault (empty for the row as a whole) and the reason."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(f"column '{column}': {reason}")
        self.column = column
        self.reason = reason


def parse_column(column: str, reader: Callable[..., _Read], *arguments: Any) -> _Read:
    """What a reader makes of its arguments, which are about one column of a row.

    Raises:
        BadRow: The reader raises ValueError.
    """
    try:
        return reader(*arguments)
    except ValueError as error:
        raise BadRow(column, str(error)) from error


@dataclass(frozen=True)
class Example:
    """One row. `tools`, `answers` and `history` are JSON strings, as on disk: Arrow would null-pad nested columns.

    Attributes:
        id: Unique within its source.
        query: The user's request.
        tools: List of `{"name", "description", "parameters"}`.
        answers: List of `{"name", "arguments"}`; `[]` where no tool fits; empty where nobody has said it, in rows that
            are only to be predicted.
        cot: Chain of thought without tags; empty where the row has none.
        response: The plain text to answer with where `answers` is `[]`; empty for `[]` itself.
        history: Earlier turns, a list of `{"role", "content"}`. Where they hold the query already and end with what a
            tool gave back, the answer is one to the tool.
        category: Carried through to metrics.
        source: Carried through to reports.
    """

    id: str
    query: str
    tools: str
    answers: str
    cot: str = ""
    response: str = ""
    history: str = "[]"
    category: str = ""
    source: str = ""


def answers_tool(example: Example) -> bool:
    """Whether the answer is one to a tool: the history holds the query and ends with what a tool gave back."""
    turns = json.loads(example.history)
    asked = next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), None)
    return bool(turns) and turns[-1]["role"] == "tool" and asked == example.query
