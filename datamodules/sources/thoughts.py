"""An assistant's text, split: a chain of thought, words before the calls, the calls or a plain answer."""

import re
from dataclasses import dataclass
from typing import Any

from datamodules.sources.marks import without_end_tokens
from datamodules.sources.syntax import read_answer
from rewards import Call, parse_calls

_LABEL, _FINAL = re.compile(r"\s*Thought:\s*"), "\nFinal Answer:"  # ReAct's
_TAGS = "think|thinking|thought|reasoning|scratch_pad|scratchpad"
_OPEN = re.compile(rf"\s*(?:<(?P<tag>{_TAGS})>|(?P<bracket>\[THINK\]))")
_CLOSE = re.compile(rf"</(?:{_TAGS})>")
_WRAPPED = re.compile(r"\s*<(answer|response|final_answer)>(.*)</\1>\s*", re.DOTALL)
_CHANNEL = re.compile(
    r"(?:<\|start\|>assistant)?<\|channel\|>(analysis|commentary|final)<\|message\|>(.*?)(?:<\|end\|>|<\|return\|>|\Z)",
    re.DOTALL,
)


@dataclass(frozen=True)
class AssistantText:
    """An assistant's text, taken apart.

    Attributes:
        cot: The chain of thought, without tags.
        text: The plain answer, or what stands before the calls.
        calls: The calls; None for a plain answer.
    """

    cot: str
    text: str
    calls: list[Call] | None


def join_thoughts(*texts: str) -> str:
    """Thoughts one after the other; one that stands in two places of a row, as servers give it, is there once."""
    found: dict[str, str] = {}
    for text in texts:
        if text.strip():
            found.setdefault("".join(text.split()), text.strip())
    return "\n\n".join(found.values())


def read_assistant_text(text: str, tools: list[dict[str, Any]]) -> AssistantText:
    """Takes an assistant's text apart.

    Args:
        text: The text. A chain of thought stands between tags at its beginning, of which the first may be missing.
        tools: The tools on offer.

    Returns:
        Its parts.

    Raises:
        ValueError: A chain of thought does not end, or something looks like calls and cannot be read.
    """
    text = _CHANNEL.sub(lambda m: f"<think>{m[2]}</think>" if m[1] == "analysis" else m[2], text)
    text = without_end_tokens(text)
    calls, _ = parse_calls(text)
    if calls is not None:
        return AssistantText("", "", calls)
    if opening := _OPEN.match(text):
        tag = opening["tag"]
        cot, closing, rest = text[opening.end() :].partition(f"</{tag}>" if tag else "[/THINK]")
        if not closing:
            raise ValueError(f"the chain of thought does not end: {text[-60:]!r}")
        return AssistantText(cot.strip(), *_answer(rest, tools))
    closing_tag = _CLOSE.search(text)
    if closing_tag is None:
        label = _LABEL.match(text)
        return _react(text[label.end() :], text, tools) if label else AssistantText("", *_answer(text, tools))
    try:  # the tag may stand inside an argument
        before, calls = _answer(text, tools)
        if calls is not None and not _CLOSE.search(before):
            return AssistantText("", before, calls)
    except ValueError:
        pass
    if re.match(r"\s*[\[{`<]", text):
        raise ValueError(f"{closing_tag[0]} stands where no chain of thought does")
    return AssistantText(text[: closing_tag.start()].strip(), *_answer(text[closing_tag.end() :], tools))


def _react(labelled: str, text: str, tools: list[dict[str, Any]]) -> AssistantText:
    """What ReAct writes after `Thought:`, up to `Final Answer:` or to calls; the whole text where neither follows."""
    thought, final, answer = labelled.partition(_FINAL)
    words, calls = _answer(thought, tools)
    if final and calls is not None:
        raise ValueError("there are calls and a final answer in one turn")
    if final:
        return AssistantText(thought.strip(), *_answer(answer, tools))
    return AssistantText("", text.strip() if calls is None else words, calls)


def _answer(text: str, tools: list[dict[str, Any]]) -> tuple[str, list[Call] | None]:
    if wrapped := _WRAPPED.fullmatch(text):
        text = wrapped[2]
    return read_answer(text.strip(), tools) if text.strip() else ("", None)
