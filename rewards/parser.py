"""Splits a completion into its reasoning and its calls (output format of FunRL, arXiv 2508.05118, appendix A)."""

import re
from dataclasses import dataclass

from rewards.calls import Call, call_from, read_json
from rewards.forms import FRAMES, CallFrame
from rewards.literals import read_python_calls

MAX_TEXT = 262_144  # characters of a whole completion
MAX_ANSWER = 16_384  # characters of what follows the reasoning; bounds the time that reading it takes

_UNREADABLE = re.compile("[\x00\ud800-\udfff]")
_JSON_START = re.compile(r"(?:\[\s*)?\{")


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


def parse_completion(
    text: str, answer_tags: str = "none", form: str | CallFrame = "any", think: bool = True
) -> ParsedCompletion:
    """Reads `<think>reasoning</think>` followed by calls, and nothing else; whatever the text, it never raises.

    Args:
        text: The completion. Outer whitespace is ignored.
        answer_tags: "none", or "answer" if the calls must be wrapped in `<answer>...</answer>`.
        form: See `parse_calls`.
        think: Whether there must be a think block; if not, there must be none.

    Returns:
        The reasoning and the calls, or the reason why there are none.
    """
    cot, answer, error = split_completion(text, answer_tags, think)
    if error is not None:
        return ParsedCompletion(cot, None, error, answer)
    calls, error = parse_calls(answer, form)
    return ParsedCompletion(cot, calls, error, answer)


def split_completion(text: str, answer_tags: str = "none", think: bool = True) -> tuple[str, str, str | None]:
    """Splits a completion at `</think>`; where `think` is False there must be no think tag at all.

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
    error = _think_error(text) if think else _no_think_error(text)
    cot = "" if error or not think else before.removeprefix("<think>").strip()
    if not closing and "<think>" in text:
        answer = ""
    answer = answer.strip()
    if answer_tags == "answer":
        if answer.startswith("<answer>") and answer.endswith("</answer>"):
            answer = answer[len("<answer>") : -len("</answer>")].strip()
        else:
            error = error or "the answer is not wrapped in <answer>...</answer>"
    return cot, answer, error


def _no_think_error(text: str) -> str | None:
    return "there is a think tag, and no reasoning is asked for" if "<think>" in text or "</think>" in text else None


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


def parse_calls(text: str, form: str | CallFrame = "any") -> tuple[list[Call] | None, str | None]:
    """Reads the answer part: calls in one form, and nothing else.

    Args:
        text: The answer. Outer whitespace is ignored.
        form: "python" is a list of calls or one bare call, or, for names that are no identifiers, the same in JSON;
            "json", "hermes" or a `CallFrame` that frame alone; "any" what "python" and "hermes" read.

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
    if form == "any" and text.startswith("<tool_call>"):
        form = "hermes"
    frame = form if isinstance(form, CallFrame) else FRAMES.get(form)
    try:
        if frame is not None:
            return frame.read(text), None
        if _JSON_START.match(text):
            items = read_json(text)
            return [call_from(item) for item in (items if isinstance(items, list) else [items])], None
        return read_python_calls(text), None
    except ValueError as error:
        return None, str(error)
