"""Splits a completion into its reasoning and its calls (output format of FunRL, arXiv 2508.05118, appendix A)."""

import re
from dataclasses import dataclass

from rewards.calls import JSON, Call, call_from, check_json_depth, read_json
from rewards.literals import read_python_calls

MAX_TEXT = 262_144  # characters of a whole completion
MAX_ANSWER = 16_384  # characters of what follows the reasoning; bounds the time that reading it takes

ANSWER_TAGS = ("none", "answer")
_UNREADABLE = re.compile("[\x00\ud800-\udfff]")
_JSON_START = re.compile(r"(?:\[\s*)?\{")
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class ParsedCompletion:
    """A completion, taken apart.

    Attributes:
        cot: The reasoning without its tags and outer whitespace; "" if the think block is not well formed.
        calls: The calls, or None if there is an error.
        error: What is wrong, or None.
        answer: What follows `</think>`, without outer whitespace and without the answer tags asked for.
    """

    cot: str
    calls: list[Call] | None
    error: str | None
    answer: str


def parse_completion(text: str, answer_tags: str = "none") -> ParsedCompletion:
    """Reads `<think>reasoning</think>` followed by calls, and nothing else; whatever the text, it never raises.

    Args:
        text: The completion. Outer whitespace is ignored.
        answer_tags: "none", or "answer" if the calls must be wrapped in `<answer>...</answer>`.

    Returns:
        The reasoning and the calls, or the reason why there are none.
    """
    cot, answer, error = split_completion(text, answer_tags)
    if error is not None:
        return ParsedCompletion(cot, None, error, answer)
    calls, error = parse_calls(answer)
    return ParsedCompletion(cot, calls, error, answer)


def split_completion(text: str, answer_tags: str = "none") -> tuple[str, str, str | None]:
    """Splits a completion at `</think>`.

    Each tag must occur exactly once in the whole text, so that no second block can hide in the answer.

    Returns:
        `(cot, answer, error)`. Where the think block is not well formed, cot is "" and answer is what follows the
        last closing tag, or the whole text where no tag was opened either.
    """
    if not isinstance(text, str):
        return "", "", f"the completion is not a text but a {type(text).__name__}"
    if len(text) > MAX_TEXT:
        return "", "", f"the completion is longer than {MAX_TEXT} characters"
    text = text.strip()
    before, closing, answer = text.rpartition("</think>")
    error = _think_error(text)
    cot = "" if error else before.removeprefix("<think>").strip()
    if not closing and "<think>" in text:
        answer = ""
    answer = answer.strip()
    if answer_tags == "answer":
        if answer.startswith("<answer>") and answer.endswith("</answer>") and len(answer) >= len("<answer></answer>"):
            answer = answer[len("<answer>") : -len("</answer>")].strip()
        else:
            error = error or "the answer is not wrapped in <answer>...</answer>"
    return cot, answer, error


def _think_error(text: str) -> str | None:
    if not text.startswith("<think>"):
        return "the text does not start with <think>"
    if text.count("<think>") != 1:
        return "<think> occurs more than once"
    if text.count("</think>") != 1:
        return "</think> must occur exactly once"
    if not text[len("<think>") : text.index("</think>")].strip():
        return "the think block is empty"
    return None


def parse_calls(text: str) -> tuple[list[Call] | None, str | None]:
    """Reads the answer part: a Python list of calls or one bare call, the same in JSON, or `<tool_call>` blocks.

    Args:
        text: The answer. Outer whitespace is ignored; anything else beside the calls is an error.

    Returns:
        `(calls, None)`, or `(None, what is wrong)`. It never raises, and its time is bounded by `MAX_ANSWER`.
    """
    text = text.strip()
    if not text:
        return None, "there is no answer"
    if len(text) > MAX_ANSWER:
        return None, f"the answer is longer than {MAX_ANSWER} characters"
    if _UNREADABLE.search(text):
        return None, "the answer holds a NUL or a surrogate"
    try:
        if text.startswith(_OPEN):
            return _tool_call_blocks(text), None
        if _JSON_START.match(text):
            items = read_json(text)
            return [call_from(item) for item in (items if isinstance(items, list) else [items])], None
        return read_python_calls(text), None
    except ValueError as error:
        return None, str(error)


def _tool_call_blocks(text: str) -> list[Call]:
    """Reads `<tool_call>{"name": ..., "arguments": ...}</tool_call>` blocks with only whitespace in between.

    The JSON decoder itself finds the end of each object, so a `</tool_call>` inside a string ends nothing.
    """
    check_json_depth(text)
    calls, at = [], 0
    while at < len(text):
        if not text.startswith(_OPEN, at):
            raise ValueError(f"text beside the {_OPEN} blocks")
        item, end = JSON.raw_decode(text, _skip_space(text, at + len(_OPEN)))
        end = _skip_space(text, end)
        if not text.startswith(_CLOSE, end):
            raise ValueError(f"a {_OPEN} block is not closed after its object")
        calls.append(call_from(item))
        at = _skip_space(text, end + len(_CLOSE))
    return calls


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
