"""JSON and Python literals as data sets write them: the strings and constants of either, commas too many."""

import json
import re
from typing import Any

from rewards.calls import JSON, MAX_DEPTH, read_float, read_int
from rewards.literals import read_python_calls

_SPACE = re.compile(r"\s*")
_STRING = re.compile(r"""[rRuU]?(?:'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")""", re.DOTALL)
_ESCAPED = re.compile(r"<escape>(.*?)<escape>", re.DOTALL)  # FunctionGemma's strings
_NUMBER = re.compile(r"[+-]?(?:\d++\.?+\d*+|\.\d++)(?:[eE][+-]?\d++)?+(?![\w.])")
_WORD = re.compile(r"[A-Za-z_][\w.-]*")
_CONSTANTS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_CLOSING = {"[": "]", "(": ")"}


class Unreadable(ValueError):
    """No value, and the place at which that is seen."""

    def __init__(self, what: str, text: str, at: int) -> None:
        super().__init__(f"{what} {shown(text, at)}")
        self.at = at


def shown(text: str, at: int) -> str:
    """A place of a text, for a message: what stands there, or that the text ends there."""
    return f"at {text[at : at + 40]!r}" if text[at : at + 40].strip() else "where the text ends"


def read_value(text: str, at: int = 0) -> tuple[Any, int]:
    """Reads the JSON value or Python literal that begins at a place of a text.

    Args:
        text: The text.
        at: The place; white space before the value is skipped.

    Returns:
        The value, tuples as lists, and the place after it.

    Raises:
        ValueError: There is no such value, an object repeats a key, or brackets nest too deeply.
    """
    at = skip_space(text, at)
    try:
        return JSON.raw_decode(text, at)
    except (ValueError, RecursionError):
        return _value(text, at, 0)


def read_whole(text: str) -> Any:
    """Reads a text that is one value and nothing else.

    Raises:
        ValueError: It is anything else.
    """
    value, end = read_value(text)
    if (end := skip_space(text, end)) < len(text):
        raise ValueError(f"there is more after the value: {text[end : end + 40]!r}")
    return value


def skip_space(text: str, at: int) -> int:
    """The next position that holds no white space."""
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it always matches


def _value(text: str, at: int, depth: int) -> tuple[Any, int]:
    if depth > MAX_DEPTH + 4:
        raise ValueError(f"brackets nest deeper than {MAX_DEPTH + 4}")
    at = skip_space(text, at)
    opening = text[at : at + 1]
    if opening == "{":
        return _mapping(text, at + 1, depth)
    if opening in _CLOSING:
        return _sequence(text, at + 1, _CLOSING[opening], depth)
    if string := _ESCAPED.match(text, at):
        return string[1], string.end()
    if string := _STRING.match(text, at):
        return _string(string[0]), string.end()
    if number := _NUMBER.match(text, at):
        digits = number[0]
        return (read_float if re.search("[.eE]", digits) else read_int)(digits), number.end()
    word = _WORD.match(text, at)
    if word and word[0] in _CONSTANTS:
        return _CONSTANTS[word[0]], word.end()
    raise Unreadable("no value", text, at)


def _mapping(text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
    items: dict[str, Any] = {}
    while text[(at := skip_space(text, at)) : at + 1] != "}":
        word = _STRING.match(text, at) or _WORD.match(text, at)
        colon = skip_space(text, word.end()) if word else at
        if word is None or text[colon : colon + 1] != ":":
            raise Unreadable("no key of an object", text, at)
        key = _string(word[0]) if word[0][-1] in "'\"" else word[0]
        if key in items:
            raise ValueError("an object repeats a key")
        start = skip_space(text, colon + 1)
        quoted = _quoted_object(text, start) if word[0][0] == '"' else None
        items[key], at = quoted or _value(text, start, depth + 1)
        at = _after_item(text, at, "}")
    return items, at + 1


def _sequence(text: str, at: int, closing: str, depth: int) -> tuple[Any, int]:
    items, comma = [], False
    while text[(at := skip_space(text, at)) : at + 1] != closing:
        item, end = _value(text, at, depth + 1)
        items.append(item)
        at = _after_item(text, end, closing)
        comma = at > skip_space(text, end)
    # (1) is a number in brackets; (1,) and () are tuples, which stand for lists
    return (items[0] if closing == ")" and len(items) == 1 and not comma else items), at + 1


def _after_item(text: str, at: int, closing: str) -> int:
    """The place after the comma that follows an item; without one the closing bracket must come next."""
    at = skip_space(text, at)
    if text[at : at + 1] not in (",", closing):
        raise Unreadable(f"no comma or {closing}", text, at)
    return at + (text[at] == ",")


def _quoted_object(text: str, at: int) -> tuple[str, int] | None:
    """Glaive's `"arguments": '{"q": "what's on"}'`: JSON as it is between single quotes, nothing in it escaped."""
    start = skip_space(text, at + 1)
    if text[at : at + 1] != "'" or text[start : start + 1] != "{":
        return None
    try:
        end = skip_space(text, json.JSONDecoder(strict=False).raw_decode(text, start)[1])
    except (ValueError, RecursionError):
        return None
    return (text[at + 1 : end], end + 1) if text[end : end + 1] == "'" else None


def _string(token: str) -> str:
    if token[0] == '"':
        try:
            return str(json.loads(token, strict=False))
        except ValueError:  # an escape that only Python has
            pass
    token = token.replace("\r", "\\r").replace("\n", "\\n")  # a string over several lines
    return str(read_python_calls(f"f(x={token})")[0].arguments["x"])
