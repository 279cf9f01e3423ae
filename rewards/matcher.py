"""Decides whether predicted calls are the expected ones (strict rules of FunRL's reward, arXiv 2508.05118, 4.1)."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rewards.calls import Call, as_calls, as_tools

_FLOATS = {"float", "number", "double"}
_SEQUENCES = {"list", "array", "set", "sequence", "iterable", "collection"}
_MAPPINGS = {"dict", "object", "mapping"}
_MAX_TYPE_DEPTH = 16


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


_NOWHERE = FloatPlaces()


@dataclass(frozen=True)
class MatchResult:
    """Whether the calls match, and the first thing that differs ("" if nothing)."""

    matched: bool
    reason: str


class Agreement(NamedTuple):
    """How far calls agree under the best pairing; each level includes the one before."""

    names: bool
    argument_names: bool
    arguments: bool


def match_calls(predicted: Any, expected: Any, tools: Any) -> MatchResult:
    """Matches calls one to one, in any order; it never raises.

    Function names, argument names and values must be equal, and so must types: a bool is no int, a list's items keep
    their order, an argument that repeats its default is still one too many. The one leniency: where the tool declares
    a float, integers and floats are compared by value.

    Args:
        predicted: Calls, as `as_calls` accepts them.
        expected: The reference calls. They are followed even where they contradict the tools.
        tools: The offered tools, as `as_tools` accepts them.

    Returns:
        The verdict and its reason.
    """
    try:
        ours, theirs = as_calls(predicted), as_calls(expected)
        floats = float_places(as_tools(tools))
    except ValueError as error:
        return MatchResult(False, str(error))
    if len(ours) != len(theirs):
        return MatchResult(False, f"{len(ours)} calls instead of {len(theirs)}")
    agreement = agree(ours, theirs, floats)
    if not agreement.names:
        return MatchResult(False, "the function names differ")
    if not agreement.argument_names:
        return MatchResult(False, "the argument names differ")
    return MatchResult(agreement.arguments, "" if agreement.arguments else "an argument differs in value or type")


def agree(predicted: Sequence[Call], expected: Sequence[Call], floats: dict[str, FloatPlaces]) -> Agreement:
    """Compares two multisets of calls; `floats` is `float_places(tools)`.

    Every comparison is equality of keys, hence an equivalence, so equal multisets are exactly the existence of a
    one-to-one pairing, and comparing them takes linear time.
    """
    if len(predicted) != len(expected) or not _same((c.name for c in predicted), (c.name for c in expected)):
        return Agreement(False, False, False)
    if not _same(*([(c.name, frozenset(c.arguments)) for c in calls] for calls in (predicted, expected))):
        return Agreement(True, False, False)
    keys = (
        [(c.name, _key(c.arguments, floats.get(c.name, _NOWHERE))) for c in calls] for calls in (predicted, expected)
    )
    return Agreement(True, True, _same(*keys))


def _same(ours: Any, theirs: Any) -> bool:
    return Counter(ours) == Counter(theirs)


def _key(value: Any, floats: FloatPlaces) -> Hashable:
    """A key that is equal exactly for values that count as equal."""
    if isinstance(value, dict):
        return "dict", frozenset((k, _key(v, floats.fields.get(k, floats.items or _NOWHERE))) for k, v in value.items())
    if isinstance(value, list):
        return "list", tuple(_key(v, floats.fields.get(i, floats.items or _NOWHERE)) for i, v in enumerate(value))
    kind = "float" if floats.here and type(value) is int else type(value).__name__
    return kind, value  # Python compares int and float exactly, and hashes equal ones alike


def float_places(tools: list[dict[str, Any]]) -> dict[str, FloatPlaces]:
    """Where each tool's arguments are declared float, by tool name.

    Parameters are xLAM's flat `{name: {"type": ...}}` or a JSON Schema with `properties`.
    """
    return {tool["name"]: FloatPlaces(fields=_parameters(tool.get("parameters"), 0)) for tool in tools}


def _parameters(declared: Any, depth: int) -> dict[str | int, FloatPlaces]:
    if not isinstance(declared, dict):
        return {}
    properties = declared.get("properties")
    # A flat parameter that happens to be called "properties" describes itself with texts, not with objects only.
    if isinstance(properties, dict) and all(isinstance(value, dict) for value in properties.values()):
        declared = properties
    return {name: _declared(spec, depth) for name, spec in declared.items()}


def _declared(spec: Any, depth: int) -> FloatPlaces:
    """The float places of one parameter: a type text or a JSON Schema."""
    if depth > _MAX_TYPE_DEPTH:
        return _NOWHERE
    if isinstance(spec, str):
        return _from_text(spec, depth)
    if isinstance(spec, list):  # alternatives, such as ["number", "null"]
        return _union([_declared(item, depth + 1) for item in spec])
    if not isinstance(spec, dict):
        return _NOWHERE
    places = [_declared(spec[key], depth + 1) for key in ("type", "anyOf", "oneOf") if key in spec]
    for key in ("items", "additionalProperties"):
        if key in spec:
            places.append(FloatPlaces(items=_declared(spec[key], depth + 1)))
    if isinstance(spec.get("properties"), dict):
        places.append(FloatPlaces(fields={k: _declared(v, depth + 1) for k, v in spec["properties"].items()}))
    return _union(places)


def _from_text(text: str, depth: int) -> FloatPlaces:
    """The float places of a type text such as `List[float], optional`."""
    if depth > _MAX_TYPE_DEPTH:
        return _NOWHERE
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
    return _NOWHERE


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
        return places[0] if places else _NOWHERE
    items = [place.items for place in places if place.items is not None]
    keys = {key for place in places for key in place.fields}
    fields = {key: _union([place.fields[key] for place in places if key in place.fields]) for key in keys}
    return FloatPlaces(any(place.here for place in places), _union(items) if items else None, fields)
