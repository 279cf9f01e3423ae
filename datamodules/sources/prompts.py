"""Prompts of other projects that hold more than a request: tools, earlier turns, an output format."""

import re
from collections import Counter
from typing import Any

from datamodules.sources.tools import find_tools
from datamodules.sources.values import read_value

_GLAIVE = re.compile(r"(?:\A|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):[ \t]*")
_GLAIVE_ROLES = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_DIALOGUE = re.compile(r"<(user|obs)>(.*?)</\1>", re.DOTALL)
_SEAL_TOOLS = re.compile(
    r"\bapi_list\s*=\s*(?=\[).*?task_instruction\s*=\s*\"(?P<query>.*)\"\s*Output:\s*\Z", re.DOTALL
)
_SECTION = re.compile(r"\[BEGIN OF QUERY\]\s*(.*?)\s*\[END OF QUERY\]", re.DOTALL)
_FORMAT = re.compile(
    r"""</?[\w|]*(?:tool|function|think|response|schema|scratch_pad)
    |^\W*(?:(?:available\s+)?(?:tools|functions)|output\ format|examples?)\W*$
    |\b(?:json|xml|yaml|pydantic|schemas?|signatures?)\b.*\b(?:functions?|tools?|calls?|arguments)\b
    |\b(?:functions?|tools?|calls?|arguments)\b.*\b(?:json|xml|yaml|pydantic|schemas?|signatures?|format)\b
    |\b(?:following|available|these|possible|provided)\s+(?:\w+\s+)?(?:functions?|tools?|apis?)\b
    |\baccess\ to\b.*\b(?:functions?|tools?|apis?)\b|\b(?:list|set)\ of\ (?:\w+\ )*(?:functions|tools|apis)\b
    |\b(?:functions?|tools?)[-/ ](?:tool\ )?call(?:s|ing)?\b|\bcompos(?:e|ing)\ functions\b
    |\bone\ or\ more\ (?:functions|tools)\b|\buse\ them\ if\ required\b|\bno\ other\ text\b
    |\bnone\ of\ the\ functions?\b|\blacks\ the\ parameters\b|\balso\ point\ it\ out\b
    |\b(?:write|answer|respond|reply|return|output|put|format|call)\b.*[\[(<{]""",
    re.IGNORECASE | re.VERBOSE,
)
"""Sentences that list tools or say how calls are to be written: another project's, in the place of which ours stand."""


_BLOCK = re.compile(
    r"```.*?```|<(tool_call|function_call|TOOLCALL|schema|scratch_pad)>.*?</\1>|^[ \t]*[\[{][^\n]*",
    re.DOTALL | re.MULTILINE,
)
"""Examples of calls, and schemas of what a call is."""


def glaive_chat(text: str) -> list[dict[str, str]]:
    """The messages of Glaive's `USER: ... ASSISTANT: ... FUNCTION RESPONSE: ...`; none where it is not of that form."""
    parts = _GLAIVE.split(text)
    if parts[0].strip():
        return []
    return [
        {"role": _GLAIVE_ROLES[role], "content": said.strip()}
        for role, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def split_system(text: str, notes: Counter[str]) -> tuple[list[Any], str]:
    """The tools that a system text holds, and what else it says, without what it says about tools and their format."""
    text = re.sub(r"\A\s*SYSTEM:\s*", "", text)
    tools, before, after = find_tools(text)
    if not tools:
        return [], text.strip()
    rest = re.sub(r"[^.!?\n]*[:-]\s*\Z", "", before) + "\n" + after  # without the words that lead to the list
    pieces = re.split(r"((?<=[.!?:])[ \t]+|\s*\n\s*)", _BLOCK.sub("", rest))
    kept = "".join(
        piece + after
        for piece, after in zip(pieces[::2], [*pieces[1::2], ""], strict=True)
        if re.search(r"\w", piece) and not _FORMAT.search(piece)
    )
    notes["repair/system texts that held the tools replaced by ours"] += 1
    return tools, kept.strip()


def split_request(text: str) -> tuple[list[Any], list[dict[str, str]]]:
    """The tools and the messages that are written into one request, as ToolRL, Seal-Tools and xLAM's prompt do.

    Returns:
        The tools, none where they are elsewhere, and the messages.
    """
    if seal := _SEAL_TOOLS.search(text):
        tools, _ = read_value(text, re.compile(r"api_list\s*=\s*").search(text).end())  # type: ignore[union-attr]
        return tools, [{"role": "user", "content": seal["query"]}]
    if section := _SECTION.search(text):
        return find_tools(text[: section.start()])[0], [{"role": "user", "content": section[1]}]
    if "Dialogue Records History" not in text or not (turns := list(_DIALOGUE.finditer(text))):
        return [], [{"role": "user", "content": text}]
    messages, at = [], turns[0].start()
    for turn in turns:
        if said := text[at : turn.start()].strip():
            messages.append({"role": "assistant", "content": said})
        messages.append({"role": "user" if turn[1] == "user" else "tool", "content": turn[2].strip()})
        at = turn.end()
    if said := text[at:].strip():
        messages.append({"role": "assistant", "content": said})
    return [], messages
