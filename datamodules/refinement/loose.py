"""Lenient reading of calls with errors of form, so that they can be written correctly."""

import re
from typing import Any

from datamodules.refinement.schema import cast_to_types, find_misfit, fits, validator
from datamodules.sources.marks import ARGUMENT
from datamodules.sources.syntax import looks_like_calls, read_answer
from datamodules.sources.values import read_value, read_whole, skip_space
from rewards import Call
from rewards.calls import call_from, read_json
from rewards.parser import MAX_ANSWER

_STRING = re.compile(r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+\"""", re.DOTALL)
# The beginning of a word is the one place of it from which the second is tried.
_START = re.compile(r"[\[{]|(?<![\w.])(?:[^\WA-Za-z_]|\.)*+(?P<name>[A-Za-z_][\w.]*+\()")
_CLOSING = {"[": "]", "(": ")", "{": "}"}
_LEFT_OPEN = re.compile(r"[)}]?\]?")  # the list and its last call; an open value may have lost more than its bracket
_BARE = re.compile(r"""[^"'\[\](){}=\s,](?:[^"'\[\](){}=\n]*[^"'\[\](){}=\s])?""")


def read_loosely(text: str, tools: list[dict[str, Any]]) -> list[Call] | None:
    """Reads what parser and schema refuse for its form alone: as it was meant, or not at all.

    Besides all that `read_answer` reads of data, it sees through sentences around the calls, a list quoted as a JSON
    string, a list or a last call never closed, and strings without quotes.

    Args:
        text: An answer.
        tools: The offered tools, which the calls must fit.

    Returns:
        The calls in their declared types, or None where they are not certain. Nothing of the text is executed.
    """
    text = text.strip()
    if len(text) > MAX_ANSWER:
        return None
    try:
        if text.startswith('"'):
            text = str(read_json(text)).strip()
        calls = cast_to_types(_calls(text, tools), tools)
    except ValueError:
        return None
    return None if not calls or find_misfit(calls, tools) else calls


def _calls(text: str, tools: list[dict[str, Any]]) -> list[Call]:
    try:
        calls = read_answer(text, tools)[1]
    except ValueError:
        calls = None
    if calls is not None:
        return calls
    start = _START.search(text)
    if start is None:
        return []
    at = max(start.start(), start.start("name"))
    body = _closed(text[at:])
    if looks_like_calls(text[:at], tools) or looks_like_calls(text[at + len(body) :], tools):
        raise ValueError("there are calls beside the calls")
    try:
        return read_answer(body, tools)[1] or []
    except ValueError:
        return _without_quotes(body, {tool["name"]: validator(tool) for tool in tools})


def _closed(text: str) -> str:
    """The text up to where its first bracket is closed, with the brackets added that were never closed."""
    if text[0] not in _CLOSING:
        return text  # calls side by side
    open_brackets: list[str] = []
    at, unclosed = 0, ""  # quotes that close no more
    while at < len(text):
        if text[at] in "'\"" and text[at] not in unclosed:
            if string := _STRING.match(text, at):
                at = string.end()
                continue
            unclosed += text[at]
        if text[at] in _CLOSING:
            open_brackets.append(_CLOSING[text[at]])
        elif open_brackets and text[at] == open_brackets[-1]:
            open_brackets.pop()
            if not open_brackets:
                return text[: at + 1]
        at += 1
    added = "".join(reversed(open_brackets))
    if not _LEFT_OPEN.fullmatch(added):
        raise ValueError("a value is never closed")
    return text + added


def _without_quotes(text: str, tools: dict[str, Any]) -> list[Call]:
    """Reads `[f(a=Paris, 'b'=2)]`; the declared types say what is text, by validators under the names of tools."""
    calls: list[Call] = []
    at = skip_space(text, text.startswith("["))
    while at < len(text) and text[at] != "]":
        name = max((name for name in tools if text.startswith(f"{name}(", at)), key=len, default=None)
        if name is None:
            raise ValueError(f"no tool that is offered is called at {text[at : at + 40]!r}")
        arguments, at = _arguments(text, at + len(name) + 1, tools[name])
        calls.append(call_from({"name": name, "arguments": arguments}))
        at = _after(text, at, "]")
    if text[at:].strip() not in ("", "]"):
        raise ValueError("there is more after the calls")
    return calls


def _arguments(text: str, at: int, tool: Any) -> tuple[dict[str, Any], int]:
    arguments: dict[str, Any] = {}
    while text[at : at + 1] != ")":
        name = ARGUMENT.match(text, at)
        if name is None or name["name"] in arguments:
            raise ValueError(f"no argument, or one given twice, at {text[at : at + 40]!r}")
        if text[name.end() : name.end() + 1] in ("'", '"', "[", "{", "("):
            arguments[name["name"]], at = read_value(text, name.end())
        else:
            end = _bare_end(text, name.end())
            arguments[name["name"]], at = _bare_value(text[name.end() : end], tool, name["name"]), end
            if isinstance(arguments[name["name"]], str) and text[name.end() - 1] != "=":
                raise ValueError("white space before a text without quotes may belong to it")
        at = _after(text, at, ")")
    return arguments, at + 1


def _after(text: str, at: int, closing: str) -> int:
    at = skip_space(text, at)
    if text[at : at + 1] == ",":
        return skip_space(text, at + 1)
    if text[at : at + 1] not in (closing, ""):
        raise ValueError(f"no comma or {closing} at {text[at : at + 40]!r}")
    return at


def _bare_end(text: str, at: int) -> int:
    """Where a value without quotes ends: before the bracket of the call, or before the next `, name=`."""
    end = at
    while end < len(text) and text[end] != ")":
        if text[end] == "," and ARGUMENT.match(text, skip_space(text, end + 1)):
            break
        end += 1
    return end


def _bare_value(text: str, tool: Any, name: str) -> Any:
    """The one reading of a value without quotes that its declared type allows."""
    if not _BARE.fullmatch(text):
        raise ValueError(f"{text[:40]!r} may be part of a text, or several values")
    readings: list[Any] = [text]
    try:
        readings.append(read_whole(text))
    except ValueError:
        pass
    fitting = [reading for reading in readings if fits(tool, name, reading)]
    if len(fitting) != 1 or (fitting == [text] and text.lower() in ("null", "none")):
        raise ValueError(f"{name!r} may be {text[:40]!r} or {readings[-1]!r}")
    return fitting[0]
