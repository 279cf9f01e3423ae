"""Reads Python calls as the official decoders of BFCL do, and evaluates nothing.

The official ones hand arithmetic, and whatever else stands in it, to `eval`. Here arithmetic on literal numbers and the
joining of literal texts are worked out; anything else in it is an error, as are a huge power and a huge answer. Nothing
else differs: positional arguments are dropped, the last of repeated arguments counts, a bare name is a text, every sign
is a minus.
"""

import ast
import operator
import warnings
from collections.abc import Callable
from typing import Any

from rewards.parser import MAX_ANSWER

MAX_BITS = 4_096  # of an integer that a power makes

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Invert: operator.invert,
}


def decode_bfcl(text: str, version: int = 3) -> tuple[list[dict[str, dict[Any, Any]]] | None, str | None]:
    """Reads the text of an answer; whatever the text, it never raises.

    Args:
        text: What the model wrote after its reasoning; back quotes, missing outer brackets and quotes around it are
            forgiven, as they are by the official decoders.
        version: Of BFCL: 3 takes any brackets and single quotes off both ends, 4 takes quotes off only.

    Returns:
        `(calls, None)` with each call as `{name: {argument: value}}`, or `(None, what is wrong)`.
    """
    if len(text) > MAX_ANSWER:  # Python's own parser takes quadratic time on some that are none
        return None, f"the answer is longer than {MAX_ANSWER} characters"
    text = with_brackets(text)
    text = text.strip("[]'") if version == 3 else text.strip().strip("'")
    if not text.strip():
        return None, "the answer cannot be read as calls: there is none"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange escapes and literals in the text
            body = ast.parse(text, mode="eval").body
        return [_call(node) for node in _calls(body)], None
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        return None, f"the answer cannot be read as calls: {error}"


def with_brackets(text: str) -> str:
    """The answer as a list: without back quotes, line feeds and spaces around it, with the brackets that it lacks."""
    text = text.strip("`\n ")
    text = text if text.startswith("[") else "[" + text
    return text if text.endswith("]") else text + "]"


def _calls(body: ast.expr) -> list[ast.Call]:
    """One call, or the members of a list, tuple or set of calls."""
    if isinstance(body, ast.Call):
        return [body]
    if not isinstance(body, ast.List | ast.Tuple | ast.Set):
        raise ValueError("it is no list of calls")
    calls = [node for node in body.elts if isinstance(node, ast.Call)]
    if len(calls) < len(body.elts):
        raise ValueError("something in the list is no call")
    return calls


def _call(node: ast.Call) -> dict[str, dict[Any, Any]]:
    """Only keywords are arguments; what stands before the last dotted name is not part of the name."""
    parts, function = [], node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if isinstance(function, ast.Name):
        parts.append(function.id)
    return {".".join(reversed(parts)): {keyword.arg: _value(keyword.value) for keyword in node.keywords}}


def _value(node: ast.expr | None) -> Any:
    match node:
        case ast.Constant(value=value):
            return "..." if value is Ellipsis else value
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Dict(keys=keys, values=values):
            return {_value(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(operand=ast.Constant(value=value)):
            return -value  # type: ignore[operator]  # whichever sign was written; no number is a TypeError
        case ast.BinOp():
            return _arithmetic(node)
        case ast.Name(id=name):
            return name
        case ast.Call(keywords=keywords):
            return _call(node) if keywords else ast.unparse(node)
        case ast.Subscript(value=container, slice=index):
            return f"{ast.unparse(container)}[{ast.unparse(index)}]"
    raise ValueError(f"{type(node).__name__} is not a value")


def _arithmetic(node: ast.expr) -> Any:
    """The value of an expression of literal numbers, or of a sum of literal texts."""
    match node:
        case ast.Constant(value=int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _SIGNS:
            return _SIGNS[type(sign)](_arithmetic(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _computed(op, _arithmetic(left), _arithmetic(right))
    raise ValueError("it computes with something that is not a literal")


def _computed(op: ast.operator, left: Any, right: Any) -> Any:
    """One operation, unless a few characters could make it take long."""
    if str in (type(left), type(right)) and not isinstance(op, ast.Add):
        raise ValueError("it computes with a text")
    if isinstance(op, ast.Pow) and isinstance(left, int) and left.bit_length() * right > MAX_BITS:
        raise ValueError("it computes a large power")
    return _OPERATORS[type(op)](left, right)
