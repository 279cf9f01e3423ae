"""A group of answers to one request, with rewards, advantages and entropy bonus as GRPO and EGPO compute them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedTokenizerFast

from datamodules.chat.form import ChatForm
from datamodules.chat.segments import prompt_text, target_segments
from datamodules.example import Example
from lightning_modules.commands.request import draw, entropies, misfit_of
from lightning_modules.objectives import EntropyBonus, group_advantages
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.rollout.batching import CLOSE
from lightning_modules.rollout.rollout import Rollout


@dataclass(frozen=True)
class ShownToken:
    """One token of an answer.

    Attributes:
        text: What it adds to the text; "" for the first bytes of a character that later tokens complete.
        segment: 1 for the chain of thought with its tags, 2 for what follows, as the targets of SRML are divided.
        entropy: Of the distribution that it was drawn from, in nats.
        reasoned: Whether it lies strictly between the think tags, so that its entropy counts for EGPO.
    """

    text: str
    segment: int
    entropy: float
    reasoned: bool


@dataclass(frozen=True)
class SampledAnswer:
    """One answer of a group.

    Attributes:
        rollout: What was written and what the reward says of it; without a reference only how it was read.
        tokens: What was written, the token that ended it included.
        misfit: Where its calls contradict the tools, or None.
        cot_entropy: E, the mean entropy of the chain of thought in nats; 0 without one.
        advantage: A, relative to the group; None without a reference, and so for the others below.
        bonus: EGPO's min(lambda E, |A| / alpha).
        raw_bonus: lambda E.
        cap: |A| / alpha.
        capped: Whether the cap is the smaller one.
        shaped: A with the bonus.
    """

    rollout: Rollout
    tokens: list[ShownToken]
    misfit: str | None
    cot_entropy: float
    advantage: float | None = None
    bonus: float | None = None
    raw_bonus: float | None = None
    cap: float | None = None
    capped: bool | None = None
    shaped: float | None = None


@dataclass(frozen=True)
class SampledGroup:
    """The answers to one request: its prompt as text, the number of its tokens, and the answers."""

    prompt: str
    prompt_tokens: int
    answers: list[SampledAnswer]

    @property
    def cot_entropy(self) -> float:
        """The mean of E over the answers with a chain of thought, as training logs it; 0 where none has one."""
        thoughtful = [answer.cot_entropy for answer in self.answers if any(token.reasoned for token in answer.tokens)]
        return sum(thoughtful) / max(1, len(thoughtful))


def sample_group(
    policy: ScoredCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    form: ChatForm,
    example: Example,
    samples: int = 4,
    temperature: float = 0.7,
    max_new_tokens: int = 256,
    seed: int = 0,
    advantage_scale: Literal["std", "none"] = "std",
    entropy_bonus: EntropyBonus = EntropyBonus(),
) -> SampledGroup:
    """A group of answers to one request, with rewards and advantages as a training step computes them.

    Args:
        policy: The model.
        tokenizer: Its tokenizer.
        form: How the request is put and the answer read.
        example: The request, with the reference if there is one.
        samples: G, answers to draw.
        temperature: Divides the logits; 0 takes the most likely token, and entropies are then those at 1.
        max_new_tokens: Tokens after which an answer is cut.
        seed: Of the sampling.
        advantage_scale: See `group_advantages`.
        entropy_bonus: With lambda and alpha; E is always that of the whole chain of thought.

    Returns:
        The group.

    Raises:
        ValueError: A setting is out of its range, or the request holds a special token of the tokenizer.
    """
    prompt, rollouts = draw(policy, tokenizer, form, example, samples, temperature, max_new_tokens, seed)
    buffer, entropy, level = entropies(policy, tokenizer, example, prompt, rollouts, temperature)
    compared = {}
    if example.answers:
        scores = [rollout.result.score for rollout in rollouts]
        compared = compare(scores, level, advantage_scale, entropy_bonus)
    answers = [
        SampledAnswer(
            rollout=rollout,
            tokens=shown_tokens(tokenizer, rollout.token_ids, entropy[buffer.doc_ids == i], buffer.cot[i]),
            misfit=misfit_of(rollout),
            cot_entropy=level[i].item(),
            **{name: column[i].item() for name, column in compared.items()},
        )
        for i, rollout in enumerate(rollouts)
    ]
    return SampledGroup(prompt_text(tokenizer, example, form), len(prompt), answers)


def compare(
    scores: list[float],
    level: torch.Tensor,
    advantage_scale: Literal["std", "none"],
    entropy_bonus: EntropyBonus,
) -> dict[str, torch.Tensor]:
    """Advantages, entropies and bonuses of the answers of a group, as `SampledAnswer` names them; all [G].

    Args:
        scores: Rewards, G of them.
        level: E of each, in nats, [G].
        advantage_scale: See `group_advantages`.
        entropy_bonus: With lambda and alpha.
    """
    plain = group_advantages(torch.tensor([scores], dtype=torch.float64), advantage_scale).flatten()
    parts = entropy_bonus(plain, level)
    columns = {"advantage": plain, "bonus": parts.bonus, "raw_bonus": parts.raw, "cap": parts.cap}
    return columns | {"capped": parts.capped, "shaped": parts.shaped}


def shown_tokens(
    tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], entropy: torch.Tensor, reasoned: Sequence[bool]
) -> list[ShownToken]:
    """The tokens of an answer as they are shown.

    Args:
        tokenizer: Made them.
        ids: The answer, n of them.
        entropy: Of each, in nats, [n].
        reasoned: The `cot_mask` of the answer.
    """
    ids, texts, written = list(ids), [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end])
        text = text if end == len(ids) else text.rstrip("\ufffd")
        texts.append(text[len(written) :])
        written += texts[-1]
    starts = [0]
    for text in texts[:-1]:
        starts.append(starts[-1] + len(text))
    closed = written if CLOSE in written else written + CLOSE  # one that is never closed is all chain of thought
    segments = target_segments(closed, [(start, start) for start in starts])[: len(ids)]
    return [ShownToken(*columns) for columns in zip(texts, segments, entropy.tolist(), reasoned, strict=True)]
