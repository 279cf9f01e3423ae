"""Calls of JSON values, under all the names that their keys are given."""

import re
from collections.abc import Collection
from typing import Any

from datamodules.sources.values import read_whole
from rewards import Call
from rewards.calls import call_from

NAME_KEYS = ("name", "tool_name", "function_name", "api_name", "api", "tool", "function", "action")
ARGUMENT_KEYS = (
    *("arguments", "parameters", "args", "params", "kwargs", "input", "tool_input", "action_input", "tool_arguments"),
)
_MEANINGLESS = {"id", "type", "index", "call_id", "tool_call_id", "status", "extra_content", "thoughtSignature"}
CALL_LISTS = ("tool_calls", "function_calls", "function_call", "calls")
_WITH_TYPE, _KIND = {*ARGUMENT_KEYS, *CALL_LISTS, "function"}, re.compile("tool|function|call|custom", re.IGNORECASE)
"""Keys beside which the type of a call is none of its arguments, and what that type says."""


def calls_of(value: Any, offered: set[str] | frozenset[str] = frozenset()) -> list[Call]:
    """Reads the calls of a JSON value.

    A call may have other names for its keys, be wrapped as OpenAI's `{"function": {...}}`, have its arguments as a JSON
    string, as "" or null, or lack them. `id`, `type` and the like say nothing of it; an unknown key is refused.

    Args:
        value: A list of calls, one call, an object with a list of them under `tool_calls`, or JSON text of these.
        offered: Names of tools, which may stand in the place of the key: `{"get_weather": {"city": "Oslo"}}`.

    Raises:
        ValueError: It is anything else.
    """
    if isinstance(value, str):
        return calls_of(read_whole(value), offered)
    if isinstance(value, Call):
        return [call_from(value)]
    if isinstance(value, list) and len(value) > 1 and all(isinstance(item, list) for item in value):
        raise ValueError(f"there are {len(value)} lists of calls, one for each turn: an answer is one list, or a chat")
    if isinstance(value, list | tuple):
        return [call for item in value for call in calls_of(item, offered)]
    if not isinstance(value, dict):
        raise ValueError(f"a call must be an object, not {type(value).__name__}")
    if isinstance(kind := value.get("type"), str) and not value.keys() & _WITH_TYPE and not _KIND.search(kind):
        raise ValueError(f"a call of the type {kind[:40]!r} has no arguments, of which that may be one: give an object")
    value = {key: item for key, item in value.items() if item is not None and key not in _MEANINGLESS}
    for key in CALL_LISTS:
        if value.keys() == {key}:
            return calls_of(value[key], offered)
    if isinstance(value.get("function"), dict):
        if unknown := value.keys() - {"function"}:
            raise ValueError(f"a call has the key {min(map(str, unknown))!r}, which is not known")
        return calls_of(value["function"], offered)
    if value and value.keys() <= offered and all(isinstance(item, dict) for item in value.values()):
        return [_keyed(name, item) for name, item in value.items()]
    return [_call(value, offered)]


def resolved(name: str, offered: Collection[str]) -> str:
    """The name of a tool; what servers put before it is taken off where only that is offered."""
    short = name.removeprefix("functions.")
    return short if name not in offered and short in offered else name


def _keyed(name: str, arguments: dict[str, Any]) -> Call:
    if arguments and all(isinstance(value, list) for value in arguments.values()):
        raise ValueError(
            f"the arguments of {name[:80]!r} are lists, as BFCL writes the values that it accepts: give each argument "
            'its one value, in a call of the form {"name": ..., "arguments": {...}}'
        )
    return call_from({"name": name, "arguments": arguments})


def _call(item: dict[str, Any], offered: Collection[str]) -> Call:
    name_key = next((key for key in NAME_KEYS if isinstance(item.get(key), str)), None)
    given = [key for key in ARGUMENT_KEYS if key in item]
    if name_key is None:
        raise ValueError(f"a call needs a name; there is {', '.join(map(repr, item)) or 'nothing'}"[:200])
    if len(given) > 1 and any(item[key] != item[given[0]] for key in given):
        raise ValueError(f"a call has both {given[0]!r} and {given[1]!r}")
    arguments = item[given[0]] if given else {}
    try:
        while isinstance(arguments, str):  # the JSON text of an object, or of such a text
            arguments = read_whole(arguments) if arguments.strip() else {}
    except ValueError as error:
        raise ValueError(f"the {given[0]} of {item[name_key][:80]!r} cannot be read: {error}") from error
    arguments = {} if arguments in (None, []) else arguments
    unknown = item.keys() - {name_key, *given}
    label = str(item.get("label"))
    if (name_key == "api" and unknown == {"responses"}) or (unknown == {"label"} and label.startswith("$var")):
        unknown = set()  # Seal-Tools and NESTFUL name results, which later calls may be given
        if re.search(r"API_call_\d|\$var_?\d", repr(arguments)):
            raise ValueError("an argument stands for the result of another call, which a tool has to give first")
    if unknown:
        raise ValueError(f"a call has the key {min(map(str, unknown))!r}, which is not known")
    return call_from({"name": resolved(item[name_key], offered), "arguments": arguments})
