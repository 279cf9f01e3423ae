"""ShareGPT and chat rows turned into xLAM rows: the last assistant turn that answers a user turn is the target."""

import json
import re
from collections.abc import Mapping
from typing import Any

from datamodules.readers import BadRow
from rewards import Call, parse_calls, parse_completion

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_DECODER = json.JSONDecoder()
_CALL_START = re.compile(r"\s*([\[{]|<tool_call>|<answer>)")


def from_conversation(row: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a row with `conversations` (`from`, `value`) or `messages` (`role`, `content`) into an xLAM row.

    The system turn gives the tools where the row has no `tools` column and is then dropped: the format it asks for is
    that of another project, and the prompt brings its own.

    Args:
        row: The row; its columns other than the turns are kept.

    Returns:
        The row with `query`, `tools`, `answers`, `cot`, `response` and `history`.

    Raises:
        BadRow: The turns cannot be read.
    """
    column = "conversations" if "conversations" in row else "messages"
    turns = _turns(row[column], column)
    system = "\n\n".join(turn["content"] for turn in turns if turn["role"] == "system")
    turns = [turn for turn in turns if turn["role"] != "system"]
    pairs = [i for i in range(1, len(turns)) if (turns[i - 1]["role"], turns[i]["role"]) == ("user", "assistant")]
    if not pairs:
        raise BadRow(column, "has no assistant turn that answers a user turn")
    last = pairs[-1]
    cot, calls, response = _answer(turns[last]["content"], column)
    plain = {name: value for name, value in row.items() if name != column}
    return plain | {
        "query": turns[last - 1]["content"],
        "tools": row.get("tools") or _tools_in(system, column),
        "answers": json.dumps([{"name": c.name, "arguments": c.arguments} for c in calls], ensure_ascii=False),
        "cot": cot,
        "response": response,
        "history": json.dumps(turns[: last - 1], ensure_ascii=False),
    }


def _turns(value: Any, column: str) -> list[dict[str, str]]:
    if not isinstance(value, list):
        raise BadRow(column, f"must be a list of turns, not {type(value).__name__}")
    turns = []
    for number, turn in enumerate(value, start=1):
        turn = turn if isinstance(turn, dict) else {}
        role, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if role not in ROLES or not isinstance(text, str):
            raise BadRow(column, f"turn {number} has no known role or no text: role {str(role)[:40]!r}")
        turns.append({"role": ROLES[role], "content": text})
    return turns


def _answer(text: str, column: str) -> tuple[str, list[Call], str]:
    """Chain of thought, calls, and the plain response where there are no calls."""
    parsed = parse_completion(text)
    if parsed.calls is None and "<answer>" in text:
        parsed = parse_completion(text, answer_tags="answer")
    if parsed.calls is not None:
        return parsed.cot, parsed.calls, ""
    if "<think>" not in text and "</think>" not in text:
        calls, error = parse_calls(text)
        cot, tail = "", text.strip()
    else:
        calls, error, cot, tail = None, parsed.error, parsed.cot, parsed.answer
        if not cot:
            raise BadRow(column, f"the last assistant turn cannot be read: {error}")
    if calls is None and (not tail or _CALL_START.match(tail)):
        raise BadRow(column, f"the calls of the last assistant turn cannot be read: {error}")
    return cot, calls or [], "" if calls else tail


def _tools_in(system: str, column: str) -> str:
    """The first JSON list of objects with a name in a system text, unwrapped from OpenAI's `{"function": ...}`."""
    for bracket in re.finditer(r"\[", system):
        try:
            tools, _ = _DECODER.raw_decode(system, bracket.start())
        except (ValueError, RecursionError):
            continue
        tools = [tool.get("function", tool) if isinstance(tool, dict) else tool for tool in tools]
        if tools and all(isinstance(tool, dict) and "name" in tool for tool in tools):
            return json.dumps(tools, ensure_ascii=False)
    raise BadRow(column, "there is neither a tools column nor a JSON list of tools in the system turn")
