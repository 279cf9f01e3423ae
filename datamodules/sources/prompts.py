"""Prompts of other projects that hold more than a request: tools, earlier turns, an output format."""

import re
from collections import Counter
from typing import Any

from datamodules.sources.listings import find_tools
from datamodules.sources.marks import blocks, tags
from datamodules.sources.tools import read_tools, refuse_others
from datamodules.sources.values import read_value

GLAIVE = ("chat", "sample")
"""Columns in which Glaive's second and first data set have a chat as text."""
_GLAIVE = re.compile(r"(?:\A\s*+|(?<!\s)[^\S\n]*+\n\s*+)(SYSTEM|USER|ASSISTANT|FUNCTION RESPONSE):[ \t]*+")
_GLAIVE_ROLES = {"SYSTEM": "system", "USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
NO_TOOLS = re.compile(r"\bwith no access to (?:any |external )*(?:functions|tools)\b", re.IGNORECASE)
"""What Glaive's system texts say where no tool is on offer."""
API_BANK = ("API-Request: [ApiName(", "API descriptions:")
"""What API-Bank's prompts say, which are not read: their dialogues go on after what the assistant says last."""
_DIALOGUE = tags("user", "obs")
_SEAL_TOOLS, _SEAL_QUERY = re.compile(r"\bapi_list\s*+=\s*+(?=\[)"), re.compile(r"task_instruction\s*+=\s*+\"")
_FORMAT = re.compile(
    r"""</?[\w|]*(?:tool|function|think|response|schema|scratch_pad)
    |^\W*(?:(?:available\s+)?(?:tools|functions)|output\ format|examples?|thought|action(?:\ input)?)\W*$
    |\b(?:following|available|these|possible|provided)\s+(?:\w+\s+)?(?:functions?|tools?|apis?)\b
    |\b(?:list|set)\ of\ (?:\w+\ ){0,8}(?:functions|tools|apis)\b
    |\b(?:functions?|tools?)[-/ ](?:tool\ )?call(?:s|ing)?\b|\bcompos(?:e|ing)\ functions\b
    |\bone\ or\ more\ (?:functions|tools)\b|\buse\ them\ if\ required\b|\b(?:no|not\ \w+\ any)\ other\ text\b
    |\bexample\ format\b|\boutput\ should\ follow\ this\ format\b
    |\bnone\ of\ the\ functions?\b|\blacks\ the\ parameters\b|\balso\ point\ it\ out\b""",
    re.IGNORECASE | re.VERBOSE,
)
"""Sentences that list tools or say how calls are to be written: another project's, in the place of which ours stand."""
_FORMAT_WORDS = [
    (re.compile(rf"\b(?:{first})\b", re.IGNORECASE), re.compile(then, re.IGNORECASE))
    for first, then in (
        (r"json|xml|yaml|pydantic|schemas?|signatures?", r"\b(?:functions?|tools?|calls?|arguments)\b"),
        (r"functions?|tools?|calls?|arguments", r"\b(?:json|xml|yaml|pydantic|schemas?|signatures?|format)\b"),
        (r"access to", r"\b(?:functions?|tools?|apis?)\b"),
        (r"write|answer|respond|reply|return|output|put|format|call", r"[\[(<{]"),
    )
]
"""The same, by a word and one that follows somewhere."""
_FENCED, _CLOSING = tags("tool_call", "function_call", "TOOLCALL", "schema", "scratch_pad")
_FENCED, _CLOSING = re.compile(f"```|{_FENCED.pattern}"), _CLOSING | {"```": "```"}
"""Examples of calls, and schemas of what a call is."""
_OBJECT_LINE = re.compile(r"^[ \t]*+(?:\{|\[(?=\s*+(?:[\[{\"'\]]|[\w.]++\()))[^\n]*+", re.MULTILINE)
"""Objects, and lists of objects, texts or calls; `[Important]` is none."""
_PIECES = re.compile(r"""((?<=[.!?:])(?<!["']:)(?<!\n\d\.)[ \t]++|(?:(?<!\s)[^\S\n]*+|(?<=[ \t]))\n\s*+)""")
"""What is between sentences and lines; keys of objects and the numbers of a list end none."""


def glaive_chat(text: str) -> list[dict[str, str]]:
    """The messages of Glaive's `USER: ... ASSISTANT: ... FUNCTION RESPONSE: ...`; none where it is not of that form."""
    parts = _GLAIVE.split(text)
    if parts[0].strip():
        return []
    return [
        {"role": _GLAIVE_ROLES[role], "content": said.strip()}
        for role, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def split_system(text: str, notes: Counter[str], offered: list[dict[str, Any]] | None = None) -> tuple[list[Any], str]:
    """The tools that a system text holds, and what else it says, without what it says about tools and their format.

    Args:
        text: The text.
        notes: Counts the texts whose tools ours replace.
        offered: The tools of the row's own column, if it has one: what has none of their names is no list of them,
            unless it declares parameters.

    Raises:
        ValueError: The text lists tools that the column lacks.
    """
    text = re.sub(r"\A\s*SYSTEM:\s*|<\|im_(?:system|middle|end)\|>(?:tool_declare)?", "", text)  # Glaive's, Toucan's
    tools, around = find_tools(text)
    found = read_tools(tools, Counter())
    if tools and offered is not None:
        names = {tool["name"] for tool in offered}
        if names.isdisjoint(tool["name"] for tool in found) and not any("parameters" in tool for tool in found):
            tools = []
        else:
            refuse_others(found, offered, "the system text lists")
    if not tools:
        return [], text.strip()
    named = {tool["name"] for tool in found}
    leads = [_without_lead(text, named) for text in around[:-1]]
    pieces = _PIECES.split(_without_blocks("\n".join([*leads, around[-1]])))
    kept, is_format = [], False
    for piece, gap in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
        is_format = _is_format(piece) or (is_format and piece.startswith("{"))  # the schema that a sentence leads to
        if re.search(r"\w", piece) and not is_format:
            kept.append(piece + gap)
    notes["repair/system texts that held the tools replaced by ours"] += 1
    return tools, "".join(kept).strip()


def _without_lead(text: str, named: set[str]) -> str:
    """The text without the words at its end that lead to a list, or the heading there that is a tool's name."""
    lead = text.rstrip()
    if lead.endswith((":", "-")):
        return lead[: 1 + max(map(lead.rfind, ".!?\n"))]
    before, _, line = lead.rpartition("\n")
    return before if line.strip(" \t#*`") in named else text


def _without_blocks(text: str) -> str:
    kept, at = [], 0
    for _, start, _, _, end in blocks(text, _FENCED, _CLOSING):
        kept.append(text[at:start])
        at = end
    return _OBJECT_LINE.sub("", "".join([*kept, text[at:]]))


def _is_format(piece: str) -> bool:
    return _FORMAT.search(piece) is not None or any(
        (found := first.search(piece)) and then.search(piece, found.end()) for first, then in _FORMAT_WORDS
    )


def split_request(text: str) -> tuple[list[Any], list[dict[str, str]]]:
    """The tools and the messages that are written into one request, as ToolRL, Seal-Tools and xLAM's prompt do.

    Returns:
        The tools, none where they are elsewhere, and the messages.
    """
    if seal := _seal_tools(text):
        return seal
    offered, begin, rest = text.partition("[BEGIN OF QUERY]")
    query, end, _ = rest.partition("[END OF QUERY]")
    if begin and end:
        return find_tools(offered)[0], [{"role": "user", "content": query.strip()}]
    if "Dialogue Records History" not in text or not (turns := list(blocks(text, *_DIALOGUE))):
        return [], [{"role": "user", "content": text}]
    messages, at = [], turns[0][1]
    for tag, start, content, end_of_content, after in turns:
        if answer := text[at:start].strip():
            messages.append({"role": "assistant", "content": answer})
        role = "user" if tag == "<user>" else "tool"
        messages.append({"role": role, "content": text[content:end_of_content].strip()})
        at = after
    if answer := text[at:].strip():
        messages.append({"role": "assistant", "content": answer})
    return [], messages


def _seal_tools(text: str) -> tuple[list[Any], list[dict[str, Any]]] | None:
    """Seal-Tools: `api_list = [...] ... task_instruction = "..." Output:`."""
    head = text.rstrip()
    end = len(head.removesuffix("Output:").rstrip()) - 1
    tools = _SEAL_TOOLS.search(text) if head.endswith("Output:") and text[end : end + 1] == '"' else None
    query = _SEAL_QUERY.search(text, tools.end(), end) if tools else None
    if tools is None or query is None:
        return None
    return read_value(text, tools.end())[0], [{"role": "user", "content": text[query.end() : end]}]
