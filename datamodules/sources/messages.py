"""The messages of a chat in every dialect, as far as they can be read without knowing the tools."""

import re
from collections.abc import Iterator
from typing import Any

from datamodules.example import BadRow
from datamodules.sources.columns import SYSTEMS, Columns
from datamodules.sources.parts import Message, add_content, is_text, typed
from datamodules.sources.steps import Step, steps_of, without_repeats

_CALLING = dict.fromkeys(("function_call", "tool_call", "tool_calls", "function_calls"), "call")
ROLES = (
    dict.fromkeys(("system", "developer"), "system")
    | dict.fromkeys(("user", "human"), "user")
    | dict.fromkeys(("assistant", "gpt", "model", "bot", "chatbot", "chatgpt", "ai"), "assistant")
    | _CALLING
    | dict.fromkeys(("tool", "observation", "function", "ipython", "environment", "tool_response"), "tool")
    | dict.fromkeys(("function_result", "tool_result", "tool_results", "function_output", "tool_output"), "tool")
    | dict.fromkeys(("function_response", "function_call_output"), "tool")
    | dict.fromkeys(("think", "thinking", "thought", "reasoning"), "think")
    | dict.fromkeys(("tools", "functions"), "tools")
)
"""Roles by the names that messages have for them; `call` can only be read as calls, `think` as a chain of thought."""
_ROLE_KEYS = ("role", "from", "type")  # the last is LangChain's, and of the items of OpenAI's responses
_TEXT_KEYS = ("content", "value", "text", "parts", "output", "summary")
_THOUGHT_KEYS = (
    *("reasoning_content", "reasoning", "thinking", "thought", "think", "cot", "tool_plan"),  # the last is Cohere's
    *("reasoning_details", "thinking_blocks"),  # lists of parts
)
_CALL_KEYS = ("tool_calls", "function_call", "function_calls")
_TRAINED = ("weight", "loss", "train", "training")  # whether a turn is a target
_MARKS = {"true": 1, "false": 0, "1": 1, "0": 0, "1.0": 1, "0.0": 0}  # as a table of texts has them
_MEANINGLESS = {
    *("id", "index", "type", "name", "tool_call_id", "tool_name", "call_id", "model", "created", "timestamp", "date"),
    *("usage", "finish_reason", "finishReason", "stop_reason", "logprobs", "annotations", "metadata", "uuid", "status"),
    *("response_metadata", "usage_metadata", "stop_sequence", "example", "extra"),  # the last is Qwen-Agent's
    *("citations", "content_type", "createdAt", "providerOptions"),  # Cohere's; of gpt-oss; of Vercel's AI SDK
}
_CHANNELS = {"analysis": "think", "commentary": "assistant", "final": "assistant"}
"""Channels of gpt-oss, and what a message on one is."""
ENDS = ("finish_reason", "finishReason", "stop_reason", "stopReason", "done_reason", "status")
_CUT = set(
    """LENGTH MAX_TOKENS MODEL_LENGTH MODEL_CONTEXT_WINDOW_EXCEEDED INCOMPLETE IN_PROGRESS PAUSE_TURN
    CONTENT_FILTER CONTENT_FILTERED GUARDRAIL_INTERVENED SAFETY RECITATION BLOCKLIST PROHIBITED_CONTENT SPII REFUSAL
    MALFORMED_FUNCTION_CALL UNEXPECTED_TOOL_CALL MALFORMED_MODEL_OUTPUT MALFORMED_TOOL_USE
    ERROR ERROR_TOXIC FAILED TIMEOUT ABORT CANCELLED CANCELED""".split()
)
"""Where servers say how an answer ended, and what they say, in capitals, of one that is not whole."""


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
    name = columns.name(*SYSTEMS)
    value = columns.take(name)
    if isinstance(value, str):
        return value
    parts = value.get("parts") if isinstance(value, dict) else value
    if not name or (isinstance(parts, list) and all(is_text(typed(part)) for part in parts)):
        message = Message("system")
        add_content(message, parts or "")
        return message.text
    raise BadRow(name, f"must be a string or a list of parts with texts, not {type(value).__name__}")


