"""The messages of a chat in every dialect, as far as they can be read without knowing the tools."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from datamodules.example import BadRow
from datamodules.sources.columns import SYSTEMS, Columns
from datamodules.sources.results import split_results

_CALLING = dict.fromkeys(("function_call", "tool_call", "tool_calls", "function_calls"), "call")
ROLES = (
    dict.fromkeys(("system", "developer"), "system")
    | dict.fromkeys(("user", "human"), "user")
    | dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "ai"), "assistant")
    | _CALLING
    | dict.fromkeys(("tool", "observation", "function", "ipython", "environment", "tool_response"), "tool")
    | dict.fromkeys(("function_result", "tool_result", "tool_results", "function_output", "tool_output"), "tool")
    | dict.fromkeys(("function_response", "function_call_output"), "tool")
    | dict.fromkeys(("think", "thinking", "thought", "reasoning"), "think")
    | dict.fromkeys(("tools", "functions"), "tools")
)
"""What a message may be called, and what it is; `call` can only be read as calls, `think` as a chain of thought."""
_ROLE_KEYS = ("role", "from", "type")  # the last is LangChain's, and of the items of OpenAI's responses
_TEXT_KEYS = ("content", "value", "text", "parts", "output", "summary")
_THOUGHT_KEYS = (
    *("reasoning_content", "reasoning", "thinking", "thought", "think", "cot"),
    *("reasoning_details", "thinking_blocks"),  # lists of parts
)
_CALL_KEYS = ("tool_calls", "function_call", "function_calls")
_UNTRAINED = {"weight": (0,), "loss": (False, 0), "train": (False,), "training": (False,)}
_MEANINGLESS = {
    *("id", "index", "type", "name", "tool_call_id", "tool_name", "call_id", "model", "created", "timestamp", "date"),
    *("usage", "finish_reason", "finishReason", "stop_reason", "logprobs", "annotations", "metadata", "uuid", "status"),
    *("response_metadata", "usage_metadata", "stop_sequence", "example"),
}
_CUT = {
    "finish_reason": ("length", "max_tokens", "MAX_TOKENS"),
    "finishReason": ("MAX_TOKENS",),
    "stop_reason": ("max_tokens", "model_context_window_exceeded"),
    "status": ("incomplete", "in_progress"),
}
"""What servers say of an answer that is not whole."""
_TEXTS = ("text", "input_text", "output_text", "summary_text", "reasoning_text", "reasoning.text", "reasoning.summary")


@dataclass
class Message:
    """A message whose text is not read yet.

    Attributes:
        role: A value of `ROLES`.
        text: Its text.
        cot: Chains of thought that have a place of their own.
        calls: Calls that have a place of their own, as they are written; a list for each place that has any.
        ids: Of its calls that have one; or of the call that a tool answers, or that tool's name.
        trained: As in `Turn`.
        tools: Tools that the message brings.
        place: The column that the row has it in, and its 1-based number there; None where it has it nowhere.
    """

    role: str
    text: str = ""
    cot: list[str] = field(default_factory=list)
    calls: list[list[Any]] = field(default_factory=list)
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


def read_system(columns: Columns) -> str:
    """The text of a system's column, which may be in parts, as those of the APIs of Anthropic and Google are."""
    name = columns.name(SYSTEMS)
    value = columns.take(name)
    if isinstance(value, str):
        return value
    parts = value.get("parts") if isinstance(value, dict) else value
    if not name or (isinstance(parts, list) and all(_is_text(_typed(part)) for part in parts)):
        message = Message("system")
        _add_content(message, parts or "")
        return message.text
    raise BadRow(name, f"must be a string or a list of parts with texts, not {type(value).__name__}")


def _messages(item: Any) -> Iterator[Message]:
    if not isinstance(item, dict):
        raise ValueError(f"is no object but {type(item).__name__}")
    if isinstance(item.get("data"), dict) and "type" in item:  # LangChain's `message_to_dict`
        item = item["data"] | {"type": item["type"]}
    item = {key: value for key, value in item.items() if value is not None and value not in ("", [], {})}
    if reason := cut_off(item):
        raise ValueError(reason)
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
    if role in ("tool", "call"):
        keys = ("tool_call_id", "call_id", *(("name", "tool_name") if role == "tool" else ()))
        message.ids += [str(item[key]) for key in keys if key in item][:1]
    text_key = next((key for key in _TEXT_KEYS if key in item), None)
    if role == "call" and not text_key and "name" in item:  # the message itself is the call
        message.calls.append([{"name": item["name"], "arguments": item.pop("arguments", {})}])
    results = _add_content(message, item[text_key]) if text_key else []
    for key, value in item.items():
        if key not in (role_key, text_key):
            _add_key(message, key, value)
    yield from results
    if message.text or message.cot or message.calls or message.tools or not results:
        yield message


