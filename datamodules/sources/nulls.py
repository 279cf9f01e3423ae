"""Removal of nulls with which Arrow fills up nested columns; what a tool's schema allows stays."""

import json
import re
from collections import Counter
from typing import Any

from rewards import Call

OPTIONAL = re.compile(r"(?is),\s*+(?:optional|default)\b.*+|(?<!\s)\s*+\(optional\)$")
"""What a type text says besides the type."""


def without_nulls(tool: dict[str, Any], notes: Counter[str]) -> dict[str, Any]:
    """The tool without the nulls that the columns of other rows have left; `default: null` says something elsewhere."""
    cleaned, dropped = _cleaned(tool, keep=("default", "const"))
    if dropped:
        cleaned, more = _cleaned(cleaned, keep=())
        notes["repair/nulls left out of tools"] += dropped + more
    return cleaned


def _cleaned(node: Any, keep: tuple[str, ...]) -> tuple[Any, int]:
    if isinstance(node, list):
        parts = [_cleaned(item, keep) for item in node]
        return ([part for part, _ in parts], sum(n for _, n in parts)) if any(n for _, n in parts) else (node, 0)
    if not isinstance(node, dict):
        return node, 0
    kept, dropped = {}, 0
    for key, value in node.items():
        if value is None and key not in keep:
            dropped += 1
            continue
        kept[key], inner = (value, 0) if key in ("default", "const", "enum", "examples") else _cleaned(value, keep)
        dropped += inner
    return (kept, dropped) if dropped else (node, 0)


def declared(tool: dict[str, Any]) -> dict[str, Any]:
    """The declaration of each parameter of a tool."""
    return _properties(tool.get("parameters"))


def _properties(schema: Any) -> dict[str, Any]:
    schema = schema if isinstance(schema, dict) else {}
    properties = schema.get("properties")
    found: dict[str, Any] = properties if isinstance(properties, dict) else schema
    return found


def types_of(schema: Any) -> set[str]:
    """The words that a schema has for the type of a value, in lower case; empty where it says nothing of it."""
    if isinstance(schema, list):
        return {word for item in schema for word in types_of(item)}
    if not isinstance(schema, dict):
        return (
            set(re.findall(r"\w+", OPTIONAL.sub("", schema).partition("[")[0].lower()))
            if isinstance(schema, str)
            else set()
        )
    found = types_of(schema.get("type")) | ({"null"} if schema.get("nullable") is True else set())
    return found | {word for key in ("anyOf", "oneOf") for word in types_of(schema.get(key))}


def without_null_arguments(
    calls: list[Call], tools: list[dict[str, Any]], nested: bool, notes: Counter[str]
) -> list[Call]:
    """Takes out the null arguments that the columns of other rows have left.

    Those are the ones for which the call's own tool has no schema; and, in columns that are nested (in which every row
    has the keys of all), those that the tool neither requires nor allows to be null.
    """
    by_name = {tool["name"]: tool for tool in tools}
    cleaned = []
    for call in calls:
        tool = by_name.get(call.name)
        schema = tool.get("parameters") if tool else None
        arguments, dropped = _given(call.arguments, schema, nested) if tool else (call.arguments, 0)
        notes["repair/nulls left out of arguments"] += dropped
        cleaned.append(Call(call.name, arguments) if dropped else call)
    notes += Counter()  # without zeros
    return cleaned


def _given(arguments: dict[str, Any], schema: Any, nested: bool) -> tuple[dict[str, Any], int]:
    known = _properties(schema)
    required = (
        schema.get("required") if isinstance(schema, dict) and isinstance(schema.get("properties"), dict) else None
    )
    required = {name for name in required if isinstance(name, str)} if isinstance(required, list) else None
    kept, dropped = {}, 0
    for name, value in arguments.items():
        spec = known.get(name)
        if value is None and (spec is None or (nested and _is_padding(name, spec, required))):
            dropped += 1
            continue
        kept[name], inner = value, 0
        if isinstance(value, dict) and isinstance(spec, dict) and isinstance(spec.get("properties"), dict):
            kept[name], inner = _given(value, spec, nested)
        dropped += inner
    return kept, dropped


def _is_padding(name: str, spec: Any, required: set[str] | None) -> bool:
    """Whether a null cannot be meant: the parameter may be left out, and its type has no null."""
    words = types_of(spec)
    optional = name not in required if required is not None else "optional" in json.dumps(spec) or "default" in spec
    return bool(optional and words and not words & {"null", "none", "any", "optional", "union"})
