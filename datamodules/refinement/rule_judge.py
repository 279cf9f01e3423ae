"""A judge made of rules: the same reply to the same question, and no model.

It goes by words. A tool is asked for if the request says what the tool's description says; a value is given if the
request holds it; a chain of thought leads to the calls that it states. That is how the shipped corpus is written, with
synonyms for verbs; of rows in freer wording it refuses many good ones, and needs a model to judge them.
"""

import re
from functools import lru_cache
from typing import Any, NamedTuple

from datamodules.example import Example
from datamodules.refinement.judging import Question
from datamodules.refinement.loose import read_loosely
from datamodules.refinement.schema import cast_to_types, find_misfit
from datamodules.sources.declared import parameters
from datamodules.sources.syntax import looks_like_calls
from datamodules.toolbox.rows import VERBS
from rewards import Call, as_tools, match_calls, parse_calls, render_calls

ASKED = 0.6
"""Share of a description's words that a request must hold to ask for the tool."""

_SMALL = frozenset("a an the my your for in of to at as on by with from and or is are whether".split())
_GOES_ON = re.compile(r"\w|\.\d")
_PLACES = 1_000  # at which a text is looked for as a word of its own
_STATED = re.compile(r"^([\w.]+): (.+)$", re.MULTILINE)  # a line of a chain of thought that states a call


class Finding(NamedTuple):
    """A fault that a rule has found."""

    fault: str
    reason: str


class RuleJudge:
    """Answers every question of the refinement by rules."""

    async def __call__(self, question: Question) -> str:
        """The reply, in the form that models are asked for."""
        example = question.example
        if question.stage == "write_cot":
            return _stated_cot(example)
        tools = as_tools(example.tools)
        calls = _calls(example, tools)
        if question.stage == "evaluate":
            return _evaluation(example, calls, tools)
        finding = {
            "response": _response_fault,
            "query": _query_fault,
            "cot": _cot_fault,
            "call": _call_fault,
            "format": _format_fault,
        }[question.stage](example, calls, tools)
        return _reply(finding, calls)

    async def close(self) -> None:
        """Do nothing: rules have nothing to release."""


def _reply(finding: Finding | None, calls: list[Call] | None) -> str:
    if finding is None:
        return "<think>No rule finds a fault.</think><judge>True</judge>"
    reply = f"<think>{finding.reason}</think><judge>False</judge><fault>{finding.fault}</fault>"
    # What the schema or the parser refuses can be put right; which function or value was meant cannot be known.
    return f"{reply}<NewFC>{render_calls(calls)}</NewFC>" if finding.fault in ("type", "format") and calls else reply


def _calls(example: Example, tools: list[dict[str, Any]]) -> list[Call] | None:
    """The calls of the answer as they were meant."""
    calls, _ = parse_calls(example.answers)
    return read_loosely(example.answers, tools) if calls is None else cast_to_types(calls, tools)


def _response_fault(example: Example, calls: list[Call] | None, tools: list[dict[str, Any]]) -> Finding | None:
    if calls or looks_like_calls(example.answers, tools):
        return None
    return Finding("response", "The answer is a statement.")


def _query_fault(example: Example, calls: list[Call] | None, tools: list[dict[str, Any]]) -> Finding | None:
    if any(_asked(tool, example.query) >= ASKED for tool in tools):
        return None
    return Finding("query", "The request asks for none of the tools on offer.")


def _cot_fault(example: Example, calls: list[Call] | None, tools: list[dict[str, Any]]) -> Finding | None:
    if calls is None:
        return None  # there is nothing to compare; the stages after this one deal with it
    stated = [call for call in map(_stated_call, _STATED.findall(example.cot)) if call]
    if stated:
        matched = match_calls(cast_to_types(stated, tools), calls, tools)
        return None if matched.matched else Finding("cot", f"The calls it states are not the answer: {matched.reason}.")
    for call in calls:
        for text in (call.name, *_leaves(call.arguments)):
            if not _says(example.cot, text):
                return Finding("cot", f"It never says {text!r}.")
    return None


def _call_fault(example: Example, calls: list[Call] | None, tools: list[dict[str, Any]]) -> Finding | None:
    if not calls:
        return None
    written, _ = parse_calls(example.answers)
    if misfit := find_misfit(calls, tools):
        return Finding(*misfit)
    if finding := _function_fault(example.query, calls, tools):
        return finding
    offered = {tool["name"]: tool for tool in tools}
    for call in calls:
        declared, _ = parameters(offered[call.name])
        for name, value in call.arguments.items():
            if not _given(value, declared.get(name), example.query):
                return Finding("parameter", f"The request does not give {name!r} the value {value!r}.")
    if written and (misfit := find_misfit(written, tools)):
        return Finding("type", f"A value is not written in its declared type: {misfit.reason}.")
    return None


