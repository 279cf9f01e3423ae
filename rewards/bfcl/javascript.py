"""JavaScript literals as BFCL reads them: by regular expressions, and as text where none of them fits."""

import re
from collections.abc import Callable
from typing import Any

from rewards.bfcl.java import MAX_COLLECTION, number_or_text

JAVASCRIPT_TYPES: dict[str, type] = {
    **dict.fromkeys(("integer", "Bigint"), int),
    **dict.fromkeys(("String", "any"), str),
    "float": float,
    "Boolean": bool,
    "array": list,
    "dict": dict,
}

_SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "integer": (re.compile(r"-?\d+$"), int),
    "float": (re.compile(r"-?\d+(\.\d+)?$"), float),
    "Bigint": (re.compile(r"-?\d+n$"), lambda text: int(text[:-1])),
    "Boolean": (re.compile(r"(true|false)\Z"), "true".__eq__),
}
# A row ends at a `]` that another row or the end follows. The official expression finds the same end by trying all.
_ROW = r"\[(?:[^\]\n]|\](?!\s*(?:%s|,\s*\[)))*+\]\s*+"
_ROWS = re.compile(r"\[\s*+{0}(?:,\s*+{0})*+\]|new\s+Array\(\s*+{1}(?:,\s*+{1})*+\)".format(_ROW % r"\]", _ROW % r"\)"))
_ARRAY = re.compile(r"\[(.*?)\]|new\s+Array\((.*?)\)")
_OBJECT = re.compile(r"\{(.*?)\}")
_PAIR = re.compile(r"([^:]+):\s*(.*?)(?:,\s*(?=[^,]+:)|$)")


def javascript_value(text: str, kind: str, items: str | None = None) -> Any:
    """Reads an argument of a JavaScript call.

    Args:
        text: The argument, as written in the call.
        kind: Its declared type, a key of `JAVASCRIPT_TYPES`.
        items: Declared type of the items of an `array`; None where they have none.

    Returns:
        The value as an int, float, bool, list or dict; the text itself if it is no literal of that type.
    """
    if kind in _SCALARS:
        pattern, read = _SCALARS[kind]
        return read(text) if pattern.match(text) else text
    if kind == "String":
        return _unquoted(text)
    text = text if kind == "any" else text.strip()
    if kind == "any" or len(text) > MAX_COLLECTION:
        return text
    return _array(text, items) if kind == "array" else _object(text)


def _array(text: str, items: str | None) -> list[Any] | str:
    """`[1, 2]`, `new Array(1, 2)`, or one of these holding rows `[1, 2], [3]`, whose items have no declared type."""
    if found := _ROWS.match(text):
        rows = [row.strip() for row in re.findall(r"\[(.*?)\]", found[0])]
        rows[0] = rows[0].removeprefix("[")
        return [[_untyped(item.strip()) for item in row.split(",")] for row in rows]
    if found := _ARRAY.match(text):
        written = (found[2] if found[1] is None else found[1]).strip()
        read = (lambda item: javascript_value(item, items)) if items else _untyped
        return [read(item.strip()) for item in written.split(",")] if written else []
    return text


def _object(text: str) -> dict[str, Any] | str:
    """`{key: value}`; it ends at the first `}`."""
    if found := _OBJECT.match(text):
        return {key.strip().strip("'\""): _member(value.strip()) for key, value in _PAIR.findall(found[1])}
    return text


def _member(text: str) -> Any:
    if text.startswith("[") and text.endswith("]"):
        return javascript_value(text, "array")
    if text.startswith("{") and text.endswith("}"):
        return javascript_value(text, "dict")
    return _untyped(text.strip("'\""))


def _untyped(text: str) -> Any:
    """A value whose type is not declared: true, false, a string, a number, or text."""
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    inner = _unquoted(text)
    return number_or_text(text) if inner == text else inner


def _unquoted(text: str) -> str:
    """A string literal without its quotes; any other text as it is."""
    return text[1:-1] if any(text.startswith(quote) and text.endswith(quote) for quote in "\"'") else text
