"""Arguments as Python code gives them: taken as the kind that a constructor declares, or refused in one sentence.

What a YAML holds is checked when it is read. Numbers of numpy and paths become numbers and texts of Python, for a
checkpoint that held others could not be read again.
"""

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np

Class = TypeVar("Class", bound=type)
WORDS = {
    NoneType: "None",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Callable: "a function",
    dict: "a dict, by name,",
    tuple: "a tuple",
    list: "a list",
}


def declared(cls: Class) -> Class:
    """Decorate a class, a dataclass too, whose constructor is to take only what its annotations say; see `taken`."""
    init = cls.__init__
    kinds = inspect.get_annotations(init)
    in_order = list(kinds.items())[: init.__code__.co_argcount - 1]  # those that may be given without their names

    @wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        of = type(self).__name__
        first = [taken(f"{of}: {name}", value, kind) for (name, kind), value in zip(in_order, args, strict=False)]
        named = {name: taken(f"{of}: {name}", value, kinds.get(name, Any)) for name, value in kwargs.items()}
        init(self, *first, *args[len(first) :], **named)

    cls.__init__ = __init__
    return cls


def taken(name: str, value: Any, kind: Any) -> Any:
    """A value as the kind that it is to be of.

    Raises:
        ValueError: It is of another; naming it and what to give.
    """
    try:
        return _taken(value, kind)
    except TypeError:
        text = " ".join(repr(value).split())
        shown = text if len(text) <= 80 else text[:79] + "…"
        raise ValueError(f"{name} is {shown}; give {_words(kind)}.") from None


def _taken(value: Any, kind: Any) -> Any:
    """See `taken`; TypeError where the value is of another kind."""
    origin, of = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        for one in of:
            try:
                return _taken(value, one)
            except TypeError:
                continue
    elif origin is Literal:
        if any(type(value) is type(one) and value == one for one in of):
            return value
    elif origin in (bool, int, float):
        if isinstance(value, bool | np.bool_) == (origin is bool):
            if isinstance(value, {bool: bool | np.bool_, int: Integral, float: Real}[origin]):
                return value.item() if isinstance(value, np.generic) else value
    elif origin is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    elif origin in (tuple, list):
        if isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping):
            wanted = of if origin is tuple else of * len(value)
            if len(wanted) == len(value):
                return origin(_taken(one, part) for one, part in zip(value, wanted, strict=True))
    elif origin is dict:
        if isinstance(value, Mapping):
            return {key: _taken(one, of[1]) for key, one in value.items()}
    elif getattr(origin, "_is_protocol", False):
        if callable(value) and not isinstance(value, type):  # the rest of it shows where it is called
            return value
    elif origin is Any or not isinstance(origin, type) or isinstance(value, origin):
        return value
    raise TypeError


def _words(kind: Any) -> str:
    """What to give for a kind."""
    origin, of = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        words = [_words(one) for one in of]
    elif origin is Literal:
        words = list(map(str, of))
    elif origin in (tuple, list, dict) and of:
        return f"{WORDS[origin]} of {' and '.join(map(_words, of[1:] if origin is dict else of))}"
    else:
        return WORDS.get(origin) or f"an object of {origin.__module__}.{origin.__name__}"
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last