def _function_fault(query: str, calls: list[Call], tools: list[dict[str, Any]]) -> Finding | None:
    """A finding where the request does not ask for a function that is called, or fits one better that is not."""
    close = {tool["name"]: _closeness(tool, query) for tool in tools}
    called = [call.name for call in calls]  # a list: of equals the first is named, which of a set is chance
    least = min(called, key=close.__getitem__)
    if close[least][0] < ASKED:
        return Finding("function", f"The request does not ask for {least!r}.")
    best = max((name for name in close if name not in called), key=close.__getitem__, default=least)
    if close[best] > close[least]:
        return Finding("function", f"The request fits {best!r}, which is not called, better than {least!r}.")
    return None


def _format_fault(example: Example, calls: list[Call] | None, tools: list[dict[str, Any]]) -> Finding | None:
    written = "The calls can be read, but are not written as they should be."
    return Finding("format", written if calls else "No calls can be read.")


def _evaluation(example: Example, calls: list[Call] | None, tools: list[dict[str, Any]]) -> str:
    """FunRL's question: whether a tool is needed, and whether the answer is right."""
    needs_tool = _query_fault(example, calls, tools) is None
    if needs_tool != bool(calls):
        finding = Finding("evaluate", "A tool is needed." if needs_tool else "No tool on offer fits.")
    else:
        finding = _call_fault(example, calls, tools) if calls else None
        if finding is None and calls and parse_calls(example.answers)[0] is None:
            finding = _format_fault(example, calls, tools)
    return f"{_reply(finding, calls)}<tool>{needs_tool}</tool>"


def _stated_call(line: tuple[str, str]) -> Call | None:
    name, arguments = line
    calls, _ = parse_calls(f"[{name}({'' if arguments == 'nothing' else arguments})]")
    return calls[0] if calls else None


def _stated_cot(example: Example) -> str:
    """A chain of thought in the words of the shipped corpus, from the answer that the row has."""
    tools = as_tools(example.tools)
    calls = _calls(example, tools) or []
    lines = [f"Offered: {', '.join(tool['name'] for tool in tools)}."]
    for call in calls:
        found = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
        lines.append(f"{call.name}: {found or 'nothing'}")
    answer = render_calls(calls) if calls or not example.response else example.response
    return "<think>" + "\n".join(lines if calls else [*lines, "None of them does this."]) + f"</think>\n\n{answer}"


def _closeness(tool: dict[str, Any], query: str) -> tuple[float, int]:
    share, words = _asked(tool, query), _words(_description(tool))
    return share, round(share * len(words))


def _asked(tool: dict[str, Any], query: str) -> float:
    """The share of the words of a tool's description that the request holds; its verb may be another."""
    words = _words(_description(tool))
    if not words:
        return 0.0
    verb = any(_says(query, synonym) for synonym in VERBS.get(words[0], words[0]).split("|"))
    return (verb + sum(_says(query, word) for word in words[1:])) / len(words)


def _description(tool: dict[str, Any]) -> str:
    return str(tool.get("description") or tool["name"].replace("_", " "))  # a list of sentences is one text


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text.lower()) if word not in _SMALL]


def _given(value: Any, spec: Any, query: str) -> bool:
    """Whether a request gives a value: each part of it, or for a flag what its description says."""
    spec = spec if isinstance(spec, dict) else {}
    if "default" in spec and repr(spec["default"]) == repr(value):
        return True
    if isinstance(value, bool):
        return not value or all(_says(query, word) for word in _words(str(spec.get("description", ""))))
    return all(_says(query, text) for text in _leaves(value))


def _leaves(value: Any) -> list[str]:
    """The texts of which a value is made; not those of flags and of nothing, which no request spells out."""
    if isinstance(value, dict | list):
        return [text for item in (value.values() if isinstance(value, dict) else value) for text in _leaves(item)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def _says(text: str, wanted: str) -> bool:
    """Whether a text holds another, as words of their own and in any case."""
    at, text, wanted = -1, _lower(text), wanted.lower()
    for _ in range(_PLACES):
        if (at := text.find(wanted, at + 1)) < 0:
            break
        before, end = text[max(0, at - 1) : at], at + len(wanted)
        if not (before.isalnum() and wanted[:1].isalnum()) and not _GOES_ON.match(text, end):
            return True
    return not wanted


_lower = lru_cache(64)(str.lower)  # a request is asked for many words
