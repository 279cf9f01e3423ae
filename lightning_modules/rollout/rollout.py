"""A rollout: a completion of one example, parsed and scored."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from datamodules.example import Example
from lightning_modules.generators.base import Completion
from rewards import FunctionCallReward, ParsedCompletion, RewardResult, category_of

CATEGORIES = ("simple", "multiple", "parallel", "parallel_multiple", "irrelevance")


@dataclass(frozen=True)
class Rollout:
    """A completion of one example with its score; in training also its rewards and token ids.

    Attributes:
        example: The row that was asked.
        text: The completion, without the token that ended it.
        parsed: Its chain of thought and calls.
        result: Score and parts, from the reward; None where the row has no answer to judge by.
        prompt_tokens: Length of the prompt.
        completion_tokens: Length of the completion, its end token included.
        finish_reason: "stop", or "length" if it was cut.
        token_ids: The completion as it was generated, its end token included; here and below of training alone.
        logprobs: The generator's own log-probability of each of them, if it reports them.
        scores: Of each reward function; None where it failed.
        reward: Their weighted sum; None where a function failed that has a weight. The completion is then neither
            right nor wrong: it is compared with no other, and nothing is learnt from it.
        penalty: For its length; at most 0.
        errors: Why functions failed, by their names.
    """

    example: Example
    text: str
    parsed: ParsedCompletion
    result: RewardResult | None
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length"]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None
    scores: dict[str, float | None] = field(default_factory=dict)
    reward: float | None = None
    penalty: float = 0.0
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def category(self) -> str:
        """One of `CATEGORIES`: the row's own if it has one, else counted from its tools and reference calls, if any."""
        if self.example.category in CATEGORIES or not self.example.answers:
            return self.example.category
        return category_of(self.example.answers, self.example.tools)

    @property
    def rewarded(self) -> bool:
        """Whether it has a reward, so that it can be compared and learnt from."""
        return self.reward is not None

    @property
    def total(self) -> float | None:
        """Reward plus penalty: what its advantage is computed from."""
        return None if self.reward is None else self.reward + self.penalty

    def as_row(self) -> dict[str, Any]:
        """A JSON row: the example's columns with the generated `cot`, then completion, calls, score and lengths."""
        calls = None if self.parsed.calls is None else json.dumps([asdict(call) for call in self.parsed.calls])
        return asdict(self.example) | {
            "cot": self.parsed.cot,
            "category": self.category,
            "completion": self.text,
            "calls": calls,
            "score": self.result and self.result.score,
            "parts": self.result and self.result.parts,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "finish_reason": self.finish_reason,
        }


def score_completion(
    tokenizer: PreTrainedTokenizerBase,
    reward: FunctionCallReward,
    example: Example,
    prompt: Sequence[int],
    completion: Completion,
) -> Rollout:
    """A completion as text, taken apart and, where the right answer is known, scored with the reward."""
    text = completion.text(tokenizer)
    result = reward(text, example.tools, example.answers) if example.answers else None
    return Rollout(
        example=example,
        text=text,
        parsed=(result and result.parsed) or reward.parse(text),
        result=result,
        prompt_tokens=len(prompt),
        completion_tokens=len(completion.token_ids),
        finish_reason=completion.finish_reason,
    )
