"""Function calls as data, read from JSON or from Python objects."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 64  # nesting of one argument value
MAX_DIGITS = 400  # characters of one number; the largest float written out has 309 digits

_CALL_KEYS = {"name", "arguments"}
# Always matches to the closing quote or to the end, so that removing all strings takes linear time.
_JSON_STRING = re.compile(r'"[^"\\]*+(?:\\.?[^"\\]*+)*+"?', re.DOTALL)


@dataclass(frozen=True)
class Call:
    """One function call.

    Note that `==` is Python's (`True == 1`); compare calls with `match_calls`.

    Attributes:
        name: Name of the function, as its tool writes it.
        arguments: Values by argument name: str, int, float, bool, None, and lists and string-keyed dicts of these.
    """

    name: str
    arguments: dict[str, Any]


def as_calls(value: Any) -> list[Call]:
    """Reads reference calls.

    Args:
        value: A JSON string of, or a list of, `{"name": ..., "arguments": {...}}` dicts; `Call`s may stand for dicts.

    Returns:
        The calls, with tuples turned into lists; nothing in them is shared with `value`.

    Raises:
        ValueError: `value` is anything else, or an argument is not a plain finite value.
    """
    items = read_json(value) if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise ValueError(f"calls must be a list of name/arguments objects, not {type(items).__name__}")
    return [call_from(item) for item in items]


def dump_calls(calls: Iterable[Call]) -> str:
    """The calls as the JSON string that `as_calls` reads."""
    return json.dumps([{"name": call.name, "arguments": call.arguments} for call in calls], ensure_ascii=False)


def as_tools(value: Any) -> list[dict[str, Any]]:
    """Reads the offered tools.

    Args:
        value: A JSON string of, or a list of, tool dicts with at least a `name`.

    Returns:
        The tool dicts.

    Raises:
        ValueError: `value` is not such a list.
    """
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise ValueError(f"tools are not readable JSON: {error}") from error
    if not isinstance(tools, list | tuple):
        raise ValueError(f"tools must be a list of tool objects, not {type(tools).__name__}")
    for tool in tools:
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
            raise ValueError(f"every tool must be an object with a string 'name', not {_shown(tool)}")
    return list(tools)


def call_from(item: Any) -> Call:
    """Reads one call from a `Call` or from a dict with exactly the keys `name` and `arguments`.

    Raises:
        ValueError: The item is not a call.
    """
    if isinstance(item, Call):
        name, arguments = item.name, item.arguments
    elif isinstance(item, dict) and item.keys() == _CALL_KEYS:
        name, arguments = item["name"], item["arguments"]
    else:
        raise ValueError(f"a call must be an object with exactly the keys 'name' and 'arguments', not {_shown(item)}")
    if type(name) is not str:
        raise ValueError(f"the name of a call must be a string, not {type(name).__name__}")
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of '{name[:80]}' must be an object, not {type(arguments).__name__}")
    plain: dict[str, Any] = _plain(arguments, -1)
    return Call(name, plain)


def read_json(text: str) -> Any:
    """Parses JSON of bounded depth and numbers, without repeated keys.

    Raises:
        ValueError: The text is not such JSON.
    """
    check_json_depth(text)
    try:
        return JSON.decode(text)
    except ValueError as error:
        raise ValueError(f"not readable JSON: {error}") from error


def check_json_depth(text: str) -> None:
    """Raises ValueError if brackets nest deeper than the decoder's recursion should go."""
    limit = MAX_DEPTH + 4  # the list, the call and its arguments around a value, and an empty list as deep as may be
    if text.count("[") + text.count("{") <= limit:
        return
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", _JSON_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > limit:
            raise ValueError(f"brackets nest deeper than {limit}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("an object repeats a key")
    return values


def read_int(digits: str) -> int:
    """The integer that Python or JSON source writes as `digits`; ValueError if it is none or too long."""
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has more than {MAX_DIGITS} characters")
    return int(digits, 0)


def read_float(digits: str) -> float:
    """The finite float that Python or JSON source writes as `digits`; ValueError if it is none or too long."""
    if len(digits) > MAX_DIGITS or not math.isfinite(number := float(digits)):
        raise ValueError("a number is too large")
    return number


# NaN and infinity are left to `_plain`, which sees every value.
JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_int=read_int, parse_float=read_float)


def _plain(value: Any, depth: int = 0) -> Any:
    """A copy made of plain types only; exact types, because a subclass may compare or print as it likes."""
    if depth > MAX_DEPTH:
        raise ValueError(f"an argument nests deeper than {MAX_DEPTH}")
    if type(value) in (list, tuple):
        return [_plain(item, depth + 1) for item in value]
    if type(value) is dict:
        if any(type(key) is not str for key in value):
            raise ValueError(f"an argument holds a dict with a key that is not a string: {_shown(list(value))}")
        return {key: _plain(item, depth + 1) for key, item in value.items()}
    if type(value) is float and not math.isfinite(value):
        raise ValueError(f"an argument is {value}, which no call can be written with")
    if value is not None and type(value) not in (str, int, float, bool):
        raise ValueError(f"an argument is a {type(value).__name__}, not a plain value")
    return value


def _shown(item: Any) -> str:
    return repr(sorted(map(str, item)) if isinstance(item, dict) else type(item).__name__)[:120]


def category_of(answers: Any, tools: Any) -> str:
    """The category of a row, as BFCL names them, from the number of its tools and calls.

    Returns:
        "irrelevance" (no call), "simple" (one tool, one call), "multiple" (one call among several tools), "parallel"
        (several calls of one function) or "parallel_multiple".

    Raises:
        ValueError: The calls or the tools cannot be read.
    """
    calls = as_calls(answers)
    if not calls:
        return "irrelevance"
    if len(calls) == 1:
        return "simple" if len(as_tools(tools)) == 1 else "multiple"
    return "parallel" if len({call.name for call in calls}) == 1 else "parallel_multiple"
