"""Tools on offer, in every form that lists of them come in."""

import json
from collections import Counter
from typing import Any

from datamodules.sources.declared import WORDS, argument_schema, parameters
from datamodules.sources.listings import MAX_TOOLS, find_tools
from datamodules.sources.nulls import without_nulls
from datamodules.sources.tool import NAMES, read_tool
from datamodules.sources.values import read_whole
from rewards.floats import is_json_schema

SHOWN_FIRST = ("name", "description", "parameters")
BFCL_TYPES = {"'type': 'object'": "'type': 'dict'", "'type': 'number'": "'type': 'float'"}
"""What a JSON Schema and BFCL call differently, as Python prints it."""
_GROUPS = ("functionDeclarations", "function_declarations")


def read_tools(value: Any, notes: Counter[str]) -> list[dict[str, Any]]:
    """Reads a list of tools.

    Args:
        value: A list, its JSON or Python text, a list of such texts, one tool, or an object that holds the list. A tool
            may be wrapped as OpenAI's `{"type": "function", "function": {...}}`.
        notes: Counts what was changed.

    Returns:
        The tools, each with a `name`; what other rows' columns left of nulls in them is taken out.

    Raises:
        ValueError: It is no such list.
    """
    if isinstance(value, str):
        try:
            value = read_whole(value) if value.strip() else []
        except ValueError as error:
            found, around = find_tools(value)
            if not found or any("{" in piece for piece in around):
                raise ValueError(f"tools are readable neither as JSON nor as a Python literal: {error}") from error
            value = found
    if isinstance(value, dict):
        value = _from_object(value)
    if not isinstance(value, list):
        raise ValueError(f"tools must be a list of tool objects, not {type(value).__name__}")
    value = [tool for item in value for tool in _group(item)]
    if len(value) > MAX_TOOLS:
        raise ValueError(f"there are {len(value):,} tools, and {MAX_TOOLS:,} are read at most")
    tools = [without_nulls(read_tool(item), notes) for item in value]
    lower = [_in_lower_case(tool) for tool in tools]
    if count := sum(one != other for one, other in zip(tools, lower, strict=True)):
        notes["repair/tools whose types are in capitals, as Google writes them"] += count
    return each_once(lower, notes)


def each_once(tools: list[dict[str, Any]], notes: Counter[str]) -> list[dict[str, Any]]:
    """The tools without repeats; different tools that share a name are counted, and all of them stay.

    Args:
        tools: Tools, each with a `name`.
        notes: Counts both.
    """
    once = dict[str, dict[str, Any]]()
    for tool in tools:
        once.setdefault(json.dumps(tool, sort_keys=True), tool)
    kept = list(once.values())
    if again := len(tools) - len(kept):
        notes["repair/tools that a row lists twice, kept once"] += again
    if shared := sum(count > 1 for count in Counter(tool["name"] for tool in kept).values()):
        notes["ambiguous/names that different tools of a row share"] += shared
    return kept


def refuse_others(found: list[dict[str, Any]], offered: list[dict[str, Any]], where: str) -> None:
    """Refuse tools that stand beside the column of tools and not in it: which are on offer cannot be known.

    Raises:
        ValueError: There is one.
    """
    names = {tool["name"] for tool in offered}
    if lacking := next((tool["name"] for tool in found if tool["name"] not in names), ""):
        raise ValueError(f"lacks {lacking[:80]!r}, which {where}: add it, or take it out there")


def _group(item: Any) -> list[Any]:
    """The tools of one of Gemini's groups; of anything else itself."""
    group = next((item[key] for key in _GROUPS if key in item), None) if isinstance(item, dict) else None
    return group if isinstance(group, list) else [item]


def _in_lower_case(node: Any) -> Any:
    """A schema with JSON Schema's words for types in lower case; values, as those of `enum`, stay."""
    if isinstance(node, list):
        return [_in_lower_case(item) for item in node]
    if not isinstance(node, dict):
        return node
    lowered = {}
    for key, value in node.items():
        if key == "type" and isinstance(value, str) and value.isupper() and value.lower() in WORDS:
            lowered[key] = value.lower()
        elif key in ("default", "const", "enum", "examples", "example"):
            lowered[key] = value
        else:
            lowered[key] = _in_lower_case(value)
    return lowered


def _from_object(value: dict[str, Any]) -> list[Any]:
    """The tools of an object: the one that it is, the list under its one key, or its values by name."""
    value = {key: inner for key, inner in value.items() if inner is not None}
    if any(isinstance(value.get(name), str) for name in NAMES) or isinstance(value.get("function"), dict):
        return [value]
    if len(value) == 1 and isinstance(inner := next(iter(value.values())), list):
        return inner
    if value and all(isinstance(tool, dict) for tool in value.values()):
        return [{"name": name} | tool for name, tool in value.items()]
    return [value] if value else []


def shown_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool with its keys in the order in which servers hand them on, and without those that are null."""
    ordered = {key: tool[key] for key in SHOWN_FIRST if key in tool} | tool
    return {key: value for key, value in ordered.items() if value is not None}


def openai_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as chat templates and servers take it: wrapped, its parameters a JSON Schema."""
    return {"type": "function", "function": shown_tool(tool | {"parameters": parameters_schema(tool)})}


def bfcl_tools(tools: list[dict[str, Any]]) -> str:
    """A list of tools as the prompts of BFCL v3 print it: a Python literal, parameters in a schema of type `dict`.

    xLAM's flat parameters become such a schema. A blank line ends it, as it ends the official text: a model that was
    trained without it went on writing after its answer. The sentence on the language that BFCL adds to every
    description is left out.
    """
    text = repr([openai_tool(tool)["function"] for tool in tools])
    for ours, theirs in BFCL_TYPES.items():
        text = text.replace(ours, theirs)
    return text + "\n\n"


def parameters_schema(tool: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a tool as a JSON Schema; xLAM's flat ones with their types in its words."""
    declared, required = parameters(tool)
    if is_json_schema(tool.get("parameters") or {}):
        return dict(tool["parameters"])
    types = argument_schema(tool).get("properties", {})
    fields = {}
    for name, spec in declared.items():
        typed = types[name] if isinstance(types.get(name), dict) else {}  # true and false are schemas as well
        typed = {k: v for k, v in typed.items() if k != "$ref"}
        fields[name] = typed | (spec if isinstance(spec, dict) else {}) | typed  # the type first, as schemas have it
    return {"type": "object", "properties": fields, "required": required}