def _messages(item: Any) -> Iterator[Message]:
    if not isinstance(item, dict):
        raise ValueError(f"is no object but {type(item).__name__}")
    item = _plain(item)
    role_key = next((key for key in _ROLE_KEYS if key in item), None)
    if role_key is None and item and item.keys() <= {"human", "assistant", "user", "gpt"}:  # a pair
        for role, text in sorted(item.items(), key=lambda said: _role(said[0]) != "user"):  # keys may be sorted
            yield from _messages({"role": role, "content": text})
        return
    name = item.get(role_key) if role_key else None
    role = _role(name)
    if role is None:
        raise ValueError(f"has no known role: {str(name)[:40]!r}")
    role = _by_type(role, item) if role_key != "type" else role
    if role in ("assistant", "call", "think") and (reason := cut_off(item)):
        raise ValueError(reason)
    text_key = next((key for key in _TEXT_KEYS if key in item), None)
    if text_key and role == "assistant" and isinstance(item[text_key], list):
        steps = steps_of(item[text_key])
        if len(steps) > 1 or any(results for _, results in steps):
            yield from _step_by_step(item, text_key, steps)
            return
        item[text_key] = steps[0][0] if steps else []
    role, called = _addressed(item, role)
    message = Message(role)
    if role in ("tool", "call"):
        keys = ("tool_call_id", "call_id", *(("name", "tool_name") if role == "tool" else ()))
        message.ids += [str(item[key]) for key in keys if key in item][:1]
    if role == "call" and not text_key and "name" in item:  # the message itself is the call
        message.calls.append([{"name": item["name"], "arguments": item.pop("arguments", {})}])
    results = add_content(message, item[text_key]) if text_key else []
    if called:
        message.calls.append([{"name": called, "arguments": message.text}])
        message.text = ""
    for key, value in item.items():
        if key not in (role_key, text_key):
            _add_key(message, key, value)
    yield from results
    if message.text or message.cot or message.calls or message.tools or not results:
        yield message


def _plain(item: dict[str, Any]) -> dict[str, Any]:
    """A message without LangChain's wrapping, without keys that hold nothing, and without what its parts repeat."""
    if isinstance(item.get("data"), dict) and "type" in item:  # LangChain's `message_to_dict`
        item = item["data"] | {"type": item["type"]}
    if "lc" in item and isinstance(item.get("kwargs"), dict):  # and its `dumpd`
        item = {"type": item["id"][-1] if isinstance(item.get("id"), list) and item["id"] else ""} | item["kwargs"]
    return without_repeats({k: v for k, v in item.items() if v is not None and v not in ("", [], {})})


def _step_by_step(item: dict[str, Any], text_key: str, steps: list[Step]) -> Iterator[Message]:
    """The messages of one that holds several steps, or what tools gave back besides the calls of it."""
    beside = next((key for key in item if key in (*_CALL_KEYS, *_THOUGHT_KEYS, "additional_kwargs")), "")
    if beside and sum(bool(said) for said, _ in steps) != 1:
        raise ValueError(f"has {beside!r} beside parts with what tools gave back, so that it is not known when")
    for said, results in steps:
        if said:
            yield from _messages(item | {text_key: said})
        if results:
            yield from _messages({"role": "tool", "content": results})


def _by_type(role: str, item: dict[str, Any]) -> str:
    """What a message is that says its type beside its role: a thought, a call or a result is no other turn."""
    kind = _role(item.get("type"))
    if kind not in ("think", "call", "tool") or kind == role or item.keys() & {*_CALL_KEYS}:
        return role
    if (role, kind) not in (("assistant", "think"), ("assistant", "call"), ("user", "tool")):
        raise ValueError(f"has a role that its type {str(item['type'])[:40]!r} contradicts")
    return kind


def _addressed(item: dict[str, Any], role: str) -> tuple[str, str]:
    """What a message of gpt-oss is by its channel, and the tool that it calls; takes the keys that say so."""
    if role not in ("assistant", "tool"):
        return role, ""
    channel, recipient = (str(item.pop(*key)) for key in (("channel", "commentary"), ("recipient", "all")))
    if role == "tool":
        return role, ""
    called = "" if recipient == "all" else recipient
    if channel not in _CHANNELS or (called and channel != "commentary"):
        raise ValueError(f"stands on the channel {channel[:40]!r}, for {recipient[:40]!r}, which is not read")
    return _CHANNELS[channel], called


def _role(name: Any) -> str | None:
    """What a message of this role, or of this type or class of LangChain's, is; None where that is not known."""
    if not isinstance(name, str):
        return None
    return ROLES.get(re.sub(r"[\s-]+", "_", re.sub(r"Message(?:Chunk)?$", "", name.strip()).lower()))


def cut_off(answer: dict[str, Any]) -> str:
    """What a server says of an answer that it broke off, for a message; "" for a whole one."""
    for key in ("response_metadata", "generation_info"):  # LangChain's places for it
        answer = answer | (answer[key] if isinstance(answer.get(key), dict) else {})
    key = next((key for key in ENDS if str(answer.get(key)).rpartition(".")[2].upper() in _CUT), "")
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
        add_content(thought, value)
        message.cot += filter(None, (thought.text, *thought.cot))
    elif key in _TRAINED:
        if value != value:  # what is missing in a table
            return
        if isinstance(value, str):
            value = _MARKS.get(value.strip().lower(), value)
        if value not in (0, 1) and message.role in ("assistant", "call", "think"):
            raise ValueError(f"has the {key} {value!r}: give 0 or 1, or false or true, whether it is trained on")
        message.trained = bool(value)
    elif key in ("tools", "functions"):
        message.tools.append(value)
    elif key == "refusal" and not message.text and isinstance(value, str):
        message.text = value
    elif key not in _MEANINGLESS and (key, value) != ("prefix", False):  # which Mistral's API sends of every answer
        raise ValueError(f"has the key {key!r}, which is not known")
