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
    messages = [turn | ({"weight": 0} if turn["role"] == "assistant" else {}) for turn in chat_turns(example)]
    if not answers_tool(example):
        messages.append({"role": "user", "content": example.query})
    calls = as_calls(example.answers)
    answer = assistant_message(example.response if calls or example.response else "[]", calls, len(messages))
    messages.append(answer | ({"reasoning_content": example.cot} if example.cot else {}))
    wrapped = [{"type": "function", "function": tool} for tool in tools]
    labels = {"category": example.category, "source": example.source}
    return {"id": example.id, "messages": messages, "tools": wrapped, **labels}


def chat_turns(example: Example, objects: bool = False) -> list[dict[str, Any]]:
    """The earlier turns of an example, calls beside the words, and each tool's answer with the id of its call.

    Args:
        example: The example.
        objects: Whether arguments are objects and no content is null, as chat templates want it.
    """
    tools = json.loads(example.tools)
    messages: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []  # calls that no tool has answered yet
    for turn in json.loads(example.history):
        message = dict(turn)
        if turn["role"] == "assistant":
            text, calls = said(turn["content"], tools)
            if calls == []:
                text = "\n\n".join(filter(None, (text, "[]")))
            message = assistant_message(text, calls, len(messages), objects)
            waiting = list(message.get("tool_calls", []))
        elif turn["role"] == "tool" and waiting:
            call = waiting.pop(0)
            message["tool_call_id"] = call["id"]
            if objects:
                message["name"] = call["function"]["name"]
        messages.append(message)
    return messages


def said(text: str, tools: list[dict[str, Any]]) -> tuple[str, list[Call] | None]:
    """The words and the calls of an earlier turn."""
    try:
        return read_answer(text, tools)
    except ValueError:  # a history is context, and may say what it likes
        return text, None


def assistant_message(text: str, calls: list[Call] | None, place: int, objects: bool = False) -> dict[str, Any]:
    """An assistant's turn; see `chat_turns`."""
    message: dict[str, Any] = {"role": "assistant", "content": text if objects else text or None}
    if calls:
        message["tool_calls"] = [
            {
                "id": f"call{place:02}{number:03}",  # nine letters and digits, as Mistral's templates want them
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": call.arguments if objects else json.dumps(call.arguments, ensure_ascii=False),
                },
            }
            for number, call in enumerate(calls)
        ]
    return message
