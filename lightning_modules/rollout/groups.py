"""Groups of completions of the same prompt, and what they scored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.metrics import Rollout
from lightning_modules.rollout.generation import Completion
from lightning_modules.rollout.scoring import Rewards


@dataclass(frozen=True)
class Sample:
    """One completion and what it scored.

    Attributes:
        completion: As the generator returned it.
        rollout: It as text, with the parts of the strict reward.
        scores: Of each reward function; None where it failed.
        reward: Their weighted sum.
        penalty: For its length; at most 0.
    """

    completion: Completion
    rollout: Rollout
    scores: dict[str, float | None]
    reward: float
    penalty: float = 0.0

    @property
    def total(self) -> float:
        """What its advantage is made of."""
        return self.reward + self.penalty


Group = list[Sample]


def score_groups(
    completions: Sequence[Sequence[Completion]],
    judge: Callable[[int, Completion], Rollout],
    rewards: Rewards,
    penalty: Callable[[Tensor], Tensor] | None = None,
) -> list[Group]:
    """Score every completion.

    Args:
        completions: Of each prompt.
        judge: Takes apart a completion of the prompt at a place.
        rewards: The reward functions.
        penalty: Of lengths [R], if there is one.

    Returns:
        A group for each prompt.
    """
    flat = [completion for group in completions for completion in group]
    rollouts = [judge(i, completion) for i, group in enumerate(completions) for completion in group]
    scores = rewards([(rollout.text, rollout.example.tools, rollout.example.answers) for rollout in rollouts])
    lengths = torch.tensor([len(completion.token_ids) for completion in flat])
    penalties = penalty(lengths).tolist() if penalty else [0.0] * len(flat)
    samples = []
    for i, (completion, rollout) in enumerate(zip(flat, rollouts, strict=True)):
        mine = {name: column[i] for name, column in scores.items()}
        samples.append(Sample(completion, rollout, mine, rewards.total(mine), penalties[i]))
    places = iter(samples)
    return [[next(places) for _ in group] for group in completions]


def all_alike(group: Group) -> bool:
    """Whether all samples of a group are worth the same, so that none has an advantage."""
    return len({sample.total for sample in group}) == 1
