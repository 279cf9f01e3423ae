"""Reward functions that raise, hang, die or return nonsense: the completion has no score, and the run goes on."""

import math
import os
import re
import time

import pytest
import torch

from lightning_modules.rollout.scoring import Rewards, RewardTerm, as_score
from rewards import FunctionCallReward, RewardResult

ROW = ("[]", "[]")  # tools and answers


def length(completion, tools, answers):
    return len(completion)


def moody(completion, tools, answers):
    """What each completion asks for."""
    if completion == "raise":
        raise KeyError("city")
    if completion == "hang":
        time.sleep(60)
    if completion == "loop":
        while True:
            pass
    if completion == "die":
        os._exit(3)
    if completion == "leave":
        raise SystemExit
    odd = {"none": None, "nan": math.nan, "inf": -math.inf, "text": "1", "true": True, "huge": 1e200}
    return odd.get(completion, 0.25)


def answers(function, *completions, timeout=10.0, share=1.0, **options):
    rewards = Rewards({"f": RewardTerm(function)}, timeout, share, **options)
    return rewards([(completion, *ROW) for completion in completions])["f"]


def scores(*args, **options):
    return [answer.value for answer in answers(*args, **options)]


WAYS = ("a", "raise", "b", "none", "nan", "inf", "text", "true", "leave", "die", "huge", "c")


@pytest.mark.parametrize("workers", [1, 8])
def test_every_way_to_fail_costs_that_completion_alone(workers):
    got = answers(moody, *WAYS, workers=workers)
    assert [a.value for a in got] == [0.25, None, 0.25, None, None, None, None, 1.0, None, None, None, 0.25]
    assert [bool(answer.error) for answer in got] == [answer.value is None for answer in got]
    assert got[1].error == "KeyError: 'city'" and got[9].error == "its process died" and "1e+200" in got[10].error


@pytest.mark.parametrize("way", ["hang", "loop"])
def test_a_function_that_hangs_is_stopped_and_asked_again(way):
    start = time.perf_counter()
    assert scores(moody, way, "a", timeout=0.3) == [None, 0.25]
    assert time.perf_counter() - start < 20


def test_without_a_time_out_functions_run_in_this_process():
    seen = []
    assert scores(lambda completion, *_: seen.append(completion) or 1, "a", timeout=None) == [1.0]
    assert seen == ["a"]  # which a function in another process could not have filled
    assert scores(lambda completion, *_: seen.append(completion) or 1, "b") == [1.0]
    assert seen == ["a"]


def test_the_strict_reward_runs_in_this_process_and_its_own_errors_count():
    rewards = Rewards({"call": RewardTerm(FunctionCallReward())})
    assert isinstance(rewards.functions["call"], FunctionCallReward)
    inputs = [("<think>none</think>\n\n[]", "[]", "[]")] * 9 + [("x", "[]", "not JSON")]
    assert [answer.value for answer in rewards(inputs)["call"]] == [1.0] * 9 + [None]


def test_what_the_module_s_own_reward_says_is_not_asked_again(monkeypatch):
    own, lenient = FunctionCallReward(), FunctionCallReward(no_call="text")
    terms = {"own": RewardTerm(own), "same": RewardTerm(FunctionCallReward()), "lenient": RewardTerm(lenient)}
    rewards = Rewards(terms, own=own)
    inputs = [("<think>none</think>\n\nNo tool fits.", "[]", "[]")]
    asked = []
    original = FunctionCallReward.__call__
    monkeypatch.setattr(FunctionCallReward, "__call__", lambda self, *row: asked.append(self) or original(self, *row))
    got = rewards(inputs, [RewardResult(0.5, {})])  # 0.5 is a score that the reward itself never gives
    assert {name: column[0].value for name, column in got.items()} == {"own": 0.5, "same": 0.5, "lenient": 1.0}
    assert asked == [lenient]
    assert rewards(inputs)["own"][0].value == 0.0 and len(asked) == 4  # nobody has asked it before
    (unusable,) = rewards(inputs, [RewardResult(0.0, {"error": 1.0})])["own"]
    assert unusable.value is None and "unusable" in unusable.error


def test_weights_and_failures_in_the_sum():
    rewards = Rewards(
        {"length": RewardTerm(length, weight=0.5), "moody": RewardTerm(moody, weight=2.0)}, max_error_share=1
    )
    got = rewards([("abcd", *ROW), ("none", *ROW)])
    assert {name: [answer.value for answer in column] for name, column in got.items()} == {
        "length": [4.0, 4.0],
        "moody": [0.25, None],
    }
    assert rewards.total({"length": 4.0, "moody": 0.25}) == 2.5  # 0.5 * 4 + 2 * 0.25
    assert rewards.total({"length": 4.0, "moody": None}) is None
    unweighted = Rewards({"length": RewardTerm(length), "moody": RewardTerm(moody, weight=0.0)})
    assert unweighted.total({"length": 4.0, "moody": None}) == 4.0


@pytest.mark.parametrize("timeout", [10.0, None])
def test_nobody_is_asked_any_more_once_it_is_certain_that_the_run_will_be_stopped(timeout):
    completions = ["raise"] * 3 + ["a"] * 5
    assert scores(moody, *completions, share=0.375, timeout=timeout) == [None] * 3 + [0.25] * 5  # 3 of 8
    assert scores(moody, *completions, share=0.25, timeout=timeout, workers=1) == [None] * 8
    rewards = Rewards({"f": RewardTerm(moody)}, timeout, 0.25, 1)
    inputs = [(completion, *ROW) for completion in completions]
    # All may yet be well on the other ranks.
    values = [answer.value for answer in rewards(inputs, most_completions=16)["f"]]
    assert values == [None] * 3 + [0.25] * 5


def test_values():
    assert as_score(RewardResult(0.5, {"error": 0.0})) == 0.5
    with pytest.raises(ValueError, match="unusable"):
        as_score(RewardResult(0.0, {"error": 1.0}))
    for value in (None, "1", [1.0, 2.0], {"score": 1}, torch.tensor([0.5, 1.0])):
        with pytest.raises(TypeError, match=f"it returned {re.escape(repr(value))}, which is no number"):
            as_score(value)
    for value in (math.nan, -math.inf, 10**400):
        with pytest.raises(ValueError, match="it returned "):
            as_score(value)
    assert as_score(torch.tensor(0.5)) == 0.5 and as_score(True) == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"terms": {}}, "at least one"),
        ({"terms": {"mean": RewardTerm(length)}}, "mean"),  # reward/mean/mean beside reward/mean
        ({"terms": {"a/b": RewardTerm(length)}}, "slash"),
        ({"terms": {"a.function": length}}, r"\['a.function'\]: .* a dot .*--model.rewards.NAME my.function or "),
        ({"terms": {"a": RewardTerm(length)}, "timeout": 0}, "reward_timeout"),
        ({"terms": {"a": RewardTerm(length)}, "max_error_share": 2}, "max_reward_errors"),
        ({"terms": {"a": RewardTerm(length)}, "workers": 0}, "reward_workers"),
        ({"terms": {"a": RewardTerm(length, math.nan)}}, "Weights of model.rewards"),
        ({"terms": {"a": RewardTerm(length, -math.inf)}}, "Weights of model.rewards"),
    ],
)
def test_impossible_settings(options, words):
    with pytest.raises(ValueError, match=words):
        Rewards(**options)
