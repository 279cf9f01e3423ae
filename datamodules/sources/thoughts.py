# ruff: noqa: RUF001 (DeepSeek writes its marks with full-width bars)
"""An assistant's text, split: a chain of thought, words before the calls, the calls or a plain answer."""

import re
from dataclasses import dataclass
from typing import Any

from datamodules.sources.marks import without_end_tokens
from datamodules.sources.syntax import read_answer
from rewards import Call, parse_calls

_LABEL, _FINAL = re.compile(r"\s*Thought:\s*"), "\nFinal Answer:"  # ReAct's
_NAME = r"(?i:[\w:.-]{0,32}?(?:think|thinking|thoughts?|reasoning|scratch_?pad))"  # with a prefix, as in seed:think
_OPENING = rf"<[|｜]?{_NAME}[|｜]?>|\[THINK\]|◁think▷"
_OPEN, _CLOSE = (
    re.compile(rf"\s*(?P<mark>{_OPENING})"),
    re.compile(rf"<[|｜]?(?:/|END_|end_of_){_NAME}[|｜]?>|\[/THINK\]|◁/think▷"),
)
_LEFT = re.compile(rf"<[|｜][\w▁]{{1,64}}[|｜]>|{_OPENING}|{_CLOSE.pattern}")
"""Marks of chat templates, and of thoughts, of which none is left in what has been taken apart."""
_STEPS = re.compile(r"\s*Here (?:is my thought process|are my reasoning steps):")  # Granite's, Apriel's
_FINAL_STEP, _END_OF_IT = re.compile(r"Here is my response:|\[BEGIN FINAL RESPONSE\]"), "[END FINAL RESPONSE]"
_WRAPPED = re.compile(
    r"\s*(?:<(?P<tag>(?:final_)?(?:answer|response|output)|final)>(?P<a>(?:(?!</(?P=tag)>).)*+)</(?P=tag)>"
    r"|<\|START_RESPONSE\|>(?P<b>.*)<\|END_RESPONSE\|>|<\|begin_of_solution\|>(?P<c>.*)<\|end_of_solution\|>)\s*",
    re.DOTALL,
)
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
    for text in map(bare_thought, texts):
        if text.strip():
            found.setdefault("".join(text.split()), text.strip())
    return "\n\n".join(found.values())


def bare_thought(text: str) -> str:
    """A chain of thought without the marks around it, if it has any."""
    opening = _OPEN.match(text)
    thought, closing, rest = text[opening.end() :].partition(_closing(opening["mark"])) if opening else (text, "", "")
    return thought.strip() if closing and not rest.strip() else text


def holds_marks(text: str) -> bool:
    """Whether there is a mark of a chat template, or of a thought, in a text."""
    return _LEFT.search(text) is not None


def with_thought(texts: list[str]) -> list[str]:
    """The texts of an answer without blank ones, and with a chain of thought before what it leads to."""
    texts = [text for text in texts if text.strip()]
    return ["\n".join(texts[:2]), *texts[2:]] if len(texts) > 1 and bare_thought(texts[0]) != texts[0] else texts


def split_thoughts(text: str) -> tuple[list[str], str]:
    """The chains of thought between marks at the beginning of a text, and what stands after them.

    Raises:
        ValueError: One does not end.
    """
    thoughts, at = list[str](), 0
    while opening := _OPEN.match(text, at):
        closing = _closing(opening["mark"])
        end = text.find(closing, opening.end())
        if end < 0:
            raise ValueError(f"the chain of thought does not end: {text[-60:]!r}")
        thoughts.append(text[opening.end() : end].strip())
        at = end + len(closing)
    return thoughts, text[at:]


def _closing(mark: str) -> str:
    """The mark that ends what this one begins: `</think>`, `<|END_THINKING|>`."""
    ended = mark.replace("START_", "END_").replace("begin_", "end_")
    return ended if ended != mark else re.sub(r"(?=\w)", "/", mark, count=1)


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
    parsed = _parsed(text, tools)
    for place in (parsed.cot, parsed.text):
        if mark := _LEFT.search(place):
            raise ValueError(f"there is a mark that is not read where it stands: {mark[0]!r}")
    return parsed


def _parsed(text: str, tools: list[dict[str, Any]]) -> AssistantText:
    analyses = [f"<think>{m[2]}</think>" for m in _CHANNEL.finditer(text) if m[1] == "analysis"]
    text = "".join(analyses) + _CHANNEL.sub(lambda m: "" if m[1] == "analysis" else m[2], text)
    text = without_end_tokens(text)
    calls, _ = parse_calls(text)
    if calls is not None:
        return AssistantText("", "", calls)
    steps = _STEPS.match(text)
    if steps and (final := _FINAL_STEP.search(text, steps.end())):
        answer = text[final.end() :].rstrip().removesuffix(_END_OF_IT)
        return AssistantText(text[steps.end() : final.start()].strip(), *_answer(answer, tools))
    thoughts, rest = split_thoughts(text)
    if thoughts:
        return AssistantText(join_thoughts(*thoughts), *_answer(rest, tools))
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
        text = next(inner for inner in wrapped.group("a", "b", "c") if inner is not None)
    return read_answer(text.strip(), tools) if text.strip() else ("", None)
