"""Rows as they were before Arrow filled their nested columns with nulls and made floats of integers in them."""

from collections import Counter
from itertools import islice
from typing import Any

from datamodules.sources.declared import MAX_IN_PLACE, WORDS, as_list, in_place, parameters, texts_of, type_schema
from rewards import Call


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
        dropped = sum(count for _, count in parts)
        return ([part for part, _ in parts], dropped) if dropped else (node, 0)
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


def without_null_arguments(
    calls: list[Call], tools: list[dict[str, Any]], nested: bool, notes: Counter[str]
) -> list[Call]:
    """Takes out the null arguments that the columns of other rows have left.

    Those are the ones for which the call's own tool has no schema; and, in columns that are nested (in which every row
    has the keys of all, and a number is a float if it is one in any row), those that the tool neither requires nor
    allows to be null. There, whole floats that are declared to be integers become such again.
    """
    by_name = {tool["name"]: tool for tool in tools}
    cleaned = []
    for call in calls:
        tool = by_name.get(call.name)
        counts = Counter[str]()
        arguments = _Arguments(tool, nested, counts).read(call.arguments) if tool else call.arguments
        cleaned.append(Call(call.name, arguments) if counts else call)
        notes += counts
    return cleaned


class _Arguments:
    """Reads arguments of one tool, and counts what is changed."""

    def __init__(self, tool: dict[str, Any], nested: bool, counts: Counter[str]) -> None:
        self.tool = tool
        self.nested = nested
        self.counts = counts
        self.found: dict[int, list[dict[str, Any]]] = {}  # by the id of a schema, which the tool or this keeps alive

    def read(self, arguments: dict[str, Any]) -> dict[str, Any]:
        properties, required = parameters(self.tool)
        return self.fields(arguments, properties, set(required))

    def nodes(self, schema: Any) -> list[dict[str, Any]]:
        """The schema and all that say something of the same value, with what the texts of types say."""
        if id(schema) not in self.found:
            nodes = in_place(schema, self.tool)
            texts = [text for node in nodes for text in texts_of(node.get("type"))]
            self.found[id(schema)] = nodes + [part for text in texts for part in in_place(type_schema(text), self.tool)]
        return self.found[id(schema)]

    def fields(self, value: dict[str, Any], properties: dict[str, Any], required: set[str]) -> dict[str, Any]:
        kept = {}
        for name, item in value.items():
            nodes = self.nodes(properties.get(name))
            if item is None and (name not in properties or (self.nested and name not in required and _no_null(nodes))):
                self.counts["repair/nulls left out of arguments"] += 1
            else:
                kept[name] = self.value(item, nodes)
        return kept

    def value(self, value: Any, nodes: list[dict[str, Any]]) -> Any:
        if isinstance(value, dict):
            properties: dict[str, Any] = {}
            required: set[str] = set()
            for node in nodes:
                properties = (node["properties"] if isinstance(node.get("properties"), dict) else {}) | properties
                required |= set(texts_of(node.get("required")))
            return self.fields(value, properties, required) if properties else value
        if isinstance(value, list):
            inner = (node for outer in nodes for node in self.nodes(outer.get("items")))
            items = list(islice(inner, MAX_IN_PLACE))
            return [self.value(item, items) for item in value] if items else value
        if self.nested and type(value) is float and value.is_integer() and "integer" in (words := _words(nodes)):
            if words <= {"integer", "null"}:
                self.counts["repair/whole floats read as the integers that their tools declare"] += 1
                return int(value)
        return value


def _words(nodes: list[dict[str, Any]]) -> set[str]:
    """JSON Schema's words for the types of a value about which these schemas are; empty where none says any."""
    words = {word for node in nodes for word in texts_of(node.get("type")) if word in WORDS}
    null = any(node.get("nullable") is True or None in as_list(node.get("enum")) for node in nodes)
    return words | ({"null"} if null else set())


def _no_null(nodes: list[dict[str, Any]]) -> bool:
    words = _words(nodes)
    return bool(words) and "null" not in words
