# ruff: noqa: RUF001 (DeepSeek writes its marks with full-width bars)
"""Texts with calls in every syntax that data sets are known to use: lenient about syntax, never about meaning.

The rewards never use this: a model is held to the strict reader of `rewards.parser`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from datamodules.sources.calls import CALL_LISTS, NAME_KEYS, calls_of
from datamodules.sources.nulls import declared, types_of
from datamodules.sources.values import read_value, read_whole, skip_space
from rewards import Call, parse_calls
from rewards.calls import call_from
from rewards.literals import read_python_calls

_OPEN = [
    *("<tool_call>", "<tool_calls>", "<TOOLCALL>", "<functioncall>", "<function_call>", "<function_calls>"),
    *("<multiplefunctions>", "<minimax:tool_call>", "<start_function_call>", "<<function>>"),
    *("<|tool_call|>", "<|tool_calls|>", "<|tool_call_start|>", "<|python_tag|>", "<|python_start|>"),
    *("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|START_ACTION|>", "<|action_start|>", "<|plugin|>"),
    *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "[TOOL_CALLS]", "[TOOL_CALL]", "functools"),
]
_CLOSE = [
    *("</tool_call>", "</tool_calls>", "</TOOLCALL>", "</functioncall>", "</function_call>", "</function_calls>"),
    *("</multiplefunctions>", "</minimax:tool_call>", "<end_function_call>", "</function>", "</invoke>"),
    *("<|/tool_call|>", "<|/tool_calls|>", "<|tool_call_end|>", "<|python_end|>", "<|tool_calls_section_end|>"),
    *(
        "<|END_ACTION|>",
        "<|action_end|>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
        "[/TOOL_CALLS]",
        "[/TOOL_CALL]",
    ),
    "<start_function_response>",
]
_END = [
    *(
        "<|im_end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|call|>",
        "<|return|>",
    ),
    *("<end_of_turn>", "<｜end▁of▁sentence｜>", "<bot_end>", "</s>"),
]
END_TOKENS = re.compile(rf"(?:\s*(?:{'|'.join(map(re.escape, _END))}))+\s*\Z")
_BETWEEN = re.compile(rf"(?:[\s,;]|```\w*|{'|'.join(map(re.escape, _OPEN + _CLOSE + _END))})+")
_MARKERS = re.compile(
    rf"{'|'.join(map(re.escape, _OPEN[:-1]))}|functools\[|<function[= ]|<invoke name=|✿FUNCTION✿|to=functions\."
    r"|^Action:.*\n\s*Action Input:|call:[\w.-]+\{",
    re.MULTILINE,
)
_KEY = r"""["'](?:{})["']\s*:"""
_OBJECT = re.compile(rf"\s*(?:\[\s*)?\{{\s*{_KEY.format('|'.join(NAME_KEYS + CALL_LISTS))}")
_PYTHON = re.compile(r"\s*\[\s*[^\W\d][^\[\](){},;=\n\"']*\(")
_PAIR = re.compile(r"\s*<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>", re.DOTALL)
_PARAMETER = re.compile(
    r"""\s*<parameter(?:=|\s+name=)["']?(?P<key>[^>"']+)["']?[^>]*>\n?(?P<value>.*?)\n?</parameter>""", re.DOTALL
)
_SUSPECT = re.compile(r"[\[({<✿]")  # no call is written without one of these
_CANDIDATES = 64  # places of a text that are tried as the beginning of calls


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
    if not _SUSPECT.search(text):
        return text.strip(), None
    reader, reason = _Reader(text, tools), ""
    for at in reader.candidates():
        before, marked = text[:at].strip(), _MARKERS.match(text, at) is not None
        try:
            calls = reader.calls_from(at)
        except ValueError as failure:
            reason = reason or str(failure)
            continue
        certain = marked or (not before and not text.lstrip().startswith("```"))
        if certain or (calls and all(call.name in reader.offered for call in calls)) or (not before and not calls):
            if reader.looks_like_calls(before.rpartition("</think>")[2]):
                raise ValueError(f"there is something like a call in the text before the calls: {before[-80:]!r}")
            return before, calls
    if reader.looks_like_calls(text):
        raise ValueError(f"the calls cannot be read: {reason or error}")
    return text.strip(), None


@dataclass(frozen=True)
class _Patterns:
    """What depends on the names on offer, which may hold blanks and dashes."""

    before_object: re.Pattern[str]  # a name, and what stands between it and an object of arguments
    before_xml: re.Pattern[str]
    before_bracket: re.Pattern[str]
    in_list: re.Pattern[str]  # the same between square brackets, where a name that is not on offer may hold blanks
    starts: re.Pattern[str]
    suspect: re.Pattern[str]


@lru_cache(maxsize=256)
def _patterns(offered: frozenset[str]) -> _Patterns:
    names = "|".join(re.escape(name) for name in sorted(offered, key=lambda name: (-len(name), name))) or r"(?!)"

    def name(number: int, other: str = r"[\w.:/-]+") -> str:
        return rf"(?P<name{number}>(?:{names})(?![\w.-])|{other})"

    return _Patterns(
        re.compile(
            rf"✿FUNCTION✿:?\s*{name(1)}\s*✿ARGS✿:?\s*"
            rf"|Action:\s*{name(2)}\s*\n\s*Action Input:\s*"
            rf"|function<｜tool▁sep｜>{name(3)}\s*```(?:json)?\s*"
            rf"|(?:functions\.)?{name(4)}<｜tool▁sep｜>\s*"
            rf"|(?:functions\.)?{name(5, '[^:<]+?')}(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*"
            rf"|(?:<\|start\|>\w+\s*)?(?:<\|channel\|>\w+\s*)?to=functions\.{name(6)}[^{{}}]*?<\|message\|>\s*"
            rf"|{name(7)}(?:\[CALL_ID\][\w-]+)?\[ARGS\]\s*"
            rf"|call:{name(8)}(?=\{{)"
            r"|<function(?:=|\s+name=)[\"']?(?P<name9>[^>\"']+?)[\"']?>\s*(?=\{)"
        ),
        re.compile(
            r"<(?:function(?:=|\s+name=)|invoke\s+name=)[\"']?(?P<name1>[^>\"']+?)[\"']?>(?=\s*<)"
            rf"|(?P<name2>{names}|[\w.-]+)(?=\s*<arg_key>)|(?P<name3>{names})(?=\s*</tool_call>)"
        ),
        re.compile(rf"(?P<name>(?:{names})(?=\s*\()|[^\W\d][\w.-]*(?=\s*\())\s*\("),
        re.compile(rf"(?P<name>(?:{names})(?=\s*\()|[^\W\d][^\[\](){{}},;=\n\"'<>]*?(?=\s*\())\s*\("),
        re.compile(rf"{_MARKERS.pattern}|^[ \t]*(?=[\[{{]|```|(?:{names})\s*\()|\A\s*", re.MULTILINE),
        re.compile(
            rf"(?<![\w.])(?:{names})(?:\(|\s+\(\s*(?:\w+\s*=|\)))"
            rf"""|{_KEY.format("|".join(NAME_KEYS))}\s*["'](?:{names})["']|["'](?:{names})["']\s*:\s*\{{"""
        ),
    )


class _Reader:
    """One text, read at places."""

    def __init__(self, text: str, tools: list[dict[str, Any]]) -> None:
        self.text = text
        self.tools = {tool["name"]: tool for tool in tools}
        self.offered = frozenset(self.tools)
        self.patterns = _patterns(self.offered)

    def candidates(self) -> Iterator[int]:
        """Places where calls may begin: the text's beginning, markers, and lines that begin like calls."""
        for number, match in enumerate(self.patterns.starts.finditer(self.text)):
            if number == _CANDIDATES:
                return
            yield match.start()

    def looks_like_calls(self, text: str) -> bool:
        """Whether there is anything in a text that stands in calls and hardly elsewhere."""
        return any(
            pattern(text) for pattern in (_MARKERS.search, _OBJECT.match, _PYTHON.match, self.patterns.suspect.search)
        )

    def calls_from(self, at: int) -> list[Call]:
        """The calls from a place to the end of the text, in which nothing else may be."""
        calls, found = [], False
        while (at := self.skip(at)) < len(self.text):
            more, at = self.item(at)
            calls, found = calls + more, True
        if not found:
            raise ValueError("there is no call")
        return calls

    def skip(self, at: int) -> int:
        between = _BETWEEN.match(self.text, at)
        return between.end() if between else at

    def item(self, at: int) -> tuple[list[Call], int]:
        """One call or a list of them, in whatever syntax."""
        text = self.text
        if match := self.patterns.before_object.match(text, at):
            arguments, end = read_value(text, match.end())
            return calls_of({"name": self.resolved(_named(match)), "arguments": arguments}), end
        if match := self.patterns.before_xml.match(text, at):
            return self.xml_call(self.resolved(_named(match)), match.end())
        if text[at] == "{" or (text[at] == "[" and text[skip_space(text, at + 1) :][:1] in ("{", "[", "]", '"')):
            value, end = read_value(text, at)
            return [self.with_resolved_name(call) for call in calls_of(value, self.offered)], end
        if text[at] == "[":
            return self.python_list(at + 1)
        return self.python_call(at, self.patterns.before_bracket)

    def python_list(self, at: int) -> tuple[list[Call], int]:
        calls: list[Call] = []
        while self.text[(at := skip_space(self.text, at)) : at + 1] != "]":
            more, at = self.python_call(at, self.patterns.in_list)
            calls += more
            at = skip_space(self.text, at)
            if self.text[at : at + 1] in (",", ";"):
                at += 1
            elif self.text[at : at + 1] != "]":
                raise ValueError(f"no comma or bracket after a call at {self.text[at : at + 40]!r}")
        return calls, at + 1

    def python_call(self, at: int, before_bracket: re.Pattern[str]) -> tuple[list[Call], int]:
        match = before_bracket.match(self.text, at)
        if match is None:
            raise ValueError(f"no call at {self.text[at : at + 40]!r}")
        at, arguments = match.end(), {}
        while self.text[(at := skip_space(self.text, at)) : at + 1] != ")":
            name = re.compile(r"""(?P<quote>["']?)(?P<name>[^\s"'=,()\[\]{}]+)(?P=quote)\s*=\s*""").match(self.text, at)
            if name is None:
                raise ValueError(f"no named argument at {self.text[at : at + 40]!r}")
            if name["name"] in arguments:
                raise ValueError(f"argument {name['name'][:80]!r} is given twice")
            arguments[name["name"]], at = self.python_value(name.end())
            at = skip_space(self.text, at)
            if self.text[at : at + 1] == ",":
                at += 1
            elif self.text[at : at + 1] != ")":
                raise ValueError(f"no comma or bracket after an argument at {self.text[at : at + 40]!r}")
        name_of_call = match["name"].strip()
        if name_of_call not in self.offered and name_of_call.removesuffix(".call") in self.offered:  # Llama's own tools
            name_of_call = name_of_call.removesuffix(".call")
        return [call_from({"name": self.resolved(name_of_call), "arguments": arguments})], at + 1

    def python_value(self, at: int) -> tuple[Any, int]:
        """A value as Python reads it, which differs from JSON in the escapes of strings."""
        value, end = read_value(self.text, at)
        try:
            return read_python_calls(f"f(x={self.text[at:end]})")[0].arguments["x"], end
        except ValueError:
            return value, end

    def xml_call(self, name: str, at: int) -> tuple[list[Call], int]:
        arguments: dict[str, Any] = {}
        while match := _PAIR.match(self.text, at) or _PARAMETER.match(self.text, at):
            key, at = match["key"].strip(), match.end()
            if key in arguments:
                raise ValueError(f"argument {key[:80]!r} is given twice")
            arguments[key] = self.typed(name, key, match["value"])
        return [call_from({"name": name, "arguments": arguments})], at

    def typed(self, name: str, key: str, text: str) -> Any:
        """The value that XML writes as a text, of the type that the tool declares."""
        schema = declared(self.tools.get(name, {})).get(key)
        words = types_of(schema)
        if words & {"str", "string"} and len(words) == 1:
            return text
        try:
            value = read_whole(text)
        except ValueError:
            value = text
        if isinstance(value, str) and (not words or words & {"str", "string", "any", "union", "optional"}):
            return text
        if isinstance(schema, dict) and isinstance(schema.get("enum"), list) and text in schema["enum"]:
            return text
        if isinstance(value, str) or not words or words & {"str", "string", "any"}:
            raise ValueError(f"argument {key!r} of {name!r} is {text[:40]!r}, and no type is declared to read it with")
        return value

    def resolved(self, name: str) -> str:
        """The name of a tool; what servers put before it is taken off where only that is offered."""
        short = name.removeprefix("functions.")
        return short if name not in self.offered and short in self.offered else name

    def with_resolved_name(self, call: Call) -> Call:
        return Call(self.resolved(call.name), call.arguments)


def _named(match: re.Match[str]) -> str:
    return next(value for value in match.groupdict().values() if value is not None).strip()
