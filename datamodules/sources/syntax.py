"""Texts with calls in every syntax that data sets are known to use: lenient about syntax, never about meaning.

The rewards never use this: a model is held to the strict reader of `rewards.parser`.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from datamodules.sources import marks
from datamodules.sources.calls import calls_of, resolved
from datamodules.sources.declared import as_list, in_place, parameters, type_words
from datamodules.sources.values import read_value, read_whole, shown, skip_space
from rewards import Call, parse_calls
from rewards.calls import call_from
from rewards.literals import read_python_calls

CANDIDATES = 64  # places of a text that are tried as the beginning of calls


def read_answer(text: str, tools: list[dict[str, Any]]) -> tuple[str, list[Call] | None]:
    """Reads what an assistant says: its calls, and the text before them.

    Args:
        text: The text, without a chain of thought.
        tools: The tools on offer; their names, and for XML their types, decide where a text alone does not.

    Returns:
        `(text before, calls)`; or `(text, None)` for a text in which there is nothing of a call.

    Raises:
        ValueError: The text looks like calls and cannot be read as such, all of it.
    """
    calls, error = parse_calls(text)
    if calls is not None:
        return "", calls
    if not marks.SUSPECT.search(text):
        return text.strip(), None
    reader, reasons = _Reader(text, tools), {True: "", False: ""}  # of places with a mark, which tell more, and others
    for at in reader.candidates():
        before, marked = text[:at].strip(), marks.MARKS.match(text, at) is not None
        try:
            calls = reader.calls_from(at)
        except ValueError as failure:
            reasons[marked] = reasons[marked] or str(failure)
            continue
        certain = marked or (not before and not text.lstrip().startswith("```"))
        if certain or (calls and all(call.name in reader.offered for call in calls)) or (not before and not calls):
            if reader.looks_like_calls(before.rpartition("</think>")[2]):
                raise ValueError(f"there is something like a call in the text before the calls: {before[-80:]!r}")
            return before, calls
    if reader.looks_like_calls(text):
        raise ValueError(f"the calls cannot be read: {reasons[True] or reasons[False] or error}")
    return text.strip(), None


def looks_like_calls(text: str, tools: list[dict[str, Any]]) -> bool:
    """Whether there is anything of a call in a text, readable or not."""
    try:
        return bool(read_answer(text, tools)[1])
    except ValueError:
        return True


class _Reader:
    """One text, read at places."""

    def __init__(self, text: str, tools: list[dict[str, Any]]) -> None:
        self.text = text
        self.tools = {tool["name"]: tool for tool in tools}
        self.offered = frozenset(self.tools)
        self.names = sorted((name for name in self.offered if name), key=len, reverse=True)
        self.items: dict[int, tuple[list[Call], int] | str] = {}  # by place, or what is wrong there
        self.declared: dict[str, dict[str, Any]] = {}  # parameters of the tools that are called in XML

    def candidates(self) -> Iterator[int]:
        """Places where calls may begin: the text's beginning, marks, and lines that begin like calls."""
        places = {match.start() for match in marks.MARKS.finditer(self.text)} | {0}
        for match in marks.LINE.finditer(self.text):
            if self.text.startswith(("[", "{", "```", "Action:"), match.end()) or self.offered_at(match.end()):
                places.add(match.start())
        yield from sorted(places)[:CANDIDATES]

    def offered_at(self, at: int) -> str:
        """The name on offer that stands at a place with a bracket after it; "" if there is none."""
        for name in self.names:
            if self.text.startswith(name, at) and marks.BRACKET.match(self.text, at + len(name)):
                return str(name)
        return ""

    def looks_like_calls(self, text: str) -> bool:
        """Whether there is anything in a text that stands in calls and hardly elsewhere."""
        if marks.MARKS.search(text) or marks.OBJECT.match(text) or marks.PYTHON.match(text):
            return True
        for name in self.names:
            start, closed = -1, text.rfind(f"</{name}>")
            while (start := text.find(name, start + 1)) >= 0:
                if marks.is_called(text, start, start + len(name), closed):
                    return True
        return False

    def calls_from(self, at: int) -> list[Call]:
        """The calls from a place to the end of the text, in which nothing else may be."""
        calls: list[Call] = []
        found = False
        while (at := self.skip(at)) < len(self.text):
            more, at = self.item_once(at)
            calls.extend(more)
            found = True
        if not found:
            raise ValueError("there is no call")
        return calls

    def skip(self, at: int) -> int:
        between = marks.BETWEEN.match(self.text, at)
        return between.end() if between else at

    def item_once(self, at: int) -> tuple[list[Call], int]:
        """`item`, which reads each place once: texts that are tried from many places all come by the same ones."""
        if at not in self.items:
            try:
                self.items[at] = self.item(at)
            except ValueError as error:
                self.items[at] = str(error)
        found = self.items[at]
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def item(self, at: int) -> tuple[list[Call], int]:
        """One call or a list of them, in whatever syntax."""
        text = self.text
        if match := marks.BEFORE_OBJECT.match(text, at):
            without = match["b"] and (text[match.end() :] or "Observation:").startswith("Observation:")
            arguments, end = ({}, match.end()) if without else read_value(text, match.end())
            return calls_of({"name": _named(match), "arguments": arguments}, self.offered), end
        match = marks.BEFORE_XML.match(text, at)
        if match and (not match["c"] or match["c"].strip() in self.offered):
            return self.xml_call(resolved(_named(match), self.offered), match.end())
        inner = skip_space(text, at + 1)
        if text[at] == "{" or (text[at] == "[" and text[inner : inner + 1] in ("{", "[", "]", '"')):
            value, end = read_value(text, at)
            return calls_of(value, self.offered), end
        if text[at] == "[":
            return self.python_list(at + 1)
        return self.python_call(at, marks.DOTTED_NAME)

    def python_list(self, at: int) -> tuple[list[Call], int]:
        calls: list[Call] = []
        while self.text[(at := skip_space(self.text, at)) : at + 1] != "]":
            more, at = self.python_call(at, marks.NAME_WITH_BLANKS)
            calls += more
            at = skip_space(self.text, at)
            if self.text[at : at + 1] in (",", ";"):
                at += 1
            elif self.text[at : at + 1] != "]":
                raise ValueError(f"no comma or bracket after a call {shown(self.text, at)}")
        return calls, at + 1

    def python_call(self, at: int, other: re.Pattern[str]) -> tuple[list[Call], int]:
        found = other.match(self.text, at)
        called = self.offered_at(at) or (found[0].strip() if found else "")
        if not called:
            raise ValueError(f"no call {shown(self.text, at)}")
        at = skip_space(self.text, at + len(called)) + 1
        arguments: dict[str, Any] = {}
        while self.text[(at := skip_space(self.text, at)) : at + 1] != ")":
            name = marks.ARGUMENT.match(self.text, at)
            if name is None:
                raise ValueError(f"no named argument {shown(self.text, at)}")
            if name["name"] in arguments:
                raise ValueError(f"argument {name['name'][:80]!r} is given twice")
            arguments[name["name"]], at = self.python_value(name.end())
            at = skip_space(self.text, at)
            if self.text[at : at + 1] == ",":
                at += 1
            elif self.text[at : at + 1] != ")":
                raise ValueError(f"no comma or bracket after an argument {shown(self.text, at)}")
        if called not in self.offered and called.removesuffix(".call") in self.offered:  # Llama's own tools
            called = called.removesuffix(".call")
        return [call_from({"name": resolved(called, self.offered), "arguments": arguments})], at + 1

    def python_value(self, at: int) -> tuple[Any, int]:
        """A value as Python reads it, which differs from JSON in the escapes of strings."""
        value, end = read_value(self.text, at)
        try:
            read = read_python_calls(f"f(x={self.text[at:end]})")[0].arguments["x"]
            json.dumps(read, ensure_ascii=False).encode()  # fails for halves of a character, which JSON puts together
            return read, end
        except ValueError:
            return value, end

    def xml_call(self, name: str, at: int) -> tuple[list[Call], int]:
        arguments: dict[str, Any] = {}
        while match := marks.PAIR.match(self.text, at) or marks.PARAMETER.match(self.text, at):
            key, at = match["key"].strip(), match.end()
            if key in arguments:
                raise ValueError(f"argument {key[:80]!r} is given twice")
            text, more = match["value"], match.groupdict().get("more") or ""
            if 'string="false"' in more:  # DeepSeek's, of JSON
                arguments[key] = read_whole(text)
            else:
                arguments[key] = text if 'string="true"' in more else self.typed(name, key, text)
        return [call_from({"name": name, "arguments": arguments})], at

    def typed(self, name: str, key: str, text: str) -> Any:
        """The value that XML writes as a text, of the type that the tool declares."""
        tool = self.tools.get(name, {})
        if name not in self.declared:
            declared, _ = parameters(tool)
            texts = declared.get("properties")  # {"properties": {"days": "integer"}} is taken for a flat parameter
            self.declared[name] = (texts if isinstance(texts, dict) else {}) | declared
        spec = self.declared[name].get(key)
        nodes = in_place({"type": spec} if isinstance(spec, str | list) else spec, tool)
        words = type_words(nodes)
        null = words & {"null", "none"}
        if words - null and words - null <= {"str", "string"} and not (null and text.strip() in ("null", "None")):
            return text
        try:
            value = read_whole(text)
        except ValueError:
            value = text
        if isinstance(value, str) and (not words or words & {"str", "string", "any", "union", "optional"}):
            return text
        if any(text in as_list(node.get("enum")) for node in nodes):
            return text
        if isinstance(value, str) or not words or words & {"str", "string", "any"}:
            declares = (
                f"its tool declares {' or '.join(sorted(words))}" if words else "no type is declared to read it with"
            )
            raise ValueError(f"argument {key!r} of {name!r} is {text[:40]!r}, and {declares}")
        return value


def _named(match: re.Match[str]) -> str:
    return next(value for value in match.groupdict().values() if value is not None).strip()
