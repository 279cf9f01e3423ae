"""Dynamic sampling: other prompts replace those whose group has no advantage (DAPO, arXiv 2503.14476, 3.2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from datamodules.loading import PromptBatch
from datamodules.system.arguments import declared
from lightning_modules.ranks import of_every_rank
from lightning_modules.rollout.groups import Group, all_equal
from lightning_modules.rollout.metrics import Sums
from lightning_modules.rollout.rollout import Rollout


@declared
@dataclass(frozen=True)
class DynamicSampling:
    """Settings of dynamic sampling: what replaces groups whose rewards are all equal, which have no advantage.

    Attributes:
        max_draws: How often further prompts, as many as the batch has, are drawn and sampled from to take their place
            (DAPO, arXiv 2503.14476, 3.2); 10 is verl's bound. Groups beyond the size of the batch are thrown away; if
            there are too few in the end, groups of the batch's own prompts fill it up. `reward/...` and `rollout/...`
            are those of the groups that are kept, and so no longer the policy's.
        max_resample: How often such a group is sampled anew, from the same prompt: prompts that are nearly always or
            never answered right gain weight, and `reward/mean`, of the last attempt, is no longer the policy's, which
            `reward/mean_first` is.

    Raises:
        ValueError: A setting is out of its range, or both are used.
    """

    max_draws: int = 0
    max_resample: int = 0

    def __post_init__(self) -> None:
        for name, value in (("max_draws", self.max_draws), ("max_resample", self.max_resample)):
            if value < 0:
                raise ValueError(f"model.dynamic_sampling.{name} is {value}; give at least 0.")
        if self.max_resample and self.max_draws:
            raise ValueError(
                f"model.dynamic_sampling.max_resample {self.max_resample} samples the same prompts again and "
                f"model.dynamic_sampling.max_draws {self.max_draws} others in their place: set one of them to 0."
            )


class Drawn(NamedTuple):
    """The groups of this rank that a batch learns from, with their prompts.

    Attributes:
        prompts: Token ids of each group's prompt.
        groups: What was sampled of it.
        numbers: Its number in the global batch.
        sums: What was counted over all groups that were sampled.
        further: How often further prompts were drawn.
    """

    prompts: list[list[int]]
    groups: list[Group]
    numbers: list[int]
    sums: Sums
    further: int

    @property
    def rollouts(self) -> list[Rollout]:
        """All rollouts, group by group."""
        return [rollout for group in self.groups for rollout in group]


def draw_groups(
    batch: PromptBatch, tries: int, sample: Callable[[PromptBatch], tuple[list[Group], Sums]], rank: int, ranks: int
) -> Drawn:
    """Sample a group for each prompt and then, while too few have an advantage, for further prompts.

    A group has none where its rewards are all equal. Every rank takes part in every draw, with its share of it, for
    generation can be a collective; the groups that are kept, and their numbers, are the same on any number of ranks.

    Args:
        batch: This rank's share of the prompts.
        tries: How often further prompts may be drawn.
        sample: Gives a group for each prompt of a share, and sums.
        rank: This rank.
        ranks: How many there are.

    Raises:
        ValueError: If further prompts are wanted and the batch cannot draw any.
    """
    if tries and batch.further is None:
        raise ValueError(
            "model.dynamic_sampling.max_draws needs batches that can draw further prompts, as those of "
            "XLAMPromptDataModule: set it to 0 with another loader."
        )
    groups, sums = sample(batch)
    if not tries:
        return Drawn(batch.prompt_ids, groups, list(range(rank, rank + ranks * len(groups), ranks)), sums, 0)
    prompts, sampled, useful = [batch.prompt_ids], [groups], [_with_advantage(groups)]
    wanted = len(useful[0])
    while sum(map(sum, useful)) < wanted and len(useful) <= tries and (more := batch.further(len(useful))) is not None:
        groups, counted = sample(more)
        sums = {name: value + counted[name] for name, value in sums.items()}
        prompts.append(more.prompt_ids)
        sampled.append(groups)
        useful.append(_with_advantage(groups))
    kept = enumerate(chosen_groups(useful, wanted))
    mine = [(number, draw, place // ranks) for number, (draw, place) in kept if place % ranks == rank]
    return Drawn(
        prompts=[prompts[draw][i] for _, draw, i in mine],
        groups=[sampled[draw][i] for _, draw, i in mine],
        numbers=[number for number, _, _ in mine],
        sums=sums,
        further=len(useful) - 1,
    )


def chosen_groups(draws: Sequence[Sequence[bool]], wanted: int) -> list[tuple[int, int]]:
    """The sampled groups that a batch learns from, as pairs of draw and place in it.

    The first that have an advantage; where there are too few, the first of the others fill the batch up, so that its
    size is always the same, and it is at worst what it would be without dynamic sampling.

    Args:
        draws: Of each draw of prompts, the batch's own first, whether each group has an advantage.
        wanted: Groups of a batch.

    Returns:
        Draw and place in it of each group that is kept, in order: the place of one here is its number in the batch.
    """
    places = [(draw, place) for draw, useful in enumerate(draws) for place in range(len(useful))]
    with_advantage_first = sorted(places, key=lambda at: not draws[at[0]][at[1]])  # stable
    return sorted(with_advantage_first[:wanted])


def _with_advantage(groups: list[Group]) -> list[bool]:
    """Whether each group of a draw over all ranks has an advantage, in the order of the global batch; a collective."""
    shares = of_every_rank([not all_equal(group) for group in groups])
    ranks = len(shares)
    return [shares[i % ranks][i // ranks] for i in range(sum(map(len, shares)))]
