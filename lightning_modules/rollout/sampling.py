"""Sampling groups of rollouts for a batch of prompts, and again where all rewards of a group are equal."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datamodules.loading import PromptBatch
from datamodules.system.arguments import declared
from lightning_modules.generators.base import Completion
from lightning_modules.ranks import of_every_rank
from lightning_modules.rollout.groups import Group, all_equal, check_errors
from lightning_modules.rollout.metrics import Sums, timed


@declared
@dataclass(frozen=True)
class Sampling:
    """Settings of sampling: group size, temperature and top-p of the rollouts to learn from.

    Attributes:
        group_size: Completions per prompt, G; at least 2.
        temperature: Divides the logits, of the sampler and of everything that is learnt from its samples; EGPO's 0.7.
        top_p: Probability of the set of tokens sampled from; 1 is all of them. Less is refused unless the
            cap of the importance sampling is None, because the policy is scored, and corrected, under the whole
            distribution.
        ahead: Whether the next batch is sampled while the policy learns from this one, by servers beside the trainer:
            from the policy before the updates on this batch, which the importance sampling corrects for.

    Raises:
        ValueError: A setting is out of its range.
    """

    group_size: int = 8
    temperature: float = 0.7
    top_p: float = 1.0
    ahead: bool = False

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(
                f"model.sampling.group_size is {self.group_size}; give at least 2: a group of one has no advantage."
            )
        if not 0 < self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise ValueError(
                "model.sampling.temperature must be greater than 0 and model.sampling.top_p lie in (0, 1], got "
                f"{self.temperature} and {self.top_p}."
            )

    def options(self) -> dict[str, Any]:
        """Arguments of a `Generator` that samples the groups."""
        return {"n": self.group_size, "temperature": self.temperature, "top_p": self.top_p}


def sample_groups(
    batch: PromptBatch,
    generate: Callable[[list[list[int]], list[str]], list[list[Completion]]],
    score: Callable[..., list[Group]],
    *,
    group_size: int,
    max_resample: int,
    max_error_share: float,
    step: int,
    ranks: int,
    clock: dict[str, float],
) -> tuple[list[Group], Sums]:
    """Sample and score a group for each prompt; again, up to `max_resample` times, where all rewards are equal.

    Unlike dynamic sampling (`draw_groups`), which draws other prompts, this draws from the same ones once more, so that
    a batch of prompts stays one. The random numbers of a group derive from the number of the optimizer step, the row's
    id and the attempt.

    A group whose rewards are equal has no advantage. So resampling changes how often each prompt contributes: more
    evenly. Take groups of two, a hard prompt (its completions are right with p = 0.1) and one with p = 0.5. Rewards of
    a group differ in 2 p (1 - p) = 18 % and 50 % of the cases, within two attempts in 1 - 0.82^2 = 33 % and
    1 - 0.5^2 = 75 %: the hard prompt's share of the groups with an advantage grows from 26 % to 30 %. `reward/mean`, of
    the last attempt, is biased towards such groups: 0.18 * 0.5 + 0.82 * 0.1 = 0.17 for the hard prompt, and 0.83 for
    one with p = 0.9. `reward/mean_first`, of the first attempt, is the policy's: 0.1 and 0.9.

    Args:
        batch: This rank's share of the prompts.
        generate: Samples a group for each of some prompts, whose random numbers derive from names.
        score: `score_groups` with all but its first two arguments and `most_completions` bound.
        group_size: Completions per prompt.
        max_resample: Attempts after the first.
        max_error_share: See `check_errors`.
        step: Number of the optimizer step.
        ranks: How many there are.
        clock: Seconds are added to it.

    Returns:
        A group for each prompt; how many groups were sampled anew, each attempt counted, and the sum and number of the
        rewards of the first attempt.
    """
    groups: list[Group] = [[] for _ in batch.examples]
    pending = list(range(len(groups)))  # places of the prompts to sample from
    attempted: list[Group] = []  # the groups of all attempts, those of the first one in front
    resampled = 0
    most = (len(groups) + (ranks > 1)) * ranks * group_size  # of one attempt: shares of ranks differ by one prompt
    for attempt in range(1 + max_resample):
        prompts = PromptBatch([batch.examples[i] for i in pending], [batch.prompt_ids[i] for i in pending])
        suffix = f"/{attempt}" if attempt else ""
        with timed(clock, "time/generate"):
            completions = generate(prompts.prompt_ids, [f"{step}/{example.id}{suffix}" for example in prompts.examples])
        with timed(clock, "time/reward"):
            scored = score(completions, prompts, most_completions=most * (attempt + 1))
        attempted += scored
        with timed(clock, "time/wait"):
            check_errors(attempted, max_error_share)
        for i, group in zip(pending, scored, strict=True):
            groups[i] = group
        pending = [i for i in pending if all_equal(groups[i])]
        # Generation is a collective where the policy is sharded: all ranks take part in an attempt, or none.
        if attempt == max_resample or not any(of_every_rank(bool(pending))):
            break
        resampled += len(pending)
    first = [rollout.reward for group in attempted[: len(groups)] for rollout in group if rollout.rewarded]
    return groups, {"first/sum": float(sum(first)), "first/count": float(len(first)), "resampled": float(resampled)}
