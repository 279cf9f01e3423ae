"""Groups of completions of the same prompt, and what they scored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_modules.checkpointing.resume import of_every_rank
from lightning_modules.generators.base import Completion
from lightning_modules.metrics import Rollout
from lightning_modules.rollout.scoring import Rewards
from lightning_modules.rollout.workers import SHOWN


@dataclass(frozen=True)
class Sample:
    """One completion and what it scored.

    Attributes:
        completion: As the generator returned it.
        rollout: It as text, with the parts of the strict reward.
        scores: Of each reward function; None where it failed.
        reward: Their weighted sum; None where a function failed that has a weight. The completion is then neither
            right nor wrong: it is compared with no other, and nothing is learnt from it.
        penalty: For its length; at most 0.
        errors: Why functions failed, by their names.
    """

    completion: Completion
    rollout: Rollout
    scores: dict[str, float | None]
    reward: float | None
    penalty: float = 0.0
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether it has no reward."""
        return self.reward is None

    @property
    def total(self) -> float | None:
        """What its advantage is made of."""
        return None if self.reward is None else self.reward + self.penalty


Group = list[Sample]


def score_groups(
    completions: Sequence[Sequence[Completion]],
    judge: Callable[[int, Completion], Rollout],
    rewards: Rewards,
    penalty: Callable[[Tensor], Tensor] | None = None,
    of: int | None = None,
) -> list[Group]:
    """Score every completion.

    Args:
        completions: Of each prompt.
        judge: Takes apart a completion of the prompt at a place.
        rewards: The reward functions.
        penalty: Of lengths [R], if there is one.
        of: The most completions that the batch may have over all ranks and attempts; these alone when None.

    Returns:
        A group for each prompt.
    """
    flat = [completion for group in completions for completion in group]
    rollouts = [judge(i, completion) for i, group in enumerate(completions) for completion in group]
    inputs = [(rollout.text, rollout.example.tools, rollout.example.answers) for rollout in rollouts]
    answers = rewards(inputs, [rollout.result for rollout in rollouts], of)
    lengths = torch.tensor([len(completion.token_ids) for completion in flat])
    penalties = penalty(lengths).tolist() if penalty else [0.0] * len(flat)
    samples = []
    for i, (completion, rollout) in enumerate(zip(flat, rollouts, strict=True)):
        scores = {name: column[i].value for name, column in answers.items()}
        errors = {name: column[i].error for name, column in answers.items() if column[i].error}
        samples.append(Sample(completion, rollout, scores, rewards.total(scores), penalties[i], errors))
    places = iter(samples)
    return [[next(places) for _ in group] for group in completions]


def all_alike(group: Group) -> bool:
    """Whether all samples of a group that have a reward are worth the same, so that none has an advantage."""
    return len({sample.total for sample in group if not sample.failed}) < 2


def check_errors(groups: Sequence[Group], max_error_share: float) -> None:
    """Stop the run where a reward function fails too often; a collective, so that all ranks stop together.

    Args:
        groups: This rank's, of the batch, all attempts of them.
        max_error_share: Share of the completions of all ranks above which the failures of a function are too many.

    Raises:
        RuntimeError: Naming the function, its first error and what it was asked.
    """
    samples = [sample for group in groups for sample in group]
    failed = {name: [s for s in samples if name in s.errors] for name in (samples[0].scores if samples else ())}
    mine = {name: (len(some), _complaint(name, some[0])) for name, some in failed.items() if some}
    every_rank = of_every_rank((len(samples), mine))
    count = sum(number for number, _ in every_rank)
    for name in sorted({name for _, theirs in every_rank for name in theirs}):
        errors, complaints = zip(*(theirs[name] for _, theirs in every_rank if name in theirs), strict=True)
        if sum(errors) > max_error_share * count:
            raise RuntimeError(
                f"Reward function {name} failed for {sum(errors)} of {count} completions, more than "
                f"model.max_reward_errors {max_error_share:g} allows; first with {complaints[0]}."
            )


def _complaint(name: str, sample: Sample) -> str:
    example = sample.rollout.example
    completion, tools, answers = (repr(text[:SHOWN]) for text in (sample.rollout.text, example.tools, example.answers))
    return f"{sample.errors[name]}; its input was completion {completion}, tools {tools}, answers {answers}"
