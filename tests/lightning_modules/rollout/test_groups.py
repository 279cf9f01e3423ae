"""When failures of reward functions are too many: over all ranks, and all ranks say so."""

import multiprocessing

import pytest
import torch

from datamodules import Example
from datamodules.loading import PromptBatch
from lightning_modules.generators.base import Completion
from lightning_modules.rollout.groups import Overlong, check_errors, score_groups
from lightning_modules.rollout.rollout import Rollout
from lightning_modules.rollout.scoring import Rewards


def rollout(error=""):
    example = Example(id="a", query="q", tools="[]", answers="[]")
    score, errors = (None, {"f": error}) if error else (1.0, {})
    return Rollout(example, "text", None, None, 1, 1, "stop", scores={"f": score}, reward=score, errors=errors)


def groups(errors, count):
    return [[rollout("ValueError: x")] for _ in range(errors)] + [[rollout()] for _ in range(count - errors)]


def scored(example, prompt, completion):
    return Rollout(example, "x" * len(completion.token_ids), None, None, len(prompt), 0, completion.finish_reason)


def test_completions_are_scored_in_their_groups():
    rows = [Example(id=name, query="q", tools="[]", answers="[]") for name in "ab"]
    completions = [
        [Completion([7], "stop"), Completion([7, 8, 9], "length")],
        [Completion([5, 6], "stop", [-1.0, -2.0])],
    ]
    rewards = Rewards({"length": lambda completion, tools, answers: len(completion)}, timeout=None)
    args = completions, PromptBatch(rows, [[1], [2, 3]]), scored, rewards
    [[one, three], [two]] = score_groups(*args)
    assert [rollout.reward for rollout in (one, three, two)] == [1.0, 3.0, 2.0]
    assert [rollout.penalty for rollout in (one, three, two)] == [0, 0, 0]
    assert one.errors == three.errors == two.errors == {}
    assert [Overlong(kind).masks(three) for kind in ("none", "mask", "penalty")] == [False, True, False]  # it was cut
    assert (two.example.id, two.token_ids, two.logprobs) == ("b", [5, 6], [-1.0, -2.0])
    [[one, three], [two]] = score_groups(*args, penalty=lambda lengths: -lengths / 4)
    assert [rollout.penalty for rollout in (one, three, two)] == [-0.25, -0.75, -0.5]
    assert (three.reward, three.total) == (3.0, 2.25)


def test_a_penalty_that_grows_over_more_tokens_than_there_may_be_grows_over_all():
    assert Overlong("penalty", buffer=64)(torch.tensor([8, 32]), 32).tolist() == [-0.25, -1]  # -length / 32


def test_share_of_one_rank():
    check_errors(groups(2, 8), 0.25)
    check_errors([], 0.0)
    with pytest.raises(
        RuntimeError, match=r"Reward function f failed for 3 of 8 .* 0\.25 allows; first with ValueError: x"
    ):
        check_errors(groups(3, 8), 0.25)


def said(pipe, rank, store, mine):
    """What two ranks are told, the one after the other, in two batches."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    words = []
    for batch in mine:
        try:
            check_errors(batch, 0.25)
            words.append("")
        except RuntimeError as error:
            words.append(str(error))
    pipe.send(words)


@pytest.mark.ranks
def test_share_is_that_of_all_ranks_and_no_rank_stops_alone(tmp_path):
    # First 4 of 4 and 0 of 12, a quarter of all; then 5 of 5 and nothing of 11, more than a quarter; then none has any.
    batches = [[groups(4, 4), groups(5, 5), []], [groups(0, 12), groups(0, 11), []]]
    fork = multiprocessing.get_context("fork")
    pipes = []
    for rank, mine in enumerate(batches):
        ours, theirs = fork.Pipe()
        fork.Process(target=said, args=(theirs, rank, tmp_path / "store", mine), daemon=True).start()
        pipes.append(ours)
    assert all(pipe.poll(60) for pipe in pipes)
    first, second = (pipe.recv() for pipe in pipes)
    assert first == second and first[0] == first[2] == ""
    assert first[1].startswith("Reward function f failed for 5 of 16 completions") and "completion 'text'" in first[1]
