"""The messages of a chat in every dialect, as far as they can be read without knowing the tools."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from datamodules.example import BadRow
from datamodules.sources.marks import blocks, tags
from datamodules.sources.values import skip_space

_CALLING = dict.fromkeys(("function_call", "tool_call", "tool_calls", "function_calls"), "call")
ROLES = (
    dict.fromkeys(("system", "developer"), "system")
    | dict.fromkeys(("user", "human"), "user")
    | dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt"), "assistant")
    | _CALLING
    | dict.fromkeys(("tool", "observation", "function", "ipython", "function_response", "tool_response"), "tool")
    | dict.fromkeys(("function_result", "tool_result", "tool_results", "function_output", "tool_output"), "tool")
    | dict.fromkeys(("think", "thinking", "thought", "reasoning"), "think")
    | dict.fromkeys(("tools", "functions"), "tools")
)
"""What a message may be called, and what it is; `call` can only be read as calls, `think` as a chain of thought."""
_ROLE_KEYS, _TEXT_KEYS = ("role", "from"), ("content", "value", "text")
_THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking", "thought", "think", "cot")
_CALL_KEYS = ("tool_calls", "function_call", "function_calls")
_UNTRAINED = {"weight": (0,), "loss": (False, 0), "train": (False,), "training": (False,)}
_MEANINGLESS = {
    *("id", "index", "type", "name", "tool_call_id", "tool_name", "call_id", "model", "created", "timestamp", "date"),
    *("usage", "finish_reason", "stop_reason", "logprobs", "annotations", "metadata", "uuid", "status"),
}
_RESULTS = tags("tool_response", "tool_result", "function_response", "function_result", "observation", "obs")


@dataclass
class Message:
    """A message whose text is not read yet.

    Attributes:
        role: A value of `ROLES`.
        text: Its text.
        cot: Chains of thought that have a place of their own.
        calls: Calls that have a place of their own, as they are written.
        ids: As in `Turn`.
        trained: As in `Turn`.
        tools: Tools that the message brings.
        place: The column that the row has it in, and its 1-based number there; None where it has it nowhere.
    """

    role: str
    text: str = ""
    cot: list[str] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    trained: bool = True
    tools: list[Any] = field(default_factory=list)
    place: tuple[str, int] | None = None


def read_messages(value: list[Any], column: str) -> list[Message]:
    """Reads a list of messages as far as that is possible without knowing the tools.

    Raises:
        BadRow: A message has no known role, or something in it that is not known.
    """
    messages: list[Message] = []
    for number, item in enumerate(value, start=1):
        try:
            found = list(_messages(item))
        except ValueError as error:
            raise BadRow(column, f"turn {number} {error}") from error
        for message in found:
            message.place = (column, number)
        messages += found
    return messages


def _messages(item: Any) -> Iterator[Message]:
    if not isinstance(item, dict):
        raise ValueError(f"is no object but {type(item).__name__}")
    item = {key: value for key, value in item.items() if value is not None and value not in ("", [], {})}
    role_key = next((key for key in _ROLE_KEYS if key in item), None)
    if role_key is None and item and item.keys() <= {"human", "assistant", "user", "gpt"}:  # a pair
        for role, text in item.items():
            yield from _messages({"role": role, "content": text})
        return
    name = item.get(role_key) if role_key else None
    role = ROLES.get(re.sub(r"[\s-]+", "_", name.strip().lower())) if isinstance(name, str) else None
    if role is None:
        raise ValueError(f"has no known role: {str(name)[:40]!r}")
    message = Message(role)
    text_key = next((key for key in _TEXT_KEYS if key in item), None)
    results = _add_content(message, item[text_key]) if text_key else []
    for key, value in item.items():
        if key not in (role_key, text_key):
            _add_key(message, key, value)
    if role == "tool" and "tool_call_id" in item:
        message.ids.append(str(item["tool_call_id"]))
    yield from results
    if message.text or message.cot or message.calls or message.tools or not results:
        yield message


def _add_key(message: Message, key: str, value: Any) -> None:
    if key in _CALL_KEYS and message.role in ("assistant", "call"):
        for call in value if isinstance(value, list) else [value]:
            message.calls.append(call)
            if isinstance(call, dict) and call.get("id"):
                message.ids.append(str(call["id"]))
    elif key in _THOUGHT_KEYS and message.role in ("assistant", "call"):
        if not isinstance(value, str):
            raise ValueError(f"has a {key!r} that is no text but {type(value).__name__}")
        message.cot.append(value)
    elif key in _UNTRAINED:
        message.trained = value not in _UNTRAINED[key]
    elif key in ("tools", "functions"):
        message.tools.append(value)
    elif key == "refusal" and not message.text and isinstance(value, str):
        message.text = value
    elif key not in _MEANINGLESS:
        raise ValueError(f"has the key {key!r}, which is not known")


def _add_content(message: Message, content: Any) -> list[Message]:
    """Add a message's content; gives the tools' answers that stand among a user's words."""
    if message.role == "tools":
        message.tools.append(content)
        return []
    if isinstance(content, str):
        message.text = content
        return _results(message)
    if message.role == "tool" and not (isinstance(content, list) and all(_is_text(part) for part in content)):
        message.text = json.dumps(content, ensure_ascii=False)
        return []
    if message.role in ("assistant", "call") and isinstance(content, dict):
        message.calls.append(content)
        return []
    if not isinstance(content, list):
        raise ValueError(f"has a content that is no text but {type(content).__name__}")
    results: list[Message] = []
    texts: list[str] = []
    for part in content:
        _add_part(message, part, texts, results)
    message.text = "\n".join(texts)
    return results


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or (
        isinstance(part, dict) and part.get("type") in ("text", "input_text", "output_text")
    )


def _add_part(message: Message, part: Any, texts: list[str], results: list[Message]) -> None:
    part = {"type": "text", "text": part} if isinstance(part, str) else part
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    said = (
        next((part[k] for k in ("text", "value", "content", "thinking", "reasoning") if part.get(k)), "")
        if isinstance(part, dict)
        else ""
    )
    if _is_text(part) and isinstance(said, str):
        texts.append(said)
    elif kind in ("thinking", "reasoning") and isinstance(said, str):
        message.cot.append(said)
    elif kind in ("tool_call", "tool_calls", "function_call"):
        message.calls.append(said or {key: value for key, value in part.items() if key != "type"})
    elif kind == "tool_use":
        message.calls.append({"name": part.get("name"), "arguments": part.get("input")})
        message.ids.append(str(part.get("id")))
    elif kind == "tool_result":
        result = Message("tool", ids=[str(part.get("tool_use_id"))])
        _add_content(result, part.get("content") or "")
        results.append(result)
    else:
        raise ValueError(f"has a part of the type {str(kind)[:40]!r}, which is not read")


def _results(message: Message) -> list[Message]:
    """Answers of tools between tags are those, whoever the chat template has them said by."""
    if message.role not in ("user", "tool"):
        return []
    text, results, at = message.text, [], 0
    for _, start, content, end, after in blocks(text, *_RESULTS):
        if start != skip_space(text, at):
            return []
        results.append(Message("tool", text[content:end].strip(), ids=list(message.ids)))
        at = after
    if not results or skip_space(text, at) < len(text):
        return []
    message.text = ""
    return results
