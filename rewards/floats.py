"""Where tools declare floats, so that an integer may stand for one."""

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

_FLOATS = {"float", "number", "double"}
_SEQUENCES = {"list", "array", "set", "sequence", "iterable", "collection"}
_MAPPINGS = {"dict", "object", "mapping"}
IN_PLACE = ("anyOf", "oneOf", "allOf")
"""Keys of a JSON Schema whose members say something of the same value."""
_MAX_TYPE_DEPTH = 16
_MAX_NODES = 10_000  # of one parameter; schemas that refer to themselves have no end
_MAX_REFERENCE = 1_000  # characters; what is longer names nothing
_MAX_ALL_NODES = 200_000  # of all tools of a row


@dataclass(frozen=True)
class FloatPlaces:
    """Where a declared type says float, so that an integer may stand for it.

    Attributes:
        here: Whether the value itself is a float.
        items: The same for list items and dict values that have no entry in `fields`; None if nothing is declared.
        fields: The same by dict key, or by position in a tuple.
    """

    here: bool = False
    items: "FloatPlaces | None" = None
    fields: dict[str | int, "FloatPlaces"] = field(default_factory=dict)


NOWHERE = FloatPlaces()


@dataclass
class _Row:
    """How many nodes of the tools of a row may still be looked at."""

    nodes: int = _MAX_ALL_NODES


@dataclass
class _Document:
    """Where references point to, and how many nodes may still be looked at."""

    roots: tuple[Any, ...]
    row: _Row
    nodes: int = _MAX_NODES


def find_reference(reference: Any, roots: tuple[Any, ...]) -> Any:
    """The node that a reference names, `#/$defs/Point`, in the first of the documents that has it; else None."""
    if not isinstance(reference, str) or not reference.startswith("#") or len(reference) > _MAX_REFERENCE:
        return None
    steps = [unquote(step).replace("~1", "/").replace("~0", "~") for step in reference[1:].split("/")[1:]]
    return next((node for node in (_at(root, steps) for root in roots) if node is not None), None)


def _at(node: Any, steps: list[str]) -> Any:
    for step in steps:
        if isinstance(node, list) and step.isdecimal() and len(step) < 6 and int(step) < len(node):
            node = node[int(step)]
        else:
            node = node.get(step) if isinstance(node, dict) else None
    return node


def float_places(tools: list[dict[str, Any]]) -> dict[str, FloatPlaces]:
    """Where each tool's arguments are declared float, by tool name.

    Parameters are xLAM's flat `{name: {"type": ...}}` or a JSON Schema, of which references within it are followed. A
    node that makes no sense declares nothing, and changes nothing of the others.
    """
    row = _Row()
    return {tool["name"]: _arguments(tool, row) for tool in tools}


def is_json_schema(parameters: dict[str, Any]) -> bool:
    """Whether the parameters of a tool are a JSON Schema of their object, not xLAM's flat `{name: {"type": ...}}`."""
    if parameters.get("type") in ("object", "dict") or isinstance(parameters.get("$ref"), str):
        return True
    properties = parameters.get("properties")
    # A flat parameter that happens to be called "properties" describes itself with texts.
    is_flat = not isinstance(properties, dict) or any(isinstance(value, str) for value in properties.values())
    return not is_flat or any(isinstance(parameters.get(key), list) for key in IN_PLACE)


def _arguments(tool: dict[str, Any], row: _Row) -> FloatPlaces:
    declared = tool.get("parameters")
    if not isinstance(declared, dict):
        return NOWHERE
    roots, specs, places = (declared, tool), declared, []
    if is_json_schema(declared):
        properties = declared.get("properties")
        specs = properties if isinstance(properties, dict) else {}
        rest = {key: value for key, value in declared.items() if key != "properties"}
        places = [_declared(rest, 0, _Document(roots, row))]
    fields = {name: _declared(spec, 0, _Document(roots, row)) for name, spec in specs.items()}
    return _union([FloatPlaces(fields=fields), *places])


def _declared(spec: Any, depth: int, document: _Document) -> FloatPlaces:
    """The float places of one parameter: a type text or a JSON Schema."""
    document.nodes -= 1
    document.row.nodes -= 1
    if depth > _MAX_TYPE_DEPTH or min(document.nodes, document.row.nodes) < 0:
        return NOWHERE
    if isinstance(spec, str):
        return _from_text(spec, depth)
    if isinstance(spec, list):  # alternatives, such as ["number", "null"]
        return _union([_declared(item, depth + 1, document) for item in spec])
    if not isinstance(spec, dict):
        return NOWHERE

    def inner(node: Any) -> FloatPlaces:
        return _declared(node, depth + 1, document)

    places = [inner(spec[key]) for key in ("type", *IN_PLACE) if key in spec]
    if "$ref" in spec:
        places.append(inner(find_reference(spec["$ref"], document.roots)))
    for key in ("items", "additionalProperties"):
        if key in spec and not isinstance(spec[key], list):
            places.append(FloatPlaces(items=inner(spec[key])))
    for key in ("prefixItems", "items"):  # a list of `items` is how drafts before 2020 wrote prefixItems
        if isinstance(spec.get(key), list):
            places.append(FloatPlaces(fields={at: inner(item) for at, item in enumerate(spec[key])}))
    if isinstance(spec.get("properties"), dict):
        places.append(FloatPlaces(fields={name: inner(item) for name, item in spec["properties"].items()}))
    return _union(places)


def _from_text(text: str, depth: int) -> FloatPlaces:
    """The float places of a type text such as `List[float], optional`."""
    if depth > _MAX_TYPE_DEPTH:
        return NOWHERE
    alternatives = _split(_split(text, ",")[0], "|")
    if len(alternatives) > 1:
        return _union([_from_text(item, depth + 1) for item in alternatives])
    head, _, rest = alternatives[0].strip().partition("[")
    head = (head.lower().split() or [""])[0]  # "float (optional)" is a float
    inner = rest.rpartition("]")[0]
    arguments = _split(inner, ",") if inner else []
    places = [_from_text(argument, depth + 1) for argument in arguments]
    if head in _FLOATS:
        return FloatPlaces(here=True)
    if head in ("optional", "union"):
        return _union(places)
    if head in _MAPPINGS and len(places) == 2:
        return FloatPlaces(items=places[1])
    if head == "tuple" and len(places) > 1 and arguments[1].strip() != "...":
        return FloatPlaces(fields=dict(enumerate(places)))
    if head in _SEQUENCES | {"tuple"} and places:
        return FloatPlaces(items=places[0])
    return NOWHERE


def _split(text: str, mark: str) -> list[str]:
    """Splits at the marks outside brackets."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += (character in "[(") - (character in "])")
        if character == mark and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def _union(places: list[FloatPlaces]) -> FloatPlaces:
    if len(places) < 2:
        return places[0] if places else NOWHERE
    items = [place.items for place in places if place.items is not None]
    fields: dict[str | int, list[FloatPlaces]] = {}
    for place in places:
        for key, field_places in place.fields.items():
            fields.setdefault(key, []).append(field_places)
    united = {key: _union(field_places) for key, field_places in fields.items()}
    return FloatPlaces(any(place.here for place in places), _union(items) if items else None, united)
