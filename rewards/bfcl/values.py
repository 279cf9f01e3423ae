"""Whether one argument is right on BFCL: its type as declared, its value among the accepted ones."""

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.bfcl.java import JAVA_TYPES, java_value
from rewards.bfcl.javascript import JAVASCRIPT_TYPES, javascript_value

PYTHON_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
TYPES: dict[str, dict[str, type]] = {"python": PYTHON_TYPES, "java": JAVA_TYPES, "javascript": JAVASCRIPT_TYPES}
WITH_ITEMS = {"python": ("array", "tuple"), "java": ("Array", "ArrayList"), "javascript": ("array",)}
"""Declared types whose items have a declared type too."""

_FORGIVEN = str.maketrans({**dict.fromkeys(" ,./-_*^"), "'": '"'})


def argument_differs(value: Any, alternatives: Sequence[Any], declared: Mapping[str, Any], language: str) -> str:
    """The error in the value of an argument, or "" if it is right.

    Args:
        value: As decoded; a text for Java and JavaScript.
        alternatives: The accepted values; "" stands for an absent argument.
        declared: The parameter's `type` and, for lists, its `items`.
        language: One of `TYPES`.

    Returns:
        "has another type", "has another value", or "" if it is right.
    """
    kind = declared["type"]
    items = declared["items"]["type"] if kind in WITH_ITEMS[language] else None
    expected = TYPES[language][kind]
    expected_item = TYPES[language][items] if items else None
    if language == "python":
        value = _lenient(value, kind)
    elif type(value) is not str:
        return "has another type"
    else:
        value = (java_value if language == "java" else javascript_value)(value, kind, items)
    fits, is_variable = _type_fits(value, alternatives, expected, expected_item)
    if not fits:
        return "has another type"
    fits = value in alternatives if is_variable else _value_fits(value, alternatives, expected, expected_item)
    return "" if fits else "has another value"


def _lenient(value: Any, kind: str) -> Any:
    """An integer may stand for a float, and a tuple is compared as a list; neither inside lists or dicts."""
    if kind == "float" and type(value) is int:
        return float(value)
    return list(value) if kind == "tuple" and type(value) is tuple else value


def _type_fits(
    value: Any, alternatives: Sequence[Any], expected: type, expected_item: type | None
) -> tuple[bool, bool]:
    """Whether the type fits, and whether the value counts as the name of a variable (type_checker).

    Exact types: True is no integer. A variable is what has the type of the first accepted value instead of the declared
    one, or stands where these two differ; it is then compared as it is.
    """
    accepted = next((type(alternative) for alternative in alternatives if alternative != ""), None)
    if type(value) is expected:
        fits = expected_item is None or any(_items_fit(value, a, expected_item) for a in alternatives)
        return fits, accepted not in (None, expected)
    return type(value) is accepted, True


def _items_fit(value: Any, alternative: Any, expected: type) -> bool:
    """Whether each item has the declared type, or that of the alternative's first item; one level deep."""
    return type(alternative) is not list or all(_type_fits(item, alternative, expected, None)[0] for item in value)


def _value_fits(value: Any, alternatives: Sequence[Any], expected: type, expected_item: type | None) -> bool:
    if expected is dict:
        return _dict_fits(value, alternatives)
    if expected is list and expected_item is dict:
        return _dicts_fit(value, alternatives)
    if expected is list:
        return _standard_list(value) in [_standard_list(alternative) for alternative in alternatives]
    if expected is str:
        return _standard(value) in _standard_list(alternatives)
    return value in alternatives


def _standard(value: Any) -> Any:
    """A text without spaces, `,./-_*^` and case, with double quotes; any other value as it is (standardize_string)."""
    return value.translate(_FORGIVEN).lower() if type(value) is str else value


def _standard_list(values: Sequence[Any]) -> list[Any]:
    """The items in their order, texts among them standardised; lists inside are compared as they are."""
    return [_standard(value) for value in values]


def _dict_fits(value: dict[Any, Any], alternatives: Sequence[Any]) -> bool:
    """One alternative knows every key and accepts its value, and lacks no key that must be there (dict_checker)."""
    for alternative in alternatives:
        if alternative == "":
            continue
        given = all(
            key in alternative and _standard(item) in _standard_list(alternative[key]) for key, item in value.items()
        )
        complete = all(key in value or "" in accepted for key, accepted in alternative.items())
        if given and complete:
            return True
    return False


def _dicts_fit(value: list[Any], alternatives: Sequence[Any]) -> bool:
    """One alternative has as many dicts, and each fits in its place (list_dict_checker)."""
    return any(
        len(value) == len(alternative)
        and all(_dict_fits(item, [wanted]) for item, wanted in zip(value, alternative, strict=True))
        for alternative in alternatives
    )
