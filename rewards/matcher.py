"""Decides whether predicted calls are the expected ones (strict rules of FunRL's reward, arXiv 2508.05118, 4.1)."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rewards.calls import Call, as_calls, as_tools
from rewards.floats import NOWHERE, FloatPlaces, float_places


@dataclass(frozen=True)
class MatchResult:
    """Whether the calls match, and the first thing that differs ("" if nothing)."""

    matched: bool
    reason: str


class Agreement(NamedTuple):
    """Levels of agreement of calls under the best pairing; each includes the one before."""

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


def differences(predicted: Any, expected: Any, tools: Any) -> list[str]:
    """Explains why `match_calls` fails: the calls that have no equal and, of those that share a function, what differs.

    Args:
        predicted: As for `match_calls`.
        expected: As for `match_calls`.
        tools: As for `match_calls`.

    Returns:
        One sentence for each thing that differs; none if the calls match.
    """
    try:
        ours, theirs = as_calls(predicted), as_calls(expected)
        floats = float_places(as_tools(tools))
    except ValueError as error:
        return [str(error)]
    for given in list(ours):
        if twin := next((other for other in theirs if agree([given], [other], floats).arguments), None):
            ours = [other for other in ours if other is not given]  # `==` takes True for 1
            theirs = [other for other in theirs if other is not twin]
    found = []
    for wanted in theirs:
        same = next((call for call in ours if call.name == wanted.name), None)
        if same is None:
            found.append(f"{wanted.name} is not called")
            continue
        ours = [other for other in ours if other is not same]
        found += _argument_differences(same, wanted, floats.get(same.name, NOWHERE))
    return found + [f"{call.name} is called, and should not be" for call in ours]


def _argument_differences(call: Call, wanted: Call, floats: FloatPlaces) -> list[str]:
    found = [f"{call.name}: {name} is missing" for name in wanted.arguments if name not in call.arguments]
    for name, value in call.arguments.items():
        if name not in wanted.arguments:
            found.append(f"{call.name}: {name} is one too many")
        elif _key({name: value}, floats) != _key({name: wanted.arguments[name]}, floats):
            found.append(f"{call.name}: {name} is {value!r}, not {wanted.arguments[name]!r}")
    return found


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
        [(c.name, _key(c.arguments, floats.get(c.name, NOWHERE))) for c in calls] for calls in (predicted, expected)
    )
    return Agreement(True, True, _same(*keys))


def _same(ours: Any, theirs: Any) -> bool:
    return Counter(ours) == Counter(theirs)


def _key(value: Any, floats: FloatPlaces) -> Hashable:
    """A key that is equal exactly for values that count as equal."""
    if isinstance(value, dict):
        return "dict", frozenset((k, _key(v, floats.fields.get(k, floats.items or NOWHERE))) for k, v in value.items())
    if isinstance(value, list):
        return "list", tuple(_key(v, floats.fields.get(i, floats.items or NOWHERE)) for i, v in enumerate(value))
    kind = "float" if floats.here and type(value) is int else type(value).__name__
    return kind, value  # Python compares int and float exactly, and hashes equal ones alike
