"""One tool on offer, under all the names that its keys are given."""

from typing import Any

from datamodules.sources.values import read_whole
from rewards.floats import is_json_schema

NAMES = ("name", "api_name", "tool_name", "function_name")
_RENAMED = {
    "description": ("api_description", "tool_description"),
    "parameters": (
        *("input_schema", "inputSchema", "args_schema", "parametersJsonSchema", "parameters_json_schema"),
        *("parameter_definitions", "inputs", "args", "arguments"),  # Cohere's, smolagents', LangChain's
    ),
}
DECLARING = {key for column, others in _RENAMED.items() for key in (column, *others)} - {"args", "arguments"}
"""Keys of which an object in a text has one if it is a tool: `{"name": "Ann", "age": 30}` is none, and no call is."""
DESCRIPTIONS = {"description", *_RENAMED["description"]}
_HALVES = ("required_parameters", "optional_parameters")  # ToolBench's
_MEANINGLESS = {"type": ("function", "custom"), "cache_control": ()}
"""Keys of a tool that are for a server, by the values that they have then; any where none is given."""
_NEEDED = "every tool must be an object with a string 'name'"
MAX_NAME = 1_024  # characters; every text is searched for every name


def read_tool(item: Any) -> dict[str, Any]:
    """Reads one tool: an object, its JSON text, or OpenAI's wrapper of it.

    Raises:
        ValueError: It has no name, or its parameters are none.
    """
    if isinstance(item, str) and item.lstrip()[:1] == "{":
        item = read_whole(item)
    if not isinstance(item, dict):
        raise ValueError(f"{_NEEDED}, not {repr(item)[:120]}")
    item = _unwrapped(item)
    name = next((item[key] for key in NAMES if isinstance(item.get(key), str)), None)
    if name is None:
        raise ValueError(f"{_NEEDED}, not {repr(sorted(map(str, item)))[:120]}")
    if len(name) > MAX_NAME:
        raise ValueError(f"the name of a tool has {len(name):,} characters: {name[:40]!r}")
    tool = item if "name" in item else {"name": name} | {k: v for k, v in item.items() if k not in NAMES}
    for key, others in _RENAMED.items():
        old = next((other for other in others if tool.get(key) is None and tool.get(other) is not None), None)
        if old:
            tool = {key if k == old else k: v for k, v in tool.items() if k != key}
    tool = {key: value for key, value in tool.items() if not _says_nothing(key, value)}
    if tool.keys() & {*_HALVES} and tool.get("parameters") is None:
        required, optional = (_parameters(name, tool.get(half) or {}) for half in _HALVES)
        tool = {key: value for key, value in tool.items() if key not in _HALVES}
        tool["parameters"] = {"type": "object", "properties": required | optional, "required": list(required)}
    return tool | {"parameters": _parameters(name, tool["parameters"])} if "parameters" in tool else tool


def _unwrapped(item: dict[str, Any]) -> dict[str, Any]:
    """A tool without what OpenAI and Bedrock put around it."""
    if isinstance(text := item.get("function"), str) and text.lstrip()[:1] == "{":
        item = item | {"function": read_whole(text)}
    if isinstance(spec := item.get("toolSpec"), dict):  # Bedrock's
        schema = spec.get("inputSchema")
        item = spec | ({"inputSchema": schema.get("json")} if isinstance(schema, dict) else {})
    if isinstance(own := item.get("function"), dict):  # OpenAI's
        item = own | {key: value for key, value in item.items() if key not in ("function", "type", *own)}
    return item


def _parameters(name: str, declared: Any) -> Any:
    """What a tool declares, where it or a part of it is JSON text, or a list of objects."""
    if isinstance(declared, str):
        declared = _opened(name, "parameters", declared) if declared.strip() else {}
    if declared is not None and not isinstance(declared, dict):
        return _by_name(name, declared)
    if isinstance(declared, dict) and is_json_schema(declared):
        for key, kind, what in (("properties", dict, "an object"), ("required", list | bool, "a list of names")):
            part = declared.get(key)
            if isinstance(part, str) and part.lstrip()[:1] in ("{", "["):
                declared = declared | {key: (part := _opened(name, key, part))}
            if part is not None and not isinstance(part, kind):
                raise ValueError(f"the {key} of {name[:80]!r} must be {what}, not {type(part).__name__}")
    return declared


def _opened(name: str, key: str, text: str) -> Any:
    try:
        return read_whole(text)
    except ValueError as error:
        raise ValueError(f"the {key} of {name[:80]!r} cannot be read: {error}") from error


def _by_name(tool: str, declared: Any) -> dict[str, Any]:
    """Parameters in a list, as Gorilla's, by their names."""
    is_list = isinstance(declared, list)
    if not is_list or not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in declared):
        raise ValueError(f"the parameters of {tool[:80]!r} must be an object, or a list of objects with a 'name'")
    by_name: dict[str, Any] = {}
    for one in declared:
        schema = {key: value for key, value in one.items() if key != "name"}
        if by_name.setdefault(one["name"], schema) != schema:
            raise ValueError(f"the parameters of {tool[:80]!r} have {one['name'][:80]!r} more than once")
    return by_name


def _says_nothing(key: str, value: Any) -> bool:
    return key in _MEANINGLESS and (not _MEANINGLESS[key] or value in _MEANINGLESS[key])
