"""Conversion of a row of any form to an `Example`, and the checks that make a row bad."""

import json
import re
from dataclasses import asdict
from typing import Any

from datamodules.example import BadRow, Example, parse_column
from datamodules.sources.forms import Reading, read_row
from datamodules.sources.syntax import looks_like_calls
from datamodules.sources.targets import Turns
from rewards import FunctionCallReward, as_calls, as_tools, render_calls
from rewards.parser import MAX_ANSWER

_RENDERED = re.compile(
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|\[gMASK\]<sop>)?\s*"
    r"(<\|im_start\|>|<\|start_header_id\|>|<\|start\|>|<start_of_turn>|<\|(?:system|user|developer)\|>|<｜User｜>"  # noqa: RUF001
    r"|\[INST\]|\[AVAILABLE_TOOLS\]|\[SYSTEM_PROMPT\])"
)
"""How texts begin in which a chat template has written turns."""


def to_example(raw: Any) -> Example:
    """Convert one row of any form to an `Example`, and check it.

    Args:
        raw: A row of any form that `sources.forms.read_row` knows, or its JSON text.

    Returns:
        The example; its id is empty where the row has none.

    Raises:
        BadRow: Something is missing, is not of its type, cannot be read, or contradicts itself.
    """
    return read_raw(raw).examples[0]


def read_raw(raw: Any, turns: Turns = "last", unanswered: bool = False) -> Reading:
    """Read and check the examples of one row, more than one with `turns: every`; see `to_example`.

    With `unanswered` a row may have no answer; `answers` of its example is then "".
    """
    reading = _read(raw, turns, unanswered=unanswered)
    for example in reading.examples:
        _check_text(example)
        if example.answers:
            check_example(example)
        else:
            check_request(example)
    return reading


def unchecked_example(raw: Any) -> Example:
    """Convert one row to an `Example` as `to_example` does, unchecked: what its columns say may still be wrong.

    Raises:
        BadRow: Something is missing or is not of its type.
    """
    example = _read(raw, keep_answers=True).examples[0]
    _check_text(example)
    return example


def check_example(example: Example) -> None:
    """Check what an example says: its JSON, that called tools are offered, that the reward accepts its gold answer.

    The gold answer is rendered as the model would have to write it. Where no tool fits and the row has a `response`, it
    is held against the rule "anything but a call" (`no_call: text`); every other row against the default rule.

    Raises:
        BadRow: Naming the column at fault.
    """
    tools = check_request(example)
    offered = {tool["name"] for tool in tools}
    calls = parse_column("answers", as_calls, example.answers)
    for call in calls:
        if call.name not in offered:
            raise BadRow("answers", f"calls {call.name!r}, which is not among the tools offered")
    says_text = not calls and bool(example.response)
    column = "response" if says_text else "answers"
    if says_text and looks_like_calls(example.response, tools):
        raise BadRow("response", f"looks like a call, where no tool is called: {example.response[:80]!r}")
    reward = FunctionCallReward(no_call="text" if says_text else "empty")
    answer = example.response if says_text else parse_column("answers", render_calls, calls)
    if len(answer) > MAX_ANSWER:
        reason = f"is {len(answer):,} characters long as a model writes it, and the parser reads {MAX_ANSWER:,} at most"
        raise BadRow(column, reason)
    if reward(f"<think>{example.cot or '-'}</think>\n\n{answer}", example.tools, example.answers).score != 1:
        raise BadRow(column, f"as gold answer it earns no reward: {answer[:80]}")


def check_request(example: Example) -> list[dict[str, Any]]:
    """Check everything of an example but its answer, and return its tools.

    Raises:
        BadRow: Naming the column at fault.
    """
    if not example.query.strip():
        raise BadRow("query", "is empty")
    if rendered := _RENDERED.match(example.query):
        raise BadRow(
            "query", f"is what a chat template has made of a chat ({rendered[1]!r}): give its turns as messages"
        )
    for tag in ("<think>", "</think>"):
        if tag in example.cot:
            raise BadRow("cot", f"holds {tag}, which only frames the chain of thought")
    parse_column("history", _turns, example.history)
    return parse_column("tools", as_tools, example.tools)


def parse_row(raw: Any) -> dict[str, Any]:
    """A row, given as such or as its JSON text, after which a comma may stand.

    Raises:
        BadRow: It is no JSON object.
    """
    try:
        row = json.loads(raw.rstrip().removesuffix(",")) if isinstance(raw, str) else raw
    except json.JSONDecodeError as error:
        reason = error.msg.removesuffix(" at")  # Python ends some of its words so
        raise BadRow("", f"is not JSON: {reason} at character {error.pos + 1} of the line") from error
    except (ValueError, RecursionError) as error:
        raise BadRow("", f"is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise BadRow("", f"is not a JSON object but {type(row).__name__}")
    return row


def _read(raw: Any, turns: Turns = "last", keep_answers: bool = False, unanswered: bool = False) -> Reading:
    try:
        return read_row(parse_row(raw), turns, keep_answers, unanswered)
    except BadRow:
        raise
    except (ValueError, RecursionError) as error:  # whatever it is, it is about this row
        raise BadRow("", str(error)) from error


def _check_text(example: Example) -> None:
    for column, value in asdict(example).items():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadRow(column, "holds a lone surrogate, which no tokenizer can read") from error


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
