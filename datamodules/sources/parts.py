"""A message, and the parts that the content of one may be made of, as every API has them."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from datamodules.sources.calls import ARGUMENT_KEYS
from datamodules.sources.results import split_results

_TEXTS = ("text", "input_text", "output_text", "summary_text", "reasoning_text", "reasoning.text", "reasoning.summary")
_THOUGHTS = ("thinking", "reasoning")
_GOES_ON = re.compile(r"\n| \S|[.,;:!?)]++(?=\s|\Z)")
"""How a text begins that goes on where the one before it ended."""
_MEDIA = ("image", "image_url", "input_image", "audio", "input_audio", "media", "inlineData")
_OF_MEDIA, _LINKED = {"source", "source_type", "data", "base64", "file_id", *_MEDIA}, {"type", "url", "path"}
"""Keys of such a part, and the only ones of one that has none of these: `{"type": "image", "title": …}` is a tool's."""
_RESULTS = {
    "tool_result": ("tool_use_id", "content", "output", "result"),
    "tool_call_response": ("id", "response", "result", "content"),
    "tool-result": ("toolCallId", "result", "output"),
}
"""Parts with what a tool gave back, of Anthropic, OpenTelemetry and Vercel: keys for the id of the call, and for it."""
_OUTPUTS = ("text", "json", "content", "error-text", "error-json")
_OUTPUT_KEYS = {"type", "value", "reason", "providerOptions"}
"""What Vercel's AI SDK says of an output that it has wrapped, and the keys that it does so under."""


@dataclass
class Message:
    """A message whose text is not read yet.

    Attributes:
        role: A value of `messages.ROLES`.
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


def add_content(message: Message, content: Any) -> list[Message]:
    """Add a message's content; returns the tools' results that stand in it, as messages of their own."""
    if message.role == "tools":
        message.tools.append(content)
        return []
    if isinstance(content, str):
        message.text = content
        return _results(message)
    parts = content if isinstance(content, list) else []
    if message.role == "tool" and (seen := next(filter(None, map(_medium, parts)), "")):
        raise ValueError(f"has a part of the type {seen!r}, which is not read")
    if message.role == "tool" and not any(map(is_result, parts)) and not (parts and all(map(is_text, parts))):
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
    message.text = _joined(texts)
    return results


def _joined(texts: list[str]) -> str:
    """The texts of a message as one, on lines of their own; servers have a sentence in several, a blank included."""
    text = ""
    for part in texts:
        text += part if not text or text[-1].isspace() or _GOES_ON.match(part) else f"\n{part}"
    return text


def is_text(part: Any) -> bool:
    """Whether a part is a text and nothing else."""
    return isinstance(part, str) or (isinstance(part, dict) and typed(part)["type"] in _TEXTS)


def _medium(part: Any) -> str:
    """What a part of a tool's answer is that is no text but a picture or sound; "" for any other, or its own object."""
    if not isinstance(part, dict):
        return ""
    part = part if "type" in part else _in_camel_case(part)
    kind = str(part.get("type") or next(iter(part), ""))
    held = part if "type" in part else part.get(kind) if len(part) == 1 else None
    is_medium = isinstance(held, dict) and bool(held.keys() & _OF_MEDIA or {"type"} <= held.keys() <= _LINKED)
    return kind if kind in _MEDIA and is_medium else ""


def is_blank(part: dict[str, Any]) -> bool:
    """Whether a part that says its type is a text or a thought with nothing in it."""
    content = _content(part)
    return part["type"] in (*_TEXTS, *_THOUGHTS) and isinstance(content, str) and not content.strip()


def is_result(part: Any) -> bool:
    """Whether a part holds what a tool gave back."""
    return isinstance(part, dict) and str(typed(part)["type"]) in _RESULTS


def _in_camel_case(part: dict[str, Any]) -> dict[str, Any]:
    """A part of Gemini's, which Google's own libraries also write with underscores."""
    return {re.sub(r"_(\w)", lambda m: m[1].upper(), key): value for key, value in part.items()}


