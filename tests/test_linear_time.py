"""Readers of foreign text take time linear in the text, or refuse it: counted, not timed (`tests/work.py`).

A text that is twice as long takes at most 2.2 times the work. What stands in C and copies nothing (`find`, `in`) is not
counted; where it is repeated, the readers bound how often. Python's own parser, which BFCL's answers go through, cannot
be counted either: `decode_bfcl` bounds their length.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules import readers
from datamodules.chat.templates import without_present_date
from datamodules.example import BadRow
from datamodules.refinement import rule_judge
from datamodules.refinement.judging import read_reply
from datamodules.refinement.loose import read_loosely
from datamodules.refinement.prompts import _between
from datamodules.refinement.schema import cast_to_types, find_misfit
from datamodules.rows import read_raw
from datamodules.sources.declared import type_schema, type_words
from datamodules.sources.messages import read_messages
from datamodules.sources.parts import Message
from datamodules.sources.prompts import glaive_chat, split_request, split_system
from datamodules.sources.thoughts import read_assistant_text
from datamodules.sources.tools import read_tools
from datamodules.sources.turns import read_turns
from datamodules.sources.values import read_whole
from rewards import Call, decode_bfcl, parse_completion
from rewards.floats import float_places
from tests.work import Work, count

TOOLS = [
    {"name": "f", "description": "x", "parameters": {"a": {"type": "List[str]"}, "b": {"type": "int, optional"}}},
    {"name": "send_mail", "parameters": {"type": "object", "properties": {"to": {"type": "string"}}}},
]


def _array_file(text: str) -> list[Any]:
    file = Path(_array_file.folder) / "rows.json"  # type: ignore[attr-defined]
    file.write_text('[{"query": "q"}' + text, encoding="utf-8")
    return list(readers.read_rows(str(file)))


READERS: dict[str, Callable[[str], Any]] = {
    "what an assistant says": lambda text: read_assistant_text(text, TOOLS),
    "a system's text": lambda text: split_system(text, Counter()),
    "text around tools": lambda text: split_system(f"{json.dumps(TOOLS)}\n{text}", Counter()),
    "a request": split_request,
    "a dialogue": lambda text: split_request("Dialogue Records History" + text),
    "Seal-Tools": lambda text: split_request(f'api_list = [] {text} task_instruction = "{text}" Output:'),
    "Glaive's chat": glaive_chat,
    "a tool's answer": lambda text: read_messages([{"role": "tool", "content": text}], "messages"),
    "a value": read_whole,
    "a list of values": lambda text: read_whole(f"[{text}, '{text}"),
    "a column of tools": lambda text: read_tools(text, Counter()),
    "a declared type": lambda text: (
        type_schema(text),
        type_words([{"type": text}]),
        float_places([_tool({"a": {"type": text}})]),
    ),
    "almost a call": lambda text: read_loosely(text, TOOLS),
    "a value to cast": lambda text: cast_to_types([Call("f", {"a": text, "b": text})], TOOLS),
    "a judge's reply": read_reply,
    "a row in a prompt": lambda text: _between("query", text),
    "a value in a request": lambda text: rule_judge._says(text, text[: len(text) // 2]),
    "a chain of thought": lambda text: [rule_judge._stated_call(line) for line in rule_judge._STATED.findall(text)],
    "a chat template": lambda text: without_present_date(f"strftime_now('{text}"),
    "a completion": parse_completion,
    "an answer": lambda text: parse_completion(f"<think>x</think>{text}"),
    "a BFCL answer": decode_bfcl,
    "a row": lambda text: read_raw(text),
    "a file": _array_file,
}
UNITS = (
    *(
        " ",
        "\n",
        "_",
        "1",
        "[",
        "'",
        "\\'",
        "- ",
        ", ",
        "( ",
        "<think>",
        "<tool_call>",
        "<obs>",
        "<obs></obs>",
        "<tools>",
    ),
    *(
        "```",
        "<schema>",
        "json ",
        "list of ",
        "f(a=1),\n",
        "{'a':",
        '{"name": "f"}, ',
        "[BEGIN OF QUERY]",
        "✿FUNCTION✿ ",
    ),
    *("1. Name: a\nDescription: b\n", "<|im_end|> ", "</arg_key><arg_value>", "<function=a>", "Action: a\n", "-a"),
    *('task_instruction = "', "optional, ", "List[", "strftime_now('", "<judge>", "\n[", "f: a=1\n"),
)


@pytest.fixture(autouse=True)
def small_bounds(tmp_path, monkeypatch):
    """Nesting and tries are bounded; both lengths have to be beyond the bounds, and short."""
    _array_file.folder = tmp_path
    monkeypatch.setattr("datamodules.sources.values.MAX_DEPTH", 0)
    monkeypatch.setattr("datamodules.sources.syntax.CANDIDATES", 4)
    monkeypatch.setattr("rewards.floats._MAX_TYPE_DEPTH", 3)


def _tool(declared: Any) -> dict[str, Any]:
    return {"name": "f", "parameters": declared}


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_twice_the_text_is_at_most_twice_the_work(reader):
    slow = {}
    with (work := Work()).counting():
        for unit in UNITS:
            times = max(20, 60 // len(unit))
            once, twice = (count(work, READERS[reader], f"a {unit * n * times}x") for n in (1, 2))
            if twice > 2.2 * once:
                slow[unit] = once, twice
    assert not slow


def test_what_cannot_be_linear_is_refused_with_a_reason():
    with pytest.raises(ValueError, match="there are 1,025 tools, and 1,024 are read at most"):
        read_tools([{"name": f"f{number}"} for number in range(1025)], Counter())
    with pytest.raises(ValueError, match="the name of a tool has 1,025 characters"):
        read_tools([{"name": "f" * 1025}], Counter())
    with pytest.raises(BadRow, match="has 2,049 turns, and 2,048 are read at most"):
        read_turns([Message("user", "x")] * 2049, [], "messages", Counter())


def test_definitions_that_double_one_another_declare_nothing():
    definitions = {f"D{i}": {"anyOf": [{"$ref": f"#/$defs/D{i + 1}"}] * 2} for i in range(40)}  # 2^40 nodes written out
    declared = {"type": "object", "properties": {"a": {"$ref": "#/$defs/D0"}}, "$defs": definitions | {"D40": {}}}
    assert find_misfit([Call("f", {"a": "x"})], [_tool(declared)]) is None
