"""Which groups are sampled again, under which names, and what is counted of it."""

import pytest

from datamodules import Example
from datamodules.loading import PromptBatch
from lightning_modules.rollout import sampling
from lightning_modules.rollout.rollout import Rollout
from lightning_modules.rollout.sampling import sample_groups

# Of three groups of two the last two have one reward at first, and the last again.
ATTEMPTS = [[[1, 0], [1, 1], [0, 0]], [[1, 0], [1, 1]], [[1, 1]]]


@pytest.mark.parametrize(("ranks", "most"), [(1, 3 * 2), (2, 4 * 2 * 2)])  # another rank may have one prompt more
def test_groups_that_are_alike_are_sampled_again_and_counted(ranks, most):
    examples = [Example(id=name, query="q", tools="[]", answers="[]") for name in "abc"]
    asked, bounds = [], []

    def generate(prompts, names):
        asked.append((prompts, names))
        return [None] * len(prompts)

    def score(completions, batch, most_completions):
        bounds.append(most_completions)
        rewards = ATTEMPTS[len(bounds) - 1]
        assert len(completions) == len(batch.examples) == len(rewards)
        return [[Rollout(None, "", None, None, 1, 1, "stop", reward=r) for r in group] for group in rewards]

    groups, sums = sample_groups(
        PromptBatch(examples, [[1], [2], [3]]), generate, score, group_size=2, max_resample=2, max_error_share=0.0,
        step=7, ranks=ranks, clock={},
    )  # fmt: skip
    assert asked == [
        ([[1], [2], [3]], ["7/a", "7/b", "7/c"]), ([[2], [3]], ["7/b/1", "7/c/1"]), ([[3]], ["7/c/2"]),
    ]  # fmt: skip
    assert bounds == [most, 2 * most, 3 * most]
    assert [[rollout.reward for rollout in group] for group in groups] == [[1, 0], [1, 0], [1, 1]]
    assert sums == {"first/sum": 3, "first/count": 6, "resampled": 2 + 1}


def test_a_rank_takes_part_in_the_attempts_of_others(monkeypatch):
    asked, others = [], iter([True, False])
    monkeypatch.setattr(sampling, "of_every_rank", lambda mine: [mine, next(others)])
    batch = PromptBatch([Example(id="a", query="q", tools="[]", answers="[]")], [[1]])
    groups, sums = sample_groups(
        batch, lambda prompts, names: asked.append(names) or [],
        lambda completions, batch, most_completions: [
            [Rollout(None, "", None, None, 1, 1, "stop", reward=r) for r in (0, 1)] for _ in batch.examples
        ],
        group_size=2, max_resample=5, max_error_share=0.0, step=0, ranks=2, clock={},
    )  # fmt: skip
    assert asked == [["0/a"], []] and sums["resampled"] == 0 and len(groups) == 1
