"""Declared arguments of tools, in every style, as a JSON Schema for a validator."""

import re
from collections import deque
from typing import Any

from rewards.floats import IN_PLACE, find_reference, is_json_schema

ANYTHING = {"additionalProperties": True}
"""What a node that makes no sense declares; with the keyword no name of an object counts as unknown."""

OPTIONAL = re.compile(r"(?is),\s*+(?:optional|default)\b.*+|(?<!\s)\s*+\(optional\)$")
"""What a type text says besides the type."""
_TYPES = {"str": "string", "int": "integer", "float": "number", "double": "number", "bool": "boolean", "dict": "object"}
_TYPES |= dict.fromkeys(("list", "tuple", "set", "sequence"), "array") | {"none": "null"}
WORDS = ("string", "integer", "number", "boolean", "object", "array", "null")
"""JSON Schema's words for types."""
_TYPES |= {name: name for name in WORDS}
_ITEM = re.compile(r"[^,|\[\]]+(?:\[(?:[^\[\]]|\[[^\[\]]*\])*\])?")  # a type and what its brackets hold
_MAX_DEPTH = 24  # of nodes within nodes; what is deeper declares nothing
MAX_IN_PLACE = 1_000  # nodes that say something of one value; a reference to more of them declares nothing


def parameters(tool: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The declaration of each parameter of a tool, and the names of the required ones.

    Of a JSON Schema those are required that its list says, or that say so of themselves; of xLAM's flat parameters all
    but those with a default, with a type that says optional, or with `required: false`.
    """
    declared = tool.get("parameters")
    declared = declared if isinstance(declared, dict) else {}
    if not is_json_schema(declared):
        return declared, [name for name, spec in declared.items() if not _is_optional(spec)]
    properties: dict[str, Any] = {}
    beside = as_list(tool.get("required")) if "required" not in declared else []
    required = [name for name in beside if isinstance(name, str)]
    for node in in_place(declared, tool, ("allOf",)):
        own = node.get("properties")
        own = own if isinstance(own, dict) else {}
        required += [name for name in as_list(node.get("required")) if isinstance(name, str)]
        required += [name for name, spec in own.items() if isinstance(spec, dict) and spec.get("required") is True]
        for name, spec in own.items():
            properties.setdefault(name, spec)
    return properties, list(dict.fromkeys(name for name in required if name in properties))


def argument_schema(tool: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a tool's arguments: types alone, without bounds, patterns and enumerations.

    References are followed, `nullable` and draft 4's lists of `items` are brought into today's words, and a node that
    makes no sense accepts anything.
    """
    declared = tool.get("parameters")
    if declared is not None and not isinstance(declared, dict):
        return ANYTHING
    declared = declared or {}
    reader = _Reader(tool)
    if not is_json_schema(declared):
        fields = {name: reader.schema(spec) for name, spec in declared.items()}
        return {"properties": fields, "unevaluatedProperties": False, "$defs": reader.definitions}
    schema = {"allOf": [reader.schema(declared)], "$defs": reader.definitions}
    if isinstance(declared.get("properties"), dict) or any(key in declared for key in ("$ref", *IN_PLACE)):
        schema["unevaluatedProperties"] = False
    return schema


def _is_optional(spec: Any) -> bool:
    if not isinstance(spec, dict):
        return True
    return "default" in spec or spec.get("required") is False or "optional" in str(spec.get("type", "")).lower()


def as_list(value: Any) -> list[Any]:
    """A list; an empty one for anything else."""
    return value if isinstance(value, list) else []


def texts_of(value: Any) -> list[str]:
    """The texts of a list, or the one that stands in its place, as `type` and `required` have them."""
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def in_place(node: Any, tool: dict[str, Any], keys: tuple[str, ...] = IN_PLACE) -> list[dict[str, Any]]:
    """A node and those that say something of the same value: what it refers to, and the members of its `keys`.

    At most `MAX_IN_PLACE` of them.
    """
    found, followed, queue = [], set(), deque([node])
    while queue and len(found) < MAX_IN_PLACE:
        node = queue.popleft()
        if isinstance(node, dict):
            found.append(node)
            queue += [member for key in keys for member in as_list(node.get(key))]
            reference = node.get("$ref")
            if isinstance(reference, str) and reference not in followed:
                followed.add(reference)
                queue.append(find_reference(reference, (tool.get("parameters"), tool)))
    return found


def type_words(nodes: list[dict[str, Any]]) -> set[str]:
    """The words, in lower case, that these nodes have for the type of the value of which they say something.

    A text may stand in the place of a schema (`"anyOf": ["integer", "null"]`), and a schema in that of a type.
    """
    words, seen, stack = set[str](), set[int](), [*nodes]
    while stack:
        item: Any = stack.pop()
        if isinstance(item, str):
            words.update(re.findall(r"\w+", OPTIONAL.sub("", item).partition("[")[0].lower()))
        elif isinstance(item, list):
            stack += item
        elif isinstance(item, dict) and id(item) not in seen:
            seen.add(id(item))
            words |= {"null"} if item.get("nullable") is True else set()
            stack += [item.get(key) for key in ("type", *IN_PLACE)]
    return words


class _Reader:
    """Reads the schemas of one tool; what they refer to is gathered in `definitions`."""

    def __init__(self, tool: dict[str, Any]) -> None:
        self.tool = tool
        self.names: dict[str, str] = {}
        self.sizes: dict[str, tuple[int, int]] = {}
        self.definitions: dict[str, Any] = {}

    def schema(self, node: Any, depth: int = 0) -> Any:
        """The schema of a node, which may be a type text."""
        if isinstance(node, str):
            return type_schema(node)
        if isinstance(node, bool):
            return ANYTHING if node else False
        if not isinstance(node, dict) or depth > _MAX_DEPTH:
            return ANYTHING
        parts = [_of_types(node.get("type")), self.structure(node, depth + 1)]
        for key in IN_PLACE:
            if members := [self.schema(member, depth + 1) for member in as_list(node.get(key))]:
                # Without bounds and enumerations, of which nothing is left here, several of `oneOf` may fit.
                parts.append({"allOf" if key == "allOf" else "anyOf": members})
        if "$ref" in node:
            parts.append(self.reference(node["$ref"], depth + 1))
        merged: dict[str, Any] = {}
        others = []
        for part in filter(None, parts):
            if merged.keys() & part.keys():
                others.append(part)
            else:
                merged |= part
        merged = {"allOf": [merged, *others]} if others else merged
        return {"anyOf": [merged, {"type": "null"}]} if node.get("nullable") is True else merged

    def structure(self, node: dict[str, Any], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if isinstance(properties := node.get("properties"), dict):
            found["properties"] = {name: self.schema(spec, depth) for name, spec in properties.items()}
        if required := [name for name in as_list(node.get("required")) if isinstance(name, str)]:
            found["required"] = required
        for key in ("items", "additionalProperties"):
            if key in node and not isinstance(node[key], list):
                found[key] = self.schema(node[key], depth)
        for key in ("items", "prefixItems"):
            if members := as_list(node.get(key)):
                found["prefixItems"] = [self.schema(member, depth) for member in members]
        return found

    def reference(self, reference: Any, depth: int) -> dict[str, Any]:
        if isinstance(reference, str) and reference in self.names:
            return {"$ref": f"#/$defs/{self.names[reference]}"}
        target = find_reference(reference, (self.tool.get("parameters"), self.tool))
        if target is None:
            return ANYTHING
        near = in_place(target, self.tool)
        if len(near) == MAX_IN_PLACE or any(node.get("$ref") == reference for node in near):
            return ANYTHING  # it leads to too much, or back to itself
        self.names[reference] = name = str(len(self.names))
        self.definitions[name] = ANYTHING  # until it is read
        schema = self.schema(target, depth)
        self.sizes[name] = nodes, levels = self.size(schema)
        if nodes <= MAX_IN_PLACE and levels <= _MAX_DEPTH:
            self.definitions[name] = schema
        else:
            self.sizes[name] = (1, 1)
        return {"$ref": f"#/$defs/{name}"}

    def size(self, schema: Any) -> tuple[int, int]:
        """How many nodes a validator looks at for one value, and how deep they nest, references written out.

        A few definitions that each name the next one twice come to billions of nodes.
        """
        if not isinstance(schema, dict):
            return 1, 1
        inner = [self.size(member) for key in IN_PLACE for member in schema.get(key, ())]
        if reference := schema.get("$ref"):
            inner.append(self.sizes.get(reference.removeprefix("#/$defs/"), (1, 1)))
        return 1 + sum(nodes for nodes, _ in inner), 1 + max((levels for _, levels in inner), default=0)


def _of_types(declared: Any) -> dict[str, Any]:
    if isinstance(declared, list) and declared:
        return {"anyOf": [type_schema(item) if isinstance(item, str) else ANYTHING for item in declared]}
    return type_schema(declared) if isinstance(declared, str) else {}


def type_schema(text: str) -> dict[str, Any]:
    """The JSON Schema of a type as xLAM writes it: `int`, `List[str], optional`, `Dict[str, Union[int, float]]`.

    A type that is not understood is anything; of tuples the items are not looked at.
    """
    parts = [part.strip() for part in _ITEM.findall(OPTIONAL.sub("", text))]
    if len(parts) > 1:  # int | str
        return {"anyOf": [type_schema(part) for part in parts]}
    head, _, inner = "".join(parts).partition("[")
    head, members = head.strip().lower(), [part.strip() for part in _ITEM.findall(inner.rpartition("]")[0])]
    if head in ("union", "optional") and members:
        null = [{"type": "null"}] if head == "optional" else []
        return {"anyOf": [type_schema(member) for member in members] + null}
    if head not in _TYPES:
        return {}
    schema: dict[str, Any] = {"type": _TYPES[head]}
    if schema["type"] == "array" and members and head != "tuple":
        schema["items"] = type_schema(members[0])
    elif schema["type"] == "object" and len(members) == 2:
        schema["additionalProperties"] = type_schema(members[1])
    return schema
