"""What a row is, and what makes it bad."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from datamodules.conversations import from_conversation
from datamodules.readers import BadRow
from rewards import FunctionCallReward, as_calls, as_tools, render_calls

ALIASES = {  # columns of public re-issues
    "cot": ("think", "reasoning", "reasoning_content"),
    "query": ("question",),
    "tools": ("functions",),
    "answers": ("answer",),
}


@dataclass(frozen=True)
class Example:
    """One row. `tools`, `answers` and `history` are JSON strings, as on disk: Arrow would null-pad nested columns.

    Attributes:
        id: Unique within its source.
        query: The user's request.
        tools: List of `{"name", "description", "parameters"}`.
        answers: List of `{"name", "arguments"}`; `[]` where no tool fits.
        cot: Chain of thought without tags; empty where the row has none.
        response: The plain text to answer with where `answers` is `[]`; empty for `[]` itself.
        history: Earlier turns, a list of `{"role", "content"}`.
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


def to_example(raw: Any) -> Example:
    """Check one row and bring it into the common form.

    Args:
        raw: A row of the schema, of a re-issue with other column names, or of chat turns; or its JSON text.

    Returns:
        The example; its id is empty where the row has none.

    Raises:
        BadRow: Something is missing, is not of its type, cannot be read, or contradicts itself.
    """
    example = unchecked_example(raw)
    check_example(example)
    return example


def unchecked_example(raw: Any) -> Example:
    """Bring one row into the common form of `to_example`; what its columns say may still be wrong.

    Raises:
        BadRow: Something is missing or is not of its type.
    """
    row = _parse(raw)
    if "conversations" in row or "messages" in row:
        row = from_conversation(row)
    for column, others in ALIASES.items():
        found = next((name for name in others if name in row), None)
        if column not in row and found:
            row = row | {column: row[found]}
    values = {field.name: _text(row, field.name) for field in fields(Example)}
    values["history"] = values["history"] or "[]"
    values["cot"] = values["cot"] if values["cot"].strip() else ""
    return Example(**values)


def check_example(example: Example) -> None:
    """Check what an example says: its JSON, that called tools are offered, that its gold answer earns the reward.

    The gold answer is rendered as the model would have to write it. Where no tool fits and the row has a `response`, it
    is held against the rule "anything but a call" (`no_call: text`); every other row against the default rule.

    Raises:
        BadRow: Naming the column at fault.
    """
    offered = {tool["name"] for tool in check_request(example)}
    calls = _json("answers", as_calls, example.answers)
    for call in calls:
        if call.name not in offered:
            raise BadRow("answers", f"calls {call.name!r}, which is not among the tools offered")
    says_text = not calls and bool(example.response)
    reward = FunctionCallReward(no_call="text" if says_text else "empty")
    answer = example.response if says_text else _json("answers", render_calls, calls)
    if reward(f"<think>{example.cot or '-'}</think>\n\n{answer}", example.tools, example.answers).score != 1:
        raise BadRow("response" if says_text else "answers", f"as gold answer it earns no reward: {answer[:80]}")


def check_request(example: Example) -> list[dict[str, Any]]:
    """Check all of an example but its answer; gives its tools.

    Raises:
        BadRow: Naming the column at fault.
    """
    if not example.query.strip():
        raise BadRow("query", "is empty")
    for tag in ("<think>", "</think>"):
        if tag in example.cot:
            raise BadRow("cot", f"holds {tag}, which only frames the chain of thought")
    _json("history", _turns, example.history)
    tools: list[dict[str, Any]] = _json("tools", as_tools, example.tools)
    return tools


def _parse(raw: Any) -> dict[str, Any]:
    try:
        row = json.loads(raw) if isinstance(raw, str) else raw
    except (ValueError, RecursionError) as error:
        raise BadRow("", f"is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise BadRow("", f"is not a JSON object but {type(row).__name__}")
    return row


def _text(row: Mapping[str, Any], column: str) -> str:
    """The text of a column; lists of JSON files are written out, so that inside the project they are always strings."""
    value = row.get(column)
    if value is None:
        if column in ("query", "tools", "answers"):
            raise BadRow(column, "is missing")
        return ""
    if column in ("tools", "answers", "history") and isinstance(value, list):
        value = json.dumps(value, ensure_ascii=False)
    if column == "id" and type(value) is int:
        value = str(value)
    if not isinstance(value, str):
        wanted = {"id": "a string or an integer", "query": "a string"}.get(column, "a JSON string")
        wanted = wanted if column in ("id", "query", "tools", "answers", "history") else "a string"
        raise BadRow(column, f"must be {wanted}, not {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(column, "holds a lone surrogate, which no tokenizer can read") from error
    return value


def _json(column: str, reader: Callable[[Any], Any], value: Any) -> Any:
    try:
        return reader(value)
    except ValueError as error:
        raise BadRow(column, str(error)) from error


def _turns(text: str) -> list[dict[str, str]]:
    try:
        turns = json.loads(text)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(turns, list):
        raise ValueError(f"must be a list of turns, not {type(turns).__name__}")
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise ValueError(f"turn {number} needs a role and a content, both strings")
    return turns