def cut_off(answer: dict[str, Any]) -> str:
    """What a server says of an answer that it broke off, for a message; "" for a whole one."""
    key = next((key for key, words in _CUT.items() if answer.get(key) in words), "")
    return f"was cut off, as its {key} {answer[key]!r} says: leave such answers out" if key else ""


def _add_key(message: Message, key: str, value: Any) -> None:
    if key in _CALL_KEYS and message.role in ("assistant", "call"):
        message.calls.append(value if isinstance(value, list) else [value])
        message.ids += [str(call["id"]) for call in message.calls[-1] if isinstance(call, dict) and call.get("id")]
    elif key == "additional_kwargs" and isinstance(value, dict):  # LangChain's, with what the server said
        for inner, said in value.items():
            if said not in (None, "", [], {}):
                _add_key(message, inner, said)
    elif key in _THOUGHT_KEYS and message.role in ("assistant", "call"):
        if not isinstance(value, str | list):
            raise ValueError(f"has a {key!r} that is no text but {type(value).__name__}")
        thought = Message("think")
        _add_content(thought, value)
        message.cot += filter(None, (thought.text, *thought.cot))
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
    parts = content if isinstance(content, list) else []
    if message.role == "tool" and not any(map(_is_result, parts)) and not (parts and all(map(_is_text, parts))):
        message.text = json.dumps(content, ensure_ascii=False)
        return []
    if message.role in ("assistant", "call") and isinstance(content, dict):
        message.calls.append([content])
        return []
    if not isinstance(content, list):
        raise ValueError(f"has a content that is no text but {type(content).__name__}")
    results: list[Message] = []
    texts: list[str] = []
    calls: list[Any] = []
    after = False  # whether there are words or a thought after the last call
    for part in parts:
        called, words = len(calls), len(texts) + len(message.cot)
        _add_part(message, part, texts, calls, results)
        after = len(calls) == called and (after or (called > 0 and len(texts) + len(message.cot) > words))
    if after:
        raise ValueError("says something after its calls, which belongs to no answer")
    message.calls += [calls] if calls else []
    message.text = "\n".join(texts)
    return results


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, dict) and part.get("type") in _TEXTS)


def _is_result(part: Any) -> bool:
    return isinstance(part, dict) and _typed(part)["type"] == "tool_result"


def _in_camel_case(part: dict[str, Any]) -> dict[str, Any]:
    """A part of Gemini's, which Google's own libraries also write with underscores."""
    return {re.sub(r"_(\w)", lambda m: m[1].upper(), key): value for key, value in part.items()}


def _typed(part: Any) -> dict[str, Any]:
    """A part that says its type; a text has none, and one of Gemini's says it by its key."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict) or "type" in part:
        return part if isinstance(part, dict) else {"type": type(part).__name__}
    given = {key: value for key, value in _in_camel_case(part).items() if value is not None}
    kinds = given.keys() - {"thought", "thoughtSignature"}
    if kinds == {"text"}:
        return {"type": "thinking" if given.get("thought") else "text", "text": given["text"]}
    if kinds == {"functionCall"} and isinstance(given["functionCall"], dict):
        return {"type": "tool_call"} | given["functionCall"]
    if kinds == {"functionResponse"} and isinstance(result := given["functionResponse"], dict):
        return {
            "type": "tool_result",
            "tool_use_id": result.get("id") or result.get("name"),
            "content": result.get("response"),
        }
    return {"type": ", ".join(sorted(kinds))}


def _add_part(message: Message, part: Any, texts: list[str], calls: list[Any], results: list[Message]) -> None:
    part = _typed(part)
    kind = part["type"]
    said = next((part[k] for k in ("text", "value", "content", "thinking", "reasoning", "summary") if part.get(k)), "")
    if isinstance(said, str) and kind in (*_TEXTS, "thinking", "reasoning"):
        if said.strip():
            (texts if kind in _TEXTS else message.cot).append(said)
    elif kind in ("tool_call", "tool_calls", "function_call"):
        calls.append(said or {key: value for key, value in part.items() if key != "type"})
        message.ids += [str(part["id"])] if part.get("id") else []
    elif kind == "tool_use":
        calls.append({"name": part.get("name"), "arguments": part.get("input")})
        message.ids += [str(part["id"])] if part.get("id") else []
    elif kind == "tool_result":
        result = Message("tool", ids=[str(part["tool_use_id"])] if part.get("tool_use_id") else [])
        _add_content(result, part.get("content") or "")
        results.append(result)
    else:
        raise ValueError(f"has a part of the type {str(kind)[:40]!r}, which is not read")


def _results(message: Message) -> list[Message]:
    """Results in a text are turns of tools, whoever the chat template has them said by; a user may go on after them."""
    if message.role not in ("user", "tool"):
        return []
    texts, rest = split_results(message.text)
    if not texts or (rest and message.role == "tool"):
        return []
    message.text = rest
    return [Message("tool", text, ids=list(message.ids)) for text in texts]
