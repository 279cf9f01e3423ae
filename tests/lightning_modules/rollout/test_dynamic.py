"""Dynamic sampling by hand, and on several ranks, which are threads here."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, local

import pytest

from datamodules.loading import PromptBatch
from lightning_modules.rollout import dynamic
from lightning_modules.rollout.dynamic import chosen_groups, draw_groups
from lightning_modules.rollout.rollout import Rollout


@pytest.mark.parametrize(
    ("draws", "wanted", "kept"),
    [
        ([[1, 1, 1]], 3, [(0, 0), (0, 1), (0, 2)]),
        ([[1, 0, 1], [0, 1, 1]], 3, [(0, 0), (0, 2), (1, 1)]),  # the last is one too many
        ([[0, 0, 0], [0, 1, 0]], 3, [(0, 0), (0, 1), (1, 1)]),  # the first of those without an advantage fill it up
        ([[0, 0], [0, 0]], 2, [(0, 0), (0, 1)]),  # what it would be without
        ([[0, 1], [1]], 2, [(0, 1), (1, 0)]),
    ],
)
def test_the_living_are_kept_and_the_first_of_the_dead_fill_the_batch_up(draws, wanted, kept):
    assert chosen_groups(draws, wanted) == kept


def on_ranks(ranks, rows, living, tries, size, monkeypatch):
    """What every rank keeps of batches of `size` rows, the group of row i being alive if i is among the living."""
    barrier, given, here = Barrier(ranks), [None] * ranks, local()

    def of_every_rank(value):
        given[here.rank] = value
        barrier.wait()
        values = list(given)
        barrier.wait()
        return values

    def share(draw):
        of_draw = list(range(rows))[draw * size : (draw + 1) * size]
        return PromptBatch([], [[row] for row in of_draw[here.rank :: ranks]]) if of_draw else None

    def rollout(reward):
        return Rollout(None, "", None, None, 1, 1, "stop", scores={"": 0.0}, reward=reward)

    def sample(batch):
        groups = [[rollout(0.0), rollout(float(row in living))] for (row,) in batch.prompt_ids]
        return groups, {"sampled": float(len(groups))}

    def one(rank):
        here.rank = rank
        batch = share(0)
        batch.further = share
        return draw_groups(batch, tries, sample, rank, ranks)

    monkeypatch.setattr(dynamic, "of_every_rank", of_every_rank)
    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(one, range(ranks)))


CASES = [
    # rows, living, tries, size -> kept rows in order, draws of further prompts
    (23, {1, 3, 6, 9, 10, 14, 20}, 10, 5, [1, 3, 6, 9, 10], 2),
    (23, {1, 3, 6, 9, 10, 14, 20}, 1, 5, [0, 1, 3, 6, 9], 1),  # one group of equal rewards fills the batch up
    (23, {22}, 10, 5, [0, 1, 2, 3, 22], 4),  # no prompts are left
    (23, set(range(5)), 10, 5, [0, 1, 2, 3, 4], 0),
    (23, set(), 2, 5, [0, 1, 2, 3, 4], 2),
    (3, {2}, 10, 2, [0, 2], 1),  # a draw smaller than the batch, and ranks without a prompt in it
]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(("rows", "living", "tries", "size", "kept", "further"), CASES)
def test_any_number_of_ranks_keeps_the_same_groups(ranks, rows, living, tries, size, kept, further, monkeypatch):
    shares = on_ranks(ranks, rows, living, tries, size, monkeypatch)
    numbered = sorted(
        (number, *prompt) for drawn in shares for number, prompt in zip(drawn.numbers, drawn.prompts, strict=True)
    )
    assert numbered == list(enumerate(kept))
    assert {drawn.further for drawn in shares} == {further}
    assert sum(drawn.sums["sampled"] for drawn in shares) == min(rows, (1 + further) * size)
    for drawn in shares:
        for (row,), group in zip(drawn.prompts, drawn.groups, strict=True):
            assert [rollout.reward for rollout in group] == [0.0, float(row in living)]


def test_without_tries_prompts_are_numbered_as_they_are_dealt_and_nothing_is_agreed(monkeypatch):
    shares = on_ranks(2, 23, {1}, 0, 5, monkeypatch)
    assert [drawn.numbers for drawn in shares] == [[0, 2, 4], [1, 3]]
    assert [drawn.prompts for drawn in shares] == [[[0], [2], [4]], [[1], [3]]]


def test_batches_that_cannot_draw_are_refused():
    with pytest.raises(
        ValueError, match=r"model\.dynamic_sampling\.max_draws needs batches that can draw further prompts"
    ):
        draw_groups(PromptBatch([], []), 1, None, 0, 1)
