"""The rule-based reward of FunRL (arXiv 2508.05118, 4.1): 1 for the right format and the right calls, else 0.

Two departures, both by default: where no tool fits, the answer must be `[]` (the paper accepts whatever is not a call:
`no_call="text"`), and a parallel answer may list its calls in any order (the paper does not say).
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from rewards.calls import Call, as_calls, as_tools
from rewards.floats import FloatPlaces, float_places
from rewards.forms import CallFrame
from rewards.matcher import Agreement, agree
from rewards.parser import MAX_ANSWER, ParsedCompletion, parse_calls, parse_completion, split_completion

PARTS = ("format", "parse", "name", "arg_names", "arg_values", "exact_match", "error")


@dataclass(frozen=True)
class RewardResult:
    """A score and what it is made of.

    Attributes:
        score: 1.0 or 0.0, plus the format bonus if one is set.
        parts: 1.0 or 0.0 for each name in `PARTS`.
        parsed: What `parse_completion` says of the completion, so that nobody has to ask again.
    """

    score: float
    parts: dict[str, float]
    parsed: ParsedCompletion | None = field(default=None, compare=False, repr=False)


class FunctionCallReward:
    """Scores one completion against the reference calls.

    Args:
        answer_tags: "none", or "answer" if the calls must be wrapped in `<answer>...</answer>`.
        no_call: What is right where the reference has no call: "empty" (exactly `[]`) or "text" (any non-empty answer
            that does not parse as a call).
        format_bonus: Added to the score of every completion with the right format (0.5 in the paper's ablation, its
            table 3; the paper itself pays none).

    Attributes:
        form: The form that calls have to be in, and `think`, whether reasoning has to stand before them: see
            `parse_completion`. A run sets both to what its prompts ask for.
    """

    form: str | CallFrame = "any"
    think: bool = True

    def __init__(
        self,
        answer_tags: Literal["none", "answer"] = "none",
        no_call: Literal["empty", "text"] = "empty",
        format_bonus: float = 0.0,
    ) -> None:
        if answer_tags not in ("none", "answer"):
            raise ValueError(f"answer_tags must be 'none' or 'answer', not {answer_tags!r}")
        if no_call not in ("empty", "text"):
            raise ValueError(f"no_call must be 'empty' or 'text', not {no_call!r}")
        self.answer_tags = answer_tags
        self.no_call = no_call
        self.format_bonus = float(format_bonus)

    def __call__(self, completion: str, tools: Any, answers: Any) -> RewardResult:
        """Scores a completion; it never raises.

        Args:
            completion: The text that the model wrote after the prompt.
            tools: The offered tools: a JSON string or a list of dicts.
            answers: The reference calls: a JSON string, or a list of dicts or of `Call`s; `[]` where no tool fits.

        Returns:
            The score and its parts: "format" (think block, and answer tags where asked for), "parse" (the answer is a
            list of calls), "name", "arg_names" and "arg_values" (how far the calls agree, whatever the format),
            "exact_match" (the score without bonus), and "error" (the reference or the completion is unusable).
        """
        cot, answer, format_error = split_completion(completion, self.answer_tags, self.think)
        calls, error = parse_calls(answer, self.form)
        well_formed = format_error is None
        parsed = ParsedCompletion(cot, calls if well_formed else None, format_error or error, answer)
        try:
            expected, floats = _reference(tools, answers)
        except ValueError:
            return _result(parsed, error=1.0)
        if self.no_call == "text" and not expected:
            right = 0 < len(answer) <= MAX_ANSWER and not calls and not parse_calls(answer)[0]
            agreement = Agreement(right, right, right)
        else:
            agreement = Agreement(False, False, False) if calls is None else agree(calls, expected, floats)
        exact = float(well_formed and agreement.arguments)
        return _result(
            parsed,
            exact + self.format_bonus * well_formed,
            format=float(well_formed),
            parse=float(calls is not None),
            name=float(agreement.names),
            arg_names=float(agreement.argument_names),
            arg_values=float(agreement.arguments),
            exact_match=exact,
            error=float(not isinstance(completion, str)),
        )

    def parse(self, completion: str) -> ParsedCompletion:
        """Splits a completion into reasoning and calls as the reward reads it."""
        return parse_completion(completion, self.answer_tags, self.form, self.think)


def _result(parsed: ParsedCompletion, score: float = 0.0, **parts: float) -> RewardResult:
    return RewardResult(score, dict.fromkeys(PARTS, 0.0) | parts, parsed)


def _reference(tools: Any, answers: Any) -> tuple[list[Call], dict[str, FloatPlaces]]:
    if isinstance(tools, str) and isinstance(answers, str):
        return _reference_from_json(tools, answers)
    return as_calls(answers), float_places(as_tools(tools))


@lru_cache(maxsize=4096)  # a group of completions, and every epoch, asks for the same row
def _reference_from_json(tools: str, answers: str) -> tuple[list[Call], dict[str, FloatPlaces]]:
    return as_calls(answers), float_places(as_tools(tools))
