"""Reads calls that are almost written right, so that they can be written right."""

import re
from typing import Any

from rewards import Call, as_calls, parse_calls
from rewards.calls import read_json
from rewards.parser import MAX_ANSWER

_FENCE = re.compile(r"```\w*\s*([^`]*)```")
_STRING = re.compile(r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+\"""")
_ARGUMENT = re.compile(r"""(?:^|,)\s*['"]?(\w+)['"]?\s*=\s*""")  # where a `name=` of a call begins
_CLOSING = {"[": "]", "(": ")", "{": "}"}
_KEYS = {"name": ("name", "function", "tool"), "arguments": ("arguments", "parameters", "args")}


def read_loosely(text: str) -> list[Call] | None:
    """Reads what parser and schema refuse for its form alone.

    It sees through code fences, sentences before the calls, a list quoted as a JSON string, brackets never closed,
    Python dicts in the place of JSON, other names of the keys, quoted parameter names and strings without quotes.

    Args:
        text: An answer.

    Returns:
        The calls, or None where there is nothing of the kind. Nothing of the text is executed.
    """
    text = text.strip()[:MAX_ANSWER]
    if text.startswith('"'):
        text = str(_json(text)).strip()
    if fence := _FENCE.search(text):
        text = fence[1].strip()
    start = re.search(r"[\[{]|[A-Za-z_][\w.]*\(", text)
    if start is None:
        return None
    text = text[start.start() :]
    text = _closed(text if text[0] in _CLOSING else f"[{text}")  # calls side by side are a list
    calls, _ = parse_calls(text)
    return calls or _from_dicts(_json(text)) or _from_dicts(_literal(text)) or _from_python(text)


def _closed(text: str) -> str:
    """The text up to where its first bracket is closed, with the brackets added that were never closed."""
    open_brackets: list[str] = []
    strings = [match.span() for match in _STRING.finditer(text)]
    inside = {at for start, end in strings for at in range(start, end)}
    for at, character in enumerate(text):
        if at in inside:
            continue
        if character in _CLOSING:
            open_brackets.append(_CLOSING[character])
        elif open_brackets and character == open_brackets[-1]:
            open_brackets.pop()
            if not open_brackets:
                return text[: at + 1]
    return text + "".join(reversed(open_brackets))


def _json(text: str) -> Any:
    try:
        return read_json(text)
    except ValueError:
        return None


def _literal(text: str) -> Any:
    """The value of a literal, read by the parser of calls; None if it is none."""
    calls, _ = parse_calls(f"[f(value={text})]")
    return calls[0].arguments.get("value") if calls else None


def _from_dicts(items: Any) -> list[Call] | None:
    items = items if isinstance(items, list) else [items]
    calls = []
    for item in items:
        if not isinstance(item, dict):
            return None
        call = {key: next((item[name] for name in names if name in item), None) for key, names in _KEYS.items()}
        calls.append({"name": call["name"], "arguments": call["arguments"] or {}})
    try:
        return as_calls(calls)
    except ValueError:
        return None


def _from_python(text: str) -> list[Call] | None:
    """Reads `[f(a=Paris, 'b'=2)]`: a value ends where the next `name=` begins, and is text if it is no literal."""
    calls = []
    for name, inside in _written_calls(text.removeprefix("[").removesuffix("]")):
        starts = list(_ARGUMENT.finditer(inside))
        if inside.strip() and not starts:
            return None  # arguments without names
        ends = [match.start() for match in starts[1:]] + [len(inside)]
        arguments = {}
        for match, end in zip(starts, ends, strict=False):
            value = inside[match.end() : end].strip()
            literal = _literal(value)
            arguments[match[1]] = value.strip("'\"") if literal is None and value != "None" else literal
        calls.append(Call(name, arguments))
    return calls or None


def _written_calls(text: str) -> list[tuple[str, str]]:
    """Names and what stands between their parentheses, for the calls that are not inside another's."""
    found, at = [], 0
    while match := re.compile(r"([A-Za-z_][\w.]*)\(").search(text, at):
        closed = _closed(text[match.end() - 1 :])
        found.append((match[1], closed[1:-1]))
        at = match.end() - 1 + len(closed)
    return found
