import io
from itertools import chain

import pytest
import torch

from lightning_modules.rollout.buffer import RolloutBuffer, at, buffer_of_rank
from lightning_modules.rollout.groups import all_equal
from lightning_modules.rollout.rollout import Rollout


def buffer(**changes):
    """Three groups of two, whose prompts are number 0, 2 and 4 of the six of the global batch."""
    values = {
        "rows": ["a", "b", "c"],
        "prompts": [[1, 2], [1, 2], [3], [3], [4, 5, 6], [4, 5, 6]],
        "completions": [[7], [8, 9], [7, 7, 7], [8], [9, 9], [9]],
        "cot": [[False], [True, False], [True, True, False], [False], [True, False], [False]],
        "groups": [0, 0, 2, 2, 4, 4],
        "masked": [False, False, False, True, False, False],
        "advantages": torch.tensor([1.0, 2, 2, 3, 3, 3, 4, 5, 7, 6]),
        "batch_prompts": 6,
    }
    return RolloutBuffer(**values | changes)


def test_tokens_know_their_rollout():
    assert buffer().doc_ids.tolist() == [0, 1, 1, 2, 2, 2, 3, 4, 4, 5]
    assert buffer().rollout_advantages().tolist() == [1, 2, 3, 4, 6, 6]  # 6 = (5 + 7) / 2
    assert buffer(completions=[[7], []], advantages=torch.tensor([1.0])).rollout_advantages().tolist() == [1, 0]


def test_every_rollout_serves_once_per_pass_unless_it_is_masked():
    turns = [buffer(updates_done=step).chosen(3) for step in range(6)]
    # Prompts 0 and 1 are the first third of six, 2 and 3 the second, 4 and 5 the last; rollout 3 is masked.
    assert turns == [[0, 1], [2], [4, 5]] * 2
    assert buffer().chosen(1) == [0, 1, 2, 4, 5]


@pytest.mark.parametrize(("prompts", "ranks", "mini_batches"), [(8, 2, 2), (8, 4, 4), (12, 3, 4), (7, 2, 3), (1, 2, 2)])
def test_ranks_share_every_mini_batch(prompts, ranks, mini_batches):
    shares = []
    for rank in range(ranks):
        mine = list(range(rank, prompts, ranks))  # as the loader deals them
        turns = [
            buffer(groups=mine, masked=[False] * len(mine), batch_prompts=prompts, updates_done=step)
            for step in range(mini_batches)
        ]
        shares.append([[mine[i] for i in turn.chosen(mini_batches)] for turn in turns])
    every = [sorted(chain(*parts)) for parts in zip(*shares, strict=True)]
    assert list(chain(*every)) == list(range(prompts))  # in blocks of consecutive prompts, whatever the ranks
    assert max(map(len, every)) - min(map(len, every)) <= 1
    for parts in zip(*shares, strict=True):
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("chosen", [None, [1, 4], []])
@pytest.mark.parametrize("budget", [5, 10, 100])
def test_packing_keeps_within_the_budget_and_loses_no_token(chosen, budget):
    micros = buffer().pack(budget, chosen)
    assert all(micro["input_ids"].numel() <= budget for micro in micros)
    tokens = sorted(t for micro in micros for t in micro["tokens"].flatten().tolist() if t >= 0)
    wanted = range(6) if chosen is None else chosen
    assert tokens == [t for t, sample in enumerate(buffer().doc_ids.tolist()) if sample in wanted]
    assert (budget, len(micros)) != (5, 1) or chosen == []


def test_values_are_found_by_token():
    assert at(torch.tensor([5.0, 6.0, 7.0]), torch.tensor([2, -1, 0])).tolist() == [7, 0, 5]
    assert at(torch.zeros(0), torch.tensor([-1])).tolist() == [0]  # a rank without any rollout


def test_state_loads_with_weights_only():
    file = io.BytesIO()
    torch.save(buffer(updates_done=2, weights=torch.ones(10)).state_dict(), file)
    file.seek(0)
    again = RolloutBuffer.from_state(torch.load(file, weights_only=True))
    assert torch.equal(again.advantages, buffer().advantages) and torch.equal(again.weights, torch.ones(10))
    for name in ("rows", "prompts", "completions", "cot", "groups", "masked"):
        assert getattr(again, name) == getattr(buffer(), name)
    assert (again.updates_done, again.old_logprobs) == (2, None)


def test_rollouts_of_a_rank():
    states = [buffer(updates_done=step).state_dict() for step in (1, 2)]
    assert buffer_of_rank(states, 1, 2, 4).updates_done == 2
    assert buffer_of_rank([None, None], 0, 1, 4) is None  # between two batches any number of ranks will do
    with pytest.raises(ValueError, match=r"of 2 ranks, and this run has 1: .* a multiple of 4"):
        buffer_of_rank(states, 0, 1, 4)
    with pytest.raises(ValueError, match=r"of 2 ranks, and this run has 3: .* a multiple of 4"):
        buffer_of_rank(states, 2, 3, 4)


def test_checkpoints_of_before_say_served():
    state = buffer(updates_done=3).state_dict()
    state["served"] = state.pop("updates_done")
    assert buffer_of_rank([state], 0, 1, 4).updates_done == 3


def test_alike():
    def rollout(reward, penalty=0.0):
        return Rollout(None, "", None, None, 1, 1, "stop", reward=reward, penalty=penalty)

    assert all_equal([rollout(0.3)] * 3)
    assert not all_equal([rollout(0.3), rollout(0.3, -0.1)])
    assert all_equal([rollout(0.3), rollout(None), rollout(0.3)]) and all_equal([rollout(0.3), rollout(None)])
    assert all_equal([rollout(None)] * 2) and not all_equal([rollout(0.3), rollout(None), rollout(0.2)])
