"""An example as a chat row of OpenAI's format, which other trainers read."""

import json
from typing import Any

from datamodules.example import Example, answers_tool
from datamodules.sources.syntax import read_answer
from rewards import Call, as_calls


def openai_row(example: Example) -> dict[str, Any]:
    """The row: `id`, `messages`, `tools`, `category`, `source`.

    The chain of thought is the `reasoning_content` of the last message, and the other messages of the assistant have
    the weight 0, so that this project reads the same example from it. An empty list of calls is written `[]`.
    """
    tools = json.loads(example.tools)
    messages: list[dict[str, Any]] = []
    waiting: list[str] = []  # ids of calls that no tool has answered yet
    for turn in json.loads(example.history):
        message = dict(turn)
        if turn["role"] == "assistant":
            text, calls = _said(turn["content"], tools)
            message = _assistant(text, calls, len(messages)) | {"weight": 0}
            waiting = [call["id"] for call in message.get("tool_calls", [])]
        elif turn["role"] == "tool" and waiting:
            message["tool_call_id"] = waiting.pop(0)
        messages.append(message)
    if not answers_tool(example):
        messages.append({"role": "user", "content": example.query})
    calls = as_calls(example.answers)
    answer = _assistant(example.response if calls or example.response else "[]", calls, len(messages))
    messages.append(answer | ({"reasoning_content": example.cot} if example.cot else {}))
    wrapped = [{"type": "function", "function": tool} for tool in tools]
    labels = {"category": example.category, "source": example.source}
    return {"id": example.id, "messages": messages, "tools": wrapped, **labels}


def _said(text: str, tools: list[dict[str, Any]]) -> tuple[str, list[Call] | None]:
    try:
        return read_answer(text, tools)
    except ValueError:  # a history is context, and may say what it likes
        return text, None


def _assistant(text: str, calls: list[Call] | None, place: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = [
            {
                "id": f"call_{place}_{number}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
            }
            for number, call in enumerate(calls)
        ]
    return message
