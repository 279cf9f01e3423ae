"""Whether calls are right by the official rules of the Berkeley Function Calling Leaderboard (BFCL v3 and v4).

For evaluation only: the rules forgive so much (`1.5` equals `15` as text) that a model could learn to exploit them.

Three differences from the official checker, all where its answer is an accident:
  - what makes the official checker stop with an exception is a mismatch here;
  - Java and JavaScript collections of more than `MAX_COLLECTION` characters are not converted, because the official
    expressions take exponential time on some of them;
  - Python text is never evaluated, see `decode_bfcl`; an answer of more than `MAX_ANSWER` characters is none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.bfcl.decode import decode_bfcl
from rewards.bfcl.values import argument_differs
from rewards.calls import Call
from rewards.matcher import MatchResult

LANGUAGES = ("python", "java", "javascript")

# What the official checker raises on values that its rules did not foresee.
_STOPS = (TypeError, AttributeError, LookupError, ValueError, OverflowError, RecursionError, NotImplementedError)

_Named = tuple[Any, dict[Any, Any]]  # a call as name and arguments


def match_bfcl(
    predicted: Any,
    possible_answers: Sequence[Mapping[str, Any]] | None,
    functions: Sequence[Mapping[str, Any]],
    category: str,
    language: str = "python",
) -> MatchResult:
    """Matches calls by the official rules; no prediction makes it raise.

    Args:
        predicted: The decoded calls: a list of `{name: {argument: value}}` as the official decoders return them, of
            `{"name": ..., "arguments": {...}}`, or of `Call`s. Anything else, such as None, counts as no call. Python
            calls may also be given as the text that the model answered. Arguments of Java and JavaScript are texts.
        possible_answers: The row's `ground_truth`: for each expected call `{name: {argument: [accepted values]}}`,
            where "" among the values means that the argument may be absent. None where no call is expected.
        functions: The row's function descriptions.
        category: Name of the row's category. It decides the rule, as in the official checker: "irrelevance" in it wants
            no call, "relevance" any call, "parallel" all calls in any order, "multiple" one call of one of several
            functions, anything else one call of the only function.
        language: "python", "java" or "javascript".

    Returns:
        The verdict and its reason.

    Raises:
        ValueError: The language is unknown, or text is given in another language than Python.
    """
    language = language.lower()
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {', '.join(LANGUAGES)}, not {language!r}")
    if isinstance(predicted, str):
        if language != "python":
            raise ValueError(f"{language} text has to be decoded before it is matched")
        predicted, _ = decode_bfcl(predicted)
    calls = _named_calls(predicted)
    if "relevance" in category:
        return _relevance(bool(calls), wanted="irrelevance" not in category)
    if calls is None:
        return MatchResult(False, "the answer is not a list of calls")
    try:
        reason = _calls_differ(calls, possible_answers or [], functions, category, language)
    except _STOPS as error:
        reason = f"the official checker would stop with {type(error).__name__}"
    return MatchResult(not reason, reason)


def _named_calls(predicted: Any) -> list[_Named] | None:
    """The calls as names and arguments; None unless every one of a list is a call (is_function_calling_format)."""
    if not isinstance(predicted, list | tuple):
        return None
    calls = [call for call in map(_named_call, predicted) if call is not None]
    return calls if len(calls) == len(predicted) else None


def _named_call(item: Any) -> _Named | None:
    if isinstance(item, Call):
        return item.name, item.arguments
    if isinstance(item, dict) and item.keys() == {"name", "arguments"}:
        name, arguments = item["name"], item["arguments"]
    elif isinstance(item, dict) and len(item) == 1:
        ((name, arguments),) = item.items()
    else:
        return None
    return (name, arguments) if isinstance(arguments, dict) else None


def _relevance(called: bool, wanted: bool) -> MatchResult:
    """Only whether there is a call counts, not which; text that is no call is right where none is wanted."""
    if called == wanted:
        return MatchResult(True, "")
    return MatchResult(False, "there is no call" if wanted else "there is a call where no function fits")


def _calls_differ(
    calls: list[_Named],
    expected: Sequence[Mapping[str, Any]],
    functions: Sequence[Mapping[str, Any]],
    category: str,
    language: str,
) -> str:
    """What is wrong with the calls, or "" (ast_checker)."""
    if "parallel" in category:
        return _parallel_differ(calls, expected, functions, language)
    several = "multiple" in category
    if len(calls) != (len(expected) if several else 1):
        return f"{len(calls)} calls instead of {len(expected)}"
    function = _described(functions, expected[0]) if several else functions[0]
    return _call_differs(calls[0], expected[0], function, language)


def _parallel_differ(
    calls: list[_Named],
    expected: Sequence[Mapping[str, Any]],
    functions: Sequence[Mapping[str, Any]],
    language: str,
) -> str:
    """Any order, without second thoughts: each expected call takes the first free call that fits it."""
    if len(calls) != len(expected):
        return f"{len(calls)} calls instead of {len(expected)}"
    free = list(calls)
    for wanted in expected:
        function = _described(functions, wanted)
        for at, call in enumerate(free):
            if not _call_differs(call, wanted, function, language):
                del free[at]
                break
        else:
            return f"no call fits the expected call of '{next(iter(wanted))}'"
    return ""


def _described(functions: Sequence[Mapping[str, Any]], expected: Mapping[str, Any]) -> Mapping[str, Any]:
    """The description of the function that is expected to be called."""
    name = next(iter(expected))
    for function in functions:
        if function["name"] == name:
            return function
    raise KeyError(name)


def _call_differs(call: _Named, expected: Mapping[str, Any], function: Mapping[str, Any], language: str) -> str:
    """What is wrong with one call, or "" (simple_function_checker)."""
    name, arguments = call
    accepted = next(iter(expected.values()))
    declared = function["parameters"]["properties"]
    if name != function["name"]:
        return f"the function is not '{function['name']}'"
    for parameter in function["parameters"]["required"]:
        if parameter not in arguments:
            return f"the required argument '{parameter}' is missing"
    for parameter, value in arguments.items():
        if parameter not in declared or parameter not in accepted:
            return f"the argument '{parameter}' is not expected"
        if reason := argument_differs(value, accepted[parameter], declared[parameter], language):
            return f"the argument '{parameter}' {reason}"
    for parameter, alternatives in accepted.items():
        if parameter not in arguments and "" not in alternatives:
            return f"the argument '{parameter}' is missing"
    return ""
