"""Java literals as BFCL reads them: by regular expressions, and as text where none of them fits."""

import re
from collections.abc import Callable
from typing import Any

JAVA_TYPES: dict[str, type] = {
    **dict.fromkeys(("byte", "short", "integer", "long"), int),
    **dict.fromkeys(("float", "double"), float),
    **dict.fromkeys(("char", "String", "any"), str),
    **dict.fromkeys(("Array", "ArrayList", "Queue", "Stack"), list),
    **dict.fromkeys(("HashMap", "Hashtable"), dict),
    "boolean": bool,
    "Set": set,
}
MAX_COLLECTION = 1_000  # characters; bounds the time of the expressions below, and of those for JavaScript

_WHOLE = re.compile(r"-?\d+$")
_LONG = re.compile(r"-?\d+[lL]$")
_FLOAT = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?[fF]$")
_DOUBLE = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?$")
_ARRAY = re.compile(r"new\s+\w+\[\]\s*\{(.*?)\}")
_AS_LIST = re.compile(r"new\s+ArrayList<\w*>\(Arrays\.asList\((.+?)\)\)")
_ADDED = re.compile(r"new\s+ArrayList<\w*>\(\)\s*\{\{(.+?)\}\}", re.DOTALL)
_EMPTY_LIST = re.compile(r"new\s+ArrayList<\w*>\(\)")
_PUT = re.compile(r"new\s+HashMap<.*?>\s*\(\)\s*\{\s*+\{?([^}]*+)\}", re.DOTALL)
_EMPTY_MAP = re.compile(r"new\s+HashMap<.*?>\s*\(\)")


def _integer(text: str) -> int:
    return int(re.sub(r"[lL]$", "", text))


def _real(text: str) -> float:
    return float(re.sub(r"[fF]$", "", text))


_SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    **dict.fromkeys(("byte", "short", "integer"), (_WHOLE, int)),
    "long": (_LONG, _integer),
    "float": (_FLOAT, _real),
    "double": (_DOUBLE, float),
    "boolean": (re.compile(r"(true|false)\Z"), "true".__eq__),
}


def java_value(text: str, kind: str, items: str | None = None) -> Any:
    """Reads an argument of a Java call.

    Args:
        text: The argument, as written in the call.
        kind: Its declared type, a key of `JAVA_TYPES`.
        items: Declared type of the items of an `Array` or `ArrayList`.

    Returns:
        The value as an int, float, bool, list or dict; the text itself if it is no literal of that type.

    Raises:
        NotImplementedError: The type is one that the official converter refuses.
    """
    if kind in _SCALARS:
        pattern, read = _SCALARS[kind]
        return read(text) if pattern.match(text) else text
    if JAVA_TYPES[kind] is str or (len(text) > MAX_COLLECTION and kind in ("Array", "ArrayList", "HashMap")):
        return text
    if kind == "Array":
        return _array(text, items)
    if kind == "ArrayList":
        return _array_list(text, items)
    if kind == "HashMap":
        return _hash_map(text)
    raise NotImplementedError(f"{kind} has no conversion")


def _array(text: str, items: str | None) -> list[Any] | str:
    """`new int[]{1, 2}`; strings in it keep their quotes."""
    if found := _ARRAY.search(text):
        return [_item(item.strip(), items) for item in found[1].split(",") if item.strip()]
    return text


def _array_list(text: str, items: str | None) -> list[Any] | str:
    """`new ArrayList<>(Arrays.asList(1))` or `new ArrayList<>() {{ add(1); }}`; strings lose their quotes."""
    if found := _AS_LIST.search(text):
        written = found[1].split(",")
    elif found := _ADDED.search(text):
        written = re.findall(r"add\((.+?)\)", found[1])
    else:
        return [] if _EMPTY_LIST.search(text) else text
    quoted = items in ("char", "String")
    return [item.strip()[1:-1] if quoted else _item(item.strip(), items) for item in written]


def _hash_map(text: str) -> dict[str, Any] | str:
    """`new HashMap<>() {{ put("key", 1); }}`."""
    if found := _PUT.search(text):
        return {key: _untyped(value.strip()) for key, value in re.findall(r'put\("(.*?)",\s*(.*?)\)', found[1])}
    return {} if _EMPTY_MAP.search(text) else text


def _item(text: str, kind: str | None) -> Any:
    return java_value(text, kind) if kind else _untyped(text)


def _untyped(text: str) -> Any:
    """A value whose type is not declared: true, false, a string, a number, or text."""
    if text in ("true", "false"):
        return text == "true"
    if text.startswith('"') and text.endswith('"'):
        return text[1:-1]
    if _LONG.match(text):
        return int(text[:-1])
    if _FLOAT.match(text):
        return _real(text)
    return number_or_text(text)


def number_or_text(text: str) -> int | float | str:
    """A number as Python reads it, an integer if it is one; else the text."""
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text
