"""Whether calls fit the tools offered: names, required parameters and declared types."""

import re
from dataclasses import replace
from typing import Any, NamedTuple

from rewards import Call

_TYPES = {"str": str, "string": str, "int": int, "integer": int, "float": float, "number": float, "double": float}
_TYPES |= {"bool": bool, "boolean": bool, "dict": dict, "object": dict}
_TYPES |= dict.fromkeys(("list", "array", "tuple", "set", "sequence"), list)
_OPTIONAL = re.compile(r"(?i),\s*(optional|default)\b.*$|\s*\(optional\)$")
_ITEM = re.compile(r"[^,|\[\]]+(?:\[(?:[^\[\]]|\[[^\[\]]*\])*\])?")  # a type and what its brackets hold
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


class Misfit(NamedTuple):
    """Where calls contradict the tools: "function", "parameter" or "type", and a sentence."""

    fault: str
    reason: str


def find_misfit(calls: list[Call], tools: list[dict[str, Any]]) -> Misfit | None:
    """The first contradiction between calls and tools, or None.

    A type that is not understood accepts anything; a parameter with a default, or whose type says so, is optional.

    Args:
        calls: The calls.
        tools: The offered tools, with xLAM's flat parameters or a JSON Schema.
    """
    offered = {tool["name"]: tool for tool in tools}
    for call in calls:
        if call.name not in offered:
            return Misfit("function", f"{call.name!r} is not among the tools offered")
        declared, required = parameters(offered[call.name])
        for name in required:
            if name not in call.arguments:
                return Misfit("parameter", f"{call.name!r} is not given its required parameter {name!r}")
        for name, value in call.arguments.items():
            if name not in declared:
                return Misfit("parameter", f"{call.name!r} has no parameter {name!r}")
            if not _fits(value, _type_text(declared[name]), name in required):
                text = f"{name!r} of {call.name!r} is declared {_type_text(declared[name])!r} and given {value!r}"
                return Misfit("type", text)
    return None


def cast_to_types(calls: list[Call], tools: list[dict[str, Any]]) -> list[Call]:
    """The calls with values written in their declared types where that loses nothing: "3" for an int becomes 3."""
    declared = {tool["name"]: parameters(tool)[0] for tool in tools}
    types = {tool: {name: _type_text(spec) for name, spec in specs.items()} for tool, specs in declared.items()}
    return [
        replace(call, arguments={k: _cast(v, types.get(call.name, {}).get(k, "")) for k, v in call.arguments.items()})
        for call in calls
    ]


def parameters(tool: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What a tool declares for each parameter, and the names of those that it requires."""
    declared = tool.get("parameters")
    declared = declared if isinstance(declared, dict) else {}
    properties = declared.get("properties")
    if isinstance(properties, dict) and all(isinstance(spec, dict) for spec in properties.values()):
        required = declared.get("required", tool.get("required"))
        return properties, [name for name in required or [] if name in properties]
    return declared, [name for name, spec in declared.items() if not _is_optional(spec)]


def _is_optional(spec: Any) -> bool:
    return not isinstance(spec, dict) or "default" in spec or "optional" in str(spec.get("type", "")).lower()


def _type_text(spec: Any) -> str:
    """A declared type in xLAM's words; JSON Schema's `items` and lists of types are brought into them."""
    declared = spec.get("type", "") if isinstance(spec, dict) else spec
    if isinstance(declared, list):
        return "Union[" + ", ".join(map(str, declared)) + "]"
    text = _OPTIONAL.sub("", declared) if isinstance(declared, str) else ""
    if text == "array" and isinstance(spec, dict) and "items" in spec:
        return f"List[{_type_text(spec['items'])}]"
    return text.strip()


def _parts(text: str) -> tuple[str, list[str]]:
    """`Dict[str, List[int]]` as "dict" and ["str", "List[int]"]; alternatives with `|` as a union."""
    alternatives = [part.strip() for part in _ITEM.findall(text)]
    if len(alternatives) > 1:
        return "union", alternatives
    head, _, inner = text.partition("[")
    return head.strip().lower(), [part.strip() for part in _ITEM.findall(inner.rpartition("]")[0])]


def _fits(value: Any, text: str, required: bool = True) -> bool:
    head, inner = _parts(text)
    if value is None:
        return not required or head in ("", "optional", "none", "null", "any", "union")
    if head in ("union", "optional"):
        return any(_fits(value, alternative) for alternative in inner)
    wanted = _TYPES.get(head)
    if wanted is None:  # "any", and whatever else is not a type that JSON has
        return head not in ("none", "null")
    if type(value) is not wanted:
        return wanted is float and type(value) is int
    if wanted is list and inner:
        return head == "tuple" or all(_fits(item, inner[0]) for item in value)
    return wanted is not dict or len(inner) != 2 or all(_fits(item, inner[1]) for item in value.values())


def _cast(value: Any, text: str) -> Any:
    head, inner = _parts(text)
    wanted = _TYPES.get(head)
    if wanted is list and isinstance(value, list) and inner:
        return [_cast(item, inner[0]) for item in value]
    if wanted is None or _fits(value, text):
        return value
    if wanted is str and type(value) in (int, float):
        return str(value)
    if wanted is int and type(value) is float and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return value
    if wanted is bool and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    if wanted is list and value.strip():
        return [_cast(item.strip(), inner[0] if inner else "str") for item in value.split(",")]
    if wanted in (int, float) and (number := _NUMBER.fullmatch(value.strip())) and (wanted is float or not number[1]):
        return wanted(value)
    return value
