"""Whether calls fit the tools offered: names, required parameters and declared types."""

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from datamodules.sources.declared import argument_schema, parameters
from datamodules.sources.values import read_whole
from rewards import Call

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_TYPES = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)  # 3.0 is none
_Validator = extend(Draft202012Validator, type_checker=_TYPES)


class Misfit(NamedTuple):
    """A contradiction between calls and tools: "function", "parameter" or "type", and a sentence."""

    fault: str
    reason: str


def find_misfit(calls: list[Call], tools: list[dict[str, Any]]) -> Misfit | None:
    """The first contradiction between calls and tools, or None.

    A type that is not understood accepts anything; a parameter that is not required may be null.

    Args:
        calls: The calls.
        tools: The offered tools, with xLAM's flat parameters or a JSON Schema.
    """
    offered = {tool["name"]: tool for tool in tools}
    read: dict[str, Any] = {}  # a tool is read once, however often it is called
    for call in calls:
        if call.name not in offered:
            return Misfit("function", f"{call.name!r} is not among the tools offered")
        if call.name not in read:
            read[call.name] = (*parameters(offered[call.name]), validator(offered[call.name]))
        if misfit := _misfit(call, *read[call.name]):
            return misfit
    return None


def fits(declared: Any, name: str, value: Any) -> bool:
    """Whether a value fits what a tool, given by its `validator`, declares for one argument."""
    errors = declared.iter_errors({name: value})
    return not any(error.absolute_path or error.validator == "unevaluatedProperties" for error in errors)


def _misfit(call: Call, declared: dict[str, Any], required: list[str], declares: Any) -> Misfit | None:
    for name in required:
        if name not in call.arguments:
            return Misfit("parameter", f"{call.name!r} is not given its required parameter {name!r}")
    errors = [error for error in declares.iter_errors(call.arguments) if not _is_left_out(error, required)]
    if of_values := [error for error in errors if error.absolute_path]:
        name = str(of_values[0].absolute_path[0])
        shown = _shown(declared.get(name))
        return Misfit("type", f"{name!r} of {call.name!r} is declared {shown!r} and given {call.arguments[name]!r}")
    if not errors:
        return None
    unknown = next((name for name in call.arguments if name not in declared), None)
    if unknown is None:
        return Misfit("parameter", f"the arguments of {call.name!r} do not fit its schema: {errors[0].message[:200]}")
    return Misfit("parameter", f"{call.name!r} has no parameter {unknown!r}")


def _is_left_out(error: ValidationError, required: list[str]) -> bool:
    path = error.absolute_path
    return error.instance is None and len(path) == 1 and path[0] not in required


def _shown(spec: Any) -> str:
    declared = spec.get("type") if isinstance(spec, dict) else spec
    return declared if isinstance(declared, str) else json.dumps(spec)[:120]


def validator(tool: dict[str, Any]) -> Any:
    """The `jsonschema` validator of the arguments that a tool declares."""
    return _validator(json.dumps(tool))


@lru_cache(maxsize=4096)  # the stages and the judges ask for the same tools
def _validator(tool: str) -> Any:
    return _Validator(argument_schema(json.loads(tool)))


def cast_to_types(calls: list[Call], tools: list[dict[str, Any]]) -> list[Call]:
    """The calls with values written in their declared types where that loses nothing: "3" for an int becomes 3."""
    called = {call.name for call in calls}
    offered = {tool["name"]: validator(tool) for tool in tools if tool["name"] in called}
    return [_cast(call, offered[call.name]) if call.name in offered else call for call in calls]


def _cast(call: Call, declares: Any) -> Call:
    arguments = copy.deepcopy(call.arguments)
    definitions = declares.schema.get("$defs", {})
    for error in declares.iter_errors(call.arguments):
        *parents, last = error.absolute_path or [None]
        if last is None or not isinstance(error.schema, dict):
            continue
        fits = _Validator(error.schema | {"$defs": definitions}).is_valid
        for reading in filter(fits, _readings(error.instance)):
            holder: Any = arguments
            for step in parents:
                holder = holder[step]
            holder[last] = reading
            break
    return replace(call, arguments=arguments)


def _readings(value: Any) -> Iterator[Any]:
    """What a value of a wrong type may have been meant as, the plainest first."""
    if type(value) is int:  # of a float it is not known how it was written: 6.10 is 6.1
        yield str(value)
    if type(value) is float and value.is_integer():
        yield int(value)
    if not isinstance(value, str):
        return
    text = value.strip()
    if text.lower() in ("true", "false"):
        yield text.lower() == "true"
    if number := _NUMBER.fullmatch(text):
        yield (float if number[1] else int)(text)
    if text[:1] in ("[", "{", "("):
        yield from _literal(text)
    elif text:
        yield from _literal(f"[{text}]")
        if not re.search(r"""["\[\]{}()]|(^|,)\s*'|'\s*(,|$)""", text):  # never inside quotes or brackets
            yield [item.strip() for item in text.split(",")]


def _literal(text: str) -> Iterator[Any]:
    """The value of JSON or a Python literal, if a text is one."""
    try:
        value = read_whole(text)
    except ValueError:
        return
    if isinstance(value, list | dict):
        yield value
