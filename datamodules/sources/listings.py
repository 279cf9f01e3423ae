"""Tools that a text lists, and the text around them."""

import re
from typing import Any

from datamodules.sources.declared import type_schema
from datamodules.sources.marks import blocks, tags
from datamodules.sources.tool import DECLARING, DESCRIPTIONS, NAMES
from datamodules.sources.values import Unreadable, read_value, shown, skip_space

_TAGGED, _CLOSING = tags("tools", "available_tools", "functions")
_TAGGED = re.compile(rf"{_TAGGED.pattern}|\[AVAILABLE_TOOLS\]|\[BEGIN OF AVAILABLE TOOLS\]")
_CLOSING |= {
    "[AVAILABLE_TOOLS]": "[/AVAILABLE_TOOLS]",
    "[BEGIN OF AVAILABLE TOOLS]": "[END OF AVAILABLE TOOLS]",
}
_NUMBERED = re.compile(
    r"^\d++\. Name: (?P<name>.++)\n"
    r"Description: (?P<description>.*+(?:\n(?!Parameters:|\d++\. Name: ).*+)*+)\nParameters: ",
    re.M,
)
_BEGINNING = re.compile(r"""\[(?=\s*+\{)|\{(?=\s*+["'\w])""")  # of a list of objects or of an object
_BETWEEN = re.compile(r"(?:[\s,]|\d++\.)*+")
MAX_TOOLS = 1_024  # of a row: every text is searched for every name
_EFFORT, _TRY = 1 << 22, 4_000  # characters that may be read in vain, and what a try counts at least


def find_tools(text: str) -> tuple[list[Any], list[str]]:
    """Finds the tools inside a text.

    They may stand between `<tools>` tags, be JSON or Python lists, objects one after the other, or numbered
    (`1. Name: ...`, as ToolRL writes). What follows the first list is one, too, if it declares other tools in full.

    Returns:
        The tools as they are written, and the pieces of text before, between and after them; no tools and the text
        where there are none.
    """
    if numbered := list(_NUMBERED.finditer(text)):
        return _numbered(text, numbered)
    tools: list[Any] = []
    pieces, at = [], 0
    for _, start, content, content_end, end in blocks(text, _TAGGED, _CLOSING):
        inside, inner = 0, text[content:content_end]
        while (found := _objects(inner, inside))[0]:
            _refuse_unreadable(inner, inside, found[1])
            tools += found[0]
            inside = found[2]
        if inside:
            _refuse_unreadable(inner, inside, len(inner))
            pieces.append(text[at:start])
            at = end
    if tools:
        return tools, [*pieces, text[at:]]
    tools, start, at = _objects(text)
    pieces.append(text[:start])
    end = at
    while 0 < len(tools) <= MAX_TOOLS and (found := _objects(text, end))[0]:
        more, start, end = found
        if all(map(_declares, more)) and not any(_name_of(tool) in map(_name_of, tools) for tool in more):
            tools = tools + more
            pieces.append(text[at:start])
            at = end
    return (tools, [*pieces, text[at:]]) if tools else ([], [text])


def _numbered(text: str, matches: list[re.Match[str]]) -> tuple[list[Any], list[str]]:
    tools, end = [], 0
    for match in matches:
        parameters, end = read_value(text, match.end())
        tools.append({"name": match["name"].strip(), "description": match["description"], "parameters": parameters})
    return tools, [text[: matches[0].start()], text[end:]]


def _objects(text: str, at: int = 0) -> tuple[list[Any], int, int]:
    """The first list of tools from a place on, or run of tools with nothing but white space and commas between them.

    Returns:
        The tools, and where they begin and end.

    Raises:
        ValueError: The list holds something else, too; or brackets within brackets were read again and again, and there
            are still more of them.
    """
    tools: list[Any] = []
    start = end = 0
    effort = _EFFORT + 16 * len(text)
    while bracket := _BEGINNING.search(text, at):
        if tools and not _BETWEEN.fullmatch(text, end, bracket.start()):
            break
        if effort < 0:
            raise ValueError("brackets nest or are left open so often that tools cannot be looked for among them")
        try:
            value, at = read_value(text, bracket.start())
        except ValueError as error:
            seen = error.at if isinstance(error, Unreadable) else bracket.end()
            effort -= seen - bracket.start() + _TRY
            at = bracket.end()
            continue
        if isinstance(value, list) and value and all(map(_is_tool, value)) and not tools:
            return value, bracket.start(), at
        if _is_tool(value):
            start, end = (start if tools else bracket.start()), at
            tools.append(value)
        elif tools:
            break
        else:  # something else may hold what is looked for
            effort -= at - bracket.start()
            at = bracket.end()
    if (
        tools
        and text[max(0, start - 64) : start].rstrip().endswith("[")
        and not text.startswith("]", skip_space(text, end))
    ):
        raise ValueError(f"a list of tools cannot be read {shown(text, end)}")
    return tools, start, end


def _refuse_unreadable(text: str, start: int, end: int) -> None:
    """Refuse an object beside tools that cannot be read, for it may be one.

    Raises:
        ValueError: The first in this part of the text cannot.
    """
    if other := _BEGINNING.search(text, start, end):
        try:
            read_value(text, other.start())
        except ValueError as error:
            raise ValueError(f"one of the tools cannot be read: {error}") from error


def _is_tool(item: Any) -> bool:
    if not isinstance(item, dict):
        return False
    tool = _inner(item)
    named = any(isinstance(tool.get(key), str) for key in NAMES)
    declares = bool(tool.keys() & DECLARING) and not _is_parameter(tool)
    return named and (declares or tool.keys() <= {*NAMES, "type"})


def _inner(item: dict[str, Any]) -> dict[str, Any]:
    return item["function"] if isinstance(item.get("function"), dict) else item


def _name_of(item: dict[str, Any]) -> Any:
    return next((_inner(item)[key] for key in NAMES if key in _inner(item)), None)


def _declares(item: dict[str, Any]) -> bool:
    """Whether a tool has both a description and parameters, as no call and nothing else with a name has."""
    keys = _inner(item).keys()
    return bool(keys & DESCRIPTIONS) and bool(keys & (DECLARING - DESCRIPTIONS))


def _is_parameter(tool: dict[str, Any]) -> bool:
    """Whether an object in a list is a parameter of a tool, as Qwen-Agent lists them, and no tool itself."""
    kind = type_schema(tool["type"]) if isinstance(tool.get("type"), str) else {}
    typed = kind not in ({}, {"type": "object"})  # a tool may be the schema of its arguments, with its name
    return not tool.keys() & (DECLARING - DESCRIPTIONS) and (typed or isinstance(tool.get("required"), bool))
