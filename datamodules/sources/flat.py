"""Rows whose request, tools and answer stand in columns of their own, as in xLAM's schema."""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from datamodules.example import BadRow, Example, parse_column
from datamodules.sources.calls import calls_of
from datamodules.sources.columns import ALIASES, ANSWERS, Columns, turns_of_pairs
from datamodules.sources.marks import MARKS
from datamodules.sources.messages import read_messages, read_system
from datamodules.sources.nulls import without_null_arguments
from datamodules.sources.prompts import split_system
from datamodules.sources.results import holds_result
from datamodules.sources.targets import content, dump
from datamodules.sources.thoughts import (
    bare_thought,
    holds_marks,
    join_thoughts,
    read_assistant_text,
    split_thoughts,
    with_thought,
)
from datamodules.sources.tools import read_tools
from datamodules.sources.turns import read_turns
from rewards import Call, as_calls, dump_calls


def read_columns(
    columns: Columns, labels: dict[str, str], keep_answers: bool, notes: Counter[str], unanswered: bool
) -> Example:
    """Reads a row of xLAM's schema, or of a re-issue of it with other names and forms.

    Args:
        columns: The row.
        labels: Its `id`, `category` and `source`.
        keep_answers: Leave the text of an `answers` column as it is.
        notes: Counts what was read otherwise than it is written.
        unanswered: Whether there may be no answer.

    Raises:
        BadRow: Something is missing or cannot be read.
    """
    notes["form/xLAM's columns"] += 1
    names = {column: columns.name(*ALIASES[column]) for column in ("query", "tools", "answers")}
    if keep_answers and isinstance(columns.given.get("answers"), str):
        names["answers"] = "answers"  # an empty text, too, is for the refinement to judge
    for column, name in names.items():
        if not name and not (unanswered and column == "answers"):
            raise _lacking(column, columns)
    query = columns.text(names["query"])
    offered, answers = columns.take(names["tools"]), columns.take(names["answers"])
    tools = parse_column("tools", read_tools, offered, notes)
    tools_text = offered if isinstance(offered, str) and _reads_as(tools, json.loads, offered) else dump(tools)
    cot = bare_thought(columns.text(*columns.thoughts()))
    response = columns.text("response") if names["answers"] != "response" else ""
    as_written = keep_answers and (answers is None or isinstance(answers, str))
    if as_written or not names["answers"]:
        answers_text = answers or ""
    else:
        answers_text, cot, response = read_answers(answers, tools, cot, response, notes)
        if not as_calls(answers_text):
            thoughts, response = parse_column("response", split_thoughts, response)
            cot, response = (join_thoughts(cot, *thoughts), response.strip()) if thoughts else (cot, response)
            _refuse_calls_beside(names["answers"], tools, columns)
        elif response and response == columns.row.get("response"):
            columns.used.discard("response")  # calls are the answer
    return Example(
        **labels,
        query=query,
        tools=tools_text,
        answers=answers_text,
        cot=cot if cot.strip() else "",
        response=response,
        history=_history(columns, tools, notes),
    )


def _lacking(column: str, columns: Columns) -> BadRow:
    """The error of a row in which none of the names of a column holds anything."""
    if blank := next((name for name in ALIASES[column] if name in columns.given), ""):
        advice = {"query": "", "tools": "; [] says that none is on offer", "answers": "; [] says that no tool fits"}
        return BadRow(blank, f"is empty{advice[column]}")
    return BadRow(column, f"is missing; the row has {', '.join(columns.given) or 'nothing'}")


def _refuse_calls_beside(name: str, tools: list[dict[str, Any]], columns: Columns) -> None:
    """Refuse a row whose answer has no calls, while another of its columns for answers has some.

    Raises:
        BadRow: There are some.
    """
    for other in (one for one in ANSWERS if one in columns.row and one not in (name, "model_answer")):
        try:
            calls = as_calls(read_answers(columns.row[other], tools, "", "", Counter())[0])
        except BadRow:
            continue  # it holds something else
        if calls:
            raise BadRow(other, f"holds calls, and '{name}' an answer without any: keep one of them")


def read_answers(
    value: Any, tools: list[dict[str, Any]], cot: str, response: str, notes: Counter[str]
) -> tuple[str, str, str]:
    """The answers as JSON, and the chain of thought and response, each with the words that stand beside the calls."""
    text = value if isinstance(value, str) else ""
    offered, nested = frozenset(tool["name"] for tool in tools), not text
    texts = with_thought(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else []
    text = "\n".join(texts) or text  # a call in each
    calls = _calls_in(text, offered) if text else parse_column("answers", calls_of, value, offered)
    if calls is None:
        parsed = parse_column("answers", read_assistant_text, text, tools)
        calls, cot = parsed.calls, join_thoughts(cot, parsed.cot)
        if calls is None and len(texts) > 1:
            raise BadRow("answers", f"is a list of texts without calls: {texts[0][:80]!r}")
        if calls is None:
            response = "\n\n".join(filter(None, (parsed.text, response)))
        elif parsed.text:
            notes["repair/words before the calls read as chain of thought"] += 1
            cot = join_thoughts(cot, parsed.text)
    cleaned = without_null_arguments(calls or [], tools, nested, notes)
    same = text and calls is not None and cleaned == calls and _reads_as(calls, as_calls, text)
    return (text if same else dump_calls(cleaned)), cot, response


def _calls_in(text: str, offered: frozenset[str]) -> list[Call] | None:
    """The calls of a text that is JSON, however they are written in it; None for any other."""
    for reader in (as_calls, partial(calls_of, offered=offered)):
        try:
            return reader(text)
        except ValueError:
            continue
    return None


def _history(columns: Columns, tools: list[dict[str, Any]], notes: Counter[str]) -> str:
    """Earlier turns, with the text of a system's column in front; as they are where they are of our form already."""
    value = columns.take("history")
    _, system = parse_column("tools", split_system, read_system(columns), notes, tools)
    text = value if isinstance(value, str) else dump(value or [])
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow("history", f"is not readable JSON: {error}") from error
    if not isinstance(items, list):
        raise BadRow("history", f"must be a list of turns, not {type(items).__name__}")
    if not (canonical := all(map(_is_canonical, items))):
        turns = read_turns(read_messages(turns_of_pairs(items), "history"), tools, "history", notes)
        if thoughts := sum(bool(turn.cot) for turn in turns):
            notes["left out/chains of thought of earlier turns"] += thoughts
        items = [{"role": turn.role, "content": content(turn, "history")} for turn in turns]
    if system:
        if items and items[0]["role"] == "system":
            system, items = f"{system}\n\n{items[0]['content']}", items[1:]
        items = [{"role": "system", "content": system}, *items]
    return dump(items) if system or not canonical else text


def _is_canonical(turn: Any) -> bool:
    """Whether an earlier turn is written as this project does, without marks of others' thoughts, calls or results."""
    if not isinstance(turn, dict) or turn.keys() != {"role", "content"} or not isinstance(turn["content"], str):
        return False
    if turn["role"] == "assistant":
        return not (MARKS.search(turn["content"]) or holds_marks(turn["content"]))
    return turn["role"] == "system" or (turn["role"] in ("user", "tool") and not holds_result(turn["content"]))


def _reads_as(value: Any, reader: Callable[[str], Any], text: str) -> bool:
    """Whether a text is read as a value."""
    try:
        return bool(reader(text) == value)
    except (ValueError, RecursionError):
        return False