def typed(part: Any) -> dict[str, Any]:
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
    return _of_bedrock(given) or {"type": ", ".join(sorted(kinds))}


def _of_bedrock(part: dict[str, Any]) -> dict[str, Any] | None:
    """A part of Bedrock's that is no text; None for any other."""
    key, held = next(iter(part.items()), ("", None))
    if len(part) != 1 or not isinstance(held, dict):
        return None
    if key == "toolUse":
        return {"type": "tool_use", "id": held.get("toolUseId")} | held
    if key == "toolResult":
        content = held.get("content")
        if isinstance(content, list):
            content = [json.dumps(p["json"], ensure_ascii=False) if _is_json(p) else p for p in content]
        return {"type": "tool_result", "tool_use_id": held.get("toolUseId"), "content": content}
    if key == "reasoningContent" and isinstance(thought := held.get("reasoningText"), dict):
        return {"type": "thinking", "text": thought.get("text")}
    return None


def _is_json(part: Any) -> bool:
    return isinstance(part, dict) and part.get("json") is not None


def _add_part(message: Message, part: Any, texts: list[str], calls: list[Any], results: list[Message]) -> None:
    part = typed(part)
    kind = part["type"]
    content = _content(part)
    if isinstance(content, list) and kind == "thinking":  # Mistral's
        thought = Message("think")
        add_content(thought, content)
        content = thought.text
    if isinstance(content, str) and kind in (*_TEXTS, *_THOUGHTS):
        if content.strip():
            (texts if kind in _TEXTS and part.get("thought") is not True else message.cot).append(content)
    elif kind in ("tool_call", "tool_calls", "function_call"):
        calls.append(content or {key: value for key, value in part.items() if key != "type"})
        message.ids += _id(part, "id")
    elif kind == "tool_use":
        calls.append({"name": part.get("name"), "arguments": _arguments(part)})
        message.ids += _id(part, "id")
    elif kind == "tool-call":  # of Vercel's AI SDK
        calls.append({"name": part.get("toolName"), "arguments": _arguments(part)})
        message.ids += _id(part, "toolCallId")
    elif is_result(part):
        result = Message("tool", ids=_id(part, _RESULTS[kind][0]))
        results += add_content(result, _given(part)) or [result]
    else:
        raise ValueError(f"has a part of the type {str(kind)[:40]!r}, which is not read")


def _arguments(part: dict[str, Any]) -> Any:
    """The arguments of a call that is a part, under any of the keys for them; None if it has none."""
    return next((part[key] for key in ARGUMENT_KEYS if part.get(key) is not None), None)


def _content(part: dict[str, Any]) -> Any:
    """What a part says under any of the keys for it; "" where that is nothing."""
    return next((part[k] for k in ("text", "value", "content", "thinking", "reasoning", "summary") if part.get(k)), "")


def _given(part: dict[str, Any]) -> Any:
    """What a tool gave back, of a part that says so: a text, or parts."""
    _, *keys = _RESULTS[part["type"]]
    key = next((key for key in keys if part.get(key) not in (None, "")), "")
    given = part.get(key, "")
    if part["type"] != "tool-result":
        return "" if key == "content" and not given else given
    if key == "output" and isinstance(given, dict) and given.keys() <= _OUTPUT_KEYS:
        kind, given = given.get("type"), given.get("value")
        if kind not in _OUTPUTS or (kind == "content" and not all(map(is_text, given or [None]))):
            raise ValueError(f"has the output of a tool of the type {str(kind)[:40]!r}, which is not read")
        if kind == "content":
            return given
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def _id(part: dict[str, Any], key: str) -> list[str]:
    """The id that a part has under a key; none if it has none."""
    return [str(part[key])] if part.get(key) else []


def _results(message: Message) -> list[Message]:
    """The tools' results inside a text, as messages of tools; what a user says after them stays in the message."""
    if message.role not in ("user", "tool"):
        return []
    texts, rest = split_results(message.text)
    if not texts or (rest and message.role == "tool"):
        return []
    message.text = rest
    return [Message("tool", text, ids=list(message.ids)) for text in texts]
