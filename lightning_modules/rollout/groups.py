"""Groups of rollouts of the same prompt with their rewards; the treatment of truncated ones and of failed rewards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from datamodules.example import Example
from datamodules.loading import PromptBatch
from datamodules.system.arguments import declared
from lightning_modules.generators.base import Completion
from lightning_modules.objectives import overlong_penalty
from lightning_modules.ranks import of_every_rank
from lightning_modules.rollout.rollout import Rollout
from lightning_modules.rollout.scoring import Rewards
from lightning_modules.rollout.subprocess_reward import SHOWN

Group = list[Rollout]


@declared
@dataclass(frozen=True)
class Overlong:
    """Treatment of overlong completions: those truncated at the limit, or near it.

    Attributes:
        treatment: "none" treats them as others, "mask" leaves those that are cut out of the loss, "penalty" takes up to
            1 off the reward of those that come near the limit.
        buffer: Tokens before the limit over which the penalty grows.

    Raises:
        ValueError: A setting is out of its range.
    """

    treatment: Literal["none", "mask", "penalty"] = "none"
    buffer: int = 64

    def __post_init__(self) -> None:
        if not self.buffer >= 1:
            raise ValueError(f"model.overlong.buffer is {self.buffer}; give at least 1.")

    def __call__(self, lengths: Tensor, max_length: int) -> Tensor:
        """Penalty of each completion by its number of tokens, [R]; at most 0, and 0 without that treatment."""
        if self.treatment != "penalty":
            return torch.zeros(len(lengths), dtype=torch.float32)
        return overlong_penalty(lengths, max_length, min(self.buffer, max_length))

    def masks(self, rollout: Rollout) -> bool:
        """Whether a rollout is masked, that is left out of the loss."""
        return self.treatment == "mask" and rollout.finish_reason == "length"


def score_groups(
    completions: Sequence[Sequence[Completion]],
    batch: PromptBatch,
    score: Callable[[Example, Sequence[int], Completion], Rollout],
    rewards: Rewards,
    penalty: Callable[[Tensor], Tensor] = torch.zeros_like,
    most_completions: int | None = None,
) -> list[Group]:
    """Groups of rollouts, scored with the reward and every reward function.

    Args:
        completions: Of each prompt.
        batch: The prompts.
        score: Makes a rollout of an example, its prompt and a completion.
        rewards: The reward functions.
        penalty: Gives that of completions by their lengths, [R]; 0 without it.
        most_completions: The most that the batch may have over all ranks and attempts; those here when None.

    Returns:
        A group for each prompt.
    """
    flat = [completion for group in completions for completion in group]
    prompts = zip(batch.examples, batch.prompt_ids, completions, strict=True)
    rollouts = [score(example, prompt, completion) for example, prompt, group in prompts for completion in group]
    inputs = [(rollout.text, rollout.example.tools, rollout.example.answers) for rollout in rollouts]
    answers = rewards(inputs, [rollout.result for rollout in rollouts], most_completions)
    lengths = torch.tensor([len(completion.token_ids) for completion in flat])
    penalties = penalty(lengths).tolist()
    for i, completion in enumerate(flat):
        scores = {name: column[i].value for name, column in answers.items()}
        rollouts[i] = replace(
            rollouts[i],
            token_ids=completion.token_ids,
            logprobs=completion.logprobs,
            scores=scores,
            reward=rewards.total(scores),
            penalty=penalties[i],
            errors={name: column[i].error for name, column in answers.items() if column[i].error},
        )
    rewarded = iter(rollouts)
    return [[next(rewarded) for _ in group] for group in completions]


def all_equal(group: Group) -> bool:
    """Whether all rewards of a group are equal, so that none of its rollouts has an advantage."""
    return len({rollout.total for rollout in group if rollout.rewarded}) < 2


def reward_matrix(groups: Sequence[Group], group_size: int) -> tuple[Tensor, Tensor]:
    """Rewards of the groups, penalties included, float64, and which rollouts have one, bool; both [P, G]."""
    rollouts = [rollout for group in groups for rollout in group]
    totals = torch.tensor([rollout.total if rollout.rewarded else 0.0 for rollout in rollouts], dtype=torch.float64)
    valid = torch.tensor([rollout.rewarded for rollout in rollouts], dtype=torch.bool)
    return totals.view(-1, group_size), valid.view(-1, group_size)


def check_errors(groups: Sequence[Group], max_error_share: float) -> None:
    """Stop the run where a reward function fails too often; a collective, so that all ranks stop together.

    Args:
        groups: This rank's, of the batch, all attempts of them.
        max_error_share: Share of the completions of all ranks above which the failures of a function are too many.

    Raises:
        RuntimeError: Naming the function, its first error and what it was asked.
    """
    rollouts = [rollout for group in groups for rollout in group]
    failed = {name: [r for r in rollouts if name in r.errors] for name in (rollouts[0].scores if rollouts else ())}
    mine = {name: (len(some), _complaint(name, some[0])) for name, some in failed.items() if some}
    every_rank = of_every_rank((len(rollouts), mine))
    count = sum(number for number, _ in every_rank)
    for name in sorted({name for _, theirs in every_rank for name in theirs}):
        errors, complaints = zip(*(theirs[name] for _, theirs in every_rank if name in theirs), strict=True)
        if sum(errors) > max_error_share * count:
            raise RuntimeError(
                f"Reward function {name} failed for {sum(errors)} of {count} completions, more than "
                f"model.max_reward_errors {max_error_share:g} allows; first with {complaints[0]}."
            )


def _complaint(name: str, rollout: Rollout) -> str:
    example = rollout.example
    completion, tools, answers = (repr(text[:SHOWN]) for text in (rollout.text, example.tools, example.answers))
    return f"{rollout.errors[name]}; its input was completion {completion}, tools {tools}, answers {answers}"
